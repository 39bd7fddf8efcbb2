"""Masked passes of a network that is built to be factorised: `encoders` and `fuse(features) -> logits`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.absent import Absent, absent_input, batch_size, is_rows
from agm.modes import evaluation
from agm.subsets import blocks, combine, tile

__all__ = ["FactorisedPasses", "is_factorised"]


def is_factorised(network: nn.Module) -> bool:
    """Whether the network offers `encoders`, a mapping of modules, and `fuse`."""
    encoders = getattr(network, "encoders", None)
    return isinstance(encoders, (Mapping, nn.ModuleDict)) and callable(getattr(network, "fuse", None))


class FactorisedPasses:
    """Each encoder sees the present rows and one absent row; `fuse` sees every subset, as one batch."""

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], shared: bool, absent: Mapping[str, Absent]):
        self.network: Any = network
        self.modalities = modalities
        self.shared = shared
        self.absent = absent

    def __call__(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Joint logits (B, C) in the network's mode, and masked logits ((2**M - 2) * B, C)."""
        batch = batch_size(inputs)
        absent = {name: absent_input(name, inputs[name], self.absent.get(name)) for name in self.modalities}
        features = {name: self.network.encoders[name](inputs[name]) for name in self.modalities}
        joint = self.network.fuse(features)
        with evaluation(self.network):
            masked = {}
            for bit, name in enumerate(self.modalities):
                encoder = self.network.encoders[name]
                if self.shared:
                    present_features, absent_features = features[name], encoder(absent[name])
                else:
                    rows = encoder(_stacked(inputs[name], absent[name]))
                    present_features, absent_features = _parted(name, rows, batch)
                masked[name] = combine(present_features, absent_features, blocks(bit, len(self.modalities)))
            return joint, self.network.fuse(masked)


def _stacked(present: Any, absent: Any) -> Any:
    """Present rows, then the absent ones: (B, ...) and (1 or B, ...) -> (B + 1 or 2 * B, ...)."""
    leaves, structure = pytree.tree_flatten(present)
    rows = pytree.tree_leaves(absent)
    # A leaf that keeps its rows (a padding mask) needs every absent row, and so do its companions.
    count = max((row.shape[0] for row in rows if is_rows(row)), default=1)
    stacked = [
        torch.cat([leaf, tile(row, count)]) if is_rows(leaf) else leaf for leaf, row in zip(leaves, rows, strict=True)
    ]
    return pytree.tree_unflatten(stacked, structure)


def _parted(name: str, features: Any, batch: int) -> tuple[Any, Any]:
    leaves, structure = pytree.tree_flatten(features)
    for leaf in leaves:
        if is_rows(leaf) and leaf.shape[0] not in (batch + 1, 2 * batch):
            raise ValueError(
                f"Expected encoder `{name}` to return features with the samples in the first dimension, but for "
                f"{batch} samples and one absent row it returned {tuple(leaf.shape)}."
            )
    present = [leaf[:batch] if is_rows(leaf) else leaf for leaf in leaves]
    absent = [leaf[batch:] if is_rows(leaf) else leaf for leaf in leaves]
    return pytree.tree_unflatten(present, structure), pytree.tree_unflatten(absent, structure)
