"""Replays the authors' published training loops, recorded step by step, against agm.

The files pin down what AGM computes to float32 rounding. `masked_logits` has 2**M rows, the first for the empty
subset, which takes no part. The tolerances are what float32 rounding leaves: coefficients 1e-5 relative; gradients
1e-6 absolute, 2e-5 in `two_saturated`, whose gradients reach 56 and whose recording itself is 1.7e-5 away from the same
run in float64. Another float32 run rounds as much again, so there float32 is allowed the sum of both.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import agm
from agm.ops._backends import BACKENDS

from ..ops.building import EMULATED
from ..ops.samples import Room


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize("function", [agm.fused_modulate, agm.fused_modulate_cross_entropy])
def test_coefficients_and_running_scores(recording: Any, function: Any, backend: str) -> None:
    if (reason := BACKENDS[backend].why_not("modulate", "cpu")) is not None:
        pytest.skip(f"{backend}: {reason}")
    state = agm.ModulationState(len(recording.modalities))
    for step in range(recording.steps):
        result = function(
            recording.masked_logits(step),
            recording.target(step),
            state,
            alpha=recording.alpha,
            max_gap=recording.max_gap,
            backend=backend,
        )
        if function is agm.fused_modulate_cross_entropy:
            expected = F.cross_entropy(recording.masked_logits(step)[-1], recording.target(step))
            np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=0)
        np.testing.assert_allclose(state.coefficients, recording.arrays["kappa"][step], rtol=1e-5, atol=0)
    np.testing.assert_allclose(state.running_scores, recording.arrays["final_running"], rtol=1e-6, atol=0)
    assert state.step.item() == recording.steps
    assert state.skipped.item() == 0


@pytest.mark.slow  # compiles them
@pytest.mark.parametrize("room", [Room("cuda", "cpu", EMULATED)], ids=["cuda-cpu"])
@pytest.mark.parametrize("op", ["modulate", "modulate_cross_entropy"])
def test_coefficients_and_running_scores_of_emulated_kernels(recording: Any, room: Room, op: str) -> None:
    kernel, loss = room.op(op), op == "modulate_cross_entropy"
    state = agm.ModulationState(len(recording.modalities))
    for step in range(recording.steps):
        given = recording.masked_logits(step), recording.target(step), state.values, state.counts
        settings = recording.alpha, recording.max_gap, 1e-8, -100
        result = kernel(*given, *([None] * loss), *settings, *([0.0] * loss), True)
        if loss:
            expected = F.cross_entropy(given[0][-1], given[1])
            np.testing.assert_allclose(result[0], expected, rtol=1e-5, atol=0)
        np.testing.assert_allclose(state.coefficients, recording.arrays["kappa"][step], rtol=1e-5, atol=0)
    np.testing.assert_allclose(state.running_scores, recording.arrays["final_running"], rtol=1e-6, atol=0)
    assert state.step.item() == recording.steps
    assert state.skipped.item() == 0


@pytest.mark.parametrize("how", ["whole", "by path", "one pass", "two passes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_run(recording: Any, how: str, dtype: torch.dtype) -> None:
    network = recording.network().to(dtype)
    tolerance = 4e-5 if recording.tolerance > 1e-6 and dtype == torch.float32 else recording.tolerance
    passes = how.removesuffix(" pass").removesuffix(" passes") if "pass" in how else "auto"
    model = agm.AGM(
        recording.factorised(network) if passes != "auto" else network,
        modalities=recording.modalities,
        alpha=recording.alpha,
        max_gap=recording.max_gap,
        encoders=recording.encoders() if how == "by path" else None,
        passes=passes,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=recording.lr)
    for step in range(recording.steps):
        optimizer.zero_grad()
        logits = model(**recording.inputs(step, dtype), target=recording.target(step))
        np.testing.assert_allclose(logits.detach(), recording.masked_logits(step)[-1], rtol=1e-5, atol=10 * tolerance)
        F.cross_entropy(logits, recording.target(step)).backward()
        recorded = recording.tensors(f"grad{step}.")
        parameters = dict(network.named_parameters())
        assert recorded.keys() == parameters.keys()
        for name, gradient in recorded.items():
            np.testing.assert_allclose(
                parameters[name].grad, gradient, rtol=0, atol=tolerance, err_msg=f"step {step}, {name}"
            )
        # Down to 2e-9 in two_saturated: the exponent, -20, carries the recording's rounding of the logits.
        rtol = 2e-5 if recording.tolerance > 1e-6 else 1e-5
        np.testing.assert_allclose(
            model.modulator.state.coefficients, recording.arrays["kappa"][step], rtol=rtol, atol=0
        )
        optimizer.step()
    final = recording.tensors("final.")
    assert final.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        np.testing.assert_allclose(value, final[name], rtol=1e-5, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(
        model.modulator.state.running_scores, recording.arrays["final_running"], rtol=1e-5, atol=0
    )
