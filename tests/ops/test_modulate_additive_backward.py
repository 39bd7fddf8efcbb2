"""c_m * g into the parts with a row for each sample, and c_m * sum_b g into those with one for all."""

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .samples import DTYPES, LAYOUTS, Room, fresh_memory_holds_nan, logits

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_form = pytest.mark.parametrize("given_joint", [False, True])

SHAPES = ((2, 0, 5), (2, 1, 1), (4, 3, 7), (2, 64, 10), (3, 33, 151), (16, 65, 101), (2, 2, 4096 + 32), (2, 2100, 3))


def scales_of(modalities: int, device: str) -> Tensor:
    """Of both signs, one of them 0 and one too small for float32."""
    scales = logits(2, modalities + 1, dtype=torch.float64, device=device, seed=1)
    scales[0, 0] = scales[1, 1] = 0.0
    scales[0, 1] = 1e-60
    return scales


def parts_of(room: Room, grad: Tensor, scales: Tensor, given_joint: bool) -> tuple[Tensor, Tensor]:
    """The gradients with a row for each sample, (M or M + 1, B, C), and those with one for all, (M + 1, C)."""
    out = room.op("modulate_additive_backward")(grad, scales, given_joint)
    assert out.is_contiguous()
    assert out.dtype == grad.dtype
    batch, few = grad.shape[0], (scales.shape[1] - 1) * (grad.shape[0] + 1)
    apart = out[:few].unflatten(0, (-1, batch + 1))
    rows = [*apart[:, :-1], *([out[few:-1]] if given_joint else [])]
    assert len(out) == few + 1 + (batch if given_joint else 0)
    return torch.stack(rows), torch.cat([apart[:, -1], out[-1:]])


def check(room: Room, grad: Tensor, scales: Tensor, given_joint: bool) -> None:
    """The rows to the last bit; the sums of the columns to their rounding."""
    rows, columns = parts_of(room, grad, scales, given_joint)
    wide = reference.accumulation_dtype(grad.dtype)
    scales = scales.cpu().to(wide).double()
    own = scales[0] if given_joint else scales[0, :-1]
    wanted = (own[:, None, None] * grad.cpu().double()).to(wide).to(grad.dtype)
    wanted[own == 0] = 0.0
    rounding = room.rounding(grad.dtype)
    torch.testing.assert_close(rows.cpu(), wanted, rtol=rounding, atol=0, equal_nan=True)

    exact = grad.cpu().double()
    once = max(torch.finfo(grad.dtype).eps, rounding)
    # Sums of normal numbers: rounding adds up as the root of their number, if it is not summed in a wider type.
    summed = 4 * torch.finfo(wide).eps * exact.abs().sum(0) * scales[1].abs()[:, None]
    wanted = (scales[1][:, None] * exact.sum(0)).masked_fill((scales[1] == 0)[:, None], 0.0)
    assert ((columns.cpu().double() - wanted).abs() <= once * wanted.abs() + summed).all()


@by_form
@by_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[int, int, int], dtype: torch.dtype, given_joint: bool) -> None:
    modalities, batch, classes = shape
    grad = logits(batch, classes, dtype=dtype, device=room.device)
    check(room, grad, scales_of(modalities, room.device), given_joint)


@by_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype) -> None:
    grad = LAYOUTS[layout](logits(6, 40, dtype=dtype, device=room.device))
    before = grad.clone()
    check(room, grad, LAYOUTS[layout](scales_of(3, room.device)), True)
    assert torch.equal(grad, before)


def test_expanded_gradient(room: Room) -> None:
    """The gradient of a sum has stride 0."""
    check(room, torch.ones((), device=room.device).expand(4, 9), scales_of(2, room.device), False)


@by_form
@pytest.mark.parametrize(("batch", "classes"), [(0, 0), (0, 7), (7, 0)])
def test_empty(room: Room, batch: int, classes: int, given_joint: bool) -> None:
    grad = torch.empty(batch, classes, device=room.device)
    rows, columns = parts_of(room, grad, scales_of(2, room.device), given_joint)
    assert rows.shape == (3 if given_joint else 2, batch, classes)
    assert columns.shape == (3, classes)
    assert not columns.any()


def test_long_columns(room: Room) -> None:
    """Summed one after the other in float32, 65,536 numbers near 1 would be off by a hundred times as much."""
    grad = 1 + 0.1 * logits(65536, 3, dtype=torch.float32, device=room.device)
    scales = torch.ones(2, 3, dtype=torch.float64, device=room.device)
    columns = parts_of(room, grad, scales, False)[1]
    torch.testing.assert_close(columns.cpu().double(), grad.cpu().double().sum(0).expand(3, 3), rtol=5e-7, atol=0)


def test_many_samples_of_many_classes(room: Room) -> None:
    """So many that what sums a column goes over several blocks of samples, and others are left with none."""
    check(room, logits(300, 2000, dtype=torch.float32, device=room.device), scales_of(2, room.device), False)


@by_dtype
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_scale_of_zero_stops_what_is_not_finite(room: Room, poison: float, dtype: torch.dtype) -> None:
    grad = torch.full((3, 5), poison, dtype=dtype, device=room.device)
    scales = torch.tensor([[0.0, -0.0, 1.0], [0.0, -0.0, 1.0]], dtype=torch.float64, device=room.device)
    rows, columns = parts_of(room, grad, scales, True)
    assert not rows[:2].any()
    assert not columns[:2].any()
    torch.testing.assert_close(rows[2], grad, equal_nan=True)
    torch.testing.assert_close(columns[2], grad[0], equal_nan=True)


@by_form
@by_dtype
@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 129, 151), (2, 64, 32)], ids=str)
def test_every_element_is_written(
    room: Room, shape: tuple[int, int, int], dtype: torch.dtype, given_joint: bool
) -> None:
    """Fresh memory holds NaN, which must not be seen in the results."""
    modalities, batch, classes = shape
    grad, scales = logits(batch, classes, dtype=dtype, device=room.device), scales_of(modalities, room.device)
    with fresh_memory_holds_nan():
        assert torch.empty(3, device=room.device).isnan().all()
        check(room, grad, scales, given_joint)


@pytest.mark.parametrize("shape", [(2100, 31), (3, 9000)], ids=str)
def test_same_bits_every_time(room: Room, shape: tuple[int, int]) -> None:
    grad, scales = logits(*shape, dtype=torch.float32, device=room.device), scales_of(2, room.device)
    results = [room.op("modulate_additive_backward")(grad, scales, False) for _ in range(3)]
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


def test_same_bits_with_any_number_of_threads() -> None:
    op = Room("cpp", "cpu").op("modulate_additive_backward")
    grad, scales = logits(5000, 201, dtype=torch.float32, device="cpu"), scales_of(3, "cpu")
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(op(grad, scales, True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


@pytest.mark.parametrize(("layout", "given_joint"), [("compact", False), ("permuted", True)])
def test_registration(room: Room, layout: str, given_joint: bool) -> None:
    grad = LAYOUTS[layout](logits(4, 6, dtype=torch.float32, device=room.device))
    arguments = (grad, scales_of(2, room.device), given_joint)
    torch.library.opcheck(room.op("modulate_additive_backward"), arguments)
