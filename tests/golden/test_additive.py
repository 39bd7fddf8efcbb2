"""The recorded runs of linear heads on concatenated features, replayed without any masked pass through the head.

Tolerances as in test_golden.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.ops._backends import BACKENDS

from .conftest import Recording


@pytest.fixture(params=["two_late", "three_late", "two_saturated"])
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


def _logits(network: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The joint logits of the network in train mode; what each modality adds in eval mode, present and absent."""
    joint = network(**inputs)
    three = hasattr(network, "head")
    encoders = [getattr(network, f"{name}_{'encoder' if three else 'net'}") for name in inputs]
    head = network.head.fc if three else network.fusion_module.fc_out
    weights = head.weight.chunk(len(inputs), 1)  # encoders of one width
    network.eval()
    present = [F.linear(enc(x), w) for enc, x, w in zip(encoders, inputs.values(), weights, strict=True)]
    absent = [
        F.linear(enc(torch.zeros_like(x[:1])), w) for enc, x, w in zip(encoders, inputs.values(), weights, strict=True)
    ]
    network.train()
    return joint, present, absent


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_run(recording: Any, backend: str, dtype: torch.dtype) -> None:
    if (reason := BACKENDS[backend].why_not("modulate_additive", "cpu")) is not None:
        pytest.skip(f"{backend}: {reason}")
    network = recording.network().to(dtype)
    tolerance = 4e-5 if recording.tolerance > 1e-6 and dtype == torch.float32 else recording.tolerance
    state = agm.ModulationState(len(recording.modalities))
    optimizer = torch.optim.SGD(network.parameters(), lr=recording.lr)
    for step in range(recording.steps):
        optimizer.zero_grad()
        target = recording.target(step)
        joint, present, absent = _logits(network, recording.inputs(step, dtype))
        logits = agm.fused_modulate_additive(
            present,
            absent,
            target,
            state,
            joint_logits=joint,
            alpha=recording.alpha,
            max_gap=recording.max_gap,
            backend=backend,
        )
        np.testing.assert_allclose(logits.detach(), recording.masked_logits(step)[-1], rtol=1e-5, atol=10 * tolerance)
        F.cross_entropy(logits, target).backward()
        recorded = recording.tensors(f"grad{step}.")
        parameters = dict(network.named_parameters())
        assert recorded.keys() == parameters.keys()
        for name, gradient in recorded.items():
            np.testing.assert_allclose(
                parameters[name].grad, gradient, rtol=0, atol=tolerance, err_msg=f"step {step}, {name}"
            )
        rtol = 2e-5 if recording.tolerance > 1e-6 else 1e-5
        np.testing.assert_allclose(state.coefficients, recording.arrays["kappa"][step], rtol=rtol, atol=0)
        optimizer.step()
    final = recording.tensors("final.")
    assert final.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        np.testing.assert_allclose(value, final[name], rtol=1e-5, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(state.running_scores, recording.arrays["final_running"], rtol=1e-5, atol=0)
