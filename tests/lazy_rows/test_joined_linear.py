"""What each modality adds to a linear layer on joined features, in one tensor, against a layer for each."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._lazy_rows.joined_linear import Stacked, joined_linear
from bench.counting import Dispatched

WIDTHS = {2: 3, 0: 1, 1: 4}


def given(*, bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[dict[int, Tensor], Tensor, Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    terms = {bit: torch.randn(5, width, generator=draw, dtype=dtype) for bit, width in WIDTHS.items()}
    weight = torch.randn(6, sum(WIDTHS.values()), generator=draw, dtype=dtype)
    return terms, weight, torch.randn(6, generator=draw, dtype=dtype) if bias else None


def apart(terms: Mapping[int, Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """By the definition."""
    parts = weight.split([one.shape[1] for one in terms.values()], 1)
    biases = [bias] + [None] * (len(parts) - 1)
    return torch.stack([F.linear(*each) for each in zip(terms.values(), parts, biases, strict=True)])


def stacked(terms: Mapping[int, Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    found = joined_linear(terms, weight, bias)
    assert type(found) is Stacked
    assert found.modalities == tuple(terms)
    return found.stacked


@pytest.mark.parametrize("bias", [False, True])
def test_numbers_and_derivatives(bias: bool) -> None:
    terms, weight, own = given(bias=bias)
    torch.testing.assert_close(stacked(terms, weight, own), apart(terms, weight, own), rtol=1e-14, atol=1e-14)
    leaves = [leaf.requires_grad_() for leaf in (*terms.values(), weight, *([own] if own is not None else []))]

    def function(*leaves: Tensor) -> Tensor:
        few, (weight, *rest) = leaves[: len(terms)], leaves[len(terms) :]
        return stacked(dict(zip(terms, few, strict=True)), weight, rest[0] if rest else None)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("frozen", ["weight", "bias", "features"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    terms, weight, bias = given()
    assert bias is not None
    leaves = {"weight": [weight], "bias": [bias], "features": list(terms.values())}
    for name, tensors in leaves.items():
        for tensor in tensors:
            tensor.requires_grad_(name != frozen)
    stacked(terms, weight, bias).sum().backward()
    for name, tensors in leaves.items():
        assert all((tensor.grad is None) == (name == frozen) for tensor in tensors)


def test_a_weight_that_is_a_view() -> None:
    """As `x @ W` gives it, whose gradient has another layout."""
    terms, weight, _ = given(bias=False)
    grads = []
    for function in (stacked, apart):
        own = weight.T.clone().requires_grad_()
        function(terms, own.T, None).square().sum().backward()
        assert own.grad is not None
        grads.append(own.grad)
    torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-13)


def test_terms_one_by_one() -> None:
    terms, weight, bias = given()
    weight.requires_grad_()
    found, wanted = joined_linear(terms, weight, bias), apart(terms, weight, bias)
    assert list(found) == [2, 0, 1]
    assert 1 in found
    assert 3 not in found
    for place, bit in enumerate(found):
        torch.testing.assert_close(found[bit], wanted[place], rtol=1e-14, atol=1e-14)
    found[0].sum().backward()
    assert weight.grad is not None
    assert not weight.grad[:, :3].any()
    assert weight.grad[:, 3].all()


def test_a_tree_with_one_leaf() -> None:
    found = joined_linear(*given())
    assert type(found) is Stacked
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, {"terms": found})["terms"]
    assert list(doubled) == list(found)
    for bit, term in found.items():
        assert torch.equal(doubled[bit], 2 * term)


def test_other_kinds_are_taken_one_after_another() -> None:
    terms, weight, bias = given(dtype=torch.float32)
    frames = {bit: one.unsqueeze(1).expand(-1, 2, -1) for bit, one in terms.items()}
    assert type(joined_linear(frames, weight, bias)) is dict
    with torch.autocast("cpu", torch.bfloat16):
        found = joined_linear(terms, weight, bias)
    assert {one.dtype for one in found.values()} == {torch.bfloat16}


def test_nothing_is_joined_or_added() -> None:
    """The output and the weight's gradient are written once."""
    terms, weight, bias = given()
    for leaf in (*terms.values(), weight):
        leaf.requires_grad_()
    with Dispatched() as dispatched:
        stacked(terms, weight, bias).backward(torch.ones(3, 5, 6, dtype=torch.float64))
    names = [name.split(".")[1] for name in dispatched.names]
    assert names.count("mm") + names.count("addmm") == 9
    assert not {"cat", "stack", "add", "add_", "slice_backward", "zeros", "copy_", "clone"} & set(names)
