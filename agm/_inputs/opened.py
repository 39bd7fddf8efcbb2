"""What belongs to samples inside the arguments of a call, found wherever it lies, and put back there."""

import dataclasses
import io
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.samples import Samples, holds_tensors, is_sequence
from agm._inputs.structures import Path, entries, with_entries
from agm._inputs.trees import leaves_of
from agm._inputs.whole import Whole

if TYPE_CHECKING:
    from agm._inputs.arguments import Arguments

__all__ = ["Known", "Opened", "closed", "opened"]

Known = dict[Path, bool]
"""Path of a sequence, a mapping or an object in the arguments -> whether earlier batches have shown it to be one of the
samples. The number of samples alone cannot tell, where by chance it is that of something else."""

_PLAIN = (
    Tensor,
    type,
    nn.Module,
    str,
    bool,
    int,
    float,
    complex,
    type(None),
    np.generic,
    torch.Size,
    torch.dtype,
    torch.device,
)
_MANY = 1024  # paths of which something is noted: those with keys of samples in them have no end
_DEEP = 8
_KEYS = "keys()"  # in a path: of the verdict on the keys of a mapping

_BIND = "bind it beforehand, as a buffer of the network or with functools.partial on its forward"


@dataclasses.dataclass
class Opened:
    """A structure that pytrees do not know, or of which only a part belongs to samples.

    Attributes:
        found: key, index or attribute -> a pytree with what belongs to samples there.
        whole: the structure as it was given.
        name: in the arguments, for messages.
    """

    found: dict[Any, Any]
    whole: Any
    name: str


pytree.register_pytree_node(
    Opened,
    lambda node: (list(node.found.values()), (tuple(node.found), node.whole, node.name)),
    lambda values, context: Opened(dict(zip(context[0], values, strict=True)), *context[1:]),
)


def opened(
    arguments: "Arguments", count: int, known: Known, batch: str | None = None, paths: tuple[Path, ...] = ()
) -> "Arguments":
    """The arguments with `Samples` in the place of what has a value a sample, and `Opened` around what hides some.

    Args:
        arguments: of a call.
        count: how many samples there are.
        known: what earlier batches have shown; noted there.
        batch: name of the one argument that holds the modalities, the first of `others`; None: each is an argument.
        paths: of the modalities in there.

    Raises:
        ValueError: it cannot be told whether something belongs to samples, or it does and cannot be repeated.
    """
    inputs, others, rest = arguments[:3]
    modalities = frozenset(map(id, inputs.values()))
    strict = _Opening(count, known, is_modality=True)
    within = () if batch is None else tuple((batch, *path) for path in paths)
    plain = _Opening(count, known, modalities=modalities, paths=within)
    named = [batch if batch is not None and not i else f"args[{i}]" for i in range(len(others))]
    return arguments._replace(
        inputs={name: strict.open(value, (name,)) for name, value in inputs.items()},
        others=[
            plain.root(value, name) if name == batch else plain.open(value, (name,))
            for name, value in zip(named, others, strict=True)
        ],
        rest={name: plain.open(value, (name,)) for name, value in rest.items()},
    )


def closed(tree: Any) -> Any:
    """A pytree as the network is given it: with the values of `Samples`, and structures in the place of `Opened`."""
    if isinstance(tree, Tensor) or not any(isinstance(leaf, _OURS) for leaf in leaves_of(tree, is_leaf=_is_ours)):
        return tree
    return pytree.tree_map(_closed, tree, is_leaf=_is_ours)


def _is_ours(leaf: Any) -> bool:
    return isinstance(leaf, _OURS)


def _closed(leaf: Any) -> Any:
    if isinstance(leaf, Samples):
        return leaf.values
    if isinstance(leaf, Whole):
        return leaf.value
    if not isinstance(leaf, Opened):
        return leaf
    held = dict(entries(leaf.whole) or ())
    inner = {key: closed(value) for key, value in leaf.found.items()}
    changed = {key: value for key, value in inner.items() if not _are_one(held.get(key), value)}
    if not changed:
        return leaf.whole
    try:
        return with_entries(leaf.whole, changed)
    except Exception as error:
        raise _refusal(
            leaf.name, f"be copied with other {list(changed)}", leaf.whole, "give what is in it as arguments"
        ) from error


def _are_one(left: Any, right: Any) -> bool:
    """Whether it is the same object, or the same ones in containers that were rebuilt around them."""
    if left is right:
        return True
    if type(left) is not type(right) or not isinstance(left, (list, tuple, dict)) or len(left) != len(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_are_one(left[key], right[key]) for key in left)
    return all(map(_are_one, left, right))


_OURS = (Samples, Opened, Whole)


class _Opening:
    """Finds in the arguments what belongs to samples.

    Args:
        count: how many samples there are.
        known: what earlier batches have shown.
        is_modality: whether tensors have a row a sample wherever they are.
        modalities: ids of the modalities' inputs, which are left out.
        paths: where these are in the batch.
    """

    def __init__(
        self,
        count: int,
        known: Known,
        *,
        is_modality: bool = False,
        modalities: frozenset[int] = frozenset(),
        paths: tuple[Path, ...] = (),
    ) -> None:
        self.count = count
        self.known = known
        self.is_modality = is_modality
        self.modalities = modalities
        self.paths = paths
        self._inside: list[int] = []

    def root(self, batch: Any, name: str) -> Opened:
        """A batch that holds the modalities."""
        return Opened(self._around(batch, (name,)), batch, name)

    def open(self, value: Any, path: Path) -> Any:
        """A pytree in its place; itself, where nothing in it need be replaced."""
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, np.ndarray):
            return Samples(value) if value.ndim else value
        if id(value) in self._inside or len(self._inside) > _DEEP:
            return value
        if is_sequence(value) and self._is_one_each(value, path):
            return self._samples(value, path)
        self._check_countable(value, path)
        self._inside.append(id(value))
        try:
            return self._walked(value, path)
        finally:
            self._inside.pop()

    def _walked(self, value: Any, path: Path) -> Any:
        if type(value) in (dict, list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return self._native(value, path)
        if self.is_modality:
            return value
        if (inside := self._inside_of(value, path)) is None:
            return value
        of_samples = [leaf for leaf in leaves_of(list(inside.values())) if self._is_of_samples(leaf)]
        if not of_samples or self.known.get(path) is False:
            if isinstance(value, Mapping):
                self._check_keys(value, path)
            elif inside and not of_samples:
                self._note(path, False)
            self._check_opaque(value, path)
            return value
        return Opened(inside, value, _name(path))

    def _native(self, value: Any, path: Path) -> Any:
        """Of a dict, a list or a tuple, which pytrees know."""
        if any(id(one) in self.modalities for one in _items(value)) or self._leads_to_modality(path):
            return Opened(self._around(value, path), value, _name(path))
        inside = {key: self.open(one, (*path, key)) for key, one in entries(value) or ()}
        if isinstance(value, dict) and not self._is_input(path) and not any(map(_has_rows, inside.values())):
            self._check_keys(value, path)
        changed = {key: one for key, one in inside.items() if one is not _at(value, key)}
        return with_entries(value, changed) if changed else value

    def _around(self, value: Any, path: Path) -> dict[Any, Any]:
        """What lies beside the modalities in a structure, and belongs to samples."""
        left = [(key, one) for key, one in entries(value) or () if id(one) not in self.modalities]
        inside = {key: self.open(one, (*path, key)) for key, one in left if not self._is_modality((*path, key))}
        return {key: one for key, one in inside.items() if _has_rows(one)}

    def _inside_of(self, value: Any, path: Path) -> dict[Any, Any] | None:
        """What an object holds that has rows, by attribute or key; None for what is no structure."""
        if self._leads_to_modality(path):
            return self._around(value, path)
        found = entries(value)
        if found is None:
            self._check_opaque(value, path)
            return None
        inside = {key: self.open(one, (*path, key)) for key, one in found}
        return {key: one for key, one in inside.items() if _has_rows(one)}

    def _is_modality(self, path: Path) -> bool:
        return path in self.paths

    def _leads_to_modality(self, path: Path) -> bool:
        return bool(self.paths) and any(len(path) < len(one) and one[: len(path)] == path for one in self.paths)

    def _is_input(self, path: Path) -> bool:
        """Whether it is a modality's input, and not something in it."""
        return self.is_modality and len(path) == 1

    def _is_of_samples(self, leaf: Any) -> bool:
        return isinstance(leaf, Samples) or (isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.count)

    def _note(self, path: Path, verdict: bool) -> None:
        if len(self.known) < _MANY and not torch.compiler.is_compiling():
            self.known[path] = verdict

    def _is_one_each(self, value: Any, path: Path) -> bool:
        """Whether a sequence has an item a sample.

        Raises:
            ValueError: that cannot be told, or was otherwise in an earlier batch.
        """
        length = len(value)
        if not length or self._leads_to_modality(path) or any(id(one) in self.modalities for one in value):
            return False
        if self.is_modality and holds_tensors(value):
            return False
        known = self.known.get(path)
        if length != self.count:
            if known:
                raise ValueError(
                    f"Expected argument `{_name(path)}` to have a value for each of the {self.count} samples, as it "
                    f"had in an earlier batch, but got {length}. If its values do not belong to samples, {_BIND}."
                )
            self._note(path, False)
            return False
        if known is not None:
            return known
        if self._may_be_levels(value):
            raise ValueError(
                f"Expected argument `{_name(path)}` to show what belongs to the {self.count} samples, but got "
                f"{length} items with {self.count} rows each: an item may be one sample's, or have a row for each. "
                "Give a tensor (torch.stack) or an array of what is one sample's, and a dict with names as its keys "
                f"of what has a row for each; if it does not belong to samples, {_BIND}."
            )
        self._note(path, True)
        return True

    def _may_be_levels(self, value: Any) -> bool:
        """Whether each item may have a row for every sample."""
        if not holds_tensors(value):
            return all(is_sequence(one) and len(one) == self.count for one in value)
        rows = [
            leaf for leaf in pytree.tree_leaves(list(value)) if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim
        ]
        return bool(rows) and all(len(leaf) == self.count for leaf in rows)

    def _samples(self, value: Any, path: Path) -> Samples:
        found = Samples(value)
        if type(value) in (list, tuple, deque, range, array):
            return found
        try:
            again = found.taken([range(len(value))]).values
            fits = len(again) == len(value) and all(one is other for one, other in zip(again, value, strict=True))
        except Exception:
            fits = False
        if not fits:
            raise _refusal(_name(path), "be made of lists and tensors", value, "Give a list of its items")
        return found

    def _check_keys(self, value: Mapping[Any, Any], path: Path) -> None:
        """That a mapping of plain values has no key a sample.

        Raises:
            ValueError: it may have.
        """
        keys = (*path, _KEYS)
        if not value or self._leads_to_modality(path) or self.known.get(keys) is False:
            return
        if len(value) != self.count:
            self._note(keys, False)
            return
        raise _refusal(
            _name(path),
            f"have no key for each of the {self.count} samples",
            value,
            f"Give its values as a list, in the order of the samples; if it does not belong to samples, {_BIND}",
        )

    def _check_countable(self, value: Any, path: Path) -> None:
        """That what has an item a sample, but no order or no copies, is not among the arguments.

        Raises:
            ValueError: it may be.
        """
        if self._is_input(path):
            return
        if isinstance(value, Iterator) and type(value).__module__ == "builtins" and not isinstance(value, io.IOBase):
            raise _refusal(_name(path), "last for several passes", value, "Give a list of its items")
        if isinstance(value, nn.utils.rnn.PackedSequence):
            count, advice = (
                int(value.batch_sizes[0]),
                "Give the padded sequences and their lengths (pad_packed_sequence)",
            )
        elif getattr(value, "ptr", None) is not None and hasattr(value, "num_graphs"):
            count, advice = value.num_graphs, "Give a dense batch and its mask (torch_geometric.utils.to_dense_batch)"
        elif isinstance(value, (Set, ValuesView, bytes, memoryview)):
            count, advice = len(value), "Give a list of its items, in the order of the samples"
        else:
            return
        self._check_count(count, value, path, advice)

    def _check_opaque(self, value: Any, path: Path) -> None:
        """That an object into which nobody can look has no item a sample.

        Raises:
            ValueError: it may have.
        """
        if isinstance(value, (Mapping, Set, ValuesView, bytes)) or callable(value) or not hasattr(value, "__len__"):
            return
        if hasattr(value, "to_dict") and hasattr(value, "keys") and callable(value.keys) and not hasattr(value, "iloc"):
            return  # a graph of torch_geometric, whose length is that of its keys
        try:
            count = len(value)
        except Exception:
            return
        self._check_count(count, value, path, "Give a list, an array or a tensor of them")

    def _check_count(self, count: int, value: Any, path: Path, advice: str) -> None:
        if count != self.count:
            self._note(path, False)
        elif count and self.known.get(path) is not False:
            raise _refusal(
                _name(path),
                f"be made of tensors and sequences, whose {self.count} samples can be repeated",
                value,
                f"{advice}; if it does not belong to samples, {_BIND}",
            )


def _refusal(name: str, wanted: str, got: Any, advice: str) -> ValueError:
    return ValueError(f"Expected argument `{name}` to {wanted}, but got a {type(got).__name__}. {advice}.")


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _at(value: Any, key: Any) -> Any:
    return value[key]


def _has_rows(tree: Any) -> bool:
    return any(isinstance(leaf, Samples) or (isinstance(leaf, Tensor) and leaf.dim() > 0) for leaf in leaves_of(tree))
