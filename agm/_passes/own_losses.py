"""Losses that forward itself computes of the logits: their gradient would pass by the modulation."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any, Literal

from torch import Tensor, nn

from agm._inputs.structures import Path, entries
from agm._module_state.containers import OF_MODULES
from agm._passes.logits_in_graph import LogitsInGraph

__all__ = ["kept_losses", "kept_losses_note", "own_losses"]

Verdict = Literal["loss", "numbers", "unknown"]
"""A loss of the logits; other numbers of them, of which one may be made; nobody can see what they are of."""

_DEEP = 6
_HOLDERS = (Tensor, list, tuple, dict, SimpleNamespace)
_LOSS = re.compile(r"Loss|CrossEntropy|KlDiv")  # in names of autograd's nodes


def own_losses(output: Any, logits: Tensor, head: nn.Linear | None = None) -> dict[str, Verdict]:
    """What the output holds beside its logits that is computed from them and may be a loss, by where it is.

    That is every scalar, what was computed by a loss function of torch (`reduction="none"`) or is named so, and other
    numbers, as probabilities are. Auxiliary losses, of features or of routers, are not among them: the logits are not
    in their graph. Of what a compiled graph has computed together with the logits nothing is known.

    Args:
        output: of the network, in the joint pass.
        logits: where they are in it.
        head: what makes logits of what is in their place, where the network has ended before it; None: they are logits.
    """
    beside = ((path, tensor) for path, tensor in _tensors(output) if tensor is not logits)
    return _of_logits(beside, logits, head)


def kept_losses(network: nn.Module, logits: Tensor, head: nn.Linear | None = None) -> tuple[str, ...]:
    """Attributes of the network's modules that keep such a loss, or such numbers."""

    def held() -> Iterator[tuple[Path, Tensor]]:
        for path, module in network.named_modules():
            own = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
            for name, value in {**own, **module._buffers}.items():
                if isinstance(value, _HOLDERS) or is_dataclass(value):
                    yield from _tensors(value, (path, name) if path else (name,))

    return tuple(_of_logits(held(), logits, head))


def kept_losses_note(names: tuple[str, ...]) -> str:
    """What to do about them, in sentences."""
    return (
        f"Forward keeps a loss, or what one may be made of, of its own logits in "
        f"{', '.join(f'`{name}`' for name in names)}: its gradient passes by the modulation. Compute the "
        "loss from what the model returns, and keep the other only to be looked at (loss.detach())."
    )


def _tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Those that have a graph."""
    if isinstance(value, Tensor):
        if value.requires_grad and value.grad_fn is not None:
            yield path, value
    elif len(path) < _DEEP:
        for key, inner in entries(value) or ():
            yield from _tensors(inner, (*path, key))


def _of_logits(found: Iterator[tuple[Path, Tensor]], logits: Tensor, head: nn.Linear | None) -> dict[str, Verdict]:
    graph: LogitsInGraph | None = None
    verdicts: dict[str, Verdict] = {}
    for path, tensor in found:
        graph = graph or LogitsInGraph(logits, head)
        name = ".".join(map(str, path))
        if (verdict := _verdict(tensor, name, graph, logits)) is not None:
            verdicts[name] = verdict
    return verdicts


def _verdict(tensor: Tensor, name: str, graph: LogitsInGraph, logits: Tensor) -> Verdict | None:
    if tensor is logits:
        return "numbers"
    is_one = tensor.dim() == 0 or (tensor.shape == (1,) and len(logits) > 1)
    found = graph.within(tensor)
    if found is None:
        return None
    by_name = "loss" in name.lower()
    if found == "unknown":
        return "unknown" if is_one or by_name else None
    if is_one or by_name or any(map(_LOSS.search, found)):
        return "loss"
    return "numbers"
