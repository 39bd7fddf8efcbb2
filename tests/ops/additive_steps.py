"""One step of the modulation of an additive fusion, compared with the reference in float64."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agm.ops import reference
from agm.ops.reference.modulate_additive import additive_scales

from .samples import SCORE_TOLERANCE, STEP_TOLERANCE, Room, logits
from .steps import OnDevices, Step, compare, skipped

PARTS = ("present", "absent", "bias", "joint_logits")


@dataclass
class AdditiveStep(OnDevices):
    """The arguments of `modulate_additive`."""

    present: Tensor  # (M, B, C)
    absent: Tensor  # (M, C)
    bias: Tensor | None  # (C,)
    joint_logits: Tensor | None  # (B, C)
    target: Tensor  # (B,)
    values: Tensor  # (5, M)
    counts: Tensor  # (M + 4,)
    alpha: float = 1.1  # not a float32
    max_gap: float = 10.0
    floor: float = 1e-8
    ignore_index: int = -100
    update: bool = True

    def map(self, change: Any) -> "AdditiveStep":
        """With `change` applied to every input that holds logits."""
        parts = {name: getattr(self, name) for name in PARTS}
        return replace(self, **{name: None if part is None else change(part) for name, part in parts.items()})

    def run(self, op: Any) -> tuple[Tensor, Tensor]:
        """Makes the step; returns the joint logits and the scales."""
        return op(*vars(self).values())  # type: ignore[no-any-return]

    def expanded(self) -> Step:
        """The same step from the masked logits of every subset, in float64."""
        wide = self.map(Tensor.double)
        rows = []
        for subset in range(1, 2 ** len(wide.present)):
            row = torch.zeros_like(wide.present[0]) if wide.bias is None else wide.bias.expand_as(wide.present[0])
            for m in range(len(wide.present)):
                row = row + (wide.present[m] if subset >> m & 1 else wide.absent[m])
            rows.append(row)
        if wide.joint_logits is not None:
            rows[-1] = wide.joint_logits
        shared = {name: value for name, value in vars(self).items() if name not in PARTS}
        return Step(torch.stack(rows), **shared)


def additive_step(
    modalities: int, batch: int, classes: int, dtype: torch.dtype, form: str = "bias", *, seed: int = 0, **settings: Any
) -> AdditiveStep:
    """Parts of a unit or two, every fourth target ignored, a state in the midst of a training.

    form: "bias", "no bias", or "joint" for joint logits that are given.
    """
    present = 1.5 * logits(modalities, batch, classes, dtype=torch.float64, device="cpu", seed=seed)
    absent = logits(modalities, classes, dtype=torch.float64, device="cpu", seed=seed + 1000).to(dtype)
    bias = logits(classes, dtype=torch.float64, device="cpu", seed=seed + 2000).to(dtype) if form == "bias" else None
    joint = None
    if form == "joint":
        joint = (present.sum(0) + logits(batch, classes, dtype=torch.float64, device="cpu", seed=seed + 3000)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch,), generator=generator)
    target[1::4] = settings.get("ignore_index", -100)
    values = torch.rand(5, modalities, generator=generator, dtype=torch.float64) + 1.5
    counts = torch.randint(1, 50, (modalities + 4,), generator=generator)
    return AdditiveStep(present.to(dtype), absent, bias, joint, target, values, counts, **settings)


def check(room: Room, given: AdditiveStep, *, tolerance: float | None = None) -> AdditiveStep:
    """Runs the step in `room` and compares everything that it writes; returns the step after it."""
    op = room.op("modulate_additive")
    made = given.on(room.device)
    joint, scales = (result.cpu() for result in made.run(op))
    for name in PARTS:
        if (part := getattr(given, name)) is not None:
            torch.testing.assert_close(getattr(made, name).cpu(), part, rtol=0, atol=0, equal_nan=True)

    wanted = given.on("cpu").map(Tensor.double)
    wanted_joint, wanted_scales = wanted.run(reference.modulate_additive)
    dtype = given.present.dtype
    assert joint.dtype == dtype
    size = given.present.abs().nan_to_num(0, 0, 0).amax().item() if given.present.numel() else 0.0
    once = max(torch.finfo(dtype).eps, room.rounding(dtype))
    summed = 32 * torch.finfo(reference.accumulation_dtype(dtype)).eps * size
    torch.testing.assert_close(joint.double(), wanted_joint, rtol=once, atol=summed, equal_nan=True)
    if not given.update:
        assert torch.equal(made.values.cpu(), given.values)
        assert torch.equal(made.counts.cpu(), given.counts)
        updated = replace(given, update=True).on(room.device)
        assert torch.equal(updated.run(op)[1].cpu(), scales)
        return made.on("cpu")

    made = made.on("cpu")
    tolerance = SCORE_TOLERANCE[dtype] if tolerance is None else tolerance
    response = reference.additive_responses(
        wanted.present, wanted.absent, wanted_joint if given.joint_logits is None else wanted.joint_logits
    )
    compare(made, wanted, given, response, tolerance, tolerance * (1 + size))
    if skipped(made, given):
        assert torch.equal(scales, wanted_scales)
    else:
        kappa = made.values[reference.COEFFICIENTS]
        expected = additive_scales(kappa, given.joint_logits is not None)
        torch.testing.assert_close(scales, expected, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)
    return made
