"""The numbers behind the proof: on a first batch, one pass through an encoder must give what two give."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from agm._inputs.absent import is_opaque, is_rows
from agm._inputs.rows import copied
from agm._module_state.eval_mode import evaluation
from agm._module_state.modules import submodules
from agm._one_pass.row_split import row_split
from agm.distributed import Peers

__all__ = ["NO_SAMPLES", "ROWS_DEPEND", "close", "disagreement", "split_features", "untouched"]

# What equal numbers may differ by, relative to the largest: kernels sum in another order for other numbers of rows.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 3e-2

NO_SAMPLES = "a process has no samples in the first batch, and nothing can be verified"
ROWS_DEPEND = "its rows depend on one another"
_ELSEWHERE = "another process has found other numbers"


def split_features(encoder: nn.Module, present: Any, rows: Any) -> tuple[Any, Any]:
    """One pass: features of `present` in the encoder's modes, and of `rows` in eval mode."""
    batch, more = _count(present), _count(rows)
    both = pytree.tree_map(lambda a, b: torch.cat([a, b]) if is_rows(a) else a, present, rows)
    with row_split(encoder, batch, batch + more):
        features = encoder(both)
    for leaf in pytree.tree_leaves(features, is_leaf=is_opaque):
        if is_opaque(leaf) or (is_rows(leaf) and leaf.shape[0] != batch + more):
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"Expected an encoder in one pass to return features with the samples in the first dimension, but for "
                f"{batch + more} rows it returned {got}. Use passes='two'."
            )
    first = pytree.tree_map(lambda leaf: leaf[:batch] if is_rows(leaf) else leaf, features)
    return first, pytree.tree_map(lambda leaf: leaf[batch:] if is_rows(leaf) else leaf, features)


def disagreement(
    encoder: nn.Module,
    present: Any,
    rows: Any,
    name: str = "",
    known: dict[object, str | None] | None = None,
    *,
    again: bool = True,
    serves: bool = False,
    peers: Peers | None = None,
) -> str | None:
    """What differs between one pass and two; None if nothing does, to rounding. Known after an encoder's first batch.

    Processes that train together take the same number of passes here, since the encoder may exchange statistics with
    the others in each, and come to the same answer.

    Args:
        encoder: in the modes of the joint pass.
        present: its input.
        rows: those in eval mode that go with it.
        name: of the modality.
        known: (modality, kind of batch) -> what was found; it is added to.
        again: whether the present rows are among them.
        serves: whether the features of the present rows must be those of eval mode too.
        peers: those processes; None: none.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(present) if isinstance(leaf, Tensor)]
    device = leaves[0].device
    layout = tuple((leaf.dim(), leaf.dtype, leaf.device.type) for leaf in leaves)
    modes = tuple(module.training for module in submodules(encoder))
    peers = Peers(False) if peers is None else peers
    key = (name, serves, again, layout, modes, torch.is_autocast_enabled(device.type), peers.together)
    found = {} if known is None else known
    if key not in found:
        samples = peers.least(_count(present), device)
        if not samples:
            return NO_SAMPLES
        with torch.no_grad():
            reason = _agreed(_mode_differs(encoder, present), peers, device) if serves else None
            if reason is None:
                reason = _agreed(_split_differs(encoder, present, rows, peers), peers, device)
        # Whether rows of a single sample are mixed shows in no number.
        if reason is None and samples < 2:
            return None
        found[key] = reason
    return found[key]


def _agreed(reason: str | None, peers: Peers, device: torch.device) -> str | None:
    """None if no process has found a reason."""
    return reason if peers.least(reason is None, device) else reason or _ELSEWHERE


def _mode_differs(encoder: nn.Module, present: Any) -> str | None:
    with untouched(encoder, present) as before:
        joint = encoder(copied(present))
        with evaluation(encoder):
            apart = encoder(copied(present))
        changed = not _same(before, _state(encoder, present))
    if changed:
        return "it changes buffers or draws random numbers"
    return None if close(joint, apart) else "its features are others in eval mode"


def _split_differs(encoder: nn.Module, present: Any, rows: Any, peers: Peers) -> str | None:
    with untouched(encoder, present):
        joint = encoder(copied(present))
        after = _state(encoder, present)
        watch = _Watch()
        with evaluation(encoder), watch:
            apart = encoder(copied(rows))
        # The others go no further either, with passes that would wait for this process.
        if not peers.least(_same(after, _state(encoder, present)), _device(present)):
            return "it changes buffers or draws random numbers in eval mode"
    if watch.reason is not None:
        return watch.reason
    try:
        with untouched(encoder, present):
            one = split_features(encoder, present, rows)
            after_one = _state(encoder, present)
        with untouched(encoder, present):
            # Nothing of the eval rows may reach the train rows: of what is not a number the least trace shows.
            poisoned = split_features(encoder, present, pytree.tree_map(_poison, rows))[0]
            after_poisoned = _state(encoder, present)
    except (MemoryError, torch.OutOfMemoryError):  # says nothing about the encoder
        raise
    except Exception as error:  # of any kind: two passes have just shown that the input is not to blame
        return f"one pass raises {type(error).__name__}: {error}"
    if not torch.equal(after.pop("generator"), after_one.pop("generator")):
        return "other random numbers are drawn in one pass"
    after_poisoned.pop("generator")
    if not close(after, after_one):
        return "its buffers are others after one pass"
    if not close(joint, poisoned) or not close(after, after_poisoned):
        return ROWS_DEPEND
    return None if close((joint, apart), one) else "its features are others in one pass"


@torch.no_grad()
def close(left: Any, right: Any) -> bool:
    """Whether pytrees are equal to rounding."""
    leaves, structure = pytree.tree_flatten(left)
    others, other = pytree.tree_flatten(right)
    return structure == other and all(_is_close(a, b) for a, b in zip(leaves, others, strict=True))


def _is_close(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and not is_opaque(left) and bool(left == right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.is_floating_point() and not left.is_complex():
        return torch.equal(left, right)
    scale = float(left.abs().nan_to_num(0.0, 0.0, 0.0).amax()) if left.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=_ROUNDING.get(left.dtype, _COARSE) * scale, equal_nan=True)


class _Watch(TorchDispatchMode):
    """Finds rows that are picked by their values: how many there are, and whose, changes from batch to batch."""

    reason: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags:
            self.reason = f"it picks rows by their values or by indices ({func})"
        return func(*args, **kwargs or {})


@contextmanager
def untouched(module: nn.Module, inputs: Any) -> Iterator[dict[str, Tensor]]:
    """Buffers and random numbers are as before afterwards; gives what they are.

    Buffers are replaced rather than written to: an earlier forward may still have its backward before it.
    """
    copies: dict[Tensor, Tensor] = {}
    own = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    generators = _generators(inputs)
    try:
        for layer, name, buffer in own:
            layer._buffers[name] = copies.setdefault(buffer, buffer.clone())
        yield _state(module, inputs)
    finally:
        for layer, name, buffer in own:
            layer._buffers[name] = buffer
        for device, state in generators.items():
            _set_generator(device, state)


def _state(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return state | {"generator": torch.cat([part.flatten() for part in _generators(inputs).values()])}


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def _generators(inputs: Any) -> dict[torch.device, Tensor]:
    """The state of the generators that a pass over the inputs may draw from."""
    devices = {leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    found = {torch.device("cpu"): torch.get_rng_state()}
    for device in sorted(devices - found.keys(), key=str):
        found[device] = torch.get_device_module(device).get_rng_state(*_which(device))
    return found


def _set_generator(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.index is None or device.type == "mps" else (device,)  # there is one alone


def _poison(leaf: Any) -> Any:
    return torch.full_like(leaf, torch.nan) if is_rows(leaf) and leaf.is_floating_point() else leaf


def _device(rows: Any) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(rows) if isinstance(leaf, Tensor))


def _count(rows: Any) -> int:
    return next(leaf.shape[0] for leaf in pytree.tree_leaves(rows) if is_rows(leaf))
