"""What adds up over many steps: memory, rounding, threads, streams, and processes that start others."""

import gc
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import agm

STEPS = int(os.environ.get("AGM_TEST_STEPS", "8000"))  # AGM_TEST_STEPS=100000 takes a minute


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory of the process from Linux")
def test_many_steps_leave_no_memory_and_an_exact_mean() -> None:
    state = agm.ModulationState(2)
    torch.manual_seed(0)
    target = torch.randint(5, (4,))
    batches = [2 * torch.randn(3, 4, 5) for _ in range(97)]
    scores: list[list[float]] = [[], []]

    def steps(count: int) -> None:
        for step in range(count):
            masked = batches[step % 97].requires_grad_()
            agm.fused_modulate(masked, target, state, alpha=1.5).backward(masked[-1].detach())
            masked.grad = None
            for mine, value in zip(scores, state.scores.tolist(), strict=True):
                mine.append(value)

    steps(1000)
    gc.collect()
    tensors, before = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()), resident_bytes()
    steps(STEPS - 1000)
    gc.collect()
    grown = resident_bytes() - before
    # Fewer, if what other tests have left was collected meanwhile.
    assert sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()) <= tensors
    # The list of scores itself takes 2 * (24 + 8) bytes a step.
    assert grown < 64 * STEPS + 2**21
    assert state.step == STEPS
    for found, mine in zip(state.running_scores.tolist(), scores, strict=True):
        assert found == pytest.approx(math.fsum(mine) / STEPS, rel=1e-12, abs=0)


def test_a_running_score_is_the_mean_however_the_scores_spread() -> None:
    """Steps whose scores differ by ten orders of magnitude."""
    state = agm.ModulationState(2)
    torch.manual_seed(0)
    target = torch.randint(5, (4,))
    scores = []
    for step in range(2000):
        agm.fused_modulate(torch.randn(3, 4, 5) * 10.0 ** (step % 3 - 1), target, state, floor=0.0, alpha=0.0)
        scores.append(state.scores.tolist())
    for found, mine in zip(state.running_scores.tolist(), zip(*scores, strict=True), strict=True):
        assert found == pytest.approx(math.fsum(mine) / 2000, rel=1e-12, abs=0)


def test_threads_beside_the_training_do_no_harm() -> None:
    """Loaders collate in threads of their own, and others train other models."""

    def train(seed: int, steps: int = 300) -> torch.Tensor:
        state, random = agm.ModulationState(2), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            masked = torch.randn(3, 8, 5, generator=random).requires_grad_()
            agm.fused_modulate(masked, torch.randint(5, (8,), generator=random), state, alpha=1.5).sum().backward()
        return state.values.clone()

    expected = [train(seed) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: train(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


WORKERS = """
import multiprocessing
import torch
import agm

def work(queue):
    state = agm.ModulationState(2)
    agm.fused_modulate(torch.zeros(3, 2, 4), torch.zeros(2, dtype=torch.int64), state)
    queue.put(state.scores[0].item())

if __name__ == "__main__":
    work(multiprocessing.SimpleQueue())  # the parent has used the library itself
    for method in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        worker = context.Process(target=work, args=(queue,))
        worker.start()
        worker.join()
        print(method, queue.get(), worker.exitcode)
"""


def test_forked_and_spawned_workers_use_the_package(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(WORKERS)
    found = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    methods = {method: (float(score), code) for method, score, code in map(str.split, found.stdout.splitlines())}
    assert "spawn" in methods
    for score, code in methods.values():
        assert score == pytest.approx(math.log(4), rel=1e-6)
        assert code == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stream_of_ones_own() -> None:
    """Every launch goes to the current stream: nothing is read before it is written."""
    torch.manual_seed(0)
    host, target = torch.randn(3, 4096, 300), torch.randint(300, (4096,))
    expected, state = agm.ModulationState(2), agm.ModulationState(2, "cuda")
    stream = torch.cuda.Stream()
    for _ in range(5):
        agm.fused_modulate(host, target, expected, alpha=1.5)
        with torch.cuda.stream(stream):
            masked = host.pin_memory().cuda(non_blocking=True).requires_grad_()
            logits = agm.fused_modulate(masked, target.cuda(), state, alpha=1.5)
            logits.sum().backward()
    stream.synchronize()
    torch.testing.assert_close(state.values.cpu(), expected.values, rtol=1e-5, atol=1e-7)
