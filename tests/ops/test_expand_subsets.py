"""The rows of every proper subset, and their gradients, against loops over subsets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .conftest import ROOMS
from .samples import DTYPES, LAYOUTS, Room, fresh_memory_holds_nan, logits

# (B, D_m): empty, single, odd, more than a block of samples, more columns than a tile, a modality without columns
SHAPES = (
    (0, (3, 2)),
    (1, (1, 1)),
    (3, (1, 7)),
    (5, (7, 33, 1)),
    (64, (128, 33)),
    (65, (3, 130)),  # the last program of the GPU kernels is alone in the last group that is added up
    (129, (1, 3)),
    (3, (257, 1, 128)),
    (2, (33, 7, 1, 2)),
    (5, (3, 0, 1, 2, 7)),
    (3, (1, 2, 3, 4, 5, 6)),
)
COMBINE = pytest.mark.parametrize("concatenate", [True, False], ids=["concat", "sum"])


@dataclass
class Rows:
    """Features (B, D_m) and absent rows (1, D_m)."""

    present: list[Tensor]
    absent: list[Tensor]
    concatenate: bool

    @property
    def batch(self) -> int:
        return self.present[0].shape[0]

    @property
    def widths(self) -> list[int]:
        return [one.shape[1] for one in self.present]

    @property
    def dtype(self) -> torch.dtype:
        return self.present[0].dtype

    def forward(self, room: Room) -> Tensor:
        return room.op("expand_subsets")(self.present, self.absent, self.concatenate)

    def expected(self) -> Tensor:
        """Rounded once: the result is this, to the last bit."""
        present, absent = [one.cpu() for one in self.present], [none.cpu() for none in self.absent]
        wide = reference.accumulation_dtype(self.dtype)
        blocks = []
        for subset in range(1, 2 ** len(present) - 1):
            parts = [present[m] if subset >> m & 1 else absent[m].expand_as(present[m]) for m in range(len(present))]
            if self.concatenate:
                blocks.append(torch.cat(parts, 1))
                continue
            total = torch.zeros(self.batch, self.widths[0], dtype=wide)
            for part in parts:
                total = total + part.to(wide)
            blocks.append(total.to(self.dtype))
        return torch.cat(blocks)

    def check(self, room: Room, result: Tensor) -> None:
        assert result.is_contiguous()
        assert result.dtype == self.dtype
        assert result.device.type == room.device
        rtol = 0.0 if self.concatenate else room.rounding(self.dtype)
        torch.testing.assert_close(result.cpu(), self.expected(), rtol=rtol, atol=0, equal_nan=True)


def rows_of(
    batch: int, widths: tuple[int, ...], concatenate: bool, dtype: torch.dtype, device: str, seed: int = 0
) -> Rows:
    """For sums, all modalities are as wide as the last."""
    if not concatenate:
        widths = (widths[-1],) * len(widths)
    present, absent = (
        [
            logits(count, width, dtype=dtype, device=device, seed=100 * seed + 2 * m + kind)
            for m, width in enumerate(widths)
        ]
        for kind, count in enumerate((batch, 1))
    )
    return Rows(present, absent, concatenate)


def gradient(rows: Rows, device: str) -> Tensor:
    width = sum(rows.widths) if rows.concatenate else rows.widths[0]
    count = (2 ** len(rows.widths) - 2) * rows.batch
    return logits(count, width, dtype=rows.dtype, device=device, seed=7)


def sums(grad: Tensor, rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the features and of the absent rows in float64."""
    blocks = grad.cpu().double().reshape(2 ** len(rows.widths) - 2, rows.batch, grad.shape[1])
    present, absent, start = [], [], 0
    for m, width in enumerate(rows.widths):
        one, none = torch.zeros(rows.batch, width, dtype=torch.float64), torch.zeros(1, width, dtype=torch.float64)
        for subset, block in enumerate(blocks, 1):
            own = block[:, start : start + width]
            if subset >> m & 1:
                one += own
            else:
                none += own.sum(0, keepdim=True)
        present.append(one)
        absent.append(none)
        start += width if rows.concatenate else 0
    return present, absent


def check_backward(room: Room, rows: Rows, grad: Tensor) -> None:
    before = grad.clone()
    results = room.op("expand_subsets_backward")(grad, rows.widths, rows.batch, rows.concatenate)
    torch.testing.assert_close(grad, before, rtol=0, atol=0, equal_nan=True)
    wide = torch.finfo(reference.accumulation_dtype(grad.dtype)).eps
    for result, parts, sizes in zip(results, sums(grad, rows), sums(grad.abs(), rows), strict=True):
        expected = torch.cat([part.flatten() for part in parts])
        assert result.shape == expected.shape
        assert result.is_contiguous()
        assert result.dtype == grad.dtype
        assert result.device.type == room.device
        rounded = expected.to(grad.dtype).double()
        torch.testing.assert_close(result.cpu().double().isnan(), rounded.isnan())
        torch.testing.assert_close(result.cpu().double().isinf(), rounded.isinf())
        # Rounded once (cut off by the interpreter for bfloat16), and a few roundings of the sum.
        size = torch.cat([part.flatten() for part in sizes])
        allowed = torch.finfo(grad.dtype).eps * expected.abs() + 8 * wide * size
        finite = rounded.isfinite()
        assert ((result.cpu().double() - expected).abs() <= allowed)[finite].all()


@COMBINE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(
    room: Room,
    shape: tuple[int, tuple[int, ...]],
    dtype: torch.dtype,
    concatenate: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if room.backend == "triton" and room.device == "cpu":  # the interpreter takes its time for every program
        room.op("expand_subsets")
        monkeypatch.setattr("agm.kernels.expand_subsets.ENOUGH_PROGRAMS", 8)
    rows = rows_of(*shape, concatenate, dtype, room.device)
    result = rows.forward(room)
    rows.check(room, result)
    check_backward(room, rows, gradient(rows, room.device))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integers_are_copied(room: Room, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(0, 200, (size, width), generator=generator) for size in (5, 1) for width in (3, 33)]
    draw = [(x > 100 if dtype == torch.bool else x.to(dtype)).to(room.device) for x in draw]
    rows = Rows(draw[:2], draw[2:], concatenate=True)
    assert torch.equal(rows.forward(room).cpu(), rows.expected())


@COMBINE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype, concatenate: bool) -> None:
    rows = rows_of(6, (5, 12, 40), concatenate, dtype, room.device)
    rows.present = [LAYOUTS[layout](one) for one in rows.present]
    rows.absent = [LAYOUTS[layout](none) for none in rows.absent]
    rows.check(room, rows.forward(room))
    check_backward(room, rows, LAYOUTS[layout](gradient(rows, room.device)))


@COMBINE
def test_mixed_layouts(room: Room, concatenate: bool) -> None:
    """Each modality is read through strides of its own."""
    rows = rows_of(6, (12, 12, 12, 12), concatenate, torch.float32, room.device)
    rows.present = [layout(one) for layout, one in zip(LAYOUTS.values(), rows.present, strict=True)]
    wider = torch.full((6, 20), torch.nan, device=room.device)
    wider[:, 3:15] = rows.present[0]
    rows.present[0] = wider[:, 3:15]  # rows apart, columns neighbours
    rows.check(room, rows.forward(room))


@COMBINE
def test_expanded_inputs(room: Room, concatenate: bool) -> None:
    """The same row for every sample, the same number for every column, and the gradient of a sum: strides of 0."""
    rows = rows_of(1, (4, 4), concatenate, torch.float32, room.device)
    rows.present = [rows.present[0].expand(9, -1), rows.present[1][:, :1].expand(9, 4)]
    rows.absent[1] = rows.absent[1][:, :1].expand(1, 4)
    result = rows.forward(room)
    rows.check(room, result)
    check_backward(room, rows, torch.ones((), device=room.device).expand(result.shape))
    check_backward(room, rows, gradient(rows, room.device)[:1].expand(result.shape))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN."""
    with fresh_memory_holds_nan():
        yield


@COMBINE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, (7, 33, 1)), (19, (32, 64)), (0, (3, 2))], ids=str)
def test_every_element_is_written(
    room: Room, shape: tuple[int, tuple[int, ...]], dtype: torch.dtype, concatenate: bool
) -> None:
    rows = rows_of(*shape, concatenate, dtype, room.device)
    grad = gradient(rows, room.device)
    room.op("expand_subsets")
    with poisoned_memory():
        assert torch.empty(3, device=room.device).isnan().all()
        result = rows.forward(room)
        gradients = room.op("expand_subsets_backward")(grad, rows.widths, rows.batch, concatenate)
    rows.check(room, result)
    assert all(one.isfinite().all() for one in gradients)


@COMBINE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_numbers(room: Room, dtype: torch.dtype, concatenate: bool) -> None:
    rows = rows_of(2, (5, 6, 7), concatenate, dtype, room.device)
    for tensors in (rows.present, rows.absent):
        tensors[:] = [1e4 * one.sign() for one in tensors]
    rows.check(room, rows.forward(room))
    check_backward(room, rows, 1e4 * gradient(rows, room.device).sign())


@COMBINE
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_where_it_belongs(room: Room, poison: float, concatenate: bool) -> None:
    rows = rows_of(3, (4, 5, 6), concatenate, torch.float32, room.device)
    rows.present[0][1, 2] = poison
    rows.absent[1][0, 3] = poison
    result = rows.forward(room)
    assert not result.isfinite().all()
    rows.check(room, result)
    grad = gradient(rows, room.device)
    grad[1, 2] = poison
    check_backward(room, rows, grad)


def test_signed_zeros(room: Room) -> None:
    """Copied as they are; a sum begins with 0, so that one of -0 alone is 0."""
    zeros = [torch.full((2, 3), -0.0, device=room.device)] * 2
    rows = Rows(zeros, [zero[:1] for zero in zeros], concatenate=True)
    assert rows.forward(room).signbit().all()
    rows.concatenate = False
    assert not rows.forward(room).signbit().any()


@COMBINE
def test_many_modalities(room: Room, concatenate: bool) -> None:
    """Beyond 6, where the GPU kernels end."""
    if room.backend == "triton":
        pytest.skip("at most 6 modalities")
    rows = rows_of(2, (1, 2, 3, 1, 2, 3, 1, 2, 5), concatenate, torch.float32, room.device)
    rows.check(room, rows.forward(room))
    check_backward(room, rows, gradient(rows, room.device))


def test_most_modalities(room: Room) -> None:
    if room.backend == "triton":
        pytest.skip("at most 6 modalities")
    rows = rows_of(1, (1,) * 16, True, torch.float32, room.device)
    result = rows.forward(room).cpu()
    is_present = (torch.arange(1, 2**16 - 1)[:, None] >> torch.arange(16) & 1).bool()
    present, absent = torch.cat(rows.present, 1).cpu(), torch.cat(rows.absent, 1).cpu()
    assert torch.equal(result, torch.where(is_present, present, absent))
    grad = gradient_like(result)
    for side, one in zip(
        (is_present, ~is_present),
        room.op("expand_subsets_backward")(grad.to(room.device), rows.widths, 1, True),
        strict=True,
    ):
        torch.testing.assert_close(one.cpu().double(), (grad.double() * side).sum(0), rtol=1e-5, atol=1e-3)


def gradient_like(result: Tensor) -> Tensor:
    return logits(*result.shape, dtype=result.dtype, device="cpu", seed=7)


@COMBINE
def test_absent_rows_of_many_samples(room: Room, concatenate: bool) -> None:
    """The sum over all samples is as exact as if there were few: added one by one, 0.1 loses four digits here."""
    interpreted = room.backend == "triton" and room.device == "cpu"  # numpy adds the samples of a program one by one
    batch = 2**13 if interpreted else 2**16
    grad = torch.full((2 * batch, 3 if concatenate else 2), 0.1, device=room.device)
    widths = [1, 2] if concatenate else [2, 2]
    _, absent = room.op("expand_subsets_backward")(grad, widths, batch, concatenate)
    expected = torch.full_like(absent, 0.1, dtype=torch.float64) * batch
    torch.testing.assert_close(absent.double(), expected, rtol=1e-5 if interpreted else 1e-6, atol=0)


@COMBINE
def test_programs_that_take_several_tiles(room: Room, monkeypatch: pytest.MonkeyPatch, concatenate: bool) -> None:
    """As with many samples, of which each program of the GPU kernels takes every so-manieth tile."""
    if room.backend != "triton":
        pytest.skip("for the GPU kernels")
    room.op("expand_subsets")
    monkeypatch.setattr("agm.kernels.expand_subsets._MAX_PROGRAMS", 3)
    monkeypatch.setattr("agm.kernels.expand_subsets.ENOUGH_PROGRAMS", 1)
    rows = rows_of(41, (200, 33, 257), concatenate, torch.float32, room.device)
    rows.check(room, rows.forward(room))
    check_backward(room, rows, gradient(rows, room.device))


@COMBINE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, concatenate: bool) -> None:
    room = Room("cpp", "cpu")
    rows = rows_of(1003, (33, 128, 65), concatenate, dtype, "cpu")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            result = rows.forward(room)
            backward = room.op("expand_subsets_backward")
            results.append((result, *backward(gradient_like(result), rows.widths, rows.batch, concatenate)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            assert torch.equal(one, another)


def fuzzed(seed: int, device: str) -> tuple[Rows, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    modalities = draw(2, 6)
    widths = tuple(draw(1, 2 ** draw(1, 7)) for _ in range(modalities))
    rows = rows_of(draw(0, 2 ** draw(1, 6)), widths, bool(draw(0, 2)), DTYPES[draw(0, 4)], device, seed)
    layouts = list(LAYOUTS.values())
    rows.present = [layouts[draw(0, 4)](one) for one in rows.present]
    rows.absent = [layouts[draw(0, 4)](none) for none in rows.absent]
    return rows, layouts[draw(0, 4)](gradient(rows, device))


@pytest.mark.parametrize("seed", range(8))
def test_all_backends_agree(seed: int) -> None:
    served = 0
    for room in ROOMS:
        if room.device == "cuda" and not torch.cuda.is_available():
            continue
        try:
            room.op("expand_subsets")
        except pytest.skip.Exception:
            continue
        rows, grad = fuzzed(seed, room.device)
        rows.check(room, rows.forward(room))
        check_backward(room, rows, grad)
        served += 1
    assert served >= 1


@pytest.mark.parametrize(("layout", "concatenate"), [("compact", True), ("permuted", False)])
def test_registration(room: Room, layout: str, concatenate: bool) -> None:
    rows = rows_of(4, (6, 6), concatenate, torch.float32, room.device)
    rows.present = [LAYOUTS[layout](one) for one in rows.present]
    torch.library.opcheck(room.op("expand_subsets"), (rows.present, rows.absent, concatenate))
    grad = LAYOUTS[layout](gradient(rows, room.device))
    torch.library.opcheck(room.op("expand_subsets_backward"), (grad, rows.widths, rows.batch, concatenate))


def test_the_native_op_refuses_what_it_would_read_out_of_bounds() -> None:
    room = Room("cpp", "cpu")
    forward, backward = room.op("expand_subsets"), room.op("expand_subsets_backward")
    one, none = torch.zeros(3, 4), torch.zeros(1, 4)
    for present, absent, concatenate in [
        ([one], [none], True),
        ([one, one], [none], True),
        ([one] * 17, [none] * 17, True),
        ([one, one[:2]], [none, none], True),
        ([one, one], [none, none[:, :2]], True),
        ([one, one.double()], [none, none], True),
        ([one, one[:, :2]], [none, none[:, :2]], False),
    ]:
        with pytest.raises(RuntimeError, match="Expected"):
            forward(present, absent, concatenate)
    for grad, widths, batch in [(torch.zeros(5, 8), [4, 4], 3), (torch.zeros(6, 7), [4, 4], 3)]:
        with pytest.raises(RuntimeError, match="Expected"):
            backward(grad, widths, batch, True)
