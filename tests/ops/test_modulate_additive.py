"""Scores, hits, coefficients, state and joint logits of one step of an additive fusion, on every backend."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .additive_steps import AdditiveStep, additive_step, check
from .samples import DTYPES, LAYOUTS, Room, fresh_memory_holds_nan

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_form = pytest.mark.parametrize("form", ["bias", "no bias", "joint"])

# (M, B, C): empty, single, odd, as many modalities as there can be, long
SHAPES = (
    (2, 0, 5),
    (2, 1, 1),
    (3, 2, 1),
    (2, 1, 2),
    (4, 3, 7),
    (2, 64, 10),
    (3, 33, 151),
    (5, 4, 32),
    (6, 2, 33),
    (9, 5, 17),
    (16, 6, 101),
    (2, 2, 4096 + 32),
)


@by_form
@by_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[int, int, int], dtype: torch.dtype, form: str) -> None:
    check(room, additive_step(*shape, dtype, form))


@pytest.mark.parametrize("modalities", range(2, 17))
def test_every_number_of_modalities(room: Room, modalities: int) -> None:
    check(room, additive_step(modalities, 7, 13, torch.float64))


@by_form
@pytest.mark.parametrize("modalities", range(2, 7))
def test_equal_to_the_step_on_every_subset(room: Room, modalities: int, form: str) -> None:
    """Shapley values of an additive game, against their sum over the subsets."""
    given = additive_step(modalities, 9, 12, torch.float64, form)
    made, expanded = given.on(room.device), given.expanded()
    joint, scales = (result.cpu() for result in made.run(room.op("modulate_additive")))
    every = expanded.run(reference.modulate)
    exact = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(made.values.cpu(), expanded.values, **exact)
    assert torch.equal(made.counts.cpu(), expanded.counts)
    if form != "joint":
        torch.testing.assert_close(joint, expanded.masked_logits[-1], **exact)
    # c_S summed over the subsets in which a part appears.
    subsets = [[subset for subset in range(1, 2**modalities) if subset >> m & 1] for m in range(modalities)]
    proper = [[subset for subset in own if subset < 2**modalities - 1] for own in subsets]
    others = [[subset for subset in range(1, 2**modalities) if not subset >> m & 1] for m in range(modalities)]
    own = [every[torch.tensor(each) - 1].sum() for each in (proper if form == "joint" else subsets)]
    torch.testing.assert_close(scales[0, :-1], torch.stack(own), **exact)
    torch.testing.assert_close(scales[1, :-1], torch.stack([every[torch.tensor(o) - 1].sum() for o in others]), **exact)
    torch.testing.assert_close(scales[:, -1], (every[-1] if form == "joint" else every.sum()).expand(2), **exact)


@by_form
@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype, form: str) -> None:
    given = additive_step(3, 6, 40, dtype, form).map(LAYOUTS[layout])
    given.target = torch.stack([given.target, given.target + 1], 1)[:, 0]
    check(room, given)


def test_parts_that_share_memory(room: Room) -> None:
    """Every modality the same: none matters more than another."""
    given = additive_step(3, 6, 40, torch.float32)
    given.present, given.absent = given.present[:1].expand(3, -1, -1), given.absent[:1].expand(3, -1)
    made = check(room, given)
    torch.testing.assert_close(made.values[1], made.values[1, :1].expand(3), rtol=1e-6, atol=0)


@by_form
def test_many_classes(room: Room, form: str) -> None:
    """So many that one sample is shared out; the second sample is an ignored one, whose joint logits count too."""
    check(room, additive_step(*room.many_classes((3, 2, 9001)), torch.float32, form))


@pytest.mark.parametrize("shape", [(2, 1, 131072), (16, 1, 5000)], ids=str)
def test_very_many_classes(room: Room, shape: tuple[int, int, int]) -> None:
    check(room, additive_step(*room.many_classes(shape), torch.float32))


def test_many_samples(room: Room) -> None:
    """More than run at once."""
    check(room, additive_step(2, 900 if room.device == "cpu" else 14400, 3, torch.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"alpha": 4.3},
        {"max_gap": 0.1},
        {"max_gap": -2.5},
        {"max_gap": float("inf")},
        {"floor": 0.3},
        {"floor": 0.0},
        {"ignore_index": 3},
        {"ignore_index": 1},
        {"ignore_index": 2**40},
        {"update": False},
    ],
    ids=str,
)
def test_every_setting_arrives(room: Room, settings: dict[str, float]) -> None:
    """Boxed kernels read a wrong type as zeros without an error, so each setting must show its effect."""
    given = additive_step(3, 9, 5, torch.float64, **settings)
    plain = additive_step(3, 9, 5, torch.float64)
    plain.target = given.target
    check(room, given)
    results = [each.on(room.device).run(room.op("modulate_additive"))[1] for each in (given, plain)]
    # The gaps here are far below 10, and update does not change what is returned.
    if "update" not in settings and settings != {"max_gap": float("inf")} and settings != {"floor": 0.0}:
        assert not torch.equal(*results)


@pytest.mark.parametrize("part", ["present", "absent", "bias", "joint_logits"])
def test_every_part_arrives(room: Room, part: str) -> None:
    given = additive_step(3, 9, 5, torch.float64, "joint" if part == "joint_logits" else "bias")
    other = replace(given, **{part: getattr(given, part).flip(-1)})
    results = [each.on(room.device).run(room.op("modulate_additive"))[1] for each in (given, other)]
    assert not torch.equal(*results)


def test_step_and_running_scores_go_on(room: Room) -> None:
    """Four steps in a row, the first from an empty state."""
    given = additive_step(3, 8, 12, torch.float32)
    given.values.zero_()
    given.counts.zero_()
    for seed in range(4):
        given.present = additive_step(3, 8, 12, torch.float32, seed=seed).present
        given = check(room, given)
    assert given.counts[3 + reference.STEP] == 4


SKIPPED = ("empty batch", "all ignored", "NaN", "infinity", "class -1", "class C", "class far away")


def skipped_step(name: str, form: str) -> AdditiveStep:
    given = additive_step(2, 0 if name == "empty batch" else 6, 40, torch.float32, form)
    if name == "all ignored":
        given.target[:] = -100
    if name == "NaN":
        given.present[0, 2, 3] = torch.nan
    if name == "infinity":
        given.absent[1, 3] = torch.inf
    if name == "class -1":
        given.target[2] = -1
    if name == "class C":
        given.target[2] = 40
    if name == "class far away":
        given.target[2], given.target[4] = 2**62, -(2**62)
    return given


@by_form
@pytest.mark.parametrize("name", SKIPPED)
def test_a_step_that_cannot_be_made_is_skipped(room: Room, name: str, form: str) -> None:
    """It still has joint logits, those of the samples without a class among them."""
    given = skipped_step(name, form)
    made = check(room, given)
    assert made.counts[2 + reference.SKIPPED] == given.counts[2 + reference.SKIPPED] + 1
    scales = given.on(room.device).run(room.op("modulate_additive"))[1].tolist()
    assert scales == [[0.0, 0.0, 1.0] if form == "joint" else [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("poison", "form"), [(torch.nan, "bias"), (torch.inf, "no bias"), (-torch.inf, "joint"), (torch.nan, "joint")]
)
@pytest.mark.parametrize("where", ["before", "at", "after"])
def test_hits_beside_what_is_not_finite(room: Room, poison: float, where: str, form: str) -> None:
    """torch.argmax takes NaN for the largest, and the first of several."""
    given = additive_step(2, 8, 40, torch.float32, form)
    given.target[:] = 20
    given.present[:, 3, {"before": 7, "at": 20, "after": 33}[where]] = poison
    given.present[:, 5] = poison
    made = given.on(room.device)
    made.run(room.op("modulate_additive"))
    wanted = given.on("cpu")
    wanted.run(reference.modulate_additive)
    torch.testing.assert_close(made.values.cpu(), wanted.values, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert torch.equal(made.counts.cpu(), wanted.counts)


@by_form
@by_dtype
def test_equal_logits_give_the_first_class(room: Room, dtype: torch.dtype, form: str) -> None:
    """Classes with the same parts must have the same responses to the last bit, wherever they are computed."""
    for modalities, classes in ((3, 37), (6, 300), (16, 33), (3, 1300)):
        given = additive_step(modalities, 4, classes, dtype, form)

        def repeat(part: Tensor, classes: int = classes) -> Tensor:
            distinct = part[..., :3].clone()
            distinct[..., 1] = distinct[..., 0].abs().amax() + 7 + distinct[..., 1]
            return distinct[..., torch.arange(classes) % 3].contiguous()

        given = replace(given.map(repeat), absent=given.absent[:, torch.arange(classes) % 3].contiguous())
        given.target = torch.tensor([1, 4] * 2)  # equally large; the first counts
        made = given.on(room.device)
        made.run(room.op("modulate_additive"))
        wide = given.map(Tensor.double)
        joint = wide.joint_logits
        if joint is None:
            joint = wide.present.sum(0) + (0 if wide.bias is None else wide.bias)
        response = reference.additive_responses(wide.present, wide.absent, joint)
        winners = torch.cat([response[:, :, :3].argmax(-1), joint[None, :, :3].argmax(-1)])
        hits = winners.eq(given.target).sum(1)
        assert hits.tolist() == made.counts[: modalities + 1].tolist()
        assert hits.sum() > 0


@by_form
@pytest.mark.parametrize("modalities", [2, 3])
def test_large_logits(room: Room, modalities: int, form: str) -> None:
    given = additive_step(modalities, 8, 30, torch.float32, form).map(lambda part: part * 1e4)
    check(room, given, tolerance=1e-3)


@by_form
@pytest.mark.parametrize("shape", [(2, 5, 7), (16, 3, 40), (2, 2, 9000)], ids=str)
def test_every_element_is_written(room: Room, shape: tuple[int, int, int], form: str) -> None:
    """Fresh memory holds NaN: neither the results nor what passes between kernels may show it."""
    op = room.op("modulate_additive")
    given = additive_step(*shape, torch.float32, form).on(room.device)
    wanted = given.on(room.device).run(op)
    with fresh_memory_holds_nan():
        result = given.run(op)
    assert all(torch.equal(one, other) for one, other in zip(result, wanted, strict=True))


@pytest.mark.parametrize("shape", [(3, 50, 31), (2, 2, 9000)], ids=str)
def test_same_bits_every_time(room: Room, shape: tuple[int, int, int]) -> None:
    op = room.op("modulate_additive")
    steps = [additive_step(*shape, torch.float32).on(room.device) for _ in range(3)]
    results = [each.run(op) for each in steps]
    for other, result in zip(steps[1:], results[1:], strict=True):
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])
        assert torch.equal(other.values, steps[0].values)


def test_same_bits_with_any_number_of_threads() -> None:
    op = Room("cpp", "cpu").op("modulate_additive")
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(additive_step(7, 500, 200, torch.float32).run(op))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@pytest.mark.parametrize(("layout", "form"), [("compact", "bias"), ("permuted", "joint"), ("compact", "no bias")])
def test_registration(room: Room, layout: str, form: str) -> None:
    given = additive_step(2, 4, 6, torch.float32, form).map(LAYOUTS[layout]).on(room.device)
    torch.library.opcheck(room.op("modulate_additive"), tuple(vars(given).values()))


FUZZ = 16


@pytest.mark.parametrize("case", range(FUZZ))
def test_fuzz(room: Room, case: int) -> None:
    """Random M, B, C, dtype, form, layout and settings: the same cases on every backend."""
    choose = random.Random(case)
    modalities = choose.randint(2, 16)
    shape = (modalities, choose.choice([1, 2, 7, 33]), int(2 ** choose.uniform(0, 8)))
    settings = {
        "alpha": choose.uniform(0, 4),
        "max_gap": choose.choice([0.3, 7.0, 10.0, float("inf")]),
        "floor": choose.choice([0.0, 1e-8, 0.05]),
        "ignore_index": choose.choice([-100, 0]),
        "update": choose.random() < 0.8,
    }
    form = choose.choice(["bias", "no bias", "joint"])
    given = additive_step(*shape, choose.choice(DTYPES), form, seed=case, **settings)
    for part in ("present", "absent", "bias", "joint_logits"):
        if getattr(given, part) is not None:
            setattr(given, part, LAYOUTS[choose.choice(list(LAYOUTS))](getattr(given, part)))
    check(room, given)
