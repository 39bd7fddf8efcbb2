"""Heads that split by modality, found in the graph of one forward: what each feature's own weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "split_head"]

_ADD, _COPY = "AddBackward0", "ToCopyBackward0"  # the sum of two terms, and the cast of autocast
_LINEAR, _PLAIN, _CAT, _LEAF = "AddmmBackward0", "MmBackward0", "CatBackward0", "torch::autograd::AccumulateGrad"


@dataclass(frozen=True)
class Block:
    """The part of a linear layer that one modality's feature meets.

    Args:
        weight: (C, D) of the layer.
        first, width: the columns of the modality.
        bias: (C,) of the layer, or None.
        sharing: modalities that the layer reads; the bias counts by an equal share to each.
    """

    weight: nn.Parameter
    first: int
    width: int
    bias: nn.Parameter | None
    sharing: int

    @property
    def columns(self) -> Tensor:
        """W_m (C, D), differentiable."""
        return self.weight.narrow(1, self.first, self.width)

    def logits(self, feature: Tensor) -> Tensor:
        """The modality's term W_m h_m + b / M, (B, C)."""
        return F.linear(feature, self.columns, None if self.bias is None else self.bias / self.sharing)

    def gradients(self) -> list[Tensor]:
        """Of what only this modality's feature meets: its columns, and the bias of a layer that reads it alone."""
        found = [] if self.weight.grad is None else [self.weight.grad.narrow(1, self.first, self.width)]
        alone = self.bias is not None and self.sharing == 1
        return [*found, *([self.bias.grad] if alone and self.bias is not None and self.bias.grad is not None else [])]


def split_head(logits: Tensor, features: Mapping[str, Tensor]) -> dict[str, Block] | None:
    """Modality -> its block, if the logits are a linear layer on the concatenated features, or a sum of such layers.

    Args:
        logits: (B, C) with a graph that begins at the features.
        features: modality -> (B, D), leaves of that graph.

    Returns:
        None where the head is anything else, or its weights have no gradient.
    """
    names = {id(feature): name for name, feature in features.items()}
    blocks: dict[str, Block] = {}
    for node in _terms(logits.grad_fn):
        found = _blocks(node, names, features)
        if found is None or blocks.keys() & found.keys():
            return None
        blocks |= found
    return {name: blocks[name] for name in features} if blocks.keys() == features.keys() else None


def _terms(node: Any) -> list[Any]:
    node = _behind(node)
    if node is not None and node.name() == _ADD and node._saved_alpha == 1:
        return [term for before, _ in node.next_functions for term in _terms(before)]
    return [node]


def _blocks(node: Any, names: Mapping[int, str], features: Mapping[str, Tensor]) -> dict[str, Block] | None:
    """The blocks of one linear layer."""
    if node is None or node.name() not in (_LINEAR, _PLAIN):
        return None
    *bias_node, read, turned = (_behind(before) for before, _ in node.next_functions)
    weight = _variable(turned.next_functions[0][0]) if turned is not None and turned.name() == "TBackward0" else None
    bias = _variable(bias_node[0]) if bias_node else None
    if not isinstance(weight, nn.Parameter) or (bias_node and not isinstance(bias, nn.Parameter)):
        return None
    parts = [before for before, _ in read.next_functions] if read is not None and read.name() == _CAT else [read]
    found: dict[str, Block] = {}
    first = 0
    for part in parts:
        name = names.get(id(_variable(part)))
        if name is None or name in found or features[name].dim() != 2:
            return None
        width = features[name].shape[1]
        found[name] = Block(weight, first, width, bias if isinstance(bias, nn.Parameter) else None, len(parts))
        first += width
    return found if first == weight.shape[1] else None


def _behind(node: Any) -> Any:
    """What a cast was made of."""
    while node is not None and node.name() == _COPY:
        node = node.next_functions[0][0]
    return node


def _variable(node: Any) -> Tensor | None:
    """The leaf that a node gathers the gradient of."""
    node = _behind(node)
    if node is None or node.name() != _LEAF:
        return None
    leaf: Tensor = node.variable
    return leaf
