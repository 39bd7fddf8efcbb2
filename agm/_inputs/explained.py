"""Errors of a network that its masked rows cause, said with the modality and the remedy."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agm._inputs.trees import leaves_of

__all__ = ["Explained"]


class Explained:
    """Inside, the network runs on rows made of these inputs, in another order and number than they have.

    Raises:
        ValueError: a recurrent layer wants its sequences sorted by length.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._inputs = inputs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, RuntimeError) or "enforce_sorted" not in str(error):
            return
        inputs = self._inputs
        names = [name for name, value in inputs.items() if any(map(_may_be_lengths, leaves_of(value)))]
        raise ValueError(
            f"Expected the sequences of {_listed(names or list(inputs))} to be taken in any order of their lengths, "
            "since the rows of a masked pass are those of the batch several times over, but pack_padded_sequence asks "
            "for decreasing ones. Call it with enforce_sorted=False."
        ) from error


def _may_be_lengths(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 1 and leaf.dtype in (torch.int64, torch.int32)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
