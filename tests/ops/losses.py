"""One step together with the cross-entropy on a backend, compared with the reference in float64."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from agm.ops import reference

from .samples import Room, logits
from .steps import Step, step

# The loss is a mean of costs, which are as exact as the scores; the gradient of a sample is at most a few units, from
# probabilities whose exponent is rounded in float32.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
# Storing a gradient in its own dtype.
ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass
class Loss:
    """A step, the settings of its loss, and the gradients that come back to it."""

    step: Step
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    grad_loss: Tensor = field(default_factory=lambda: torch.tensor(1.7, dtype=torch.float64))
    grad_logits: Tensor | None = None

    def on(self, device: str) -> "Loss":
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        moved = {name: move(getattr(self, name)) for name in ("weight", "grad_loss", "grad_logits")}
        return replace(self, step=self.step.on(device), **moved)  # type: ignore[arg-type]

    @property
    def wide(self) -> torch.dtype:
        return reference.accumulation_dtype(self.step.masked_logits.dtype)

    def forward_arguments(self) -> tuple[Any, ...]:
        own = self.step
        tensors = (own.masked_logits, own.target, own.values, own.counts)
        weight = None if self.weight is None else self.weight.to(self.wide)
        settings = (own.alpha, own.max_gap, own.floor, own.ignore_index, self.label_smoothing, own.update)
        return *tensors, weight, *settings

    def backward_arguments(self, normalizer: Tensor, sums: Tensor, scales: Tensor) -> tuple[Any, ...]:
        own = self.step
        weight = None if self.weight is None else self.weight.to(self.wide)
        inputs = (self.grad_loss.to(self.wide), self.grad_logits, own.masked_logits[-1], own.target, weight)
        return *inputs, normalizer, sums, scales, own.ignore_index, self.label_smoothing


def loss_of(
    modalities: int,
    batch: int,
    classes: int,
    dtype: torch.dtype,
    *,
    weighted: bool = False,
    label_smoothing: float = 0.0,
    grad_logits: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Loss:
    weight = logits(classes, dtype=torch.float64, device="cpu", seed=seed + 1).abs() + 0.1 if weighted else None
    grad = logits(batch, classes, dtype=dtype, device="cpu", seed=seed + 2) if grad_logits else None
    own = step(modalities, batch, classes, dtype, seed=seed, **settings)
    return Loss(own, weight, label_smoothing, grad_logits=grad)


def check_loss(room: Room, given: Loss, *, tolerance: float | None = None) -> None:
    """Runs forward and backward in `room`; all but what `modulate` does is compared here."""
    dtype = given.step.masked_logits.dtype
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    made = given.on(room.device)
    mean, scales, normalizer, sums = room.op("modulate_cross_entropy")(*made.forward_arguments())
    assert mean.shape == ()
    assert mean.dtype == normalizer.dtype == given.wide

    wanted = given.on("cpu")
    wanted.step.masked_logits = wanted.step.masked_logits.double()
    wanted.grad_logits = None if wanted.grad_logits is None else wanted.grad_logits.double()
    wanted_mean, _, wanted_normalizer, wanted_sums = reference.modulate_cross_entropy(*wanted.forward_arguments())
    torch.testing.assert_close(mean.cpu().double(), wanted_mean, **close)
    torch.testing.assert_close(normalizer.cpu().double(), wanted_normalizer, **close)
    torch.testing.assert_close(sums.cpu(), wanted_sums, rtol=1e-6, atol=0, equal_nan=True)

    # What follows is a function of the scales, which another test compares; so each backend gets its own.
    result = room.op("modulate_cross_entropy_backward")(*made.backward_arguments(normalizer, sums, scales))
    assert result.dtype == dtype
    assert result.is_contiguous()
    expected = reference.modulate_cross_entropy_backward(
        *wanted.backward_arguments(wanted_normalizer, wanted_sums, scales.cpu())
    )
    off = tolerance * (1 + scales.abs().max().item())
    rounding = ROUNDING[dtype] + room.rounding(dtype)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=off + rounding, atol=off, equal_nan=True)
