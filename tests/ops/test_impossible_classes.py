"""Logits of -inf, which say that a sample cannot have a class, and logits that hardly fit their type."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .additive_steps import AdditiveStep, additive_step
from .additive_steps import check as check_additive
from .losses import check_loss, loss_of
from .samples import DTYPES, Room
from .steps import Step, check, step

INF = torch.inf
# Which rows of the masked logits say so.
ROWS = {"every subset": slice(None), "one subset": slice(0, 1), "the joint logits": slice(-1, None)}
SHAPES = ((2, 6, 11), (3, 5, 40), (2, 3, 2100))


def scores_without(logits: Tensor, target: Tensor, gone: Tensor, floor: float, ignore_index: int) -> Tensor:
    """The scores (M,) of masked logits (R, B, C) float64, each sample without the classes (B, C) that are gone."""
    total = torch.zeros(reference.responses(logits[:, :1]).shape[0], dtype=torch.float64)
    samples = 0
    for b, label in enumerate(target.tolist()):
        if label == ignore_index:
            continue
        kept = [c for c in range(logits.shape[2]) if not gone[b, c]]
        response = reference.responses(logits[:, b : b + 1, kept])
        cost, _ = reference.sample_scores(response, torch.tensor([kept.index(label)]), floor, ignore_index)
        total += cost[:, 0]
        samples += 1
    return total / samples


def masked_out(given: Step, rows: slice) -> tuple[Step, Tensor]:
    """-inf in some classes, others for each sample, and never in its own."""
    generator = torch.Generator().manual_seed(1)
    _, batch, classes = given.masked_logits.shape
    gone = torch.rand(batch, classes, generator=generator) < 0.3
    gone[torch.arange(batch), given.target.clamp(0)] = False
    logits = given.masked_logits.clone()
    logits[rows] = logits[rows].masked_fill(gone, -INF)
    return replace(given, masked_logits=logits), gone


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_are_those_without_the_class(
    room: Room, shape: tuple[int, int, int], rows: str, dtype: torch.dtype
) -> None:
    plain = step(*shape, dtype)
    given, gone = masked_out(plain, ROWS[rows])
    made = check(room, given)
    expected = scores_without(plain.masked_logits.double(), given.target, gone, given.floor, given.ignore_index)
    torch.testing.assert_close(made.values[reference.SCORES], expected, rtol=1e-5, atol=2e-5)
    skipped = shape[0] + reference.SKIPPED
    assert made.counts[skipped] == given.counts[skipped]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_the_loss(room: Room, smoothing: float) -> None:
    """The scores are the same; the loss is torch's, which for label smoothing is infinite."""
    loss = loss_of(3, 6, 40, torch.float32, label_smoothing=smoothing)
    loss.step, gone = masked_out(loss.step, slice(None))
    if smoothing == 0:
        check_loss(room, loss)
    here = loss.on(room.device)
    value, *_ = room.op("modulate_cross_entropy")(*here.forward_arguments())
    wide = loss.step.masked_logits.nan_to_num(neginf=0.0).double()
    expected = scores_without(wide, loss.step.target, gone, loss.step.floor, loss.step.ignore_index)
    torch.testing.assert_close(here.step.values[reference.SCORES].cpu(), expected, rtol=1e-5, atol=2e-5)
    assert value.isfinite() == (smoothing == 0)


def test_the_label_cannot_be(room: Room) -> None:
    """Its probability is 0, and the score at its bound."""
    given = step(2, 4, 9, torch.float32, ignore_index=-100)
    given.target[:] = 3
    given.masked_logits[:, :, 3] = -INF
    made = check(room, given)
    bound = torch.full((2,), -torch.tensor(given.floor, dtype=torch.float64).log().item(), dtype=torch.float64)
    torch.testing.assert_close(made.values[reference.SCORES], bound, rtol=1e-6, atol=0)
    assert made.counts[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("poison", [torch.nan, INF])
def test_beside_what_is_no_number_the_step_is_skipped(room: Room, poison: float) -> None:
    given = step(2, 5, 9, torch.float32)
    given.masked_logits[0, 2, 4], given.masked_logits[1, 2, 4] = -INF, poison
    made = check(room, given)
    assert made.counts[2 + reference.SKIPPED] == given.counts[2 + reference.SKIPPED] + 1


def test_no_class_is_left(room: Room) -> None:
    given = step(2, 5, 9, torch.float32)
    given.masked_logits[:, 2] = -INF
    made = check(room, given)
    assert made.counts[2 + reference.SKIPPED] == given.counts[2 + reference.SKIPPED] + 1


PARTS = {
    "bias": lambda given, gone: replace(given, bias=given.bias.masked_fill(gone, -INF)),
    "joint_logits": lambda given, gone: replace(given, joint_logits=given.joint_logits.masked_fill(gone, -INF)),
    "present": lambda given, gone: replace(given, present=given.present.masked_fill(gone, -INF)),
    "one present": lambda given, gone: replace(
        given, present=torch.cat([given.present[:1], given.present[1:2].masked_fill(gone, -INF), given.present[2:]])
    ),
    "present and absent": lambda given, gone: replace(
        given, present=given.present.masked_fill(gone, -INF), absent=given.absent.masked_fill(gone, -INF)
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_additive(room: Room, part: str, dtype: torch.dtype) -> None:
    plain = additive_step(3, 6, 21, dtype, "joint" if part == "joint_logits" else "bias")
    gone = torch.zeros(21, dtype=torch.bool)
    gone[[2, 7, 20]] = True
    plain.target = torch.tensor([0, 1, 5, 6, 9, 19])
    given: AdditiveStep = PARTS[part](plain, gone)
    made = check_additive(room, given)
    expanded = plain.expanded()
    if plain.joint_logits is None:  # of the dtype in which they are returned
        wide = reference.accumulation_dtype(dtype)
        expanded.masked_logits[-1] = (plain.present.to(wide).sum(0) + plain.bias.to(wide)).double()
    everywhere = gone.expand(6, -1)
    expected = scores_without(expanded.masked_logits, plain.target, everywhere, plain.floor, plain.ignore_index)
    torch.testing.assert_close(made.values[reference.SCORES], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [5e37, 1.7e38, 3e38])
@pytest.mark.parametrize("modalities", [2, 3])
def test_every_backend_skips_the_same_steps(room: Room, modalities: int, size: float, dtype: torch.dtype) -> None:
    """Whether a response fits float32 does not depend on the order of a sum."""
    skipped = []
    for seed in range(4):
        given = step(modalities, 4, 6, dtype, seed=seed)
        # Of two modalities the weights are powers of two; with others, rounding breaks the ties of equal logits.
        units = (
            given.masked_logits.sign() if modalities == 2 else given.masked_logits / given.masked_logits.abs().amax()
        )
        given.masked_logits = (units * size).to(dtype)
        made, wanted = given.on(room.device), given.on("cpu")
        made.run(room.op("modulate"))
        wanted.run(reference.modulate)
        assert torch.equal(made.counts[modalities + 1 :].cpu(), wanted.counts[modalities + 1 :])
        torch.testing.assert_close(made.values.cpu(), wanted.values, rtol=1e-3, atol=1e-3, equal_nan=True)
        skipped.append(bool(wanted.counts[-1] > given.counts[-1]))
    if size == 5e37:
        assert not any(skipped)
    if size == 3e38 and modalities == 2:
        assert any(skipped)


@pytest.mark.parametrize("size", [5e37, 1e38, 3e38])
def test_additive_fusions_skip_the_same_steps(room: Room, size: float) -> None:
    for seed in range(4):
        given = additive_step(3, 4, 6, torch.float32, "joint", seed=seed).map(lambda part: part.sign() * size)
        made, wanted = given.on(room.device), given.on("cpu")
        made.run(room.op("modulate_additive"))
        wanted.run(reference.modulate_additive)
        assert torch.equal(made.counts[4:].cpu(), wanted.counts[4:])
