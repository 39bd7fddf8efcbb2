"""How the kernels of expand_subsets behave on a GPU beyond their numbers: launches, syncs, graphs, streams."""

import pytest
import torch
from torch import Tensor

import agm

from .samples import Room, kernels_of, logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHAPES = [(2, 64, 512), (3, 129, 33), (6, 5, 1), (2, 4096, 128)]
ROOM = Room("triton", "cuda")
COMBINE = pytest.mark.parametrize("concatenate", [True, False], ids=["concat", "sum"])


def rows(modalities: int, batch: int, width: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    present, absent = (
        [logits(count, width, dtype=torch.float32, device="cuda", seed=seed + m) for m in range(modalities)]
        for count in (batch, 1)
    )
    return present, absent


def both(present: list[Tensor], absent: list[Tensor], concatenate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, and the gradients for a gradient that is the rows."""
    widths = [one.shape[1] for one in present]
    result = ROOM.op("expand_subsets")(present, absent, concatenate)
    return result, *ROOM.op("expand_subsets_backward")(result, widths, present[0].shape[0], concatenate)


@COMBINE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches(shape: tuple[int, int, int], concatenate: bool) -> None:
    present, absent = rows(*shape)
    forward, backward = ROOM.op("expand_subsets"), ROOM.op("expand_subsets_backward")
    grad = forward(present, absent, concatenate)
    widths, batch = [one.shape[1] for one in present], present[0].shape[0]
    assert len(kernels_of(lambda: forward(present, absent, concatenate))) == 1
    assert len(kernels_of(lambda: backward(grad, widths, batch, concatenate))) <= 2


@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_synchronisation(shape: tuple[int, int, int], combine: str) -> None:
    present, absent = rows(*shape)
    leaves = [one.requires_grad_() for one in (*present, *absent)]
    torch.autograd.grad(agm.expand_subsets(present, absent, combine=combine).sum(), leaves)  # compiles
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(agm.expand_subsets(present, absent, combine=combine).sum(), leaves)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@COMBINE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graph_capture_and_replay(shape: tuple[int, int, int], concatenate: bool) -> None:
    present, absent = rows(*shape)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both(present, absent, concatenate)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both(present, absent, concatenate)
    for seed in (10, 20):
        for old, new in zip((present, absent), rows(*shape, seed=seed), strict=True):
            for one, other in zip(old, new, strict=True):
                one.copy_(other)
        graph.replay()
        for one, other in zip(captured, both(present, absent, concatenate), strict=True):
            assert torch.equal(one, other)


@COMBINE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_current_stream(shape: tuple[int, int, int], concatenate: bool) -> None:
    """On a busy side stream the kernels wait for their input, which the default stream would not."""
    present, absent = rows(*shape)
    expected = both(present, absent, concatenate)
    fresh = [one.clone() for one in present]
    for one in present:
        one.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for one, other in zip(present, fresh, strict=True):
            one.copy_(other)
        result = both(present, absent, concatenate)
    side.synchronize()
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    present, absent = ([one.to("cuda:1") for one in both_rows] for both_rows in rows(3, 9, 40))
    with torch.cuda.device(0):
        results = both(present, absent, True)
    assert all(one.device == torch.device("cuda:1") and one.isfinite().all() for one in results)


@COMBINE
def test_repeats_to_the_last_bit(concatenate: bool) -> None:
    first, *others = (both(*rows(3, 5000, 65), concatenate) for _ in range(4))
    for other in others:
        assert all(torch.equal(one, another) for one, another in zip(first, other, strict=True))


@COMBINE
def test_more_elements_than_32_bits_count(concatenate: bool) -> None:
    """Offsets of the rows, and of a modality's gradients, pass 2**31."""
    batch, width = 2**15 + 1, 2**16
    if torch.cuda.mem_get_info()[0] < 2 * batch * width * (8 if concatenate else 5):
        pytest.skip("the GPU has too little free memory")
    present = [torch.full((batch, width), value, dtype=torch.bfloat16, device="cuda") for value in (1.0, 2.0)]
    absent = [torch.full((1, width), value, dtype=torch.bfloat16, device="cuda") for value in (4.0, 8.0)]
    result = ROOM.op("expand_subsets")(present, absent, concatenate)
    ends = [result[0], result[batch - 1], result[batch], result[-1]]
    if concatenate:
        wanted = [(1.0, 8.0), (1.0, 8.0), (4.0, 2.0), (4.0, 2.0)]
        assert [(row[0].item(), row[-1].item()) for row in ends] == wanted
    else:
        assert [row[-1].item() for row in ends] == [9.0, 9.0, 6.0, 6.0]
    del present
    grads, nones = ROOM.op("expand_subsets_backward")(result, [width, width], batch, concatenate)
    first, second = grads.view(2, batch, width)
    assert (first == (1.0 if concatenate else 9.0)).all()
    assert (second == (2.0 if concatenate else 6.0)).all()
    expected = torch.tensor([4.0, 8.0] if concatenate else [6.0, 9.0], device="cuda") * batch
    torch.testing.assert_close(nones.view(2, width)[:, -1].float(), expected.bfloat16().float())
