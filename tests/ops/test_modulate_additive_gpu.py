"""How the additive kernels behave on a GPU beyond their numbers: launches, synchronisation, graphs, streams."""

import pytest
import torch
from torch import Tensor

from .additive_steps import AdditiveStep, additive_step
from .samples import Room
from .test_gpu import kernels_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

ROOM = Room("triton", "cuda")
by_shape = pytest.mark.parametrize(
    "shape", [(2, 64, 10), (3, 129, 151), (3, 4, 20000), (16, 64, 101), (2, 65536, 10)], ids=str
)
by_form = pytest.mark.parametrize("form", ["bias", "joint"])


def _backward(given: AdditiveStep, scales: Tensor) -> Tensor:
    op = ROOM.op("modulate_additive_backward")
    return op(given.present[-1], scales, given.joint_logits is not None)  # type: ignore[no-any-return]


def _both(given: AdditiveStep) -> tuple[Tensor, ...]:
    logits, scales = given.run(ROOM.op("modulate_additive"))
    return logits, scales, _backward(given, scales)


@by_form
@by_shape
def test_launches(shape: tuple[int, int, int], form: str) -> None:
    given = additive_step(*shape, torch.float32, form).on("cuda")
    scales = given.run(ROOM.op("modulate_additive"))[1]
    assert len(kernels_of(lambda: given.run(ROOM.op("modulate_additive")))) <= 2
    assert len(kernels_of(lambda: _backward(given, scales))) <= 2


@by_form
@by_shape
def test_no_synchronisation(shape: tuple[int, int, int], form: str) -> None:
    given = additive_step(*shape, torch.float32, form).on("cuda")
    _both(given)  # compiles
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _both(given)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@by_form
@by_shape
def test_graph_capture_and_replay(shape: tuple[int, int, int], form: str) -> None:
    """Three replays on new logits make the same three steps as three calls."""
    graphed = additive_step(*shape, torch.float32, form).on("cuda")
    plain = graphed.on("cuda")
    _both(graphed.on("cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _both(graphed.on("cuda"))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = _both(graphed)
    assert torch.equal(graphed.counts, plain.counts)  # capturing makes no step
    for seed in range(3):
        fresh = additive_step(*shape, torch.float32, form, seed=seed).present.cuda()
        graphed.present.copy_(fresh)
        plain.present.copy_(fresh)
        graph.replay()
        for result, expected in zip(results, _both(plain), strict=True):
            assert torch.equal(result, expected)
        assert torch.equal(graphed.values, plain.values)
        assert torch.equal(graphed.counts, plain.counts)


@by_shape
def test_current_stream(shape: tuple[int, int, int]) -> None:
    """On a busy side stream the kernels wait for their input, which the default stream would not."""
    given = additive_step(*shape, torch.float32).on("cuda")
    wanted = given.on("cuda")
    expected = _both(wanted)
    fresh = given.present.clone()
    given.present.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        given.present.copy_(fresh)
        results = _both(given)
    side.synchronize()
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(given.values, wanted.values)
