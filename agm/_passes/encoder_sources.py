"""Where the arguments of an encoder come from in a masked pass, and what is made of its features."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agm._inputs.absent import is_rows
from agm._inputs.samples import is_listed
from agm._lazy_rows.tensor import Deferred, written
from agm._one_pass.joint_call import JointCall
from agm._passes.encoder_recording import Handed
from agm._passes.encoder_rows import EncoderRows, along, changed_dims

__all__ = ["Source", "behind", "dim_of", "known_features", "mixed"]


@dataclass(frozen=True)
class Source:
    """Where one argument of an encoder comes from.

    Attributes:
        grows: whether it has rows of the masked pass.
        bit: of the one modality whose rows it holds, where that is plain to see.
        few: these rows, where it is present and where it is absent, if they are known.
        fold: how many there are a sample.
        is_direct: whether it is what forward was given, or has no rows.
        is_listed: whether it holds values of Python.
    """

    grows: bool
    bit: int | None = None
    few: Tensor | None = None
    fold: int = 1
    is_direct: bool = False
    is_listed: bool = False

    @property
    def is_unknown(self) -> bool:
        """Whether nothing shows what its rows were computed from."""
        return self.grows and self.bit is None and not self.is_listed

    @staticmethod
    def of(leaf: Any, joint: torch.Size | None, handed: Handed) -> "Source":
        if is_listed(leaf):
            return Source(joint is not None and len(leaf) != joint[0], is_listed=True, is_direct=False)
        if not is_rows(leaf) or (joint is not None and not isinstance(leaf, Deferred) and leaf.shape == joint):
            return Source(False, is_direct=True)
        if (found := handed.find(leaf)) is not None:
            bit, few = found
            return Source(True, bit, few, is_direct=few is not None)
        if isinstance(leaf, Deferred) and leaf.content is not None and leaf.content.is_one:
            bit, few = next(iter(leaf.content.terms.items()))
            return Source(True, bit, few, leaf.content.fold)
        return Source(True)


def dim_of(leaf: Any, source: Source, size: torch.Size | None, rows: EncoderRows) -> int | None:
    """The dimension of the samples in what is picked of a leaf; None: it has none."""
    if not source.grows:
        return None
    return 0 if source.few is not None else rows.find(written(leaf), size)[0]


def behind(present: Any, absent: Any) -> Any:
    """Features of present rows, and behind them those of absent ones."""
    if not is_rows(present):
        return present
    dims = changed_dims(present.shape, absent.shape)
    return torch.cat([present, absent], dims[0] if dims else 0)


def known_features(call: JointCall | None, rows: EncoderRows) -> Any:
    """Features of `rows`, if they came with the joint pass's."""
    if call is None or not call.is_done:
        return None
    present = 0 if call.chosen.how == "joined" else rows.batch
    return call.more if (rows.present, rows.absent) == (present, call.absent) else None


def mixed(
    leaf: Any, joint: torch.Size | None, shared: Any, is_present: list[bool], here: Tensor | None, gradient: bool
) -> Any:
    """Features of all rows: shared ones where the modality is present, and without a gradient where it is not."""
    if joint is None or not is_rows(leaf) or leaf.shape == joint:
        return leaf
    (dim,) = changed_dims(leaf.shape, joint)
    blocks = list(leaf.split(joint[dim], dim))
    if not gradient:
        blocks = [own if one else own.detach() for one, own in zip(is_present, blocks, strict=True)]
    if shared is None:
        return torch.cat(blocks, dim)
    mask = None if here is None else along(leaf, dim, here, joint[dim] // len(here))

    def present(own: Tensor) -> Tensor:
        return shared if mask is None else torch.where(mask, shared, own)

    return torch.cat([present(own) if one else own for one, own in zip(is_present, blocks, strict=True)], dim)
