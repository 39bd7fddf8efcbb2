"""The calls of an encoder that is named by path: noted in the joint pass, answered for all rows in the masked pass."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import is_opaque, is_rows
from agm._inputs.rows import blocks, doubled, tile
from agm._lazy_rows.tensor import CannotDefer, Deferred, Rows, written
from agm._module_state.checkpoints import check_not_reentrant, reentrant_checkpoint
from agm._one_pass.choice import OWN_WAY, Choice, JointCall, surroundings
from agm._one_pass.numeric_check import close

__all__ = ["Answer", "EncoderRows", "Recorder", "unjoined"]

# Encoders whose rows of the masked pass have gone with the joint pass: they are those, or others.
_joined: WeakSet[nn.Module] = WeakSet()
unjoined: WeakSet[nn.Module] = WeakSet()
_ROUNDING = 1e-3  # what equal rows may differ by, relative to the largest element: mixed rows differ by far more


@dataclass
class _Call:
    """One call of an encoder in the joint pass."""

    input_sizes: list[torch.Size | None]
    output_sizes: list[torch.Size | None]
    output: Any


class Recorder:
    """Runs the encoder and notes the sizes that went in and out, and the output if it will be shared.

    `call` is what takes the rows of the masked pass with it, if anything does.
    """

    def __init__(self, encoder: nn.Module, call: JointCall | None, keep_output: bool, exact: bool) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.call = call
        self.keep_output = keep_output
        self.around = surroundings() if keep_output and exact else None
        self.is_whole = keep_output  # whether the outputs are those of a masked pass, gradients included
        self.calls: list[_Call] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.around is not None and surroundings() != self.around:
            self.is_whole = False
        if self.keep_output and self.around is None:
            check_not_reentrant(f"the encoder `{type(self.encoder).__name__}`")
        output, kept = (self.call or self.forward)(*args, **kwargs), None
        if self.keep_output:
            output, kept = doubled(output)
        self.calls.append(_Call(_sizes((args, kwargs)), _sizes(output), kept))
        return output

    @property
    def is_open(self) -> bool:
        """Whether the rows that went with the joint pass are yet to be compared with those of a masked pass."""
        return self.call is not None and self.call.is_done and not (self.encoder in _joined or self.encoder in unjoined)

    def settle(self, output: Any) -> None:
        """Compares them: they are the last of what was encoded there."""
        assert self.call is not None
        pairs = zip(pytree.tree_leaves(self.call.more), pytree.tree_leaves(output), strict=True)
        last = [own[-leaf.shape[0] :] if is_rows(leaf) and is_rows(own) else own for leaf, own in pairs]
        (_joined if close(pytree.tree_leaves(self.call.more), last) else unjoined).add(self.encoder)

    def known(self, rows: "EncoderRows") -> Any:
        """Features of `rows`, if they came with the joint pass's."""
        if self.call is None or len(self.calls) != 1 or self.encoder in unjoined:
            return None
        present = 0 if self.call.chosen.how == "joined" else rows.batch
        return self.call.more if (rows.present, rows.absent, rows.spare) == (present, 1, 0) else None

    def outcome(self, chosen: Choice) -> Choice:
        """What the choice came to."""
        one = self.call is not None and self.call.is_done and len(self.calls) == 1
        if chosen.how == "two" or (chosen.how == "shared" and self.is_whole) or (chosen.is_one and one):
            return chosen
        return Choice("shared" if self.is_whole else "two", OWN_WAY)


class Answer:
    """Encodes present and absent rows only, and answers for all."""

    def __init__(
        self,
        recorder: Recorder,
        rows: "EncoderRows",
        shared: bool,
        check: bool,
        foreign: list[Tensor],
        compares: bool,
        deferred: bool,
    ) -> None:
        self.recorder = recorder
        self.encoder = recorder.encoder
        self.rows = rows
        self.shared = shared
        self.check = check
        self.foreign = foreign  # inputs of the other modalities, which must not reach the encoder
        self.compares = compares  # what is encoded here with what the joint pass had
        self.differs: str | None = None
        self.deferred = deferred
        self.pending = list(reversed(recorder.calls))
        self.known = recorder.known(rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.deferred and reentrant_checkpoint() is not None:
            raise CannotDefer("an encoder is called by a reentrant checkpoint")
        if self.shared:
            check_not_reentrant(f"the encoder of `{self.rows.name}`")
        if not self.pending:
            raise self.rows.refusal("is called more often in the masked pass than in the joint pass")
        call = self.pending.pop()
        leaves, structure = self._leaves("takes", (args, kwargs))
        if len(leaves) != len(call.input_sizes):
            raise self.rows.refusal("takes other arguments in the masked pass than in the joint pass")
        picked, found = [], False
        for leaf, size in zip(leaves, call.input_sizes, strict=True):
            own = leaf.alone(self.rows.bit) if isinstance(leaf, Deferred) else None
            if own is not None:
                picked.append(self.rows.pick_few(*own))
                found = True
                continue
            leaf = written(leaf)
            dim, rows_a_sample = self.rows.find(leaf, size)
            if dim is None:
                picked.append(leaf)
                continue
            if self.check:
                self.rows.verify(leaf, dim, rows_a_sample)
                self._verify_origin(leaf)
            picked.append(self.rows.pick(leaf, dim, rows_a_sample))
            found = True
        if self.rows.batch and not found:
            raise self.rows.refusal("takes no tensor that grows with the batch")
        if self.known is not None and not self.check:
            return self._in_place(self.known, call)
        args, kwargs = pytree.tree_unflatten(picked, structure)
        output = self.recorder.forward(*args, **kwargs)
        expanded = self._in_place(output, call)
        if self.check and self.recorder.is_open:
            self.recorder.settle(output)
        return expanded

    def _in_place(self, output: Any, call: _Call) -> Any:
        leaves, structure = self._leaves("returns", output)
        if len(leaves) != len(call.output_sizes):
            raise self.rows.refusal("returns another structure in the masked pass than in the joint pass")
        if self.compares and not all(map(self.rows.is_same, leaves, pytree.tree_leaves(call.output))):
            self.differs = "its features are others in eval mode"
        joint = pytree.tree_leaves(call.output) if self.shared else [None] * len(leaves)
        expanded = [
            self.rows.expand(leaf, size, own, self.deferred)
            for leaf, size, own in zip(leaves, call.output_sizes, joint, strict=True)
        ]
        return pytree.tree_unflatten(expanded, structure)

    def _leaves(self, does: str, tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
        leaves, structure = pytree.tree_flatten(tree, is_leaf=is_opaque)
        opaque = next((leaf for leaf in leaves if is_opaque(leaf)), None)
        if opaque is not None:
            raise self.rows.refusal(f"{does} a {type(opaque).__name__}, whose rows cannot be told apart")
        return leaves, structure

    def _verify_origin(self, leaf: Tensor) -> None:
        """That what the encoder is given has not been computed from another modality."""
        if not leaf.requires_grad or not self.foreign:
            return
        with torch.enable_grad():  # the network may encode without
            total = leaf.sum()
        reached = torch.autograd.grad(total, self.foreign, allow_unused=True, retain_graph=True)
        if any(gradient is not None for gradient in reached):
            raise self.rows.refusal("is given something computed from another modality")

    def finish(self) -> None:
        if self.pending:
            raise self.rows.refusal("is called less often in the masked pass than in the joint pass")


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
        self.here = here  # (B,), the samples that have the modality, if what the others have is not to be shared
        self.batch = batch
        self.absent = batch if per_sample else 1
        self.present = 0 if shared else batch
        # As many rows as in the joint pass would hide the dimension of the samples: then one more is encoded, or all
        # once more where that would change the statistics of the batch.
        self.spare = (self.absent if mixes else 1) if self.present + self.absent == batch else 0

    @cached_property
    def is_present(self) -> list[bool]:
        return blocks(self.bit, self.all.subsets)

    def refusal(self, what: str) -> ValueError:
        return ValueError(
            f"Expected the encoder of `{self.name}` to depend on the rows of its own modality only, but it {what}. "
            f"Leave `{self.name}` out of `encoders`: its masked inputs then go through it as one batch."
        )

    def find(self, leaf: Any, joint: torch.Size | None) -> tuple[int | None, int]:
        """The dimension of the samples in an input, and rows a sample; None if it has none."""
        if joint is None or not is_rows(leaf) or leaf.shape == joint:
            return None, 0
        grown = _changed(leaf.shape, joint)
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

    def pick_few(self, few: Tensor, rows: int) -> Tensor:
        """`pick` from rows that are deferred."""
        present, absent = few[: self.batch * rows], few[self.batch * rows :]
        absent = tile(absent, self.absent * rows)
        return torch.cat([present[: self.present * rows], absent, absent[: self.spare * rows]])

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

    def expand(self, leaf: Any, joint: torch.Size | None, shared: Tensor | None, deferred: bool) -> Any:
        """What the encoder returned for the picked rows, put in place for every row, or deferred.

        `joint` is the size of the joint pass's output and `shared` that output, if it serves the present rows.
        """
        if joint is None or not is_rows(leaf) or leaf.shape == joint:
            return leaf
        encoded = self.present + self.absent + self.spare
        changed = _changed(leaf.shape, joint)
        if len(changed) != 1 or leaf.shape[changed[0]] * self.batch != joint[changed[0]] * encoded:
            raise self.refusal(
                f"returns {tuple(leaf.shape)} for {encoded} samples where it returned {tuple(joint)} for {self.batch}"
            )
        dim = changed[0]
        rows = joint[dim] // self.batch
        present = leaf.narrow(dim, 0, joint[dim]) if shared is None else shared
        absent = leaf.narrow(dim, self.present * rows, self.absent * rows)
        if self.here is not None:
            here = self.here.repeat_interleave(rows).view([-1 if d == dim else 1 for d in range(leaf.dim())])
            present = torch.where(here, present, tile(absent, joint[dim], dim))
        if deferred and dim == 0:
            return Deferred.of(self.all, self.bit, torch.cat([present, absent]), rows)
        absent = tile(absent, joint[dim], dim)
        return torch.cat([present if here else absent for here in self.is_present], dim)

    def is_same(self, leaf: Any, joint: Any) -> bool:
        """Whether the joint pass returned what was encoded for the present rows."""
        if is_rows(leaf) and is_rows(joint):
            for dim in _changed(leaf.shape, joint.shape):
                leaf = leaf.narrow(dim, 0, joint.shape[dim])
        return close(joint, leaf)


def _changed(size: torch.Size, joint: torch.Size) -> list[int]:
    return [d for d in range(len(joint)) if size[d] != joint[d]] if len(size) == len(joint) else []


def _sizes(tree: Any) -> list[torch.Size | None]:
    return [leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(tree)]


def _same(left: Tensor, right: Tensor) -> bool:
    if not left.is_floating_point():
        return torch.equal(left, right)
    left, right = left.detach().float(), right.detach().float()
    scale = float(right.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if right.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=_ROUNDING * scale, equal_nan=True)
