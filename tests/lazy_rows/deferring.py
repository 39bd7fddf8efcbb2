"""Features of a few modalities, and what a function makes of them as deferred rows and as rows written out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agm._lazy_rows.tensor import Deferred, Rows, written
from agm.shapley.weights import proper_subsets

B, M = 4, 3


def rows(part: range | None = None, subsets: Any = None) -> Rows:
    return Rows(B, M, proper_subsets(M) if subsets is None else subsets, part)


def features(*shape: int, fold: int = 1, per_sample: bool = False) -> list[Tensor]:
    """Of each modality the few rows, present ones and then absent ones, as float64 leaves."""
    generator = torch.Generator().manual_seed(sum(shape))
    few = (2 * B if per_sample else B + 1) * fold
    return [torch.randn(few, *shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(M)]


class Made:
    """A module's parameters for the functions below."""

    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(5, 3 * 6, dtype=torch.float64, generator=generator).requires_grad_()
    own = torch.randn(5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    bias = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    row = torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()
    norm = nn.BatchNorm1d(18).double().eval()
    small = nn.BatchNorm1d(6).double().eval()
    layer = nn.LayerNorm(6).double()
    conv = nn.Conv1d(6, 3, 2).double()
    attention = nn.MultiheadAttention(6, 2, batch_first=True).double().eval()
    for one in (norm, small):
        one.running_mean.normal_(generator=generator)
        one.running_var.uniform_(0.5, 2, generator=generator)


def check(function: Callable[..., Any], given: list[Tensor], which: Rows, fold: int = 1) -> Any:
    """Values and gradients of the deferred rows are those of the written ones; returns the deferred result."""
    plain = [which.expanded(m, few, fold) for m, few in enumerate(given)]
    expected = function(*plain)
    deferred = function(*(Deferred.of(which, m, few, fold) for m, few in enumerate(given)))
    assert deferred.shape == expected.shape
    assert deferred.dtype == expected.dtype
    assert deferred.requires_grad == expected.requires_grad
    form = deferred.content if isinstance(deferred, Deferred) else None
    got = written(deferred)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn_like(expected)
    leaves = [*given, *(x for x in vars(Made).values() if isinstance(x, Tensor))]
    ours = torch.autograd.grad(got, leaves, upstream, allow_unused=True)
    theirs = torch.autograd.grad(expected, leaves, upstream, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None) or (one if other is None else other).count_nonzero() == 0
        if one is not None and other is not None:
            torch.testing.assert_close(one, other)
    return got if form is None else form
