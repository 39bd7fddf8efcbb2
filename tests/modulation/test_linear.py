"""The fused linear head against `fused_modulate_cross_entropy` of the logits that it never makes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import agm
from agm.modulation.linear import fused_modulate_linear_cross_entropy
from agm.ops import reference

# Of the loss and scores; the gradients are compared as vectors.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def head(
    modalities: int, batch: int, width: int, classes: int, dtype: torch.dtype = torch.float64, *, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(modalities)
    hidden = torch.randn(2**modalities - 1, batch, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64) / width**0.5
    offset = torch.randn(classes, generator=generator, dtype=torch.float64) if bias else None
    target = torch.randint(classes, (batch,), generator=generator)
    target[2::5] = -100
    parts = [None if part is None else part.to(dtype).requires_grad_() for part in (hidden, weight, offset)]
    return *parts, target


def materialised(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The masked logits, in float64."""
    logits = hidden.double() @ weight.double().T
    return logits if bias is None else logits + bias.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("modalities", "chunk_rows"), [(2, None), (2, 3), (3, 1), (3, 100)])
def test_numbers(modalities: int, chunk_rows: int | None, smoothing: float, bias: bool, dtype: torch.dtype) -> None:
    """Loss, gradients and state, on a second step too."""
    hidden, weight, offset, target = head(modalities, 13, 16, 301, dtype, bias=bias)
    own, other = agm.ModulationState(modalities), agm.ModulationState(modalities)
    wanted = [part for part in (hidden, weight, offset) if part is not None]
    tolerance = TOLERANCE[dtype]
    for _ in range(2):
        loss = fused_modulate_linear_cross_entropy(
            hidden, weight, target, own, offset, alpha=1.5, label_smoothing=smoothing, chunk_rows=chunk_rows
        )
        logits = materialised(hidden, weight, offset)
        expected, _ = agm.fused_modulate_cross_entropy(logits, target, other, alpha=1.5, label_smoothing=smoothing)
        assert loss.dtype == reference.accumulation_dtype(dtype)
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
        grads = torch.autograd.grad(2 * loss, wanted)
        for grad, truth in zip(grads, torch.autograd.grad(2 * expected, wanted), strict=True):
            assert grad.dtype == dtype
            assert (grad.double() - truth.double()).norm() <= 2 * tolerance * truth.double().norm()
        torch.testing.assert_close(own.values, other.values, rtol=tolerance, atol=tolerance)
        assert dtype == torch.bfloat16 or torch.equal(own.counts, other.counts)


def test_tokens_and_a_state_that_is_left_alone() -> None:
    hidden, weight, bias, target = head(2, 12, 8, 9)
    state = agm.ModulationState(2)
    before = state.values.clone()
    options: dict[str, Any] = {"alpha": 1.5, "update": False}
    flat = fused_modulate_linear_cross_entropy(hidden, weight, target, state, bias, **options)
    tokens = fused_modulate_linear_cross_entropy(
        hidden.view(3, 3, 4, 8), weight, target.view(3, 4), state, bias, **options
    )
    assert torch.equal(flat, tokens)
    assert torch.equal(state.values, before)


def test_a_class_that_the_bias_forbids_is_not_there() -> None:
    hidden, weight, bias, target = head(2, 12, 8, 9)
    target[:] = target.clamp(0, 7)
    states = agm.ModulationState(2), agm.ModulationState(2)
    forbidden = bias.detach().clone()
    forbidden[8] = -torch.inf
    loss = fused_modulate_linear_cross_entropy(hidden, weight, target, states[0], forbidden, alpha=1.5)
    without = fused_modulate_linear_cross_entropy(hidden, weight[:8], target, states[1], bias[:8], alpha=1.5)
    torch.testing.assert_close(loss, without, rtol=1e-14, atol=0)
    torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-13, atol=1e-13)
    (grad,) = torch.autograd.grad(loss, weight)
    assert not grad[8].any()
    assert grad.isfinite().all()


def test_every_target_ignored() -> None:
    hidden, weight, bias, target = head(2, 4, 8, 9)
    state = agm.ModulationState(2)
    loss = fused_modulate_linear_cross_entropy(hidden, weight, torch.full_like(target, -100), state, bias)
    assert loss.isnan()
    assert state.skipped == 1
    grads = torch.autograd.grad(loss, [hidden, weight, bias])
    assert not any(grad.any() for grad in grads)


def test_a_class_that_does_not_exist_where_that_is_no_error() -> None:
    """As on a GPU: the loss is NaN and the step a skipped one."""
    hidden, weight, bias, target = (part.detach() for part in head(2, 4, 8, 9))
    target[1] = 9
    state = agm.ModulationState(2)
    settings = (1.0, 10.0, 1e-8, -100, 0.0, True, 2)
    loss, scales, *_ = torch.ops.agm.modulate_linear_cross_entropy(
        hidden, weight, bias, target, state.values, state.counts, *settings
    )
    assert loss.isnan()
    assert state.skipped == 1
    assert scales.tolist() == [0.0, 0.0, 1.0]


class _Watch(TorchDispatchMode):
    """Products of matrices along some number of classes, and the numbers of the largest tensor that was made."""

    def __init__(self, *classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.products = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mm:
            self.products += any(size in self.classes for factor in args[:2] for size in factor.shape)
        results = func(*args, **(kwargs or {}))
        for one in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes() // one.element_size())
        return results


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_products_and_memory(modalities: int) -> None:
    """M products with W forward and three backward, whatever 2**M is, and never the logits of a subset."""
    batch, width, classes, rows = 64, 4, 1000, 8
    hidden, weight, bias, target = (part.detach() for part in head(modalities, batch, width, classes))
    state = agm.ModulationState(modalities)
    settings = (1.0, 10.0, 1e-8, -100, 0.0, True)
    with _Watch(classes) as forward:
        _, scales, normalizer, count = reference.modulate_linear_cross_entropy(
            hidden, weight, bias, target, state.values, state.counts, *settings, rows
        )
    assert forward.products == modalities * (batch // rows)
    most = max(hidden.numel(), weight.numel(), rows * classes)
    assert forward.largest <= most < batch * classes
    classes_at_once = rows * classes // batch
    saved = (target, normalizer, count, scales)
    with _Watch(classes_at_once) as backward:
        reference.modulate_linear_cross_entropy_backward(
            torch.ones(()), hidden, weight, bias, *saved, -100, 0.0, classes_at_once
        )
    assert backward.products == 3 * -(-classes // classes_at_once)
    assert backward.largest <= most


def test_under_autocast() -> None:
    linear = nn.Linear(8, 9)
    hidden, _, _, target = head(2, 6, 8, 9, torch.float32)
    state = agm.ModulationState(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_modulate_linear_cross_entropy(hidden, linear.weight, target, state, linear.bias)
    loss.backward()
    assert loss.dtype == torch.float32
    assert linear.weight.grad.dtype == hidden.grad.dtype == torch.float32
    expected = F.cross_entropy(linear(hidden[-1]), target)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)


def test_compiles_without_a_break() -> None:
    compiled = torch.compile(fused_modulate_linear_cross_entropy, fullgraph=True, backend="aot_eager")
    states = agm.ModulationState(2), agm.ModulationState(2)
    for batch in (6, 9):
        hidden, weight, bias, target = head(2, batch, 8, 9)
        made = compiled(hidden, weight, target, states[0], bias, alpha=1.5)
        wanted = fused_modulate_linear_cross_entropy(hidden, weight, target, states[1], bias, alpha=1.5)
        torch.testing.assert_close(made, wanted, rtol=1e-14, atol=0)
        grads = (torch.autograd.grad(loss, weight)[0] for loss in (made, wanted))
        torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-13, atol=1e-13)


def test_registration() -> None:
    hidden, weight, bias, target = (part.detach() for part in head(2, 6, 8, 9))
    state = agm.ModulationState(2)
    given = (hidden, weight, bias, target, state.values, state.counts, 1.0, 10.0, 1e-8, -100, 0.0, True, 4)
    op = torch.ops.agm.modulate_linear_cross_entropy.default
    torch.library.opcheck(op, given)
    _, scales, normalizer, count = op(*given)
    saved = (target, normalizer, count, scales)
    backward = torch.ops.agm.modulate_linear_cross_entropy_backward.default
    torch.library.opcheck(backward, (torch.ones(()), hidden, weight, bias, *saved, -100, 0.0, 4))


WRONG = {
    "a weight of another width": ({"weight": torch.ones(9, 7)}, ValueError, r"`weight` to have shape \(classes, 8\)"),
    "no weight": ({"weight": None}, TypeError, "`weight` to be a tensor, but got NoneType"),
    "a bias of other classes": ({"bias": torch.ones(8)}, ValueError, r"`bias` to have shape \(9,\)"),
    "another dtype": ({"weight": torch.ones(9, 8, dtype=torch.float64)}, TypeError, "`weight` to be torch.float32"),
    "rows of other subsets": ({"hidden": torch.ones(4, 6, 8)}, ValueError, r"`hidden` to have shape \(3, batch"),
    "a class that is not there": ({"target": torch.full((6,), 9)}, ValueError, "target"),
    "no chunk": ({"chunk_rows": 0}, ValueError, "`chunk_rows` to be a number of samples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    change, error, message = WRONG[name]
    hidden, weight, bias, target = head(2, 6, 8, 9, torch.float32)
    given = {"hidden": hidden, "weight": weight, "bias": bias, "target": target, **change}
    state = agm.ModulationState(2)
    before = state.counts.clone()
    with pytest.raises(error, match=message):
        fused_modulate_linear_cross_entropy(state=state, **given)
    assert torch.equal(state.counts, before)
