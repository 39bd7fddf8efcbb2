"""The loss, its normalizers, and the gradient of every subset's logits, on every backend."""

import random

import pytest
import torch
import torch.nn.functional as F

from agm.ops import reference

from .losses import Loss, check_loss, loss_of
from .samples import DTYPES, LAYOUTS, SHAPES, Room, fresh_memory_holds_nan, logits
from .test_modulate import SKIPPED, skipped_step

LOSSES = {
    "plain": {},
    "weighted": {"weighted": True},
    "smoothed": {"label_smoothing": 0.1},
    "both": {"weighted": True, "label_smoothing": 0.3},
    "uniform": {"label_smoothing": 1.0},
}
by_loss = pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)


def loss_number(number: int) -> dict[str, float]:
    """The kinds of loss in turn, where all of them with everything else would be too many cases."""
    return list(LOSSES.values())[number % len(LOSSES)]


@by_loss
def test_the_reference_is_torchs_cross_entropy(settings: dict[str, float]) -> None:
    given = loss_of(3, 9, 7, torch.float64, grad_logits=True, **settings)
    mean, scales, normalizer, sums = reference.modulate_cross_entropy(*given.forward_arguments())
    joint = given.step.masked_logits[-1].clone().requires_grad_()
    expected = F.cross_entropy(joint, given.step.target, given.weight, label_smoothing=given.label_smoothing)
    torch.testing.assert_close(mean, expected.detach())
    (gradient,) = torch.autograd.grad([expected, joint], joint, [given.grad_loss, given.grad_logits])
    result = reference.modulate_cross_entropy_backward(*given.backward_arguments(normalizer, sums, scales))
    torch.testing.assert_close(result, scales[:, None, None] * gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    number = SHAPES.index(shape) + DTYPES.index(dtype)
    check_loss(room, loss_of(*shape, dtype, grad_logits=number % 2 == 1, **loss_number(number)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_step_is_that_of_modulate(room: Room, shape: tuple[int, int, int]) -> None:
    """The same bits in the state and in the scales, whatever the loss."""
    given = loss_of(*shape, torch.float32, weighted=True, label_smoothing=0.1).on(room.device)
    plain = given.step.on(room.device)
    _, scales, _, _ = room.op("modulate_cross_entropy")(*given.forward_arguments())
    assert torch.equal(scales, plain.run(room.op("modulate")))
    assert torch.equal(given.step.values, plain.values) or given.step.values.isnan().any()
    assert torch.equal(given.step.counts, plain.counts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str) -> None:
    given = loss_of(3, 6, 40, torch.float32, grad_logits=True, **LOSSES["both"])
    change = LAYOUTS[layout]
    given.step.masked_logits = change(given.step.masked_logits)
    given.step.target = torch.stack([given.step.target, given.step.target + 1], 1)[:, 0]
    given.grad_logits = change(given.grad_logits)
    given.weight = change(given.weight)
    check_loss(room, given)


def test_expanded_gradient(room: Room) -> None:
    """The gradient of a sum has stride 0."""
    given = loss_of(2, 5, 9, torch.float32)
    given.grad_logits = torch.ones(()).expand(5, 9)
    check_loss(room, given)


@pytest.mark.parametrize("shape", [(2, 1, 131072), (4, 2, 4100), (6, 1, 5000)], ids=str)
def test_many_classes(room: Room, shape: tuple[int, int, int]) -> None:
    """So many that one sample is shared out."""
    given = loss_of(*room.many_classes(shape), torch.float32, **LOSSES["both"])
    check_loss(room, given, tolerance=1e-4 if shape[2] > 10**5 else None)


@by_loss
def test_shared_samples(room: Room, settings: dict[str, float]) -> None:
    check_loss(room, loss_of(2, 3, 8201, torch.float32, **settings))


def test_more_shared_samples_than_are_merged_at_a_time(room: Room) -> None:
    """The step too: its scores once came from another sample's numbers, from the 65th on."""
    given = loss_of(2, 65, 8192, torch.float32)
    made, wanted = given.on(room.device), given.step.on("cpu")
    mean, _, _, _ = room.op("modulate_cross_entropy")(*made.forward_arguments())
    wanted.run(reference.modulate)
    torch.testing.assert_close(made.step.values.cpu(), wanted.values, rtol=2e-5, atol=2e-5)
    assert torch.equal(made.step.counts.cpu(), wanted.counts)
    torch.testing.assert_close(mean.cpu(), F.cross_entropy(wanted.masked_logits[-1], wanted.target))


def test_many_samples(room: Room) -> None:
    """More than run at once."""
    samples = {"reference": 4200, "cpp": 4200}.get(room.backend, 900 if room.device == "cpu" else 14400)
    check_loss(room, loss_of(2, samples, 3, torch.float32, weighted=True, label_smoothing=0.1))


@pytest.mark.parametrize("name", SKIPPED)
def test_a_step_that_cannot_be_made(room: Room, name: str) -> None:
    """The step is skipped, and the loss as torch has it; a class that does not exist makes it NaN."""
    own = skipped_step(name)
    settings = loss_number(list(SKIPPED).index(name))
    given = loss_of(2, 1, own.masked_logits.shape[2], torch.float32, **settings)
    given.step = own
    check_loss(room, given)
    mean, _, _, _ = room.op("modulate_cross_entropy")(*given.on(room.device).forward_arguments())
    assert mean.isnan() or name == "NaN"  # there the joint logits are numbers


@by_loss
def test_ignored_samples_get_no_gradient(room: Room, settings: dict[str, float]) -> None:
    """All of them ignored: the loss is NaN, as in torch, but no gradient is."""
    given = loss_of(2, 4, 5, torch.float32, **settings).on(room.device)
    given.step.target[:] = -100
    mean, scales, normalizer, sums = room.op("modulate_cross_entropy")(*given.forward_arguments())
    assert mean.isnan()
    assert not normalizer.any()
    result = room.op("modulate_cross_entropy_backward")(*given.backward_arguments(normalizer, sums, scales))
    assert not result.any()


def test_a_class_that_cannot_be(room: Room) -> None:
    """-inf is a probability of 0: torch's loss, and a gradient of 0 there."""
    given = loss_of(2, 4, 5, torch.float32)
    given.step.target[:] = 1
    given.step.masked_logits[:, 2, 3] = -torch.inf
    check_loss(room, given)


@by_loss
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits(room: Room, size: float, settings: dict[str, float]) -> None:
    given = loss_of(2, 8, 30, torch.float32, **settings)
    given.step.masked_logits *= size
    check_loss(room, given, tolerance=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_of_differences_that_no_float_holds(room: Room, weighted: bool) -> None:
    """Their sum over the classes was -inf in float32, where the loss is a float."""
    given = loss_of(2, 1, 3, torch.float32, weighted=weighted, label_smoothing=0.1)
    given.step.masked_logits.zero_()
    given.step.masked_logits[:, 0] = torch.tensor([1.2e38, -0.6e38, 1.2e38])
    given.step.target.fill_(1)
    given = given.on(room.device)
    loss = room.op("modulate_cross_entropy")(*given.forward_arguments())[0]
    joint = given.step.masked_logits[-1].double()
    weight = None if given.weight is None else given.weight.double()
    wanted = F.cross_entropy(joint, given.step.target, weight, label_smoothing=0.1)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_scale_of_zero_stops_what_is_not_finite(room: Room, poison: float) -> None:
    given = loss_of(2, 4, 5, torch.float32, grad_logits=True).on(room.device)
    given.grad_logits[:] = poison
    _, scales, normalizer, sums = room.op("modulate_cross_entropy")(*given.forward_arguments())
    scales[0] = 0.0
    result = room.op("modulate_cross_entropy_backward")(*given.backward_arguments(normalizer, sums, scales))
    assert not result[0].any()
    assert not result[1:].isfinite().any()


@pytest.mark.parametrize("shape", [(2, 5, 7), (6, 3, 40), (2, 2, 9000)], ids=str)
@pytest.mark.parametrize("settings", [LOSSES["plain"], LOSSES["both"]], ids=["plain", "both"])
def test_every_element_is_written(room: Room, shape: tuple[int, int, int], settings: dict[str, float]) -> None:
    """Fresh memory holds NaN: neither the results nor what passes between kernels may show it."""
    with fresh_memory_holds_nan():
        check_loss(room, loss_of(*shape, torch.float32, **settings))


@pytest.mark.parametrize("shape", [(3, 50, 31), (2, 2, 9000)], ids=str)
def test_same_bits_every_time(room: Room, shape: tuple[int, int, int]) -> None:
    def run() -> list[torch.Tensor]:
        given = loss_of(*shape, torch.float32, weighted=True, label_smoothing=0.1).on(room.device)
        mean, scales, normalizer, sums = room.op("modulate_cross_entropy")(*given.forward_arguments())
        gradient = room.op("modulate_cross_entropy_backward")(*given.backward_arguments(normalizer, sums, scales))
        return [mean, scales, normalizer, sums, gradient]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_same_bits_with_any_number_of_threads() -> None:
    op = Room("cpp", "cpu").op("modulate_cross_entropy")
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            given = loss_of(3, 500, 200, torch.float32, weighted=True, label_smoothing=0.1)
            results.append(op(*given.forward_arguments())[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("layout", "loss"), [("compact", "plain"), ("compact", "both"), ("permuted", "both")])
def test_registration(room: Room, layout: str, loss: str) -> None:
    given = loss_of(2, 4, 6, torch.float32, grad_logits=loss == "both", **LOSSES[loss]).on(room.device)
    given.step.masked_logits = LAYOUTS[layout](given.step.masked_logits)
    torch.library.opcheck(room.op("modulate_cross_entropy"), given.forward_arguments())
    _, scales, normalizer, sums = room.op("modulate_cross_entropy")(*given.on(room.device).forward_arguments())
    backward = given.backward_arguments(normalizer, sums, scales)
    torch.library.opcheck(room.op("modulate_cross_entropy_backward"), backward)


def test_many_modalities_backward(room: Room) -> None:
    """The backward has no limit on M."""
    given = loss_of(2, 3, 5, torch.float32, label_smoothing=0.1).on(room.device)
    _, _, normalizer, sums = room.op("modulate_cross_entropy")(*given.forward_arguments())
    scales = logits(511, dtype=torch.float64, device=room.device)
    arguments = given.backward_arguments(normalizer, sums, scales)
    result = room.op("modulate_cross_entropy_backward")(*arguments)
    torch.testing.assert_close(result, reference.modulate_cross_entropy_backward(*arguments), rtol=1e-5, atol=1e-5)


FUZZ = 16


@pytest.mark.parametrize("case", range(FUZZ))
def test_fuzz(room: Room, case: int) -> None:
    """Random M, B, C, dtype, layout and loss: the same cases on every backend."""
    choose = random.Random(case)
    modalities = choose.randint(2, 6)
    shape = (modalities, choose.choice([1, 2, 7, 33, 65]), int(2 ** choose.uniform(0, 12 - modalities)))
    given: Loss = loss_of(
        *shape,
        choose.choice(DTYPES),
        weighted=choose.random() < 0.5,
        label_smoothing=choose.choice([0.0, 0.1, 1.0]),
        grad_logits=choose.random() < 0.5,
        ignore_index=choose.choice([-100, 0]),
        floor=choose.choice([0.0, 1e-8, 0.05]),
        seed=case,
    )
    given.step.masked_logits = LAYOUTS[choose.choice(list(LAYOUTS))](given.step.masked_logits)
    check_loss(room, given)
