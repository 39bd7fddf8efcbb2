"""The benchmarks' rivals that claim to compute AGM do, or their time would mean nothing."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


rivals = _load_rivals()


def _rival(kind: str, recording: Any, network: torch.nn.Module) -> Any:
    arguments = network, recording.modalities, recording.alpha, recording.max_gap
    if kind == "Compiled":
        # The graph that a compiler is given, without compiling it; the benchmarks compare the compiled numbers.
        torch.compiler.reset()
        return rivals.Compiled(*arguments, backend="eager")
    return getattr(rivals, kind)(*arguments)


@pytest.mark.parametrize("kind", ["Sequential", "Vectorised", "Compiled"])
def test_rivals_replay_the_recorded_runs(recording: Any, kind: str) -> None:
    network = recording.network()
    rival = _rival(kind, recording, network)
    optimizer = torch.optim.SGD(network.parameters(), lr=recording.lr)
    for step in range(recording.steps):
        optimizer.zero_grad()
        target = recording.target(step)
        F.cross_entropy(rival(target, **recording.inputs(step, torch.float32)), target).backward()
        # As in test_golden.py: the exponent of the saturated run carries the rounding of the logits.
        rtol = 2e-5 if recording.tolerance > 1e-6 else 1e-5
        np.testing.assert_allclose(rival.coefficients, recording.arrays["kappa"][step], rtol=rtol, atol=0)
        for name, parameter in network.named_parameters():
            expected = recording.tensors(f"grad{step}.")[name]
            np.testing.assert_allclose(parameter.grad, expected, rtol=0, atol=2 * recording.tolerance, err_msg=name)
        optimizer.step()


@pytest.mark.parametrize("recording", ["two_late"], indirect=True)
def test_parameter_scaling_is_something_else(recording: Any) -> None:
    """The gradients of the joint loss times the coefficient of the modality in the parameter's name."""
    network = recording.network()
    rival = rivals.ParameterScaling(network, recording.modalities, recording.alpha, recording.max_gap)
    inputs, target = recording.inputs(0, torch.float32), recording.target(0)
    joint = recording.network()
    F.cross_entropy(joint(**inputs), target).backward()
    F.cross_entropy(rival(target, **inputs), target).backward()
    np.testing.assert_allclose(rival.coefficients, recording.arrays["kappa"][0], rtol=2e-5, atol=0)
    rival.scale()
    recorded = recording.tensors("grad0.")
    plain = dict(joint.named_parameters())
    for name, parameter in network.named_parameters():
        (kappa,) = [k for m, k in zip(rival.modalities, rival.coefficients, strict=True) if m in name] or [1.0]
        torch.testing.assert_close(parameter.grad, plain[name].grad * float(kappa), rtol=1e-5, atol=1e-7)
    first = next(name for name in recorded if name.startswith("audio_net"))
    assert not torch.allclose(dict(network.named_parameters())[first].grad, recorded[first], rtol=1e-3, atol=1e-6)
