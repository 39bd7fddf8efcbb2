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
from types import FrameType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._inputs.rows import EVERYWHERE, blocks, combine
from agm.modulation.expand_subsets import expand_subsets
from agm.shapley.weights import proper_subsets

__all__ = ["CannotDefer", "Deferred", "Rows", "current", "outcome", "written"]


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
class _Content:
    """What a deferred tensor is made of: modality -> its few rows.

    One modality with `dim` None: a function of it alone. Several with a `dim`: joined along it. Several with
    `is_sum`: summed. There are `fold` rows a sample.
    """

    terms: Mapping[int, Tensor]
    dim: int | None = None
    is_sum: bool = False
    fold: int = 1

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.terms.values())).dtype

    @property
    def is_one(self) -> bool:
        return self.dim is None and not self.is_sum

    def each(self, function: Callable[[Tensor], Tensor]) -> _Content:
        """The function of every modality's rows by themselves."""
        return replace(self, terms={m: function(few) for m, few in self.terms.items()})

    def shape(self, rows: Rows) -> torch.Size:
        few = list(self.terms.values())
        size = list(few[0].shape)
        size[0] = len(rows) * self.fold
        if self.dim is not None:
            size[self.dim] = sum(one.shape[self.dim] for one in few)
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
    content: _Content | None  # None once it is written out
    plain: Tensor
    memory: _Memory
    has_gradients: bool  # whether they were enabled when it was made
    bits: frozenset[int]  # of the modalities that it was computed from

    @staticmethod
    def of(rows: Rows, modality: int, few: Tensor, fold: int = 1) -> Deferred:
        """One modality's rows: ((B + 1) * fold, ...) or (2 * B * fold, ...), those where it is present first."""
        return _make(rows, _Content({modality: few}, fold=fold))

    def alone(self, modality: int) -> tuple[Tensor, int] | None:
        """The few rows that one modality alone decides on, and how many there are a sample; None if others do too."""
        content = self.content
        if content is None or not content.is_one or modality not in content.terms:
            return None
        return content.terms[modality], content.fold

    def summands(self) -> Mapping[int, Tensor] | None:
        """Modality -> (B + 1, ..., C), where logits (rows, ..., C) are a sum of these; None where they are not."""
        content = self.content
        if content is None or content.dim is not None or content.fold > 1 or len(self.shape) < 2:
            return None
        if EVERYWHERE in content.terms:  # which is no modality's
            return None
        one_absent = all(few.shape[0] == self.rows.batch + 1 for few in content.terms.values())
        return content.terms if one_absent and self.is_floating_point() else None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func == Tensor.requires_grad.__get__:  # type: ignore[attr-defined]
            deferred = args[0]
            few = [deferred.plain] if deferred.content is None else deferred.content.terms.values()
            return any(one.requires_grad for one in few)
        if func in _ON_GRADIENTS:
            raise CannotDefer(f"{func} wants the gradients of all rows")
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Deferred) and leaf.has_gradients and not torch.is_grad_enabled() and _in_function():
                raise CannotDefer(f"{func} was called inside an autograd function, whose backward is not known")
            current(leaf)
        handler = _HANDLERS.get(func)
        if handler is not None and args:  # none is written for an input that is named
            result = handler(func, args, kwargs)
            if result is not None:
                return result
        args, kwargs = pytree.tree_map(written, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise CannotDefer(f"{func} was called past torch's functions")


def _make(rows: Rows, content: _Content, memory: _Memory | None = None) -> Deferred:
    """Rows of their own, or a view of those of `memory`."""
    if not torch.is_grad_enabled():  # what joins rows takes them over with the graph that they have
        content = content.each(Tensor.detach)
    few = next(iter(content.terms.values()))
    with torch._C.DisableTorchFunctionSubclass():
        made: Deferred = Tensor._make_wrapper_subclass(
            Deferred, content.shape(rows), dtype=few.dtype, device=few.device
        )
    made.rows = rows
    made.content = content
    made.memory = _Memory() if memory is None else memory
    made.memory.has_views |= memory is not None
    made.has_gradients = torch.is_grad_enabled()
    made.bits = frozenset(content.terms)
    return made


def _in_function() -> bool:
    """Whether the forward of an autograd function is running, which sees tensors without their gradient."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _APPLY:
        frame = frame.f_back
    return frame is not None


_APPLY: Any = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


def current(value: Any) -> Any:
    """The value itself, if it is not a deferred tensor whose rows have been written to through a view of it.

    Raises:
        CannotDefer: it is.
    """
    if isinstance(value, Deferred):
        own = None if value.content is not None else value.plain
        if any(copy is not own and copy._version != version for copy, version in value.memory.copies):
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


def _write(rows: Rows, content: _Content) -> Tensor:
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
    return [few[: rows.batch] for few in terms], [few[rows.batch :] for few in terms]


# What is said of the rows by the look of the tensor alone.
_ATTRIBUTES = (
    *("shape", "dtype", "device", "layout", "ndim", "is_cuda", "is_sparse", "is_quantized", "is_nested", "is_leaf"),
    "is_meta",
)
_METADATA = {
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

_Handler = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


def _content(value: Any) -> _Content | None:
    return value.content if isinstance(value, Deferred) else None


def _is_deferred(value: Any) -> bool:
    return _content(value) is not None


def _any_deferred(*values: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(values))


def _without_rows(value: Any, like: Deferred) -> bool:
    """Whether a plain tensor, or a number, is the same to every row of another when they are broadcast."""
    if isinstance(value, (bool, int, float)):
        return True
    if not isinstance(value, Tensor) or isinstance(value, Deferred):
        return False
    ndim = len(like.shape)
    # What would widen the other tensor is left to torch.
    wider = any(a > b for a, b in zip(reversed(value.shape), reversed(like.shape), strict=False))
    return value.dim() <= ndim and not wider and (value.dim() < ndim or value.shape[0] == 1)


def _elementwise(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function of each element by itself."""
    x, *others = args
    content = _content(x)
    options = dict(kwargs)
    in_place = options.pop("inplace", False)
    if content is None or content.is_sum or _any_deferred(others, options) or any(one is True for one in others):
        return None
    if in_place and x.memory.has_views:
        return None
    made = content.each(lambda few: func(few, *others, **options))
    if in_place:
        x.content = made
        return x
    return _make(x.rows, made, x.memory if func in _SAME and made.dtype == content.dtype else None)


def _linear(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, bias = _bound(("input", "weight", "bias"), args, kwargs)
    content = _content(x)
    if content is None or isinstance(weight, Deferred) or isinstance(bias, Deferred):
        return None
    if len(x.shape) < 2 or weight.dim() < 2:
        return None
    if content.dim is None:
        weights = [weight] * len(content.terms)
    elif content.dim == len(x.shape) - 1:
        weights = weight.split([few.shape[-1] for few in content.terms.values()], dim=1)
    else:
        return None
    # The bias goes with the first modality, present or absent; it is in every row.
    biases = [bias] + [None] * (len(weights) - 1)
    terms = {
        m: F.linear(few, own, term) for (m, few), own, term in zip(content.terms.items(), weights, biases, strict=True)
    }
    return _make(x.rows, _Content(terms, is_sum=not content.is_one, fold=content.fold))


def _matmul(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """x @ W with a matrix that all rows share."""
    x, weight = _bound(("input", "other"), args, kwargs)
    plain = isinstance(weight, Tensor) and not isinstance(weight, Deferred) and weight.dim() == 2
    return _linear(F.linear, (x, weight.T, None), {}) if "out" not in kwargs and plain and _is_deferred(x) else None


def _batch_norm(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """With running statistics each channel by itself, so what is joined along the channels stays so."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, mean, var, weight, bias, training, _, eps = _bound(names, args, kwargs, training=False)
    content = _content(x)
    if content is None or training or mean is None or content.is_sum or content.dim not in (None, 1):
        return None
    sizes = [few.shape[1] for few in content.terms.values()]
    channels: list[Any] = [
        [None] * len(sizes) if one is None else one.split(sizes) for one in (mean, var, weight, bias)
    ]
    eps = 1e-5 if eps is None else eps
    if content.is_one:
        channels = [[one] for one in (mean, var, weight, bias)]
    terms = {
        m: F.batch_norm(few, mean, var, weight, bias, training=False, eps=eps)
        for (m, few), mean, var, weight, bias in zip(content.terms.items(), *channels, strict=True)
    }
    return _make(x.rows, replace(content, terms=terms))


def _dropout(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, _, training, _ = _bound(("input", "p", "training", "inplace"), args, kwargs, training=True)
    return x if _is_deferred(x) and training is False else None


def _cat(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors, dim = _bound(("tensors", "dim"), args, kwargs, dim=0)
    if "out" in kwargs or not isinstance(tensors, (list, tuple)) or not all(map(_is_deferred, tensors)):
        return None
    ndim, dtype = len(tensors[0].shape), tensors[0].dtype
    if any(len(one.shape) != ndim or one.dtype != dtype for one in tensors):
        return None
    dim = dim % ndim
    contents = [one.content for one in tensors]
    fold = contents[0].fold
    if any(one.fold != fold for one in contents):
        return None
    modalities = [m for one in contents for m in one.terms]
    joins = all(one.is_one or one.dim == dim for one in contents)
    if dim == 0 or not joins or len(set(modalities)) < len(modalities) or not _alike(tensors, dim):
        return None
    terms = {m: few for one in contents for m, few in one.terms.items()}
    return _make(tensors[0].rows, _Content(terms, dim, fold=fold))


def _alike(tensors: Sequence[Tensor], dim: int) -> bool:
    sizes = [[size for d, size in enumerate(one.shape) if d != dim] for one in tensors]
    return all(size == sizes[0] for size in sizes)


def _add(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if kwargs or len(args) != 2:
        return None
    left, right = args
    if not _is_deferred(left):
        left, right = right, left
    if _is_deferred(right):
        return _added(left, right)
    content = _content(left)
    if content is None or content.dim is not None or not _without_rows(right, left):
        return None
    if isinstance(right, (int, float)) and right == 0 and left.is_floating_point():  # sum([...]) begins with it
        return _make(left.rows, content)
    first = next(iter(content.terms))
    few = func(content.terms[first], right)
    if few.dtype != left.dtype:
        return None
    return _make(left.rows, replace(content, terms={**content.terms, first: few}))


def _added(left: Deferred, right: Deferred) -> Any:
    one, other = left.content, right.content
    assert one is not None
    assert other is not None
    joined = one.dim is not None or other.dim is not None
    if not left.is_floating_point():  # True and True is True, of which a multiple is no sum of multiples
        return None
    if joined or left.shape != right.shape or left.dtype != right.dtype or one.fold != other.fold:
        return None
    terms = dict(one.terms)
    for m, few in other.terms.items():
        if m in terms and terms[m].shape != few.shape:  # one absent row beside one for each sample
            return None
        terms[m] = terms[m] + few if m in terms else few
    return _make(left.rows, _Content(terms, is_sum=len(terms) > 1, fold=one.fold))


def _scaled(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Times, or divided by, something that is the same to every row."""
    if kwargs or len(args) != 2:
        return None
    left, right = args
    commutes = func in _PRODUCTS
    if commutes and not _is_deferred(left):
        left, right = right, left
    content = _content(left)
    if content is None or content.dim is not None or not _without_rows(right, left):
        return None
    return _make(left.rows, content.each(lambda few: func(few, right)))


def _apart(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What works along other dimensions than the rows, on one modality."""
    x, *others = args
    content = _content(x)
    if content is None or not content.is_one or _any_deferred(others, kwargs):
        return None
    names, default = _DIMENSIONS[func]
    given = [kwargs.get(name, others[place] if place < len(others) else default) for place, name in enumerate(names)]
    dims = [d for one in given for d in (one if isinstance(one, (list, tuple)) else [one])]
    ndim = len(x.shape) + (func in _UNSQUEEZES)
    if not dims or not all(isinstance(d, int) and not isinstance(d, bool) and d % ndim for d in dims):
        return None
    return _make(x.rows, content.each(lambda few: func(few, *others, **kwargs)), x.memory if func in _VIEWS else None)


def _reshaped(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A new shape in which what belongs to a sample stays together: (B * T, ...) is (B, T, ...) and the reverse."""
    x, *sizes = args
    content = _content(x)
    if content is None or not content.is_one or len(x.rows) == 0 or _any_deferred(sizes, kwargs):
        return None
    if any(isinstance(size, torch.dtype) for size in (*sizes, *kwargs.values())):
        return None
    shape = func(torch.empty(x.shape, device="meta"), *sizes, **kwargs).shape
    each = x.shape.numel() // len(x.rows)
    fold = shape[0] // len(x.rows) if shape else 0
    if fold == 0 or shape[0] % len(x.rows) or fold * shape[1:].numel() != each:
        return None
    terms = {m: few.reshape(few.shape[0] // content.fold * fold, *shape[1:]) for m, few in content.terms.items()}
    return _make(x.rows, replace(content, terms=terms, fold=fold), x.memory)


def _permuted(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, *dims = args
    content = _content(x)
    dims = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    if kwargs or content is None or not content.is_one or not dims or dims[0] != 0:
        return None
    return _make(x.rows, content.each(lambda few: few.permute(dims)), x.memory)


def _by_sample(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A layer that takes its samples in the first dimension."""
    x, *others = args
    content = _content(x)
    deferred = any(isinstance(leaf, Deferred) for leaf in pytree.tree_leaves((others, dict(kwargs))))
    if content is None or not content.is_one or deferred or len(x.shape) != _BY_SAMPLE[func]:
        return None
    return _make(x.rows, content.each(lambda few: func(few, *others, **kwargs)))


def _getitem(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """x[:, ...]: every row, and of each the same."""
    x, index = args
    content = _content(x)
    plain = isinstance(index, tuple) and all(isinstance(one, (slice, int)) for one in index)
    if content is None or not content.is_one or not plain or not index or index[0] != slice(None):
        return None
    return _make(x.rows, content.each(lambda few: few[index]), x.memory)


def _layer_norm(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, weight, bias, eps = _bound(names, args, kwargs)
    content = _content(x)
    if content is None or not content.is_one or len(shape) >= len(x.shape):
        return None
    options = {} if eps is None else {"eps": eps}
    return _make(x.rows, content.each(lambda few: F.layer_norm(few, shape, weight, bias, **options)))


def _bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], **defaults: Any) -> list[Any]:
    """Arguments by name, None where there is neither one nor a default."""
    return [args[i] if i < len(args) else kwargs.get(name, defaults.get(name)) for i, name in enumerate(names)]


_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
_QUOTIENTS = (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.__truediv__)
_UNSQUEEZES = (torch.unsqueeze, Tensor.unsqueeze)
_TRANSPOSES = (torch.transpose, Tensor.transpose)
_VIEWS = _UNSQUEEZES + _TRANSPOSES  # of what is taken along given dimensions
_SAME = (Tensor.contiguous, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)  # itself, if it is so

# What reads or changes the gradient of a tensor: of few rows it is another one.
_ON_GRADIENTS = {
    Tensor.register_hook,
    Tensor.register_post_accumulate_grad_hook,
    Tensor.retain_grad,
    torch.autograd.grad,
}

# Function -> names of its dimensions, in their order behind the input, and what they are by default (None: all).
_DIMENSIONS: dict[Any, tuple[tuple[str, ...], int | None]] = {
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum, torch.amax, Tensor.amax), (("dim",), None)),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax), (("dim",), None)),
    **dict.fromkeys(_TRANSPOSES, (("dim0", "dim1"), None)),
    **dict.fromkeys(_UNSQUEEZES, (("dim",), None)),
}

# Function -> dimensions of a batch; with one less they would take it for a single sample.
_BY_SAMPLE: dict[Any, int] = {
    **dict.fromkeys((F.conv1d, F.adaptive_avg_pool1d, F.avg_pool1d), 3),
    **dict.fromkeys((F.conv2d, F.adaptive_avg_pool2d, F.avg_pool2d), 4),
    **dict.fromkeys((F.conv3d, F.adaptive_avg_pool3d, F.avg_pool3d), 5),
}

_ELEMENTWISE = (
    *(F.relu, F.relu6, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.softplus, F.softsign, F.hardtanh),
    *(F.hardswish, F.hardsigmoid, F.logsigmoid, F.tanhshrink, F.tanh, F.sigmoid, torch.relu, torch.tanh, torch.sigmoid),
    *(torch.exp, torch.abs, torch.neg, torch.square, Tensor.relu, Tensor.tanh, Tensor.sigmoid, Tensor.exp, Tensor.abs),
    *(Tensor.neg, Tensor.__neg__, Tensor.square, Tensor.clone, torch.clone),
    *_SAME,
)

_HANDLERS: dict[Any, _Handler] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_PRODUCTS + _QUOTIENTS, _scaled),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _cat),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), _dropout),
    **dict.fromkeys(_DIMENSIONS, _apart),
    **dict.fromkeys(_BY_SAMPLE, _by_sample),
    **dict.fromkeys((torch.flatten, Tensor.flatten, Tensor.unflatten, Tensor.view, Tensor.reshape), _reshaped),
    **dict.fromkeys((torch.reshape, torch.unflatten), _reshaped),
    **dict.fromkeys((torch.permute, Tensor.permute), _permuted),
    Tensor.__getitem__: _getitem,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
}
