"""agm.expand_subsets: gradients, compilation, what it refuses, and a whole step with it."""

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import agm
from agm.ops._backends import BACKENDS


def features(
    *widths: int, batch: int = 5, rest: tuple[int, ...] = (), dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    present, absent = (
        [torch.randn(rows, width, *rest, generator=generator, dtype=torch.float64).to(dtype) for width in widths]
        for rows in (batch, 1)
    )
    return present, absent


def expected(present: list[Tensor], absent: list[Tensor], combine: str) -> Tensor:
    """Plain torch, differentiable."""
    blocks = []
    for subset in range(1, 2 ** len(present) - 1):
        parts = [
            one if subset >> m & 1 else none.expand_as(one)
            for m, (one, none) in enumerate(zip(present, absent, strict=True))
        ]
        blocks.append(torch.cat(parts, 1) if combine == "concat" else sum(parts))
    return torch.cat(blocks)


WIDTHS = {"concat": (3, 1, 4), "sum": (3, 3, 3)}
COMBINE = pytest.mark.parametrize("combine", list(WIDTHS))


@COMBINE
@pytest.mark.parametrize("rest", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_rows_and_gradients(combine: str, rest: tuple[int, ...], batch: int, backend: str) -> None:
    present, absent = features(*WIDTHS[combine], batch=batch, rest=rest)
    leaves = [x.requires_grad_() for x in (*present, *absent)]
    result = agm.expand_subsets(present, absent, combine=combine, backend=backend)
    wanted = expected(present, absent, combine)
    assert result.shape == (6 * batch, 8 if combine == "concat" else 3, *rest)
    torch.testing.assert_close(result, wanted)
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((result * weights).sum(), leaves)
    for grad, want, leaf in zip(grads, torch.autograd.grad((wanted * weights).sum(), leaves), leaves, strict=True):
        assert grad.shape == leaf.shape
        torch.testing.assert_close(grad, want)


@COMBINE
@pytest.mark.parametrize("rest", [(), (2,)], ids=str)
def test_gradcheck(combine: str, rest: tuple[int, ...]) -> None:
    present, absent = features(*WIDTHS[combine], batch=2, rest=rest)
    leaves = [x.requires_grad_() for x in (*present, *absent)]
    assert torch.autograd.gradcheck(lambda *x: agm.expand_subsets(x[:3], x[3:], combine=combine), leaves)


@COMBINE
def test_only_what_needs_a_gradient_receives_one(combine: str) -> None:
    present, absent = features(*WIDTHS[combine])
    wanted = present[1].clone().requires_grad_()
    present[1].requires_grad_()
    agm.expand_subsets(present, absent, combine=combine).square().sum().backward()
    expected([present[0], wanted, present[2]], absent, combine).square().sum().backward()
    torch.testing.assert_close(present[1].grad, wanted.grad)
    assert all(x.grad is None for x in (present[0], present[2], *absent))
    present, absent = features(*WIDTHS[combine])
    absent[2].requires_grad_()
    agm.expand_subsets(present, absent, combine=combine).sum().backward()
    torch.testing.assert_close(absent[2].grad, torch.full_like(absent[2], 3.0 * 5))


@pytest.mark.parametrize("size", [(4,), (4, 2)])
def test_one_row_for_all_that_are_absent_compiles(size: tuple[int, ...]) -> None:
    def step(a: torch.Tensor, v: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
        return agm.expand_subsets([a, v], [none, none])

    given = [torch.randn(rows, *size, requires_grad=True) for rows in (3, 3, 1)]
    made, wanted = torch.compile(step, fullgraph=True, backend="aot_eager")(*given), step(*given)
    assert torch.equal(made, wanted)
    both = (torch.autograd.grad(result.square().sum(), given) for result in (made, wanted))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


def test_a_tensor_given_twice_receives_both_gradients() -> None:
    (one,), (none,) = features(3)
    one.requires_grad_()
    agm.expand_subsets([one, one], [none, none]).sum().backward()
    torch.testing.assert_close(one.grad, torch.full_like(one, 2.0))


@COMBINE
def test_without_gradients_nothing_is_kept(combine: str) -> None:
    present, absent = features(*WIDTHS[combine])
    assert agm.expand_subsets(present, absent, combine=combine).grad_fn is None
    present[0].requires_grad_()
    with torch.no_grad():
        assert agm.expand_subsets(present, absent, combine=combine).grad_fn is None


def test_a_second_derivative_is_refused() -> None:
    present, absent = features(2, 2)
    present[0].requires_grad_()
    result = agm.expand_subsets(present, absent).square().sum()
    (first,) = torch.autograd.grad(result, present[0], create_graph=True)
    with pytest.raises(RuntimeError, match="`expand_subsets` not to be differentiated again"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integers_are_concatenated(dtype: torch.dtype) -> None:
    present, absent = features(2, 3, dtype=torch.float32)
    present, absent = ([(9 * one).abs().to(dtype) for one in rows] for rows in (present, absent))
    result = agm.expand_subsets(present, absent)
    assert torch.equal(result, expected(present, absent, "concat"))
    assert not result.requires_grad
    with pytest.raises(TypeError, match=f"but got {dtype}"):
        agm.expand_subsets(present[:1] * 2, absent[:1] * 2, combine="sum")


@COMBINE
def test_compiles_in_one_graph_for_two_sizes(combine: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(present: list[Tensor], absent: list[Tensor]) -> Tensor:
        return agm.expand_subsets(present, absent, combine=combine).square()

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for batch in (4, 7, 11):  # the second size makes the batch a symbol; the third meets it
        traced, eager = (features(*WIDTHS[combine], batch=batch, seed=batch) for _ in range(2))
        leaves = [[x.requires_grad_() for rows in both for x in rows] for both in (traced, eager)]
        result, wanted = compiled(*traced), run(*eager)
        torch.testing.assert_close(result, wanted)
        for one, other in zip(
            torch.autograd.grad(result.sum(), leaves[0]), torch.autograd.grad(wanted.sum(), leaves[1]), strict=True
        ):
            torch.testing.assert_close(one, other)
    assert counter.frame_count == 2


class Concatenation(nn.Module):
    """Encoders, concatenation, and a linear fusion."""

    def __init__(self, modalities: int, classes: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(nn.Sequential(nn.Linear(4, 3 + m), nn.Tanh()) for m in range(modalities))
        self.head = nn.Linear(sum(3 + m for m in range(modalities)), classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(torch.cat([encode(x) for encode, x in zip(self.encoders, inputs, strict=True)], 1))


@pytest.mark.parametrize("modalities", [2, 3])
def test_a_step_is_that_of_masked_logits(modalities: int) -> None:
    torch.manual_seed(0)
    batch, classes = 6, 3
    network = Concatenation(modalities, classes).double()
    inputs = [torch.randn(batch, 4, dtype=torch.float64) for _ in range(modalities)]
    target = torch.randint(classes, (batch,))

    def step(masked: Tensor) -> tuple[Tensor, list[Tensor]]:
        state = agm.ModulationState(modalities)
        state.running_scores.copy_(torch.linspace(0.5, 1.5, modalities))
        state.step.fill_(3)
        loss, _ = agm.fused_modulate_cross_entropy(masked, target, state, alpha=2.0)
        return masked, list(torch.autograd.grad(loss, list(network.parameters())))

    wanted, grads = step(agm.masked_logits(network, {str(m): x for m, x in enumerate(inputs)}))
    present = [encode(x) for encode, x in zip(network.encoders, inputs, strict=True)]
    absent = [encode(torch.zeros(1, 4, dtype=torch.float64)) for encode in network.encoders]
    proper = network.head(agm.expand_subsets(present, absent)).view(2**modalities - 2, batch, classes)
    joint = network.head(torch.cat(present, 1))
    masked, own_grads = step(torch.cat([proper, joint[None]]))
    torch.testing.assert_close(masked, wanted)
    for one, other in zip(own_grads, grads, strict=True):
        torch.testing.assert_close(one, other)


ONE, NONE = torch.zeros(4, 3), torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"present": ONE}, TypeError, "`present` to be a list of tensors, one a modality, but got Tensor"),
        ({"absent": {"a": NONE}}, TypeError, "`absent` to be a list of tensors, .* but got dict"),
        ({"present": [ONE, 1.0]}, TypeError, r"`present\[1\]` to be a tensor, but got float"),
        ({"absent": [None, NONE]}, TypeError, r"`absent\[0\]` to be a tensor, but got NoneType"),
        ({"present": [ONE], "absent": [NONE]}, ValueError, "`present` .* 2 to 16 modalities, but got 1"),
        ({"present": [ONE] * 17, "absent": [NONE] * 17}, ValueError, "`present` .* 2 to 16 modalities, but got 17"),
        ({"absent": [NONE] * 3}, ValueError, "`absent` to hold one row for each of the 2 modalities, but got 3"),
        ({"present": [ONE, ONE[:3]]}, ValueError, "`present` .* same samples, but got 4 at 0 and 3 at 1"),
        ({"present": [ONE[:, 0], ONE]}, ValueError, r"`present` .* \(batch, size, ...\), but got \(4,\) at 0"),
        ({"present": [ONE, ONE[..., None]]}, ValueError, r"`present` .* but got \(4, 3\) at 0 and \(4, 3, 1\) at 1"),
        ({"present": [ONE, ONE[:, :2]], "combine": "sum"}, ValueError, r"one shape to sum, but got .* \(4, 2\) at 1"),
        ({"present": [ONE, ONE.double()]}, ValueError, "`present` to hold torch.float32, .* torch.float64 at 1"),
        ({"absent": [NONE.double(), NONE]}, ValueError, "`absent` to hold torch.float32, .* torch.float64 at 0"),
        ({"present": [ONE, ONE.to("meta")]}, ValueError, r"`present\[1\]` to be on cpu, .* on meta"),
        ({"absent": [NONE, NONE.to("meta")]}, ValueError, r"`absent\[1\]` to be on cpu, .* on meta"),
        ({"present": [ONE, ONE.to_sparse()]}, TypeError, r"`present\[1\]` to be dense, .* torch.sparse_coo"),
        ({"absent": [NONE, ONE]}, ValueError, r"`absent` to hold one row of shape \(1, 3\) at 1, but got \(4, 3\)"),
        ({"absent": [NONE[:, :2], NONE]}, ValueError, r"`absent` to hold one row .* at 0, but got \(1, 2\)"),
        ({"present": [ONE.cfloat()] * 2}, TypeError, "`present` to hold .* but got torch.complex64"),
        ({"combine": "mean"}, ValueError, "`combine` to be 'concat' or 'sum', but got 'mean'"),
        ({"backend": "fast"}, ValueError, "'fast'"),
        ({"backend": "cuda"}, RuntimeError, "serves cuda tensors only"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"present": [ONE, ONE], "absent": [NONE, NONE]} | changed
    with pytest.raises(error, match=message):
        agm.expand_subsets(**arguments)  # type: ignore[arg-type]


def test_more_modalities_than_the_gpu_kernels_take() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (why_not := BACKENDS["triton"].why_not("expand_subsets", device)) is not None:
        pytest.skip(why_not)
    present, absent = ([one.to(device) for one in rows] for rows in features(*([2] * 7)))
    with pytest.raises(RuntimeError, match="at most 6 modalities"):
        agm.expand_subsets(present, absent, backend="triton")
    torch.testing.assert_close(agm.expand_subsets(present, absent), expected(present, absent, "concat"))
