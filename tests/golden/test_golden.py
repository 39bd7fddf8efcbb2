"""Replays the authors' published training loops, recorded step by step, against agm.

The files pin down what AGM computes to float32 rounding. `masked_logits` has 2**M rows, the first for the empty
subset, which takes no part. The tolerances are what float32 rounding leaves: coefficients 1e-5 relative; gradients
1e-6 absolute, 2e-5 in `two_saturated`, whose gradients reach 56 and whose recording itself is 1.7e-5 away from the same
run in float64. Another float32 run rounds as much again, so there float32 is allowed the sum of both.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

_FOLDER = Path(__file__).parent


def _encoder(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.ReLU())


class _Head(nn.Module):
    def __init__(self, inputs: int, classes: int, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.Linear(inputs, classes))

    def forward(self, features: Tensor) -> Tensor:
        return getattr(self, self.name)(features)


class _TwoLate(nn.Module):
    def __init__(self, audio: int, visual: int, classes: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = _encoder(audio), _encoder(visual)
        self.fusion_module = _Head(12, classes, "fc_out")

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fusion_module(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


class _TwoEarly(nn.Module):
    def __init__(self, audio: int, visual: int, classes: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = _encoder(audio), _encoder(visual)
        self.mm = _encoder(12)
        self.head = _Head(6, classes, "fc")

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.mm(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)))


class _ThreeLate(nn.Module):
    def __init__(self, audio: int, visual: int, text: int, classes: int) -> None:
        super().__init__()
        self.audio_encoder, self.visual_encoder, self.text_encoder = _encoder(audio), _encoder(visual), _encoder(text)
        self.head = _Head(18, classes, "fc")

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        features = [self.audio_encoder(audio), self.visual_encoder(visual), self.text_encoder(text)]
        return self.head(torch.cat(features, 1))


# file -> network, modalities in bit order, max_gap, tolerance of gradients
_FILES = {
    "two_late": (_TwoLate, ("audio", "visual"), 10.0, 1e-6),
    "two_early": (_TwoEarly, ("audio", "visual"), 10.0, 1e-6),
    "two_saturated": (_TwoLate, ("audio", "visual"), 10.0, 2e-5),
    "three_late": (_ThreeLate, ("audio", "visual", "text"), 7.0, 1e-6),
}


class Recording:
    def __init__(self, name: str) -> None:
        self.arrays = dict(np.load(_FOLDER / f"{name}.npz"))
        self.kind, self.modalities, self.max_gap, self.tolerance = _FILES[name]
        self.steps = len(self.arrays["target"])
        self.alpha, self.lr = float(self.arrays["alpha"]), float(self.arrays["lr"])

    def target(self, step: int) -> Tensor:
        return torch.from_numpy(self.arrays["target"][step])

    def inputs(self, step: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: torch.from_numpy(self.arrays[name][step]).to(dtype) for name in self.modalities}

    def masked_logits(self, step: int) -> Tensor:
        return torch.from_numpy(self.arrays["masked_logits"][step][1:])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}

    def network(self) -> nn.Module:
        widths = {name: self.arrays[name].shape[-1] for name in self.modalities}
        network = self.kind(**widths, classes=self.arrays["masked_logits"].shape[-1])
        network.load_state_dict(self.tensors("init."))
        return network


@pytest.fixture(params=list(_FILES))
def recording(request: pytest.FixtureRequest) -> Recording:
    return Recording(request.param)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_coefficients_and_running_scores(recording: Recording, backend: str) -> None:
    if backend == "cpp" and any(
        s.op == "modulate" and "cpp" in s.unavailable for s in agm.backends() if s.device == "cpu"
    ):
        pytest.skip("agm._C is not built")
    state = agm.ModulationState(len(recording.modalities))
    for step in range(recording.steps):
        agm.fused_modulate(
            recording.masked_logits(step),
            recording.target(step),
            state,
            alpha=recording.alpha,
            max_gap=recording.max_gap,
            backend=backend,
        )
        np.testing.assert_allclose(state.coefficients, recording.arrays["kappa"][step], rtol=1e-5, atol=0)
    np.testing.assert_allclose(state.running_scores, recording.arrays["final_running"], rtol=1e-6, atol=0)
    assert state.step.item() == recording.steps
    assert state.skipped.item() == 0


@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_run(recording: Recording, factorised: bool, dtype: torch.dtype) -> None:
    network = recording.network().to(dtype)
    tolerance = 4e-5 if recording.tolerance > 1e-6 and dtype == torch.float32 else recording.tolerance
    suffix = "encoder" if len(recording.modalities) == 3 else "net"
    model = agm.AGM(
        network,
        modalities=recording.modalities,
        alpha=recording.alpha,
        max_gap=recording.max_gap,
        encoders={name: f"{name}_{suffix}" for name in recording.modalities} if factorised else None,
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
