"""Gradient penalties: no derivative of a gradient is dropped in silence, whoever asks for it and however."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import agm
from agm._lazy_rows.joined_linear import joined_linear
from agm._one_pass.attention import _as_it_is, _Parted
from agm.modulation.additive import AdditiveLogits, modulate_summands
from agm.ops import batch_norm_rows, dropout_rows

TARGET = torch.arange(4)
AT = {
    "masked": torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "rows": torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
}
ONE, MATRIX = torch.ones(3, dtype=torch.float64), torch.linspace(-1, 1, 18, dtype=torch.float64)


def summands(z: Tensor) -> Tensor:
    settings = {"alpha": 1.0, "max_gap": None, "floor": 0.0, "ignore_index": -100, "score": "cross_entropy"}
    options = {"available": None, "process_group": None, "backend": "auto"}
    logits = modulate_summands(
        AdditiveLogits(z[:2], z[2, :3]), TARGET[:3], agm.ModulationState(2), **settings, **options
    )
    return F.cross_entropy(logits, TARGET[:3])


LOSSES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "fused_modulate": (
        "masked",
        lambda z: F.cross_entropy(agm.fused_modulate(z, TARGET, agm.ModulationState(2)), TARGET),
    ),
    "fused_modulate_cross_entropy": (
        "masked",
        lambda z: agm.fused_modulate_cross_entropy(z, TARGET, agm.ModulationState(2))[0],
    ),
    "fused_modulate_linear_cross_entropy": (
        "masked",
        lambda z: agm.fused_modulate_linear_cross_entropy(
            z, MATRIX[:5, None] + MATRIX[:5], TARGET, agm.ModulationState(2)
        ),
    ),
    "fused_modulate_linear_cross_entropy of a head": (
        "rows",
        lambda w: agm.fused_modulate_linear_cross_entropy(
            AT["masked"][..., :3], w, TARGET, agm.ModulationState(2), ignore_index=0
        ),
    ),
    "fused_modulate_additive": (
        "masked",
        lambda z: F.cross_entropy(agm.fused_modulate_additive(z[:2], z[2, :2], TARGET, agm.ModulationState(2)), TARGET),
    ),
    "fused_modulate_additive of summands": ("masked", summands),
    "fused_modulate_additive with missing modalities": (
        "masked",
        lambda z: F.cross_entropy(
            agm.fused_modulate_additive(
                z[:2], z[2, :2], TARGET, agm.ModulationState(2), available=torch.ones(4, 2).bool()
            ),
            TARGET,
        ),
    ),
    "expand_subsets": ("rows", lambda x: agm.expand_subsets([x, x * 2], [x[:1], x[1:2]]).square().sum()),
    "batch_norm_rows": (
        "rows",
        lambda x: (batch_norm_rows(x, ONE, ONE, None, None, 4, 0.1, 1e-5)[0] * MATRIX.view(6, 3)).sum(),
    ),
    "dropout_rows": ("rows", lambda x: dropout_rows(x, 0.5, 4).square().sum()),
    "scaled_dot_product_attention": (
        "rows",
        lambda x: _Parted.apply(2, _as_it_is, x)[0].square().sum(),
    ),
}


def penalised(loss: Callable[[Tensor], Tensor], at: Tensor, way: str) -> None:
    """The gradient of a loss with a penalty on its own gradient."""
    if way == "backward of backward":
        loss(at).backward(create_graph=True)
        assert at.grad is not None
        first, at.grad = at.grad, None
    else:
        (first,) = torch.autograd.grad(loss(at), at, create_graph=True)
    total = loss(at) + first.square().sum()
    if way == "grad":
        torch.autograd.grad(total, at)
    else:
        total.backward()


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("way", ["grad", "backward", "backward of backward"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_penalty_is_refused(name: str, way: str) -> None:
    """torch's once_differentiable drops it where it flows through saved tensors, and where the inputs are named."""
    room, loss = LOSSES[name]
    with pytest.raises(RuntimeError, match=f"`{name.split()[0]}` not to be differentiated again"):
        penalised(loss, AT[room].clone().requires_grad_(), way)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
@pytest.mark.parametrize("name", LOSSES)
def test_a_graph_that_nobody_differentiates_changes_no_gradient(name: str) -> None:
    room, loss = LOSSES[name]
    torch.manual_seed(0)
    plain, graphed = (AT[room].clone().requires_grad_() for _ in range(2))
    loss(plain).backward()
    torch.manual_seed(0)
    loss(graphed).backward(create_graph=True)
    assert plain.grad is not None
    assert graphed.grad is not None
    assert torch.equal(graphed.grad, plain.grad)
    optimizer = torch.optim.SGD([graphed], 0.1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert not graphed.grad.any()


def test_the_joined_linear_layer_has_second_derivatives() -> None:
    few = [AT["rows"].clone().requires_grad_(), AT["rows"].flip(0).requires_grad_()]
    weight = MATRIX[:6].repeat(2, 1).requires_grad_()
    bias = ONE[:2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda a, b, w, c: joined_linear({0: a, 1: b}, w, c).stacked, (*few, weight, bias)
    )
