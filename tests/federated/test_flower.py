"""A round over Flower's processes on this machine is one in this process.

It runs where Flower is installed (extra agm-torch[federated]), and takes most of a minute: a node starts a process a
message.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agm.federated import Federation, LocalClients

pytest.importorskip("flwr")

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated"


def example():
    path = EXAMPLE / "federated_digits" / "app.py"
    spec = importlib.util.spec_from_file_location("federated_digits_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_one_process(app) -> Federation:
    clients = LocalClients([app.client_of(part, 2) for part in range(2)])
    federation = Federation(app.network().state_dict(), clients, count=2)
    federation.round()
    return federation


def assert_same(weights, expected) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run(tmp_path, supernodes: list[list[str]], superlink: list[str], *words: str) -> dict[str, torch.Tensor]:
    """The weights after a round of the example, over a server process with these options and these nodes."""
    out, home = tmp_path / "weights.pt", tmp_path / "home"
    home.mkdir()
    server, *nodes = free_ports(1 + len(supernodes))
    (home / "config.toml").write_text(f'[superlink.local]\naddress = "127.0.0.1:{server}"\ninsecure = true\n')
    shutil.copytree(EXAMPLE, tmp_path / "app")
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    address = f"127.0.0.1:{server}"
    commands = [["flower-superlink", "--insecure", "--port", str(server), *superlink]]
    for port, own in zip(nodes, supernodes, strict=True):
        commands.append(["flower-supernode", "--insecure", "--superlink", address, "--port", str(port), *own])
    logs = [tmp_path / f"{number}.log" for number in range(len(commands))]
    running = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
                )
        wait_for(server)
        command = ["flwr", "run", str(tmp_path / "app"), "local", "--stream", "-c", f'rounds=1 out="{out}"', *words]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert out.exists(), found.stdout + found.stderr + "".join(log.read_text() for log in logs)
    return torch.load(out, weights_only=True)


def test_processes_on_this_machine(tmp_path):
    """A server process, two nodes that start one for every message, and a run: some seconds for each of them."""
    nodes = [["--node-config", f"partition-id={part} num-partitions=2"] for part in range(2)]
    found = run(tmp_path, nodes, ["--disable-runtime-dependency-installation"])
    assert_same(found, in_one_process(example()).weights)


def test_simulated_nodes(tmp_path):
    """Flower's simulation of two nodes, which needs ray: half a minute."""
    pytest.importorskip("ray")
    superlink = ["--simulation", "--disable-runtime-dependency-installation"]
    found = run(tmp_path, [], superlink, "--federation-config", "num-supernodes=2")
    assert_same(found, in_one_process(example()).weights)


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("The server did not start.")
