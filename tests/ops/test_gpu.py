"""How the kernels behave on a GPU beyond their numbers: launches, synchronisation, graphs, streams."""

import pytest
import torch

from agm.ops import reference

from .samples import Room, kernels_of, logits
from .steps import Step, step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHAPES = [(2, 64, 10), (3, 129, 151), (3, 4, 20000), (6, 5, 33), (2, 0, 5)]


@pytest.fixture(params=["cuda", "triton"])
def room(request: pytest.FixtureRequest) -> Room:
    return Room(request.param, "cuda")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches(room: Room, shape: tuple[int, int, int]) -> None:
    given = step(*shape, torch.float32).on("cuda")
    grad, scales = given.masked_logits[-1], given.run(room.op("modulate"))
    assert len(kernels_of(lambda: given.run(room.op("modulate")))) <= 2
    assert len(kernels_of(lambda: room.op("modulate_backward")(grad, scales))) <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_synchronisation(room: Room, shape: tuple[int, int, int]) -> None:
    given = step(*shape, torch.float32).on("cuda")
    modulate, backward = room.op("modulate"), room.op("modulate_backward")
    backward(given.masked_logits[-1], given.run(modulate))  # compiles and copies the weights
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        backward(given.masked_logits[-1], given.run(modulate))
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _both(room: Room, given: Step) -> tuple[torch.Tensor, torch.Tensor]:
    scales = given.run(room.op("modulate"))
    return scales, room.op("modulate_backward")(given.masked_logits[-1], scales)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_graph_capture_and_replay(room: Room, shape: tuple[int, int, int]) -> None:
    """Three replays on new logits make the same three steps as three calls."""
    graphed = step(*shape, torch.float32).on("cuda")
    plain = graphed.on("cuda")
    _both(room, graphed.on("cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _both(room, graphed.on("cuda"))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scales, gradients = _both(room, graphed)
    assert torch.equal(graphed.counts, plain.counts)  # capturing makes no step
    for seed in range(3):
        fresh = step(*shape, torch.float32, seed=seed).masked_logits.cuda()
        graphed.masked_logits.copy_(fresh)
        plain.masked_logits.copy_(fresh)
        graph.replay()
        expected_scales, expected_gradients = _both(room, plain)
        assert torch.equal(scales, expected_scales)
        assert torch.equal(gradients, expected_gradients)
        assert torch.equal(graphed.values, plain.values)
        assert torch.equal(graphed.counts, plain.counts)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_current_stream(room: Room, shape: tuple[int, int, int]) -> None:
    """On a busy side stream the kernels wait for their input, which the default stream would not."""
    given = step(*shape, torch.float32).on("cuda")
    wanted = given.on("cuda")
    expected = _both(room, wanted)
    fresh = given.masked_logits.clone()
    given.masked_logits.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        given.masked_logits.copy_(fresh)
        result = _both(room, given)
    side.synchronize()
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(given.values, wanted.values)


def test_second_device(room: Room) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    given = step(3, 9, 40, torch.float32).on("cuda:1")
    with torch.cuda.device(0):
        scales, gradients = _both(room, given)
    assert scales.device == gradients.device == torch.device("cuda:1")
    assert gradients.isfinite().all()


def test_a_wrong_class_leaves_the_state_and_the_context_alone(room: Room) -> None:
    given = step(2, 300, 40, torch.float32).on("cuda")
    given.target[::3] = 2**40
    given.target[1::3] = -7
    before = given.on("cuda")
    given.run(room.op("modulate"))
    torch.cuda.synchronize()  # an access out of bounds would be reported here
    assert torch.equal(given.values[reference.RUNNING_SCORES], before.values[reference.RUNNING_SCORES])
    assert given.counts[2 + reference.SKIPPED] == before.counts[2 + reference.SKIPPED] + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_elements_than_32_bits_count(room: Room, dtype: torch.dtype) -> None:
    """3 rows of 2**30 logits: offsets pass 2**31."""
    needed = 3 * 2**30 * dtype.itemsize * 1.5
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip("the GPU has too little free memory")
    batch, classes = 2**14, 2**16
    masked = torch.zeros(3, batch, classes, dtype=dtype, device="cuda")
    masked[:, -1, 5] = 3.0  # the last sample alone knows its class
    given = step(2, batch, 8, torch.float32).on("cuda")
    given.masked_logits, given.target = masked, torch.full((batch,), -100, device="cuda")
    given.target[-1] = 5
    given.run(room.op("modulate"))
    expected = torch.nn.functional.cross_entropy(masked[:1, -1].double() / 2, given.target[-1:])
    torch.testing.assert_close(given.values[1], expected.expand(2), rtol=1e-4, atol=1e-4)
    del masked, given
    grad = logits(2, 2, dtype=dtype, device="cuda").new_ones(2**14, 2**16)
    scales = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, device="cuda")
    result = room.op("modulate_backward")(grad, scales)
    assert [row[-1, -1].item() for row in result] == [0.0, 0.5, 2.0]
    assert (result[2] == 2).all()
