"""Where the rows of one modality's encoder lie in a masked pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agm._inputs.absent import is_rows
from agm._inputs.rows import blocks, tile
from agm._inputs.samples import Samples
from agm._lazy_rows.tensor import Deferred, Rows

__all__ = ["EncoderRows", "along", "changed_dims", "refusal", "sample_dims"]

_ROUNDING = 1e-3  # what equal rows may differ by, relative to the largest element: mixed rows differ by far more


class EncoderRows:
    """Where the rows of one modality's encoder lie, in what it is given and in what it returns.

    The dimension of the samples is the one that grows when the batch does: comparing the joint pass (B samples)
    with the masked pass ((2**M - 2) * B), and what is encoded there with B, finds it wherever it is, and how many
    rows (frames, patches) a sample has.
    """

    def __init__(
        self,
        name: str,
        bit: int,
        rows: Rows,
        per_sample: bool,
        shared: bool,
        here: Tensor | None = None,
        mixes: bool = False,
    ) -> None:
        batch = rows.batch
        self.name = name
        self.bit = bit
        self.all = rows
        self.is_present = blocks(bit, rows.subsets)
        self.here = here  # (B,), the samples that have the modality, if what the others have is not to be shared
        self.batch = batch
        self.absent = batch if per_sample else 1
        self.present = 0 if shared else batch
        # As many rows as in the joint pass would hide the dimension of the samples: then one more is encoded, or all
        # once more where that would change the statistics of the batch. One row alone has none; several that are equal
        # have the same, however many they are.
        encoded, alone = self.present + self.absent, mixes and self.present + self.absent == 1
        self.spare = (self.absent if mixes else 1) if encoded == batch else 1 + (batch == 2) if alone else 0

    def refusal(self, what: str) -> ValueError:
        return refusal(self.name, what)

    def find(self, leaf: Any, joint: torch.Size | None) -> tuple[int | None, int]:
        """The dimension of the samples in an input, and rows a sample; None if it has none."""
        if joint is None or not is_rows(leaf) or leaf.shape == joint:
            return None, 0
        grown = changed_dims(leaf.shape, joint)
        if len(grown) != 1 or leaf.shape[grown[0]] != joint[grown[0]] * len(self.all.subsets):
            raise self.refusal(
                f"is given {tuple(leaf.shape)} for {len(self.all.subsets)} times the samples of {tuple(joint)}"
            )
        if joint[grown[0]] % self.batch:
            raise self.refusal(f"is given {joint[grown[0]]} rows for {self.batch} samples")
        return grown[0], joint[grown[0]] // self.batch

    def _block(self, leaf: Tensor, dim: int, index: int, rows: int, samples: int) -> Tensor:
        return leaf.narrow(dim, index * self.batch * rows, samples * rows)

    def pick(self, leaf: Tensor, dim: int, rows: int) -> Tensor:
        """Of a tensor with `rows` rows a sample: those to encode, present ones first."""
        first_present, first_absent = self.is_present.index(True), self.is_present.index(False)
        parts = [
            self._block(leaf, dim, first_present, rows, self.present),
            self._block(leaf, dim, first_absent, rows, self.absent),
            self._block(leaf, dim, first_absent, rows, self.spare),
        ]
        return torch.cat(parts, dim)

    def pick_values(self, values: Samples, count: int) -> Any:
        """`pick` from values of Python, `count` a sample."""
        block, first = self.batch * count, self.is_present.index(True) * self.batch * count
        other = self.is_present.index(False) * block
        ends = [(first, self.present), (other, self.absent), (other, self.spare)]
        return values.taken([slice(start, start + rows * count) for start, rows in ends]).values

    def pick_few(self, few: Tensor, rows: int) -> Tensor:
        """`pick` from rows that are deferred."""
        present, absent = few[: self.batch * rows], few[self.batch * rows :]
        absent = tile(absent, self.absent * rows)
        spare = self.spare * rows
        return torch.cat([present[: self.present * rows], absent, tile(absent[:spare], spare)])

    def part(self, picked: Any, dim: int | None, present: bool) -> Any:
        """Of what `pick` gave the present rows, or the absent ones."""
        if dim is None:
            return picked
        rows = picked.shape[dim] // (self.present + self.absent + self.spare) * self.present
        return picked.narrow(dim, 0, rows) if present else picked.narrow(dim, rows, picked.shape[dim] - rows)

    def first(self, picked: Any, dim: int | None) -> Any:
        """Of what `pick` gave the rows of the first present samples, fewer than there are."""
        if dim is None:
            return picked
        rows = picked.shape[dim] // (self.present + self.absent + self.spare)
        return picked.narrow(dim, 0, rows * (2 if self.present > 2 else 1))

    def verify(self, leaf: Tensor, dim: int, rows: int) -> None:
        """That the rows are what `pick` takes them for; the only synchronisation, on the first batch."""
        present = self._block(leaf, dim, self.is_present.index(True), rows, self.batch)
        absent = self._block(leaf, dim, self.is_present.index(False), rows, self.absent)
        absent = tile(absent, present.shape[dim], dim)
        for index, here in enumerate(self.is_present):
            if not _same(self._block(leaf, dim, index, rows, self.batch), present if here else absent):
                raise self.refusal(
                    "is given rows that depend on the other modalities, or in another order than the samples'"
                )

    def expand(
        self,
        leaf: Any,
        joint: torch.Size | None,
        shared: Tensor | None,
        deferred: bool,
        gradient: bool = True,
        dim: int | None = None,
    ) -> Any:
        """What the encoder returned for the picked rows, put in place for every row, or deferred.

        `joint` is the size of the joint pass's output and `shared` that output, if it serves the present rows; the
        absent ones have a `gradient` or none. `dim` is that of the samples, if it is known.
        """
        if joint is None or not is_rows(leaf) or (leaf.shape == joint and dim is None):
            return leaf
        encoded = self.present + self.absent + self.spare
        changed = changed_dims(leaf.shape, joint) if dim is None else [dim]
        if len(changed) != 1 or leaf.shape[changed[0]] * self.batch != joint[changed[0]] * encoded:
            raise self.refusal(
                f"returns {tuple(leaf.shape)} for {encoded} samples where it returned {tuple(joint)} for {self.batch}"
            )
        dim = changed[0]
        rows = joint[dim] // self.batch
        present = leaf.narrow(dim, 0, joint[dim]) if shared is None else shared
        absent = leaf.narrow(dim, self.present * rows, self.absent * rows)
        absent = absent if gradient else absent.detach()
        if self.here is not None:
            present = torch.where(along(leaf, dim, self.here, rows), present, tile(absent, joint[dim], dim))
        if deferred and dim == 0:
            return Deferred.of(self.all, self.bit, torch.cat([present, absent]), rows)
        absent = tile(absent, joint[dim], dim)
        return torch.cat([present if here else absent for here in self.is_present], dim)


def refusal(name: str, what: str) -> ValueError:
    """What is raised where the encoder of a modality does something else than encode it."""
    return ValueError(
        f"Expected the encoder of `{name}` to depend on the rows of its own modality only, but it {what}. Leave "
        f"`{name}` out of `encoders`: its masked inputs then go through it as one batch."
    )


def along(leaf: Tensor, dim: int, here: Tensor, rows: int) -> Tensor:
    """(B,) values of samples, that broadcast with `leaf`, which has `rows` rows of each in dimension `dim`."""
    return here.repeat_interleave(rows).view([-1 if d == dim else 1 for d in range(leaf.dim())])


def changed_dims(size: torch.Size, joint: torch.Size) -> list[int]:
    return [d for d in range(len(joint)) if size[d] != joint[d]] if len(size) == len(joint) else []


def sample_dims(leaves: Sequence[Any], joint: Sequence[torch.Size | None]) -> list[int | None]:
    """The dimension of the samples in each of what there is for all rows, given the sizes for those of the joint pass.

    None stands for what has no samples.
    """
    grown = [
        changed_dims(leaf.shape, size) if size is not None and is_rows(leaf) else []
        for leaf, size in zip(leaves, joint, strict=True)
    ]
    return [dims[0] if dims else None for dims in grown]


def _same(left: Tensor, right: Tensor) -> bool:
    if not left.is_floating_point():
        return torch.equal(left, right)
    left, right = left.detach().float(), right.detach().float()
    scale = float(right.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if right.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=_ROUNDING * scale, equal_nan=True)
