"""agm.scale_gradients_: what it takes, what it rejects, where its noise comes from."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import agm


def gradients(seed: int = 0) -> list[list[Tensor | None]]:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(size, generator=generator) for size in (7, 3, 40, 5)]
    return [[draw[0], None, draw[1]], [draw[2], draw[3].bfloat16()]]


def tensors(groups: Any) -> list[Tensor]:
    return [grad for group in groups for grad in group if grad is not None]


BACKENDS = ["auto", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "coefficients",
    [[0.5, -3], (0.5, -3.0), torch.tensor([0.5, -3.0]), torch.tensor([0.5, -3.0], dtype=torch.float64).bfloat16()],
    ids=["list", "tuple", "float32", "bfloat16"],
)
def test_each_group_has_its_coefficient(backend: str, coefficients: Any) -> None:
    given, before = gradients(), gradients()
    assert agm.scale_gradients_(given, coefficients, backend=backend) is None
    assert torch.equal(given[0][0], before[0][0] * 0.5)
    assert given[0][1] is None
    assert torch.equal(given[0][2], before[0][2] * 0.5)
    assert torch.equal(given[1][0], before[1][0] * -3)
    assert torch.equal(given[1][1], before[1][1] * -3)


def test_a_network_after_its_backward() -> None:
    """Parameters of any layout, one of them frozen; groups may be generators."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3)).to(memory_format=torch.channels_last)
    network[0].bias.requires_grad_(False)
    network(torch.randn(5, 2, 6, 6).to(memory_format=torch.channels_last)).square().sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    coefficients = torch.tensor([0.25, 4.0])
    agm.scale_gradients_([(p.grad for p in network[0].parameters()), (p.grad for p in network[2].parameters())],
                         coefficients)  # fmt: skip
    factors = [0.25, None, 4.0, 4.0]
    for parameter, own, factor in zip(network.parameters(), before, factors, strict=True):
        assert (parameter.grad is None) == (own is None)
        assert own is None or torch.equal(parameter.grad, own * factor)


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_is_reproducible_and_fresh(backend: str) -> None:
    def noisy(generator: torch.Generator | None) -> Tensor:
        given = gradients()
        agm.scale_gradients_(given, [1.0, 1.0], noise=True, generator=generator, backend=backend)
        return torch.cat(tensors(given))

    generator = torch.Generator().manual_seed(5)
    first, second = noisy(generator), noisy(generator)
    assert not torch.isclose(first, second).any()
    assert torch.equal(noisy(generator.manual_seed(5)), first)
    torch.manual_seed(5)
    assert torch.equal(noisy(None), first)
    assert torch.equal(noisy(None), second)


def test_without_noise_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    agm.scale_gradients_(gradients(), [1.0, 2.0])
    agm.scale_gradients_([[None], []], [1.0, 2.0], noise=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_gradient_changes_no_other_noise() -> None:
    def noisy(missing: bool) -> list[Tensor]:
        given = gradients()
        if missing:
            given[0][0] = None
        agm.scale_gradients_(given, [1.0, 1.0], noise=True, generator=torch.Generator().manual_seed(1))
        return tensors(given)

    for one, other in zip(noisy(True), noisy(False)[1:], strict=True):
        assert torch.equal(one, other)


def test_the_memory_format_changes_no_noise() -> None:
    content = torch.randn(4, 3, 5, 5)
    given = [content.clone(), content.to(memory_format=torch.channels_last)]
    for grad in given:
        agm.scale_gradients_([[grad]], [2.0], noise=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*given)


@pytest.mark.parametrize("noise", [False, True])
def test_nothing_to_do(noise: bool) -> None:
    agm.scale_gradients_([], [], noise=noise)
    agm.scale_gradients_([], torch.empty(0), noise=noise)
    agm.scale_gradients_([[], [None, None]], [1.0, 2.0], noise=noise)
    agm.scale_gradients_([[torch.empty(0), torch.empty(0)]], [1.0], noise=noise)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_autograd_saved_counts_as_modified(backend: str) -> None:
    """Otherwise a second backward would go on with the rescaled numbers unseen."""
    grad, weight = torch.ones(3), torch.ones(3, requires_grad=True)
    loss = (weight * grad).sum()
    agm.scale_gradients_([[grad]], [2.0], backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_coefficients_may_require_a_gradient() -> None:
    given = torch.ones(3)
    agm.scale_gradients_([[given]], torch.tensor([2.0], requires_grad=True))
    assert torch.equal(given, torch.full((3,), 2.0))
    assert not given.requires_grad


def test_neighbours_in_one_buffer_are_not_the_same_memory() -> None:
    """As under DistributedDataParallel(gradient_as_bucket_view=True)."""
    buffer = torch.ones(24)
    agm.scale_gradients_([[buffer[12:], buffer[:8].view(2, 4).T], [buffer[8:12]]], [2.0, 3.0])
    assert torch.equal(buffer, torch.tensor([2.0] * 8 + [3.0] * 4 + [2.0] * 12))
    woven = torch.ones(10)
    agm.scale_gradients_([[woven[::2]], [woven[1::2]]], [2.0, 3.0])
    assert torch.equal(woven, torch.tensor([2.0, 3.0] * 5))


def same(first: Tensor) -> list[list[Any]]:
    return [[first], [torch.ones(2), first]]


Faulty = Callable[[Tensor], list[list[Any]]]
GRADIENT_FAULTS: dict[str, tuple[Faulty, type[Exception], str]] = {
    "twice": (same, ValueError, r"`gradients\[1\]\[1\]` and `gradients\[0\]\[0\]` share"),
    "view": (lambda g: [[g], [g.view(2, 3)]], ValueError, "share theirs"),
    "inside": (lambda g: [[g], [g[3:5]]], ValueError, "share theirs"),
    "every second": (lambda g: [[g], [g[1::2]]], ValueError, "share theirs"),
    "expanded": (lambda g: [[g], [torch.ones(1).expand(4)]], ValueError, "own memory"),
    "integer": (lambda g: [[g], [torch.ones(2, dtype=torch.int64)]], TypeError, "torch.int64"),
    "complex": (lambda g: [[g], [torch.ones(2, dtype=torch.complex64)]], TypeError, "torch.complex64"),
    "float8": (lambda g: [[g], [torch.ones(2).to(torch.float8_e4m3fn)]], TypeError, "torch.float8_e4m3fn"),
    "sparse": (lambda g: [[g], [torch.ones(2, 2).to_sparse()]], TypeError, "sparse=False"),
    "device": (lambda g: [[g], [torch.ones(2, device="meta")]], ValueError, "meta"),
    "parameter": (lambda g: [[g], [nn.Parameter(torch.ones(2))]], ValueError, "parameter.grad"),
    "graph": (lambda g: [[g], [torch.ones(2, requires_grad=True) * 2]], ValueError, "create_graph"),
    "number": (lambda g: [[g], [2.0]], TypeError, r"`gradients\[1\]\[0\]` to be a tensor or None, but got float"),
    "flat": (lambda g: [g, torch.ones(2)], TypeError, "one sequence of tensors a group"),
    "none": (lambda g: [[g], None], TypeError, "entry 1 is NoneType"),
}


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_wrong_gradients_leave_all_as_they_are(fault: str, noise: bool) -> None:
    make, error, message = GRADIENT_FAULTS[fault]
    given, generator_before = make(torch.arange(6.0)), torch.get_rng_state()
    before = repr(given)
    with pytest.raises(error, match=message):
        agm.scale_gradients_(given, [2.0, 3.0], noise=noise)
    assert repr(given) == before
    assert torch.equal(torch.get_rng_state(), generator_before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gradients": torch.ones(2)}, TypeError, "Wrap one group into a list"),
        ({"gradients": None}, TypeError, "but got NoneType"),
        ({"coefficients": [2.0]}, ValueError, r"shape \(2,\), one number a group of gradients, but got \(1,\)"),
        ({"coefficients": torch.ones(3)}, ValueError, r"\(3,\)"),
        ({"coefficients": torch.ones(2, 1)}, ValueError, r"\(2, 1\)"),
        ({"coefficients": torch.tensor(2.0)}, ValueError, r"\(\)"),
        ({"coefficients": torch.ones(2, dtype=torch.int64)}, TypeError, r"coefficients.double\(\)"),
        ({"coefficients": torch.ones(2, device="meta")}, ValueError, "where the gradients are"),
        ({"coefficients": 2.0}, TypeError, "a tensor or a sequence of numbers"),
        ({"coefficients": ["a", "b"]}, TypeError, "a tensor or a sequence of numbers"),
        ({"generator": 5}, TypeError, "a torch.Generator or None, but got int"),
        ({"backend": "cuda"}, RuntimeError, "serves cuda tensors only"),
        ({"backend": "nothing"}, ValueError, "to be 'auto' or one of"),
    ],
)
def test_wrong_arguments_leave_all_as_they_are(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = [[torch.ones(3)], [torch.ones(2), None]]
    with pytest.raises(error, match=message):
        agm.scale_gradients_(**{"gradients": given, "coefficients": [2.0, 3.0], "noise": True, **arguments})
    assert all((grad == 1).all() for grad in tensors(given))


@pytest.mark.parametrize("noise", [False, True])
def test_compiled(noise: bool) -> None:
    """In one graph, for two sizes; noise follows torch's generator there too."""

    def step(first: Tensor, second: Tensor, coefficients: Tensor) -> Tensor:
        agm.scale_gradients_([[first, None], [second]], coefficients, noise=noise)
        return first + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    coefficients = torch.tensor([2.0, 3.0])
    for size in (5, 2000):
        given, plain = torch.randn(size, 3), torch.randn(size)
        first, second = given.clone(), plain.clone()
        result = compiled(first, second, coefficients)
        assert torch.equal(result, first + 1)
        if not noise:
            assert torch.equal(first, 2 * given)
            assert torch.equal(second, 3 * plain)
        else:
            assert not torch.isclose(first, 2 * given, rtol=1e-6, atol=0).all()
            off = (first - 2 * given).std() / given.std()
            assert off.item() == pytest.approx(1, abs=5 / math.sqrt(2 * 3 * size))


def test_compiled_it_sees_a_tensor_passed_twice() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(agm.scale_gradients_, fullgraph=True, backend="aot_eager")
    grad = torch.ones(3)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
        compiled([[grad], [grad]], torch.tensor([2.0, 3.0]))
    assert (grad == 1).all()
