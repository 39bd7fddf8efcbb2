"""How the kernels behave on a GPU beyond their numbers: launches, synchronisation, graphs, streams."""

from collections.abc import Callable

import pytest
import torch

from agm.ops import reference

from .losses import Loss, loss_of
from .samples import Room, kernels_of, logits
from .steps import Step, step

Both = Callable[[Step], tuple[torch.Tensor, ...]]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

SHAPES = [(2, 64, 10), (3, 129, 151), (3, 4, 20000), (6, 5, 33), (2, 0, 5)]


@pytest.fixture(params=["cuda", "triton"])
def room(request: pytest.FixtureRequest) -> Room:
    return Room(request.param, "cuda")


@pytest.fixture(params=["logits", "loss"])
def both(request: pytest.FixtureRequest, room: Room) -> Both:
    """Forward and backward of one step, without or with the fused loss; returns all that they give."""

    def logits_only(given: Step) -> tuple[torch.Tensor, ...]:
        scales = given.run(room.op("modulate"))
        return scales, room.op("modulate_backward")(given.masked_logits[-1], scales)

    def with_loss(given: Step) -> tuple[torch.Tensor, ...]:
        classes = given.masked_logits.shape[2]
        device = given.masked_logits.device
        own = Loss(given, torch.linspace(0.5, 1.5, classes, device=device), 0.1)
        own.grad_loss = torch.ones((), dtype=own.wide, device=device)
        mean, scales, normalizer, sums = room.op("modulate_cross_entropy")(*own.forward_arguments())
        backward = own.backward_arguments(normalizer, sums, scales)
        return mean, scales, room.op("modulate_cross_entropy_backward")(*backward)

    return logits_only if request.param == "logits" else with_loss


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches(room: Room, shape: tuple[int, int, int]) -> None:
    given = step(*shape, torch.float32).on("cuda")
    grad, scales = given.masked_logits[-1], given.run(room.op("modulate"))
    assert len(kernels_of(lambda: given.run(room.op("modulate")))) <= 2
    assert len(kernels_of(lambda: room.op("modulate_backward")(grad, scales))) <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches_with_the_loss(room: Room, shape: tuple[int, int, int]) -> None:
    given = loss_of(*shape, torch.float32, weighted=True, label_smoothing=0.1, grad_logits=True).on("cuda")
    forward = given.forward_arguments()  # whose conversions are not the op's
    _, scales, normalizer, sums = room.op("modulate_cross_entropy")(*forward)
    backward = given.backward_arguments(normalizer, sums, scales)
    assert len(kernels_of(lambda: room.op("modulate_cross_entropy")(*forward))) <= 2
    assert len(kernels_of(lambda: room.op("modulate_cross_entropy_backward")(*backward))) <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_synchronisation(both: Both, shape: tuple[int, int, int]) -> None:
    given = step(*shape, torch.float32).on("cuda")
    both(given)  # compiles and copies the weights
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both(given)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_graph_capture_and_replay(both: Both, shape: tuple[int, int, int]) -> None:
    """Three replays on new logits make the same three steps as three calls."""
    graphed = step(*shape, torch.float32).on("cuda")
    plain = graphed.on("cuda")
    both(graphed.on("cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both(graphed.on("cuda"))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both(graphed)
    assert torch.equal(graphed.counts, plain.counts)  # capturing makes no step
    for seed in range(3):
        fresh = step(*shape, torch.float32, seed=seed).masked_logits.cuda()
        graphed.masked_logits.copy_(fresh)
        plain.masked_logits.copy_(fresh)
        graph.replay()
        for result, expected in zip(results, both(plain), strict=True):
            assert torch.equal(result, expected)
        assert torch.equal(graphed.values, plain.values)
        assert torch.equal(graphed.counts, plain.counts)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_current_stream(both: Both, shape: tuple[int, int, int]) -> None:
    """On a busy side stream the kernels wait for their input, which the default stream would not."""
    given = step(*shape, torch.float32).on("cuda")
    wanted = given.on("cuda")
    expected = both(wanted)
    fresh = given.masked_logits.clone()
    given.masked_logits.zero_()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        given.masked_logits.copy_(fresh)
        result = both(given)
    side.synchronize()
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(given.values, wanted.values)


def test_second_device(both: Both) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    given = step(3, 9, 40, torch.float32).on("cuda:1")
    with torch.cuda.device(0):
        results = both(given)
    assert all(result.device == torch.device("cuda:1") and result.isfinite().all() for result in results)


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
