"""How many passes each encoder takes, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import counts_samples, depends_on_mode, why_mixes
from agm._module_state.modules import path_of, submodules
from agm._one_pass.synchronised import has_own_way, is_exchanging

__all__ = [
    "GLOBAL_HOOKS",
    "Choice",
    "Choices",
    "Passes",
    "apart",
    "check_counts",
    "check_passes",
    "choose",
    "in_common",
    "refused",
    "why_split",
]

Passes = Literal["auto", "one", "two"]


@dataclass(frozen=True)
class Choice:
    """How an encoder computes the features of the joint pass and those of the masked passes.

    Attributes:
        how: "two": the present rows and the absent ones have a pass of their own. "shared": the joint pass's features
            serve the present rows, and the absent ones have a pass of their own. "joined": as "shared", but the absent
            ones are in the joint pass's batch. "split": the present rows and the absent ones are in it again.
        why: in words.
    """

    how: Literal["two", "shared", "joined", "split"]
    why: str

    @property
    def is_one(self) -> bool:
        """Whether all rows go through the encoder as one batch."""
        return self.how in ("joined", "split")


class Choices:
    """What has been chosen for a network's encoders, before any numbers, and what became of it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Choice], Choice] = {}

    def __call__(self, name: str, chosen: Choice) -> Choice:
        """What a choice came to in the last step for which it was made; else itself."""
        return self._found.get((name, chosen), chosen)

    def note(self, name: str, chosen: Choice, found: Choice) -> None:
        self._found[name, chosen] = found


def check_passes(passes: object) -> None:
    if passes not in ("auto", "one", "two"):
        raise ValueError(f"Expected argument `passes` to be 'auto', 'one' or 'two', but got {passes!r}.")


def check_counts(name: str, encoder: nn.Module) -> None:
    """That the gradient of no layer goes by how many rows it is given.

    Raises:
        ValueError: there are some.
    """
    if counting := counts_samples(encoder):
        why, instead = why_mixes(encoder, counting[0])
        raise ValueError(
            f"Expected the encoder of `{name}` to treat samples apart in eval mode, but its `{counting[0]}` {why}, and "
            f"one absent row stands for all samples. {instead}."
        )


def refused(name: str, reason: str) -> ValueError:
    return ValueError(
        f"Expected argument `passes` to be 'auto' or 'two' for the encoder of `{name}`, but got 'one', which cannot be "
        f"proved to be the same there: {reason}."
    )


def choose(
    name: str,
    encoder: nn.Module,
    passes: Passes,
    device: torch.device,
    unsplit: Callable[[], str | None] = lambda: None,
    *,
    shared: bool = False,
    depends: bool = False,
) -> Choice:
    """What is to be done unless a batch shows that it cannot.

    Args:
        name: of the modality.
        encoder: in the modes of the joint pass.
        passes: what the user asks for.
        device: of the input.
        unsplit: tells why train rows and eval rows cannot be one batch in this network, if so.
        shared: whether the joint pass's features serve the present rows whatever the mode.
        depends: whether it has been found to depend on the mode.

    Raises:
        ValueError: one pass is asked for and not known to be safe.
    """
    if passes == "two":
        return Choice("shared" if shared else "two", "passes='two'")
    modules = submodules(encoder)
    depends = depends or any(module.training and depends_on_mode(module) for module in modules)
    reason = None
    if any(map(is_compiled, modules)):
        reason = "it is compiled, and nobody can look into a graph"
    if depends and reason is None:
        reason = unsplit()
    reason = reason or _why_not(encoder, modules, device)
    if reason is not None:
        return apart(name, passes, reason, shared=shared)
    if shared:
        return Choice("joined", "passes='one'" if passes == "one" else "an absent row alone would cost a pass")
    if not depends:
        return Choice("joined", "no layer depends on the mode")
    return Choice("split", why_split(passes))


def apart(name: str, passes: Passes, reason: str, *, shared: bool = False) -> Choice:
    """Passes of their own for the rows that the joint pass does not have.

    Raises:
        ValueError: one pass is asked for.
    """
    if passes == "one":
        raise refused(name, reason)
    return Choice("shared" if shared else "two", reason)


def in_common(network: nn.Module, encoders: Mapping[str, nn.Module], name: str) -> str | None:
    """A layer of an encoder that others call too: its statistics would not be the last ones in one pass."""
    encoder = encoders[name]
    inside = set(submodules(encoder))
    for other, root in encoders.items():
        if other != name and not inside.isdisjoint(submodules(root)):
            return f"it has layers in common with the encoder of `{other}`"
    roots = set(encoders.values())
    outside = [module for module in submodules(network) if module not in inside]
    tied = any(child in inside and child not in roots for m in outside for child in m._modules.values())
    return "it has layers in common with the rest of the network" if tied else None


def _why_not(encoder: nn.Module, modules: Sequence[nn.Module], device: torch.device) -> str | None:
    """What can be told against one pass before anything runs."""
    if torch.compiler.is_compiling():
        return "torch.compile traces two passes"
    if device.type == "meta":
        return "without numbers nothing can be verified"
    if any(GLOBAL_HOOKS):
        return "hooks on all modules would see train rows and eval rows as one batch"
    for layer in modules:
        reason = _against(layer)
        if reason is not None:
            name = path_of(layer, encoder)
            where = f"layer `{name}`" if name else "the encoder"
            return f"{where} ({type(layer).__name__}) {reason}"
    return None


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def _against(layer: nn.Module) -> str | None:
    own = layer.__dict__
    if any(own[hooks] for hooks in _HOOKS):
        return "has hooks, which would see train rows and eval rows as one batch"
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by TorchScript, into which nobody can look"
    if layer.training and is_exchanging(layer) and has_own_way(layer):
        return "exchanges statistics with other processes in a way of its own"
    return None


def why_split(passes: Passes) -> str:
    return "passes='one'" if passes == "one" else "weights are read once and kernels launched once"
