"""One step of the modulation on a backend, compared with the reference in float64."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from agm.ops import reference

from .samples import SCORE_TOLERANCE, STEP_TOLERANCE, Room, logits


class OnDevices:
    """Arguments of a step as a dataclass, whose tensors may go to another device."""

    def on(self, device: str) -> Self:
        """A copy on a device. Layouts are kept, the state is the copy's own."""
        here = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: value.to(device) for name, value in here.items()}
        own = {name: moved[name].clone() for name in ("values", "counts")}
        return replace(self, **{**moved, **own})  # type: ignore[type-var]


@dataclass
class Step(OnDevices):
    """The arguments of `modulate`."""

    masked_logits: Tensor  # (2**M - 1, B, C)
    target: Tensor  # (B,)
    values: Tensor  # (5, M)
    counts: Tensor  # (M + 4,)
    alpha: float = 1.1  # not a float32
    max_gap: float = 10.0
    floor: float = 1e-8
    ignore_index: int = -100
    update: bool = True

    def run(self, op: Any) -> Tensor:
        """Makes the step; returns the subset scales."""
        return op(*vars(self).values())


def step(modalities: int, batch: int, classes: int, dtype: torch.dtype, *, seed: int = 0, **settings: Any) -> Step:
    """Logits of a few units, every fourth target ignored, a state in the midst of a training."""
    masked = 2 * logits(2**modalities - 1, batch, classes, dtype=torch.float64, device="cpu", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch,), generator=generator)
    target[1::4] = settings.get("ignore_index", -100)
    values = torch.rand(5, modalities, generator=generator, dtype=torch.float64) + 1.5
    counts = torch.randint(1, 50, (modalities + 4,), generator=generator)
    return Step(masked.to(dtype), target, values, counts, **settings)


def _doubtful(response: Tensor, target: Tensor, tolerance: float) -> Tensor:
    """How many samples a rounding error can turn from a hit into a miss or back, by modality."""
    index = target.clamp(0, response.shape[-1] - 1).expand(response.shape[0], -1).unsqueeze(-1)
    own = response.gather(-1, index)
    rival = response.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    return ((own - rival).abs() < tolerance).sum((1, 2))


def check(room: Room, given: Step, *, tolerance: float | None = None) -> Step:
    """Runs the step in `room` and compares everything that it writes; returns the step after it."""
    op = room.op("modulate")
    made = given.on(room.device)
    masked_before = made.masked_logits.clone()
    scales = made.run(op).cpu()
    torch.testing.assert_close(made.masked_logits, masked_before, rtol=0, atol=0, equal_nan=True)

    wanted = given.on("cpu")
    wanted.masked_logits = wanted.masked_logits.double()
    wanted_scales = wanted.run(reference.modulate)
    made = made.on("cpu")
    if not given.update:
        assert torch.equal(made.values, given.values)
        assert torch.equal(made.counts, given.counts)
        updated = replace(given, update=True).on(room.device)
        assert torch.equal(updated.run(op).cpu(), scales)
        return made

    tolerance = SCORE_TOLERANCE[given.masked_logits.dtype] if tolerance is None else tolerance
    size = wanted.masked_logits.abs().nan_to_num(0, 0, 0).amax().item() if wanted.masked_logits.numel() else 0.0
    compare(made, wanted, given, reference.responses(wanted.masked_logits), tolerance, tolerance * (1 + size))
    if skipped(made, given):
        assert torch.equal(scales, wanted_scales)
    else:
        exact = {"rtol": STEP_TOLERANCE, "atol": STEP_TOLERANCE}
        torch.testing.assert_close(scales, reference.subset_scales(made.values[reference.COEFFICIENTS]), **exact)
    return made


def skipped(made: Any, given: Any) -> bool:
    at = given.values.shape[1] + reference.SKIPPED
    return bool(made.counts[at] > given.counts[at])


def compare(made: Any, wanted: Any, given: Any, response: Tensor, tolerance: float, doubt: float) -> None:
    """The state after a step `made` of `given`, and after the same step by the reference.

    Args:
        response: (M, B, C), the responses.
        tolerance: of the scores.
        doubt: how near to each other rounding may take two responses for one another.
    """
    exact = {"rtol": STEP_TOLERANCE, "atol": STEP_TOLERANCE, "equal_nan": True}
    modalities = given.values.shape[1]
    running, scores, ratios, reference_ratios, coefficients = made.values
    torch.testing.assert_close(scores, wanted.values[1], rtol=tolerance, atol=tolerance, equal_nan=True)
    assert torch.equal(made.counts[modalities:], wanted.counts[modalities:])
    off = (made.counts[:modalities] - wanted.counts[:modalities]).abs()
    assert (off <= _doubtful(response, given.target, doubt)).all()

    # The rest is float64 arithmetic on the scores, wherever they come from.
    torch.testing.assert_close(ratios, reference.discrepancy_ratios(scores), **exact)
    torch.testing.assert_close(reference_ratios, reference.discrepancy_ratios(given.values[0]), **exact)
    if skipped(wanted, given):
        assert torch.equal(running, given.values[0])
        assert torch.equal(coefficients, torch.ones(modalities, dtype=torch.float64))
        return
    kappa = (given.alpha * (reference_ratios - ratios).clamp(max=given.max_gap)).exp()
    torch.testing.assert_close(coefficients, kappa, **exact)
    t = made.counts[modalities + reference.STEP].item()
    torch.testing.assert_close(running, given.values[0] * (t - 1) / t + scores / t, **exact)
