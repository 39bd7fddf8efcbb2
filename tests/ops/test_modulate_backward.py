"""c_S * g into every row. The arithmetic is elementwise, so every backend agrees to the last bit."""

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .samples import DTYPES, LAYOUTS, SHAPES, Room, fresh_memory_holds_nan, logits


def subset_scales(modalities: int, device: str) -> Tensor:
    """Scales of both signs, one of them 0 and one too small for float32."""
    scales = logits(2**modalities - 1, dtype=torch.float64, device=device, seed=1)
    scales[0] = 0.0
    scales[1] = 1e-60
    return scales


def expected(grad: Tensor, scales: Tensor) -> Tensor:
    """In float64 throughout, rounded once to the accumulation type and once to the result's."""
    wide = reference.accumulation_dtype(grad.dtype)
    scales = scales.cpu().to(wide).double()
    product = (scales[:, None, None] * grad.cpu().double()).to(wide).to(grad.dtype)
    product[scales == 0] = 0.0
    return product


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    op = room.op("modulate_backward")
    modalities, batch, classes = shape
    grad = logits(batch, classes, dtype=dtype, device=room.device)
    scales = subset_scales(modalities, room.device)
    result = op(grad, scales)
    assert result.shape == (2**modalities - 1, batch, classes)
    assert result.dtype == dtype
    assert result.device.type == room.device
    torch.testing.assert_close(result.cpu(), expected(grad, scales), rtol=room.rounding(grad.dtype), atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype) -> None:
    op = room.op("modulate_backward")
    grad = LAYOUTS[layout](logits(6, 40, dtype=dtype, device=room.device))
    scales = LAYOUTS[layout](subset_scales(3, room.device))
    before = grad.clone()
    result = op(grad, scales)
    assert result.is_contiguous()
    assert torch.equal(grad, before)
    torch.testing.assert_close(result.cpu(), expected(grad, scales), rtol=room.rounding(grad.dtype), atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half(room: Room, dtype: torch.dtype) -> None:
    """All 65,536 of them: subnormals, overflows to infinity, ties in the rounding, NaNs of every kind."""
    if room.rounding(dtype):
        pytest.skip("the interpreter neither rounds bfloat16 nor keeps its subnormals")
    grad = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(2, -1)
    grad = grad[:, torch.arange(0, grad.shape[1], 1 if room.backend != "triton" else 7)].to(room.device)
    scales = torch.tensor([1.0, -1 / 3, 3e-5, 9e-8, 2.0, 70.0, 4e38], dtype=torch.float64, device=room.device)
    result = room.op("modulate_backward")(grad, scales).cpu()
    wanted = expected(grad, scales)
    assert torch.equal(result.isnan(), wanted.isnan())
    torch.testing.assert_close(result.nan_to_num(0.0), wanted.nan_to_num(0.0), rtol=0, atol=0)


def test_expanded_gradient(room: Room) -> None:
    """The gradient of a sum has stride 0."""
    grad = torch.ones((), device=room.device).expand(4, 9)
    scales = subset_scales(2, room.device)
    result = room.op("modulate_backward")(grad, scales)
    torch.testing.assert_close(result.cpu(), expected(grad, scales), rtol=room.rounding(grad.dtype), atol=0)


@pytest.mark.parametrize(("batch", "classes"), [(0, 0), (0, 7), (7, 0)])
def test_empty(room: Room, batch: int, classes: int) -> None:
    grad = torch.empty(batch, classes, device=room.device)
    assert room.op("modulate_backward")(grad, subset_scales(2, room.device)).shape == (3, batch, classes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_scale_of_zero_stops_what_is_not_finite(room: Room, poison: float, dtype: torch.dtype) -> None:
    """0 * NaN would put NaN into the gradients of passes that are not modulated at all."""
    grad = torch.full((3, 5), poison, dtype=dtype, device=room.device)
    scales = torch.tensor([0.0, -0.0, 1.0], dtype=torch.float64, device=room.device)
    result = room.op("modulate_backward")(grad, scales)
    assert not result[:2].any()
    torch.testing.assert_close(result[2], grad, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 129, 151), (2, 64, 32)], ids=str)
def test_every_element_is_written(room: Room, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Fresh memory holds NaN, which must not be seen in the result."""
    op = room.op("modulate_backward")
    modalities, batch, classes = shape
    grad = logits(batch, classes, dtype=dtype, device=room.device)
    scales = subset_scales(modalities, room.device)
    with fresh_memory_holds_nan():
        assert torch.empty(3, device=room.device).isnan().all()
        result = op(grad, scales)
    torch.testing.assert_close(result.cpu(), expected(grad, scales), rtol=room.rounding(grad.dtype), atol=0)


@pytest.mark.parametrize("layout", ["compact", "permuted"])
def test_registration(room: Room, layout: str) -> None:
    grad = LAYOUTS[layout](logits(4, 6, dtype=torch.float32, device=room.device))
    torch.library.opcheck(room.op("modulate_backward"), (grad, subset_scales(2, room.device)))


def test_many_modalities(room: Room) -> None:
    """The backward has no limit on M."""
    grad = logits(2, 3, dtype=torch.float32, device=room.device)
    scales = subset_scales(9, room.device)
    result = room.op("modulate_backward")(grad, scales)
    torch.testing.assert_close(result.cpu(), expected(grad, scales), rtol=room.rounding(grad.dtype), atol=0)
