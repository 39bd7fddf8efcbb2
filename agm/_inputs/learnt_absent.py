"""Absent inputs that are learnt: parameters and modules, under names that every module can have."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = ["LearntAbsent"]

_TAKEN = nn.Module()  # whose attributes no parameter may be named like


class LearntAbsent(nn.Module):
    """What is learnt of absent inputs, of those that there are.

    A modality's name is that of the parameter or module, where a module can have one of that name; else a dot is
    written `%2E`, a percent sign `%25`, and what is the name of an attribute of every module (`type`, `half`, `train`)
    ends in a percent sign.

    Args:
        absent: modality -> what an absent input is.

    Raises:
        ValueError: something learnt inside a pytree.
    """

    def __init__(self, absent: Mapping[str, Any]) -> None:
        super().__init__()
        self._modalities: dict[str, str] = {}  # name here -> modality
        for modality, value in absent.items():
            if isinstance(value, (nn.Parameter, nn.Module)):
                name = _allowed(modality)
                self._modalities[name] = modality
                setattr(self, name, value)
            elif any(isinstance(leaf, (nn.Parameter, nn.Module)) for leaf in tree_leaves(value)):
                raise ValueError(
                    f"Expected what is learnt of an absent `{modality}` to be a parameter or a module by itself, but "
                    "it is inside a pytree. Give a module that takes the input and returns the absent one."
                )

    def items(self) -> list[tuple[str, Any]]:
        """Modality -> its absent input, as it is now: loading may put another in its place."""
        if not self._modalities:
            return []
        return [(self._modalities[name], value) for name, value in (*self._parameters.items(), *self._modules.items())]


def _allowed(modality: str) -> str:
    name = modality.replace("%", "%25").replace(".", "%2E")
    return f"{name}%" if hasattr(_TAKEN, name) or name in ("items", "_modalities") else name
