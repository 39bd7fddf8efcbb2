"""Whether a network's fusion may be given deferred rows: a first batch compares what it makes of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.closeness import close
from agm._lazy_rows.tensor import Deferred, Rows, current, written
from agm._module_state.compiled import compiled_part
from agm._module_state.untouched import untouched
from agm.distributed import Peers, is_sharded
from agm.shapley.weights import proper_subsets

__all__ = ["SHARDED", "Deferral", "declares_sum", "deferral", "found_deferral", "some_subsets"]


@dataclass(frozen=True)
class Deferral:
    """How the masked rows go through a fusion.

    Attributes:
        how: "sum": it ends in a sum over the modalities, so that no subset is written out; "deferred": rows are
            written out where the fusion needs them one by one; "rows": at once.
        why: in words, if rows are written out at once.
    """

    how: Literal["sum", "deferred", "rows"]
    why: str = ""


SHARDED = Deferral("rows", "fully_shard's hooks take rows as they are")
_ORDER: tuple[Literal["rows", "deferred", "sum"], ...] = ("rows", "deferred", "sum")  # each serves for those behind it


def found_deferral(expected: Any, run: Callable[[], Any], peers: Peers) -> Deferral:
    """Whether `run` makes of deferred rows what written ones came to (`expected`), in all processes."""
    try:
        logits = current(run())
        is_sum = isinstance(logits, Deferred) and logits.summands() is not None
        same = close(written(logits), expected)
    except MemoryError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind: written rows have just shown that the network is not to blame
        found = Deferral("rows", f"deferred rows raise {type(error).__name__}: {error}")
    else:
        how: Literal["sum", "deferred"] = "sum" if is_sum else "deferred"
        found = Deferral(how) if same else Deferral("rows", "deferred rows come to other logits")
    if peers.together:
        device = next(leaf.device for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor))
        least = _ORDER[peers.least(_ORDER.index(found.how), device)]
        if least != found.how:
            found = Deferral(least, "another process has found other logits" if least == "rows" else "")
    return found


def deferral(
    network: nn.Module,
    fuse: Callable[[Rows, bool], Any],
    rows: Rows,
    device: torch.device,
    peers: Peers,
    encoders: Iterable[nn.Module],
) -> Deferral | None:
    """How rows may go through a fusion, found on a few samples and subsets; None where there is nothing to compare.

    Args:
        network: in eval mode, with `encoders`.
        fuse: what its fusion makes of rows, deferred or written out.
        rows: of this step.
        device: where they are.
        peers: the processes that take every step together, with as many passes through `fuse`.
        encoders: the parts of the network that are not in it.
    """
    encoders = list(encoders)
    encoding = {module for encoder in encoders for module in encoder.modules()}
    if any(is_sharded(module) for module in network.modules() if module not in encoding):
        return SHARDED
    weights = list(network.parameters())
    if not peers.least(rows.batch, device) or any(weight.is_meta for weight in weights):
        return None
    if (part := compiled_part(network, encoders)) is not None:
        return Deferral("rows", f"`{part}` is compiled")
    some = replace(rows, batch=min(rows.batch, 2), subsets=some_subsets(rows.modalities))
    with untouched(network, weights):
        expected = fuse(some, False)
    with untouched(network, weights):
        return found_deferral(expected, lambda: fuse(some, True), peers)


def some_subsets(modalities: int) -> Sequence[int]:
    """Subsets in which each modality is alone, and in which it alone is absent."""
    if modalities == 2:
        return proper_subsets(2)
    alone = [1 << m for m in range(modalities)]
    return (*alone, *(2**modalities - 1 - one for one in alone))


def declares_sum(network: nn.Module) -> bool:
    """Whether the network offers `unimodal_logits(features)`, modality -> its term of the logits, for its own `fuse`.

    A class that changes how features become logits below the one that offers it makes it no declaration of its own.
    """
    offers: Any = None
    for base in type(network).__mro__:
        if "unimodal_logits" in vars(base):
            offers = base
            break
        if {"fuse", "fused_features", "forward"} & vars(base).keys():
            return False
    return offers is not None and "fuse" not in vars(network)
