"""Inputs of a modality, present and absent, as pytrees of tensors with the samples in the first dimension."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.samples import Samples
from agm._inputs.trees import flattened, leaves_of, unflattened
from agm._inputs.whole import Whole

__all__ = [
    "Absent",
    "absent_group",
    "absent_input",
    "are_rows",
    "batch_size",
    "check_absent",
    "device_of",
    "is_opaque",
    "is_rows",
]

Absent = float | Tensor | Callable[[Any], Any] | Any
"""What an absent input is: a number, one row, a callable of the input, or a pytree of these; None is the default."""


def is_rows(leaf: object) -> TypeGuard[Tensor]:
    """Whether a leaf holds one row a sample (a 0-d tensor or a Python object does not)."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def is_opaque(leaf: object) -> bool:
    """Whether something may hold rows of samples that cannot be reached, or not by sample."""
    plain = leaf is None or isinstance(leaf, (Tensor, Samples, bool, int, float, complex, str, bytes))
    packed = isinstance(leaf, nn.utils.rnn.PackedSequence)
    return packed or (not plain and pytree.tree_is_leaf(leaf))


def are_rows(value: Any, count: int | None = None) -> bool:
    """Whether a modality's input is made of dense tensors with a row for each of so many samples, or of some number."""
    if isinstance(value, Tensor):
        return not _has_no_rows(value) and value.dim() > 0 and count in (None, value.shape[0])
    leaves = leaves_of(value, is_leaf=is_opaque)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or any(map(is_opaque, leaves)) or any(map(_has_no_rows, tensors)):
        return False
    sizes = {leaf.shape[0] for leaf in tensors if leaf.dim()}
    return len(sizes) == 1 and count in (None, *sizes)


_PADDING = (
    " Of a sequence for each sample make one tensor, torch.nn.utils.rnn.pad_sequence(..., batch_first=True), and give "
    "their lengths or a mask beside it."
)
_CALLABLE = (
    " Or let it come as it is, in a network without named encoders and beside a modality of plain tensors: say with a "
    "callable in `absent` what it is for samples that all lack it, and each subset has a pass of its own."
)
_PACKED = (
    " Where its rows are nodes, patches or items of several samples one behind another, make a dense batch of them, "
    "with a mask beside it (torch_geometric.utils.to_dense_batch, torch.nn.utils.rnn.pad_sequence)." + _CALLABLE
)
_GRAPHS = " Make a dense batch of its nodes, with a mask beside it (torch_geometric.utils.to_dense_batch)." + _CALLABLE
_SEQUENCES = (
    " Give the padded sequences and their lengths (torch.nn.utils.rnn.pad_packed_sequence), and pack them inside the "
    "network with enforce_sorted=False." + _CALLABLE
)


def batch_size(inputs: Mapping[str, Any]) -> int:
    """The number of samples, which all tensors of all inputs share.

    Raises:
        ValueError: they do not, or an input has no tensor.
    """
    if (size := _common_size(inputs)) is not None:
        return size
    sizes = {}
    for name, value in inputs.items():
        if isinstance(value, Whole):
            continue
        leaves = leaves_of(value, is_leaf=is_opaque)
        opaque = next((leaf for leaf in leaves if is_opaque(leaf)), None)
        if opaque is not None:
            advice = _advice_of(opaque)
            raise ValueError(
                f"Expected argument `{name}` to be made of tensors in tuples, lists and dicts, but got a "
                f"{type(opaque).__name__}. Take it apart, build it inside the network from tensors, or say where in it "
                f"the modality lies, with `inputs=`.{advice}"
            )
        odd = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and _has_no_rows(leaf)), None)
        if odd is not None:
            kind = "nested" if odd.is_nested else "quantised" if odd.is_quantized else str(odd.layout)
            raise ValueError(
                f"Expected argument `{name}` to be made of dense tensors, whose rows can be put together, but got one "
                f"that is {kind}. Make it dense before the call (to_dense, dequantize, to_padded_tensor with a mask)."
            )
        # Compared and not hashed, which would bind a compiled graph to this number of samples.
        rows = [leaf.shape[0] for leaf in leaves if is_rows(leaf)]
        if not rows or any(size != rows[0] for size in rows):
            raise ValueError(
                f"Expected argument `{name}` to be a tensor, or a pytree of tensors, with the samples in the first "
                f"dimension, but got {f'sizes {sorted(set(rows))}' if rows else type(value).__name__}."
                + (_PADDING if rows and isinstance(value, (list, tuple)) else _PACKED if rows else "")
            )
        sizes[name] = rows[0]
    batch: int = next(iter(sizes.values()))
    if any(size != batch for size in sizes.values()):
        raise ValueError(f"Expected all inputs to have the same number of samples, but got {sizes}." + _PACKED)
    return batch


def _advice_of(value: object) -> str:
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return _SEQUENCES
    # The class of a batch is made when it is needed, and has no module of its own.
    is_graph = any(base.__module__.startswith("torch_geometric.") for base in type(value).__mro__)
    return _GRAPHS if is_graph else ""


def _common_size(inputs: Mapping[str, Any]) -> int | None:
    """The number of samples where each input is a dense tensor with rows, as nearly always."""
    size = None
    for value in inputs.values():
        if type(value) not in _TENSORS or value.dim() == 0 or value.is_nested or value.is_quantized:
            return None
        if value.layout is not torch.strided or (size is not None and size != value.shape[0]):
            return None
        size = value.shape[0]
    return size


def device_of(value: Any) -> torch.device:
    """Where the first tensor with rows of a pytree is."""
    if is_rows(value):
        return value.device
    return next(leaf.device for leaf in leaves_of(value) if is_rows(leaf))


_TENSORS = (Tensor, nn.Parameter)


def _has_no_rows(leaf: Tensor) -> bool:
    return leaf.is_nested or leaf.is_quantized or leaf.layout not in (torch.strided, torch._mkldnn)  # type: ignore[attr-defined]


def check_absent(absent: Mapping[str, Absent] | None, modalities: tuple[str, ...]) -> dict[str, Absent]:
    unknown = set(absent or {}) - set(modalities)
    if unknown:
        raise ValueError(
            f"Expected argument `absent` to name modalities among {modalities}, but got {sorted(unknown)}."
        )
    return dict(absent or {})


def absent_input(name: str, present: Any, absent: Absent) -> Any:
    """The input of modality `name` when it is absent: as `present`, each tensor with one row, or with all.

    One row stands for all samples. By default a tensor becomes zeros. In a pytree floating tensors become zeros,
    while booleans (padding masks) and integers of one dimension (lengths) stay as they are, row by row.

    Args:
        name: for messages.
        present: pytree of tensors, (B, ...) each.
        absent: None for the default; a number; a tensor of the shape of one row; a callable that takes `present` and
            returns its like, with B rows or one; or a pytree of numbers, tensors and None (stays as it is).

    Raises:
        ValueError: what is absent is not clear (token ids in a pytree, say) or does not fit the input.
    """
    if callable(absent) and not isinstance(absent, Tensor):
        before = _versions(present)
        result = _checked(name, present, absent(present))
        if _versions(present) != before:
            raise ValueError(
                f"Expected the callable in `absent` for `{name}` to return new tensors, but it wrote to its argument."
            )
        return result
    leaves, structure = flattened(present)
    if len(leaves) == 1 and leaves[0] is present:
        return _filled(name, present, 0 if absent is None else absent)
    if absent is None or isinstance(absent, (int, float, Tensor)):
        return unflattened(_defaults(name, leaves, absent), structure)
    fills, given = flattened(absent)
    if given != structure:
        raise ValueError(
            f"Expected argument `absent` for `{name}` to be a pytree like its input, with a number, a row or None "
            f"(stays as it is) in the place of each tensor, but got {absent!r}."
        )
    rows = [leaf if fill is None else _filled(name, leaf, fill) for leaf, fill in zip(leaves, fills, strict=True)]
    return unflattened(rows, structure)


_STAYING = re.compile(r".*(mask|len(gth)?s?$|lens_|position|segment|type_ids|count).*", re.IGNORECASE)


def absent_group(name: str, present: Mapping[str, Any], absent: Absent, pad: int = 0) -> dict[str, Any]:
    """The absent input of a modality that several arguments of forward carry together.

    Masks and lengths stay: boolean tensors, values of Python, and integers whose argument is called a mask, a length, a
    position, a segment or a type. Of what is left floating tensors become zeros and integers (token ids) `pad`.

    Args:
        name: of the modality, for messages.
        present: argument -> its value.
        absent: a callable of the whole group, or argument -> what it is when absent, as in `absent_input`; None stays.
            Arguments that are not in it go by the rule.
        pad: the id of a padding token.

    Raises:
        ValueError: it names an argument that the group does not have, or does not fit.
        TypeError: it is neither a mapping nor a callable.
    """
    if callable(absent) and not isinstance(absent, Tensor):
        return cast(dict[str, Any], absent_input(name, dict(present), absent))
    given = {} if absent is None else absent
    if not isinstance(given, Mapping):
        raise TypeError(
            f"Expected argument `absent` for `{name}` to map some of its arguments {tuple(present)} to what they are "
            f"when it is absent, or to be a callable of all of them, but got {given!r}."
        )
    found = {}
    for argument, value in present.items():
        if argument in given:
            fill = given[argument]
            found[argument] = value if fill is None else absent_input(f"{name}.{argument}", value, fill)
        elif isinstance(value, Tensor):
            found[argument] = value if _stays(argument, value) else _filled(argument, value, _filler(value, pad))
        else:
            found[argument] = value if isinstance(value, Samples) else absent_input(f"{name}.{argument}", value, None)
    return found


def _stays(argument: str, value: Tensor) -> bool:
    return value.dtype == torch.bool or (not value.is_floating_point() and _STAYING.fullmatch(argument) is not None)


def _filler(value: Tensor, pad: int) -> int:
    return 0 if value.is_floating_point() or value.is_complex() else pad


def _versions(tree: Any) -> list[int]:
    tensors = [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _defaults(name: str, leaves: list[Any], fill: float | Tensor | None) -> list[Any]:
    roles = [_role(leaf) for leaf in leaves]
    replaced = "content" if "content" in roles else "unclear"
    # Integers of several dimensions are token ids or a mask. Without floating content a number given for the
    # modality names the one tensor that it can mean; otherwise the user must say.
    clear = roles.count("unclear") == (1 if replaced == "unclear" and fill is not None else 0)
    if not clear:
        kinds = [f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for x in leaves if is_rows(x)]
        raise ValueError(
            f"Expected argument `absent` to say what an absent `{name}` is, tensor by tensor, since its input holds "
            f"{', '.join(kinds)}: token ids want a pad id, a mask or lengths may stay. Give a pytree like the input "
            "with a number for what is replaced and None for what stays, or a callable."
        )
    value = 0 if fill is None else fill
    return [_filled(name, leaf, value) if role == replaced else leaf for leaf, role in zip(leaves, roles, strict=True)]


def _role(leaf: Any) -> Literal["content", "stays", "unclear"]:
    if not is_rows(leaf) or leaf.dtype == torch.bool:
        return "stays"
    if leaf.is_floating_point() or leaf.is_complex():
        return "content"
    return "stays" if leaf.dim() == 1 else "unclear"


def _filled(name: str, leaf: Any, fill: Any) -> Any:
    """One row in the place of a leaf's rows."""
    if not is_rows(leaf):
        return leaf
    shape = leaf.shape[1:]
    if isinstance(fill, Tensor):
        try:
            return fill.to(leaf).expand(shape).unsqueeze(0)
        except RuntimeError as error:
            raise ValueError(
                f"Expected argument `absent` for `{name}` to have the shape of one row, {tuple(shape)}, but got "
                f"{tuple(fill.shape)}."
            ) from error
    if not isinstance(fill, (int, float)):
        raise ValueError(f"Expected argument `absent` for `{name}` to be a number or a tensor, but got {fill!r}.")
    if not leaf.is_floating_point() and not leaf.is_complex() and not float(fill).is_integer():
        raise ValueError(f"Expected argument `absent` for `{name}` to be an integer like its input, but got {fill!r}.")
    return leaf.new_full((1, *shape), fill)


def _checked(name: str, present: Any, absent: Any) -> Any:
    """What a user's callable returned, if it fits."""
    leaves, structure = flattened(present)
    got, got_structure = flattened(absent)
    for leaf, row in zip(leaves, got, strict=False):
        if not is_rows(leaf):
            continue
        fits = is_rows(row) and row.shape[1:] == leaf.shape[1:] and row.shape[0] in (1, leaf.shape[0])
        if not fits or (row.dtype, row.device) != (leaf.dtype, leaf.device):
            kind = f"{row.dtype} {tuple(row.shape)} on {row.device}" if isinstance(row, Tensor) else repr(row)
            raise ValueError(
                f"Expected the callable in `absent` for `{name}` to return {leaf.dtype} {tuple(leaf.shape)} on "
                f"{leaf.device}, or one row of it, but got {kind}."
            )
    if structure != got_structure:
        raise ValueError(f"Expected the callable in `absent` for `{name}` to return a pytree like its argument.")
    return absent
