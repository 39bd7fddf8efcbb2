"""What torch's functions do to deferred rows: to each modality's few, as far as they act on rows alone or linearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._lazy_rows.joined_linear import each_linear, joined_linear
from agm._lazy_rows.tensor import HANDLERS, Content, Deferred, Handler, make_deferred

__all__: list[str] = []


def _content(value: Any) -> Content | None:
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
    return make_deferred(x.rows, made, x.memory if func in _SAME and made.dtype == content.dtype else None)


def _linear(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, bias = _bound(("input", "weight", "bias"), args, kwargs)
    content = _content(x)
    if content is None or isinstance(weight, Deferred) or isinstance(bias, Deferred):
        return None
    ndim = content.ndim
    if ndim < 2 or weight.dim() < 2:
        return None
    if content.dim == ndim - 1:
        terms = joined_linear(content.terms, weight, bias)
    elif content.dim is None:
        terms = each_linear(content.terms, [weight] * len(content.terms), bias)
    else:
        return None
    return make_deferred(x.rows, Content(terms, is_sum=not content.is_one, fold=content.fold))


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
    return make_deferred(x.rows, replace(content, terms=terms))


def _dropout(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, _, training, _ = _bound(("input", "p", "training", "inplace"), args, kwargs, training=True)
    return x if _is_deferred(x) and training is False else None


def _cat(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors, dim = _bound(("tensors", "dim"), args, kwargs, dim=0)
    if "out" in kwargs or not isinstance(tensors, (list, tuple)) or not all(map(_is_deferred, tensors)):
        return None
    contents = [one.content for one in tensors]
    first = contents[0]
    if len({(one.ndim, one.dtype, one.fold) for one in contents}) > 1:
        return None
    dim = dim % first.ndim
    terms: dict[int, Tensor] = {}
    for one in contents:
        if one.is_sum or one.dim not in (None, dim) or not terms.keys().isdisjoint(one.terms):
            return None
        terms.update(one.terms)
    if dim == 0 or len({(*few.shape[1:dim], *few.shape[dim + 1 :]) for few in terms.values()}) > 1:
        return None
    return make_deferred(tensors[0].rows, Content(terms, dim, fold=first.fold))


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
        return make_deferred(left.rows, content)
    first = next(iter(content.terms))
    few = func(content.terms[first], right)
    if few.dtype != left.dtype:
        return None
    return make_deferred(left.rows, replace(content, terms={**content.terms, first: few}))


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
    return make_deferred(left.rows, Content(terms, is_sum=len(terms) > 1, fold=one.fold))


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
    return make_deferred(left.rows, content.each(lambda few: func(few, right)))


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
    return make_deferred(
        x.rows, content.each(lambda few: func(few, *others, **kwargs)), x.memory if func in _VIEWS else None
    )


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
    return make_deferred(x.rows, replace(content, terms=terms, fold=fold), x.memory)


def _permuted(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, *dims = args
    content = _content(x)
    dims = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    if kwargs or content is None or not content.is_one or not dims or dims[0] != 0:
        return None
    return make_deferred(x.rows, content.each(lambda few: few.permute(dims)), x.memory)


def _by_sample(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A layer that takes its samples in the first dimension."""
    x, *others = args
    content = _content(x)
    deferred = any(isinstance(leaf, Deferred) for leaf in pytree.tree_leaves((others, dict(kwargs))))
    if content is None or not content.is_one or deferred or len(x.shape) != _BY_SAMPLE[func]:
        return None
    return make_deferred(x.rows, content.each(lambda few: func(few, *others, **kwargs)))


def _getitem(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """x[:, ...]: every row, and of each the same."""
    x, index = args
    content = _content(x)
    plain = isinstance(index, tuple) and all(isinstance(one, (slice, int)) for one in index)
    if content is None or not content.is_one or not plain or not index or index[0] != slice(None):
        return None
    return make_deferred(x.rows, content.each(lambda few: few[index]), x.memory)


def _layer_norm(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    x, shape, weight, bias, eps = _bound(names, args, kwargs)
    content = _content(x)
    if content is None or not content.is_one or len(shape) >= len(x.shape):
        return None
    options = {} if eps is None else {"eps": eps}
    return make_deferred(x.rows, content.each(lambda few: F.layer_norm(few, shape, weight, bias, **options)))


def _bound(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], **defaults: Any) -> list[Any]:
    """Arguments by name, None where there is neither one nor a default."""
    return [args[i] if i < len(args) else kwargs.get(name, defaults.get(name)) for i, name in enumerate(names)]


_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)


_QUOTIENTS = (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.__truediv__)


_UNSQUEEZES = (torch.unsqueeze, Tensor.unsqueeze)


_TRANSPOSES = (torch.transpose, Tensor.transpose)


_VIEWS = _UNSQUEEZES + _TRANSPOSES  # of what is taken along given dimensions


_SAME = (Tensor.contiguous, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)  # itself, if it is so


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


_OWN: dict[Any, Handler] = {
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

HANDLERS.update(_OWN)
