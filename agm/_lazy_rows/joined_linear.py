"""A linear layer on the joined features of several modalities: what each adds to its output, computed as one."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from agm.ops._autocast import autocasts

__all__ = ["Stacked", "each_linear", "joined_linear"]


@final
class Stacked(Mapping[int, Tensor]):
    """Terms of a sum in one tensor: modality -> (rows, ..., C), taken apart only where somebody asks for one.

    Args:
        modalities: bits, one a term.
        stacked: (M, rows, ..., C).
    """

    def __init__(self, modalities: Sequence[int], stacked: Tensor) -> None:
        self.modalities = tuple(modalities)
        self.stacked = stacked
        self._apart: dict[int, Tensor] | None = None

    @cached_property
    def first(self) -> Tensor:
        """A term by its look, without a graph."""
        return self.stacked.detach().select(0, 0)

    def _terms(self) -> dict[int, Tensor]:
        if self._apart is None:
            self._apart = dict(zip(self.modalities, self.stacked.unbind(), strict=True))
        return self._apart

    def __getitem__(self, modality: int) -> Tensor:
        return self._terms()[modality]

    def __contains__(self, modality: object) -> bool:  # Mapping's own would take them apart
        return modality in self.modalities

    def __iter__(self) -> Iterator[int]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)


# To torch's functions on trees it is one leaf, as to autograd.
pytree.register_pytree_node(
    Stacked, lambda terms: ([terms.stacked], terms.modalities), lambda leaves, bits: Stacked(bits, *leaves)
)


class _JoinedLinear(torch.autograd.Function):
    """Written into one tensor, (M, rows, C); the weight's gradient too, where torch would join parts of it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, *few: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *few)
        terms = few[0].new_empty((len(few), len(few[0]), weight.shape[0]))
        start = 0
        for place, features in enumerate(few):
            columns = weight.narrow(1, start, features.shape[1]).t()
            start += features.shape[1]
            if place == 0 and bias is not None:
                torch.addmm(bias, features, columns, out=terms[place])
            else:
                torch.mm(features, columns, out=terms[place])
        return terms

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *few = ctx.saved_tensors
        needs_weight, needs_bias, *needs = ctx.needs_input_grad
        parts = weight.split([features.shape[1] for features in few], 1)
        grad_few = [one.mm(own) if need else None for one, own, need in zip(grad, parts, needs, strict=True)]
        grad_weight = None
        if needs_weight and torch.is_grad_enabled():  # for a derivative of this one
            grad_weight = torch.cat([one.t().mm(features) for one, features in zip(grad, few, strict=True)], 1)
        elif needs_weight:
            grad_weight, start = torch.empty_like(weight), 0
            for one, features in zip(grad, few, strict=True):
                torch.mm(one.t(), features, out=grad_weight.narrow(1, start, features.shape[1]))
                start += features.shape[1]
        return grad_weight, grad[0].sum(0) if needs_bias else None, *grad_few


def joined_linear(terms: Mapping[int, Tensor], weight: Tensor, bias: Tensor | None) -> Mapping[int, Tensor]:
    """What each modality's few rows add to a linear layer on all of them side by side; the bias goes with the first.

    Args:
        terms: modality -> (rows, ..., D_m), in the order in which they are joined.
        weight: (C, sum of D_m).
        bias: (C,) or None.

    Returns:
        Modality -> (rows, ..., C).
    """
    few = list(terms.values())
    if _is_plain(few, weight, bias):
        return Stacked(tuple(terms), _JoinedLinear.apply(weight, bias, *few))
    return each_linear(terms, weight.split([one.shape[-1] for one in few], dim=1), bias)


def each_linear(terms: Mapping[int, Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> dict[int, Tensor]:
    """A linear layer on each modality's few rows; the bias, which is in every row, goes with the first."""
    biases = [bias] + [None] * (len(weights) - 1)
    return {m: F.linear(few, own, term) for (m, few), own, term in zip(terms.items(), weights, biases, strict=True)}


def _is_plain(few: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> bool:
    """Whether they are matrices of one dtype and of torch's own kind, and nothing changes what a layer does to them."""
    dtype, rows = weight.dtype, few[0].shape[0]
    for one in (*few, weight) if bias is None else (*few, weight, bias):
        if type(one) not in (Tensor, torch.nn.Parameter) or one.dtype != dtype:
            return False
    for one in few:
        if one.dim() != 2 or one.shape[0] != rows:
            return False
    if not dtype.is_floating_point:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return weight.layout == torch.strided and not autocasts(weight.device)
