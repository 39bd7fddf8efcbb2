"""A round over Flower's processes on this machine is one in this process.

It runs where Flower is installed (extra agm[federated]), and takes most of a minute: a node starts a process a message.
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


def test_processes_on_this_machine(tmp_path):
    """A server process, two nodes that start one for every message, and a run: some seconds for each of them."""
    app, out, home = example(), tmp_path / "weights.pt", tmp_path / "home"
    home.mkdir()
    server, *nodes = free_ports(3)
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
    commands = [["flower-superlink", "--insecure", "--port", str(server), "--disable-runtime-dependency-installation"]]
    for part, port in enumerate(nodes):
        own = ["--port", str(port), "--node-config", f"part={part} parts=2"]
        commands.append(["flower-supernode", "--insecure", "--superlink", address, *own])
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    running = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
                )
        wait_for(server)
        command = ["flwr", "run", str(tmp_path / "app"), "local", "--stream", "-c", f'rounds=1 out="{out}"']
        found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert out.exists(), found.stdout + found.stderr + "".join(log.read_text() for log in logs)
    assert_same(torch.load(out, weights_only=True), in_one_process(app).weights)


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("The server did not start.")
