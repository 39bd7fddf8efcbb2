"""Features of the masked rows that are not written out until something needs them row by row.

A masked pass runs the fusion on one row for every subset and sample, but what it is given takes few values: each
modality's features are those of a present row or of an absent one. A `Deferred` tensor stands for all rows and holds
the few; what acts on one modality's rows alone, or linearly on all, acts on the few. A linear layer on concatenated
features thus multiplies each modality's rows once and not once for every subset, and where the fusion ends there,
what it returns is a sum over the modalities (`AdditiveLogits`), of which no subset need be written out. Anything else
is given the rows themselves: the features of every subset, as one batch.

This works on the level of torch functions, above autograd, so gradients are those of the operations that run. What
cannot be followed there (an operator called past them, an autograd function of the user's, a tensor used after its
view has been written to) raises `CannotDefer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import CodeType, FrameType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from agm._inputs.rows import EVERYWHERE, blocks, combine
from agm._inputs.trees import leaves_of, mapped
from agm._lazy_rows.joined_linear import Stacked
from agm.modulation.expand_subsets import expand_subsets
from agm.shapley.weights import proper_subsets

__all__ = [
    "HANDLERS",
    "METADATA",
    "CannotDefer",
    "Content",
    "Deferred",
    "Handler",
    "Rows",
    "current",
    "make_deferred",
    "outcome",
    "written",
]


class CannotDefer(RuntimeError):
    """Something was done with a deferred tensor that cannot be followed."""


@dataclass(frozen=True)
class Rows:
    """The rows of one masked pass.

    Attributes:
        batch: B, samples.
        modalities: M.
        subsets: bitmask of each block of B rows.
        part: of all these rows those that are meant; None: all.
    """

    batch: int
    modalities: int
    subsets: Sequence[int]
    part: range | None = None

    def __len__(self) -> int:
        return self.batch * len(self.subsets) if self.part is None else len(self.part)

    def expanded(self, modality: int, few: Tensor, fold: int = 1) -> Tensor:
        """Of one modality its present rows and then one absent one, or B, -> (len(self) * fold, ...).

        Args:
            modality: its bit.
            few: ((B + 1) * fold, ...) or (2 * B * fold, ...).
            fold: rows a sample (frames, say), those of one sample together.
        """
        one_each = few.unflatten(0, (-1, fold)) if fold > 1 else few
        present, absent = one_each[: self.batch], one_each[self.batch :]
        rows: Tensor = combine(present, absent, blocks(modality, self.subsets), self.part)
        return rows.flatten(0, 1) if fold > 1 else rows

    def fused(self, terms: Mapping[int, Tensor]) -> bool:
        """Whether `expand_subsets` serves: all modalities, all proper subsets, one absent row each, floating."""
        every = self.subsets == proper_subsets(self.modalities) and self.part is None
        few = terms.values()
        return (
            every
            and terms.keys() == set(range(self.modalities))
            and all(one.shape[0] == self.batch + 1 and one.dim() > 1 and one.is_floating_point() for one in few)
        )


@dataclass(frozen=True)
class Content:
    """What a deferred tensor is made of: modality -> its few rows.

    One modality with `dim` None: a function of it alone. Several with a `dim`: joined along it. Several with
    `is_sum`: summed. There are `fold` rows a sample.
    """

    terms: Mapping[int, Tensor]
    dim: int | None = None
    is_sum: bool = False
    fold: int = 1

    @cached_property
    def first(self) -> Tensor:
        """The few rows of one modality, for their look alone."""
        return self.terms.first if type(self.terms) is Stacked else next(iter(self.terms.values()))

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    @property
    def requires_grad(self) -> bool:
        if type(self.terms) is Stacked:
            return self.terms.stacked.requires_grad
        return any([few.requires_grad for few in self.terms.values()])

    @property
    def is_one(self) -> bool:
        return self.dim is None and not self.is_sum

    @property
    def ndim(self) -> int:
        return self.first.dim()

    def each(self, function: Callable[[Tensor], Tensor]) -> Content:
        """The function of every modality's rows by themselves."""
        return replace(self, terms={m: function(few) for m, few in self.terms.items()})

    def shape(self, rows: Rows) -> torch.Size:
        size = list(self.first.shape)
        size[0] = self.fold * (rows.batch * len(rows.subsets) if rows.part is None else len(rows.part))
        if self.dim is not None:
            size[self.dim] = sum([few.shape[self.dim] for few in self.terms.values()])
        return torch.Size(size)


@dataclass(eq=False)
class _Memory:
    """What a tensor has in common with its views: to torch whoever writes to one writes to all.

    Here each of them is written out by itself, so that none may be used once another has been written to.

    Attributes:
        has_views: whether there are others.
        copies: those that are written out, and their versions then.
    """

    has_views: bool = False
    copies: list[tuple[Tensor, int]] = field(default_factory=list)


class Deferred(Tensor):
    """A tensor of shape (rows, ...), by its look and to Python; see above. Made by `Deferred.of`."""

    rows: Rows
    dims: int  # how many it has
    content: Content | None  # None once it is written out
    plain: Tensor
    memory: _Memory
    has_gradients: bool  # whether they were enabled when it was made
    bits: frozenset[int]  # of the modalities that it was computed from

    @staticmethod
    def of(rows: Rows, modality: int, few: Tensor, fold: int = 1) -> Deferred:
        """One modality's rows: ((B + 1) * fold, ...) or (2 * B * fold, ...), those where it is present first."""
        return make_deferred(rows, Content({modality: few}, fold=fold))

    def alone(self, modality: int) -> tuple[Tensor, int] | None:
        """The few rows that one modality alone decides on, and how many there are a sample; None if others do too."""
        content = self.content
        if content is None or not content.is_one or modality not in content.terms:
            return None
        return content.terms[modality], content.fold

    def summands(self) -> Mapping[int, Tensor] | None:
        """Modality -> (B + 1, ..., C), where logits (rows, ..., C) are a sum of these; None where they are not."""
        content = self.content
        if content is None or content.dim is not None or content.fold > 1 or self.dims < 2:
            return None
        if EVERYWHERE in content.terms or not content.dtype.is_floating_point:  # which is no modality's
            return None
        if type(content.terms) is Stacked:
            return content.terms if content.first.shape[0] == self.rows.batch + 1 else None
        one_absent = {few.shape[0] for few in content.terms.values()} == {self.rows.batch + 1}
        return content.terms if one_absent else None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func == Tensor.requires_grad.__get__:  # type: ignore[attr-defined]
            deferred = args[0]
            return deferred.plain.requires_grad if deferred.content is None else deferred.content.requires_grad
        if func in _ON_GRADIENTS:
            raise CannotDefer(f"{func} wants the gradients of all rows")
        off = not torch.is_grad_enabled()
        for leaf in leaves_of((args, kwargs) if kwargs else args):
            if not isinstance(leaf, Deferred):
                continue
            if off and leaf.has_gradients and _in_function():
                raise CannotDefer(f"{func} was called inside an autograd function, whose backward is not known")
            if leaf.memory.copies:
                current(leaf)
        handler = HANDLERS.get(func)
        if handler is not None and args:  # none is written for an input that is named
            result = handler(func, args, kwargs)
            if result is not None:
                return result
        args, kwargs = mapped(written, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise CannotDefer(f"{func} was called past torch's functions")


def make_deferred(rows: Rows, content: Content, memory: _Memory | None = None) -> Deferred:
    """Rows of their own, or a view of those of `memory`."""
    if not torch.is_grad_enabled():  # what joins rows takes them over with the graph that they have
        content = content.each(Tensor.detach)
    few = content.first
    with torch._C.DisableTorchFunction():
        made: Deferred = Tensor._make_wrapper_subclass(
            Deferred, content.shape(rows), dtype=few.dtype, device=few.device
        )
        made.dims = few.dim()
    made.rows = rows
    made.content = content
    made.memory = _Memory() if memory is None else memory
    made.memory.has_views |= memory is not None
    made.has_gradients = torch.is_grad_enabled()
    made.bits = frozenset(content.terms)
    return made


def _in_function() -> bool:
    """Whether the forward of an autograd function is running, which sees tensors without their gradient."""
    # Since torch 2.14 `apply` has no frame of its own: then those of the functions' forwards are looked for.
    codes = _forwards(torch.autograd.Function) if _APPLY is None else {_APPLY}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None


_APPLY: CodeType | None = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)


def _forwards(kind: Any) -> set[CodeType]:
    """The code of the forwards of all functions that derive from one."""
    own = getattr(kind.__dict__.get("forward"), "__func__", None)
    codes = {own.__code__} if isinstance(own, FunctionType) else set()
    for derived in kind.__subclasses__():
        codes |= _forwards(derived)
    return codes


def current(value: Any) -> Any:
    """The value itself, if it is not a deferred tensor whose rows have been written to through a view of it.

    Raises:
        CannotDefer: it is.
    """
    if isinstance(value, Deferred):
        own = None if value.content is not None else value.plain
        if value.memory.copies and any(
            copy is not own and copy._version != version for copy, version in value.memory.copies
        ):
            raise CannotDefer("a tensor was written to, and one that shares its memory was used")
    return value


def written(value: Any) -> Any:
    """A deferred tensor written out row by row, once: who changes it in place finds it changed. Others as they are."""
    if not isinstance(value, Deferred):
        return value
    current(value)
    if value.content is not None:
        inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        # Outside of inference mode for the version, and with the graph that it has to whoever looks next: the first
        # to look may be a statistic under `no_grad`.
        with inference, torch.set_grad_enabled(value.has_gradients):
            value.plain = _write(value.rows, value.content)
        value.content = None
        value.memory.copies.append((value.plain, value.plain._version))
    return value.plain


def outcome(logits: Any) -> Tensor | Mapping[int, Tensor]:
    """Of deferred logits that are a sum what each modality adds (`Deferred.summands`); else the rows, written out."""
    terms = logits.summands() if isinstance(logits, Deferred) else None
    return cast(Tensor, written(logits)) if terms is None else terms


def _write(rows: Rows, content: Content) -> Tensor:
    terms = [content.terms[m] for m in sorted(content.terms)]
    in_order = list(content.terms) == sorted(content.terms)
    fused = content.fold == 1 and rows.fused(content.terms)
    if content.is_sum and fused:
        return expand_subsets(*_parted(rows, terms), combine="sum")
    if content.dim == 1 and in_order and fused:
        return expand_subsets(*_parted(rows, terms))
    parts = [rows.expanded(m, few, content.fold) for m, few in content.terms.items()]
    if content.is_sum:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total
    return parts[0] if content.dim is None else torch.cat(parts, content.dim)


def _parted(rows: Rows, terms: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    # Not two slices: their gradients would be written in four operations, and added.
    parts = [few.split((rows.batch, few.shape[0] - rows.batch)) for few in terms]
    return [present for present, _ in parts], [absent for _, absent in parts]


# What is said of the rows by the look of the tensor alone.
_ATTRIBUTES = (
    *("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_sparse", "is_quantized", "is_nested", "is_leaf"),
    "is_meta",
)
METADATA = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
    Tensor.size,
    Tensor.dim,
    Tensor.ndimension,
    Tensor.numel,
    Tensor.nelement,
    Tensor.element_size,
    Tensor.get_device,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.is_contiguous,
    Tensor.stride,
    Tensor.__len__,
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}

Handler = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]

HANDLERS: dict[Any, Handler] = {}  # torch function -> what it does to deferred rows; filled by `handlers`


# What reads or changes the gradient of a tensor: of few rows it is another one.
_ON_GRADIENTS = {
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
    Tensor.retain_grad,
    torch.autograd.grad,
}
