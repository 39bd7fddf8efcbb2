"""The benchmarks' rival computes AGM, or its time would mean nothing."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def _load_rivals() -> Any:
    path = Path(__file__).parents[2] / "bench" / "rivals.py"
    spec = importlib.util.spec_from_file_location("rivals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sequential_replays_the_recorded_runs(recording: Any) -> None:
    network = recording.network()
    rival = _load_rivals().Sequential(network, recording.modalities, recording.alpha, recording.max_gap)
    optimizer = torch.optim.SGD(network.parameters(), lr=recording.lr)
    for step in range(recording.steps):
        optimizer.zero_grad()
        target = recording.target(step)
        F.cross_entropy(rival(target, **recording.inputs(step, torch.float32)), target).backward()
        np.testing.assert_allclose(rival.coefficients, recording.arrays["kappa"][step], rtol=1e-5, atol=0)
        for name, parameter in network.named_parameters():
            expected = recording.tensors(f"grad{step}.")[name]
            np.testing.assert_allclose(parameter.grad, expected, rtol=0, atol=2 * recording.tolerance, err_msg=name)
        optimizer.step()
