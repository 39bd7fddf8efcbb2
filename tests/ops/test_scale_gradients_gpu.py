"""scale_gradients_ on a GPU beyond its numbers: launches, synchronisation, graphs, streams."""

import pytest
import torch
from torch import Tensor

import agm
from agm.ops import _backends

from .samples import DTYPES
from .test_gpu import kernels_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(params=["cuda", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = _backends.BACKENDS[name].why_not("scale_gradients_", "cuda")
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=[False, True], ids=["plain", "noise"])
def noise(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def gradients(count: int = 40) -> list[list[Tensor]]:
    """Two groups of several sizes and all dtypes."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(i * 97 % 20000, generator=generator).to("cuda", DTYPES[i % 4]) for i in range(count)]
    return [drawn[::2], drawn[1::2]]


def copy_of(given: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[grad.clone() for grad in group] for group in given]


def flat(given: list[list[Tensor]]) -> Tensor:
    return torch.cat([grad.double() for group in given for grad in group])


@pytest.fixture
def coefficients() -> Tensor:
    return torch.tensor([0.3, 1.7], dtype=torch.float64, device="cuda")


@pytest.mark.parametrize(("count", "most"), [(1, 1), (128, 1), (129, 2), (600, 5)])
def test_launches(count: int, most: int, noise: bool, coefficients: Tensor) -> None:
    """One launch for 128 tensors of a type, two with noise and one for the seed."""
    reason = _backends.BACKENDS["cuda"].why_not("scale_gradients_", "cuda")
    if reason is not None:
        pytest.skip(reason)
    given = [[torch.ones(1 + i % 50, device="cuda") for i in range(count)], []]
    launched = kernels_of(lambda: agm.scale_gradients_(given, coefficients, noise=noise, backend="cuda"))
    assert len(launched) <= (2 * most + 1 if noise else most), launched


def test_no_synchronisation(backend: str, noise: bool, coefficients: Tensor) -> None:
    given = gradients()
    agm.scale_gradients_(given, coefficients, noise=noise, backend=backend)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agm.scale_gradients_(given, coefficients, noise=noise, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_graph_replays_draw_fresh_noise(backend: str, noise: bool, coefficients: Tensor) -> None:
    """Replays follow new coefficients and gradients; without noise they give the bits of a plain call."""
    original = gradients()
    given = copy_of(original)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        agm.scale_gradients_(given, coefficients, noise=noise, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        agm.scale_gradients_(given, coefficients, noise=noise, backend=backend)
    results = []
    for factor in (1.0, 1.0, 2.0):
        coefficients.copy_(torch.tensor([0.3, 1.7], dtype=torch.float64) * factor)
        torch._foreach_copy_([g for group in given for g in group], [g for group in original for g in group])
        graph.replay()
        results.append(flat(given))
        if not noise:
            plain = copy_of(original)
            agm.scale_gradients_(plain, coefficients, backend=backend)
            assert torch.equal(results[-1], flat(plain))
    if noise:
        assert (results[0] == results[1]).double().mean() < 0.1  # 16-bit numbers may be equal by chance


def test_noise_follows_the_generator(backend: str, coefficients: Tensor) -> None:
    results = []
    for seed in (1, 1, 2):
        given = gradients()
        generator = torch.Generator("cuda").manual_seed(seed)
        agm.scale_gradients_(given, coefficients, noise=True, generator=generator, backend=backend)
        results.append(flat(given))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_generator_of_the_cpu_is_an_error(coefficients: Tensor) -> None:
    given = [[torch.ones(3, device="cuda")], []]
    with pytest.raises(ValueError, match=r"torch.Generator\('cuda:0'\)"):
        agm.scale_gradients_(given, coefficients, noise=True, generator=torch.Generator())
    assert (given[0][0] == 1).all()


def test_numbers_of_the_host(backend: str) -> None:
    given = [[torch.ones(3, device="cuda")], [torch.ones(2, device="cuda").half()]]
    agm.scale_gradients_(given, [2.0, 0.5], backend=backend)
    assert flat(given).tolist() == [2.0, 2.0, 2.0, 0.5, 0.5]


def test_current_stream(backend: str, noise: bool, coefficients: Tensor) -> None:
    """On a busy side stream the kernels wait for their input, which the default stream would not."""
    original = gradients()
    expected = copy_of(original)

    def call(given: list[list[Tensor]]) -> None:
        generator = torch.Generator("cuda").manual_seed(3)
        agm.scale_gradients_(given, coefficients, noise=noise, generator=generator, backend=backend)

    call(expected)
    given = [[torch.zeros_like(grad) for grad in group] for group in original]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        torch._foreach_copy_([g for group in given for g in group], [g for group in original for g in group])
        call(given)
    side.synchronize()
    assert torch.equal(flat(given), flat(expected))


def test_second_device(backend: str, noise: bool) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    given = [[torch.ones(300, device="cuda:1")]]
    with torch.cuda.device(0):
        agm.scale_gradients_(given, torch.tensor([2.0], device="cuda:1"), noise=noise, backend=backend)
    torch.testing.assert_close(given[0][0], torch.full((300,), 2.0, device="cuda:1"), rtol=0, atol=1e-6)


def test_more_elements_than_32_bits_count(noise: bool) -> None:
    size = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 2 * size * 1.5:
        pytest.skip("the GPU has too little free memory")
    reason = _backends.BACKENDS["cuda"].why_not("scale_gradients_", "cuda")
    if reason is not None:
        pytest.skip(reason)
    grad = torch.ones(size, dtype=torch.bfloat16, device="cuda")
    agm.scale_gradients_([[grad]], torch.tensor([2.0], device="cuda"), noise=noise, backend="cuda")
    assert grad[-5:].tolist() == [2.0] * 5
    assert grad[:5].tolist() == [2.0] * 5
    assert grad[2**31 - 3 : 2**31 + 2].tolist() == [2.0] * 5
