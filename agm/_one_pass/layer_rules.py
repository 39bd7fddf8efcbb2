"""Rules of functions that compute: elements, reductions, products, and what layers are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from agm._one_pass.layouts import Layout, Unsplit
from agm._one_pass.rules import (
    Rule,
    alike,
    argument,
    dims_of,
    first_of,
    from_right,
    meet,
    name_of,
    only_first,
    pointwise,
    rows_first,
    tensors_in,
)

if TYPE_CHECKING:
    from agm._one_pass.row_split import RowSplit

__all__ = ["LAYER_RULES"]


def _batched(dims: int) -> Rule:
    """Row by row, where the function would take a tensor of fewer dimensions for a single sample."""

    def rule(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        x = first_of(args, kwargs)
        if x.dim() < dims:
            raise meet(f"it gives `{name_of(func)}` a tensor without a dimension of samples")
        return rows_first(split, func, args, kwargs)

    return rule


def _convolution(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if first_of(args, kwargs).dim() != argument(args, kwargs, 1, "weight").dim():
        raise meet(f"it gives `{name_of(func)}` a tensor without a dimension of samples")
    return rows_first(split, func, args, kwargs)


def _along(place: int, name: str = "dim", default: Any = None) -> Rule:
    """Along other dimensions than that of the rows."""

    def rule(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        layout = only_first(split, func, args, kwargs)
        dim = argument(args, kwargs, place, name, default)
        if dim is None or layout.dim in dims_of(dim, first_of(args, kwargs)):
            raise meet(f"it computes `{name_of(func)}` along the dimension of the rows")
        return split.note(func(*args, **kwargs), layout)

    return rule


def _reduction(place: int) -> Rule:
    """Over other dimensions than that of the rows."""

    def rule(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1 and isinstance(args[1], Tensor):  # max(x, y)
            return pointwise(split, func, args, kwargs)
        layout = only_first(split, func, args, kwargs)
        x = first_of(args, kwargs)
        dim = argument(args, kwargs, place, "dim")
        dims = dims_of(list(args[place:]) if _are_sizes(args[place:]) else dim, x)
        if layout.dim in dims or not dims:
            raise meet(f"it computes `{name_of(func)}` over the dimension of the rows")
        result = func(*args, **kwargs)
        first = result if isinstance(result, Tensor) else result[0]
        gone = 0 if first.dim() == x.dim() else sum(d < layout.dim for d in dims)
        return split.note(result, layout._replace(dim=layout.dim - gone))

    return rule


def _are_sizes(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _layer_norm(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    layout = only_first(split, func, args, kwargs)
    if layout.dim >= first_of(args, kwargs).dim() - len(argument(args, kwargs, 1, "normalized_shape")):
        raise meet(f"it computes `{name_of(func)}` over the dimension of the rows")
    return split.note(func(*args, **kwargs), layout)


def _group_norm(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = first_of(args, kwargs)
    each = x.shape[1:].numel() // argument(args, kwargs, 1, "num_groups")
    if each == 1 and 1 in split.sizes(x.shape[0]):
        raise Unsplit("it normalises a group of one value, which is an error in a pass of one row")
    return rows_first(split, func, args, kwargs)


def _linear(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    layout = only_first(split, func, args, kwargs)
    if layout.dim == first_of(args, kwargs).dim() - 1:
        raise meet("it gives `linear` rows in the place of features")
    return split.note(func(*args, **kwargs), layout)


def _matmul(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    left, right = args[0], argument(args, kwargs, 1, "other", kwargs.get("mat2", kwargs.get("vec")))
    found: tuple[int, int] | None = None
    for side, tensor in enumerate((left, right)):
        layout = split.of(tensor)
        if layout is None:
            continue
        place = (tensor.dim() - layout.dim, layout.outer)
        if place[0] < (2 if side == 0 else 3) or found not in (None, place):  # rows of a matrix on the left may stay
            raise meet("it multiplies matrices across rows")
        found = place
    assert found is not None
    if found[0] >= 3:
        from_right(split, "matmul", [tensor for tensor in (left, right) if tensor.dim() >= 3])
    result = func(*args, **kwargs)
    vectors = (left.dim() == 1) + (right.dim() == 1)
    return split.note(result, Layout(result.dim() - found[0] + vectors, found[1]))


def _added_product(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`addmm` and `baddbmm`: what is added, and a product."""
    added, left, right = args[:3]
    layout = split.of(left)
    fits = split.of(right) == layout if left.dim() == 3 else split.of(right) is None
    if layout is None or layout.dim != 0 or not fits:
        raise meet("it multiplies matrices across rows")
    right_most, outer = from_right(split, name_of(func), (added, left))
    result = func(*args, **kwargs)
    return split.note(result, Layout(result.dim() - right_most, outer))


def _einsum(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    equation = args[0]
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise meet("it computes an `einsum` whose rows are not named")
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    layouts = [split.of(operand) for operand in operands]
    letters = {(term[one.dim], one.outer) for term, one in zip(terms, layouts, strict=True) if one is not None}
    if len(letters) != 1:
        raise meet("it computes an `einsum` across rows")
    ((letter, outer),) = letters
    strange = any(letter in term for term, one in zip(terms, layouts, strict=True) if one is None)
    if strange or letter not in right or any(term.count(letter) > 1 for term in terms):
        raise meet("it computes an `einsum` across rows")
    return split.note(func(*args, **kwargs), Layout(right.index(letter), outer))


def _embedding(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    layout = only_first(split, func, args, kwargs)
    if argument(args, kwargs, 3, "max_norm") is not None:
        raise Unsplit("it renormalises the weight of an embedding in every pass (max_norm)")
    if argument(args, kwargs, 5, "scale_grad_by_freq", False):
        raise Unsplit("it divides gradients of an embedding by counts over all rows (scale_grad_by_freq)")
    return split.note(func(*args, **kwargs), layout)


def _one_hot(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if argument(args, kwargs, 1, "num_classes", -1) == -1:
        raise meet("it counts the classes of `one_hot` over all rows")
    return alike(split, func, args, kwargs)


def _have_rows(split: RowSplit, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return any(split.of(tensor) is not None for tensor in tensors_in((*args, *kwargs.values())))


def _bilinear(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    left, right = args[:2]
    layout = split.of(left)
    if (
        layout is None
        or layout != split.of(right)
        or layout.dim == left.dim() - 1
        or _have_rows(split, args[2:], kwargs)
    ):
        raise meet("it computes `bilinear` across rows")
    return split.note(func(*args, **kwargs), layout)


def _recurrent(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, state, weights = args[:3]
    if not isinstance(weights, (list, tuple)):
        raise meet("it packs its sequences")
    layers, dropout, training, first = args[4], args[5], args[6], args[8]
    if training and dropout and layers > 1:
        raise Unsplit("it has a dropout between recurrent layers")
    of_input = Layout(0 if first else 1)
    if (
        _have_rows(split, args[2:], kwargs)
        or split.of(x) != of_input
        or any(split.of(one) != Layout(1) for one in tensors_in((state,)))
    ):
        raise meet("it gives a recurrent layer states of which nobody knows to which rows they belong")
    result = func(*args, **kwargs)
    split.note(result[0], of_input)
    split.note(result[1:], Layout(1))
    return result


def _cell(split: RowSplit, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if _have_rows(split, args[2:], kwargs) or any(split.of(one) != Layout(0) for one in tensors_in(args[:2])):
        raise meet("it gives a recurrent cell states of which nobody knows to which rows they belong")
    return split.note(func(*args, **kwargs), Layout(0))


LAYER_RULES: tuple[tuple[str, Rule], ...] = (
    (
        "abs absolute acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or "
        "bitwise_xor ceil clamp clamp_max clamp_min clip copysign cos cosh deg2rad div divide eq erf erfc erfinv exp "
        "exp2 expm1 floor floor_divide fmax fmin fmod frac ge greater greater_equal gt heaviside hypot isclose "
        "isfinite isinf isnan isneginf isposinf le less less_equal lerp lgamma digamma log log10 log1p log2 logaddexp "
        "logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mul multiply "
        "nan_to_num ne neg negative not_equal positive pow rad2deg reciprocal relu remainder round rsqrt rsub sigmoid "
        "expit sign sgn sin sinc sinh softplus sqrt square sub subtract tan tanh true_divide trunc fix where xlogy "
        "__add__ __and__ __eq__ __floordiv__ __invert__ __mul__ __ne__ __neg__ __or__ __pow__ __radd__ __rand__ "
        "__rdiv__ __rfloordiv__ __rmod__ __rmul__ __ror__ __rpow__ __rsub__ __rtruediv__ __rxor__ __sub__ __truediv__ "
        "__xor__ __mod__ __ge__ __gt__ __le__ __lt__ __lshift__ __rshift__ __abs__ __pos__ celu elu gelu hardshrink "
        "hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 selu silu softshrink softsign tanhshrink "
        "threshold clone contiguous alias detach get.real get.imag conj zeros_like ones_like full_like",
        pointwise,
    ),
    (
        "prelu adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d "
        "lp_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices boolean_dispatch "
        "interpolate upsample channel_shuffle local_response_norm",
        rows_first,
    ),
    ("group_norm", _group_norm),
    ("fold", _batched(3)),
    ("pixel_shuffle pixel_unshuffle unfold", _batched(4)),
    ("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", _convolution),
    ("softmax log_softmax softmin cumsum cumprod logcumsumexp cummax cummin", _along(1)),
    ("normalize", _along(2, default=1)),
    ("glu sort argsort", _along(1, default=-1)),
    ("topk", _along(2, default=-1)),
    ("roll", _along(2, "dims")),
    ("sum mean amax amin max min argmax argmin var std prod logsumexp all any nansum nanmean", _reduction(1)),
    ("norm", _reduction(2)),
    ("layer_norm rms_norm", _layer_norm),
    ("linear", _linear),
    ("matmul bmm mm mv", _matmul),
    ("addmm baddbmm", _added_product),
    ("einsum", _einsum),
    ("embedding", _embedding),
    ("one_hot", _one_hot),
    ("bilinear", _bilinear),
    ("lstm gru rnn_tanh rnn_relu", _recurrent),
    ("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", _cell),
)
