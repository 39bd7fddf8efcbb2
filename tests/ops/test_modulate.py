"""Scores, hits, coefficients and state of one step, on every backend."""

import random

import pytest
import torch

from agm.ops import _backends, reference

from .samples import DTYPES, LAYOUTS, SHAPES, Room, fresh_memory_holds_nan
from .steps import Step, check, step

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@by_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(room, step(*shape, dtype))


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype) -> None:
    given = step(3, 6, 40, dtype)
    given.masked_logits = LAYOUTS[layout](given.masked_logits)
    given.target = torch.stack([given.target, given.target + 1], 1)[:, 0]
    check(room, given)


def test_rows_that_share_memory(room: Room) -> None:
    """Every subset the same logits, as an expanded tensor: no modality matters more than another."""
    given = step(3, 6, 40, torch.float32)
    given.masked_logits = given.masked_logits[:1].expand(7, -1, -1)
    made = check(room, given)
    torch.testing.assert_close(made.values[1], made.values[1, :1].expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 131072), (2, 3, 20001), (3, 4, 5001), (4, 2, 4101), (6, 1, 5000)], ids=str)
def test_many_classes(room: Room, shape: tuple[int, int, int]) -> None:
    """So many that one sample is shared out. Only sample 0 counts where there is a second: an ignored one."""
    check(room, step(*room.many_classes(shape), torch.float32))


@pytest.mark.parametrize("shape", [(2, 900, 3), (3, 4100, 40), (2, 60, 1024)], ids=str)
def test_many_samples(room: Room, shape: tuple[int, int, int]) -> None:
    """More than a GPU kernel has blocks or groups of threads, which go on to a second one; few classes and many."""
    if (room.backend, room.device) == ("triton", "cpu") and shape[2] == 40:
        pytest.skip("the interpreter takes a quarter of a minute")
    modalities, batch, classes = shape
    more = 16 if room.device == "cuda" else 1  # a device that is emulated or interpreted runs few blocks at once
    check(room, step(modalities, batch * more, classes, torch.float32))


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
    given = step(3, 9, 5, torch.float64, **settings)
    plain = step(3, 9, 5, torch.float64)
    plain.target = given.target
    check(room, given)
    results = [each.on(room.device).run(room.op("modulate")) for each in (given, plain)]
    # The gaps here are far below 10, and update does not change what is returned.
    if "update" not in settings and settings != {"max_gap": float("inf")} and settings != {"floor": 0.0}:
        assert not torch.equal(*results)


def test_step_and_running_scores_go_on(room: Room) -> None:
    """Four steps in a row, the first from an empty state."""
    given = step(3, 8, 12, torch.float32)
    given.values.zero_()
    given.counts.zero_()
    for seed in range(4):
        given.masked_logits = step(3, 8, 12, torch.float32, seed=seed).masked_logits
        given = check(room, given)
    assert given.counts[3 + reference.STEP] == 4


SKIPPED = {
    "empty batch": lambda: step(3, 0, 5, torch.float32),
    "all ignored": lambda: step(2, 4, 5, torch.float32, ignore_index=-100),
    "NaN": lambda: step(2, 6, 40, torch.float32),
    "infinity": lambda: step(2, 6, 40, torch.float32),
    "class -1": lambda: step(2, 6, 5, torch.float32),
    "class C": lambda: step(2, 6, 5, torch.float32),
    "class far away": lambda: step(3, 6, 2000, torch.float32),
}


def skipped_step(name: str) -> Step:
    given = SKIPPED[name]()
    if name == "all ignored":
        given.target[:] = -100
    if name == "NaN":
        given.masked_logits[0, 2, 3] = torch.nan
    if name == "infinity":
        given.masked_logits[-1, 2, 3] = torch.inf
    if name == "class -1":
        given.target[2] = -1
    if name == "class C":
        given.target[2] = given.masked_logits.shape[2]
    if name == "class far away":
        given.target[2], given.target[4] = 2**62, -(2**62)
    return given


@pytest.mark.parametrize("name", SKIPPED)
def test_a_step_that_cannot_be_made_is_skipped(room: Room, name: str) -> None:
    given = skipped_step(name)
    made = check(room, given)
    modalities = given.values.shape[1]
    assert made.counts[modalities + reference.SKIPPED] == given.counts[modalities + reference.SKIPPED] + 1
    scales = given.on(room.device).run(room.op("modulate")).tolist()
    assert scales == [0.0] * (2**modalities - 2) + [1.0]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["before", "at", "after"])
def test_hits_beside_what_is_not_finite(room: Room, poison: float, where: str) -> None:
    """torch.argmax takes NaN for the largest, and the first of several."""
    given = step(2, 8, 40, torch.float32)
    given.target[:] = 20
    given.masked_logits[:, 3, {"before": 7, "at": 20, "after": 33}[where]] = poison
    given.masked_logits[:, 5] = poison
    made = given.on(room.device)
    made.run(room.op("modulate"))
    wanted = given.on("cpu")
    wanted.run(reference.modulate)
    torch.testing.assert_close(made.values.cpu(), wanted.values, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert torch.equal(made.counts.cpu(), wanted.counts)


@by_dtype
def test_equal_logits_give_the_first_class(room: Room, dtype: torch.dtype) -> None:
    """Classes with the same logits must have the same responses to the last bit, wherever they are computed."""
    for classes in (37, 700, 5000):
        given = step(3, 4, classes, dtype, ignore_index=-100)
        distinct = given.masked_logits[:, :, :3].clone()
        distinct[:, :, 1] = distinct[:, :, :1].amax() + 7 + distinct[:, :, 1]
        given.masked_logits = distinct[:, :, torch.arange(classes) % 3].contiguous()
        given.target = torch.tensor([1, 4] * 2)  # equally large; the first counts
        made = given.on(room.device)
        made.run(room.op("modulate"))
        response = reference.responses(given.masked_logits.double())
        winners = torch.cat([response[:, :, :3].argmax(-1), given.masked_logits[-1:, :, :3].argmax(-1)])
        hits = winners.eq(given.target).sum(1)
        assert hits.tolist() == made.counts[:4].tolist()
        assert hits.sum() > 0


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits(room: Room, size: float) -> None:
    given = step(2, 8, 30, torch.float32)
    given.masked_logits *= size
    check(room, given, tolerance=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 7), (6, 3, 40), (2, 2, 9000)], ids=str)
def test_every_element_is_written(room: Room, shape: tuple[int, int, int]) -> None:
    """Fresh memory holds NaN: neither the result nor what passes between kernels may show it."""
    op = room.op("modulate")
    given = step(*shape, torch.float32).on(room.device)
    wanted = given.on(room.device).run(op)
    with fresh_memory_holds_nan():
        result = given.run(op)
    assert torch.equal(result, wanted)


@pytest.mark.parametrize("shape", [(3, 50, 31), (2, 2, 9000)], ids=str)
def test_same_bits_every_time(room: Room, shape: tuple[int, int, int]) -> None:
    op = room.op("modulate")
    steps = [step(*shape, torch.float32).on(room.device) for _ in range(3)]
    scales = [each.run(op) for each in steps]
    for other, result in zip(steps[1:], scales[1:], strict=True):
        assert torch.equal(result, scales[0])
        assert torch.equal(other.values, steps[0].values)


def test_same_bits_with_any_number_of_threads() -> None:
    op = Room("cpp", "cpu").op("modulate")
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(step(3, 500, 200, torch.float32).run(op))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", ["compact", "permuted"])
def test_registration(room: Room, layout: str) -> None:
    given = step(2, 4, 6, torch.float32).on(room.device)
    given.masked_logits = LAYOUTS[layout](given.masked_logits)
    torch.library.opcheck(room.op("modulate"), tuple(vars(given).values()))


@pytest.mark.parametrize("modalities", [7, 9])
def test_more_modalities_than_the_gpu_kernels_take(room: Room, modalities: int) -> None:
    given = step(modalities, 2, 5, torch.float64)
    device, rows = torch.device(room.device), 2**modalities - 1
    if room.backend in ("cuda", "triton"):
        room.op("modulate")  # or skip: it serves fewer
        if room.library is None:
            with pytest.raises(RuntimeError, match="at most 6 modalities"):
                _backends.select("modulate", device, room.backend, rows=rows)
        assert _backends.select("modulate", device, rows=rows)._overloadname in ("default", "reference")
        with pytest.raises((RuntimeError, ValueError), match=r"127|511|at most"):
            given.on(room.device).run(room.op("modulate"))
    else:
        check(room, given)


FUZZ = 16


@pytest.mark.parametrize("case", range(FUZZ))
def test_fuzz(room: Room, case: int) -> None:
    """Random M, B, C, dtype, layout and settings: the same cases on every backend."""
    choose = random.Random(case)
    modalities = choose.randint(2, 6)
    shape = (modalities, choose.choice([1, 2, 7, 33, 65]), int(2 ** choose.uniform(0, 12 - modalities)))
    settings = {
        "alpha": choose.uniform(0, 4),
        "max_gap": choose.choice([0.3, 7.0, 10.0, float("inf")]),
        "floor": choose.choice([0.0, 1e-8, 0.05]),
        "ignore_index": choose.choice([-100, 0]),
        "update": choose.random() < 0.8,
    }
    given = step(*shape, choose.choice(DTYPES), seed=case, **settings)
    given.masked_logits = LAYOUTS[choose.choice(list(LAYOUTS))](given.masked_logits)
    check(room, given)


@pytest.mark.parametrize("modalities", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_logits_have_equal_responses(modalities: int, dtype: torch.dtype) -> None:
    """A product of matrices rounded the last columns differently, and the first class no longer was the largest."""
    for classes in (3, 5, 16, 257):
        response = reference.responses(torch.full((2**modalities - 1, 5, classes), 0.7, dtype=dtype))
        assert torch.equal(response, response[..., :1].expand_as(response))
