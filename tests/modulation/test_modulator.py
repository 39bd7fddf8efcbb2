import math

import pytest
import torch

import agm

MASKED = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])


def gradient(modulator: agm.Modulator, scale: float = 1.0) -> torch.Tensor:
    masked = (MASKED * scale).requires_grad_()
    modulator(masked, TARGET).sum().backward()
    assert masked.grad is not None
    return masked.grad


def test_is_fused_modulate() -> None:
    modulator = agm.Modulator(("a", "b"), alpha=3.0, max_gap=5.0, floor=1e-3)
    state = agm.ModulationState(2)
    for _ in range(2):
        masked = MASKED.clone().requires_grad_()
        agm.fused_modulate(masked, TARGET, state, alpha=3.0, max_gap=5.0, floor=1e-3).sum().backward()
        assert torch.equal(gradient(modulator), masked.grad)
    assert torch.equal(modulator.state.values, state.values)


def test_window_of_epochs() -> None:
    modulator = agm.Modulator(("a", "b"), alpha=3.0, start=1, stop=3)
    modulated = []
    for epoch in range(5):
        modulator.epoch = epoch
        modulated.append(bool(gradient(modulator, scale=1.0 + epoch)[:-1].any()))
    assert modulated == [False, True, True, False, False]
    assert modulator.state.step.item() == 2


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_plain_outside_training(how: str) -> None:
    modulator = agm.Modulator(("a", "b"))
    if how == "eval":
        modulator.eval()
        logits = modulator(MASKED)
    else:
        with torch.no_grad():
            logits = modulator(MASKED)
    assert torch.equal(logits, MASKED[-1])
    assert modulator.state.step.item() == 0


def test_report() -> None:
    modulator = agm.Modulator(("audio", "visual"), alpha=2.0)
    assert math.isnan(modulator.report()["audio"]["accuracy"])
    modulator(MASKED, TARGET)
    report = modulator.report()
    assert list(report) == ["audio", "visual"]
    phi = (MASKED[2] - MASKED[1] + MASKED[0]) / 2
    assert report["audio"]["accuracy"] == pytest.approx((phi.argmax(-1) == TARGET).double().mean().item())
    assert report["audio"]["score"] == pytest.approx(torch.nn.functional.cross_entropy(phi, TARGET).item())
    assert report["visual"]["coefficient"] == pytest.approx(modulator.state.coefficients[1].item())


@pytest.mark.parametrize(
    "wrong",
    [
        {"modalities": ("a",)},
        {"modalities": ("a", "a")},
        {"modalities": "ab"},
        {"modalities": ("a", 3)},
        {"modalities": ("a", "target")},
        {"alpha": -1},
        {"max_gap": -2},
        {"floor": 2},
        {"start": -1},
        {"start": 3, "stop": 2},
    ],
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        agm.Modulator(**({"modalities": ("a", "b")} | wrong))  # type: ignore[arg-type]


def test_target_is_needed_in_training() -> None:
    with pytest.raises(ValueError, match="`target`"):
        agm.Modulator(("a", "b"))(MASKED)
