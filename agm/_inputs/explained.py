"""Errors of a network that its masked rows cause, said with the modality and the remedy."""

from typing import Any

import torch
from torch import Tensor

from agm._inputs.absent import is_rows
from agm._inputs.arguments import Arguments
from agm._inputs.samples import Samples
from agm._inputs.trees import leaves_of

__all__ = ["Explained"]


class Explained:
    """Inside, the network runs on rows made of these arguments, in another order and number than they have.

    Where it raises something, and is given more than its modalities with a row a sample, a note says what becomes of
    that.

    Raises:
        ValueError: a recurrent layer wants its sequences sorted by length.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        inputs = self._arguments.inputs
        if isinstance(error, (RuntimeError, IndexError)):
            self._note(error)
        if not isinstance(error, RuntimeError) or "enforce_sorted" not in str(error):
            return
        names = [name for name, value in inputs.items() if any(map(_may_be_lengths, leaves_of(value)))]
        raise ValueError(
            f"Expected the sequences of {_listed(names or list(inputs))} to be taken in any order of their lengths, "
            "since the rows of a masked pass are those of the batch several times over, but pack_padded_sequence asks "
            "for decreasing ones. Call it with enforce_sorted=False."
        ) from error

    def _note(self, error: BaseException) -> None:
        others = {f"args[{i}]": value for i, value in enumerate(self._arguments.others)} | self._arguments.rest
        names = [name for name, value in others.items() if any(map(_is_of_samples, leaves_of(value)))]
        if names:
            error.add_note(
                f"In the masked passes {_listed(names)} has the rows of the batch several times over, since it has one "
                "for each sample. If these do not belong to samples (weights of the classes, say), bind it beforehand, "
                "as a buffer of the network or with functools.partial on its forward."
            )


def _is_of_samples(leaf: Any) -> bool:
    return is_rows(leaf) or isinstance(leaf, Samples)


def _may_be_lengths(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == 1 and leaf.dtype in (torch.int64, torch.int32)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
