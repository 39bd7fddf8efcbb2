"""How many passes each encoder takes in exact mode, and why; and the encoder's calls that take one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.answering import answering
from agm.modes import mode_dependent_layers
from agm.rowcheck import disagreement, split_features
from agm.rowproof import why_not_row_split
from agm.subsets import copied, stacked

__all__ = [
    "OWN_WAY",
    "Choice",
    "Choices",
    "JointCall",
    "Passes",
    "apart",
    "check_apart",
    "check_passes",
    "checked",
    "choose",
    "in_common",
    "refused",
    "surroundings",
]

Passes = Literal["auto", "one", "two"]

OWN_WAY = "the network encodes in its own way (in an activation checkpoint, without gradients, more than once)"

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Choice:
    """How an encoder computes the features of the joint pass and those of the masked passes.

    Attributes:
        how: "two" passes, "shared": the joint pass's features serve the present rows, or "split": train rows and eval
            rows are one batch.
        why: in words.
    """

    how: Literal["two", "shared", "split"]
    why: str


class Choices:
    """What has been chosen for a network's encoders, before any numbers, and what became of it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Choice], Choice] = {}

    def __call__(self, name: str, chosen: Choice) -> Choice:
        """What a choice came to in the last step for which it was made; else itself."""
        return self._found.get((name, chosen), chosen)

    def note(self, name: str, chosen: Choice, found: Choice) -> None:
        if not torch.compiler.is_compiling():  # a graph would be guarded by all that was noted
            self._found[name, chosen] = found


def check_passes(passes: object) -> None:
    if passes not in ("auto", "one", "two"):
        raise ValueError(f"Expected argument `passes` to be 'auto', 'one' or 'two', but got {passes!r}.")


def check_apart(name: str, mixing: Sequence[str]) -> None:
    """That no layer puts present and absent rows together.

    Raises:
        ValueError: there are some.
    """
    if mixing:
        raise ValueError(
            f"Expected the encoder of `{name}` to treat samples apart in eval mode, but its `{mixing[0]}` normalises "
            "with the statistics of the batch there too, in which present and absent rows would mix. Give it running "
            "statistics."
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
) -> Choice:
    """What is to be done if the numbers of a first batch agree.

    Args:
        name: of the modality.
        encoder: in the modes of the joint pass.
        passes: what the user asks for.
        device: of the input.
        unsplit: tells why train rows and eval rows cannot be one batch in this network, if so.

    Raises:
        ValueError: one pass is asked for and not known to be safe.
    """
    if passes == "two":
        return Choice("two", "passes='two'")
    depends = bool(mode_dependent_layers(encoder))
    reason = None
    if depends and passes == "auto" and device.type != "cuda":
        reason = f"one pass saves kernel launches, which cost little on {device}"
    elif depends:
        reason = unsplit()
    reason = reason or _why_not(encoder, device)
    if reason is not None:
        return apart(name, passes, reason)
    if not depends:
        return Choice("shared", "no layer depends on the mode")
    return Choice("split", "passes='one'" if passes == "one" else "half the kernel launches")


def apart(name: str, passes: Passes, reason: str) -> Choice:
    """Two passes.

    Raises:
        ValueError: one is asked for.
    """
    if passes == "one":
        raise refused(name, reason)
    return Choice("two", reason)


def in_common(network: nn.Module, encoders: Mapping[str, nn.Module], name: str) -> str | None:
    """A layer of an encoder that others call too: its statistics would not be the last ones in one pass."""
    encoder = encoders[name]
    inside = set(encoder.modules())
    for other, root in encoders.items():
        if other != name and inside & set(root.modules()):
            return f"it has layers in common with the encoder of `{other}`"
    roots = set(encoders.values())
    outside = [module for module in network.modules() if module not in inside]
    tied = any(child in inside and child not in roots for m in outside for child in m._modules.values())
    return "it has layers in common with the rest of the network" if tied else None


def _why_not(encoder: nn.Module, device: torch.device) -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile traces two passes"
    return "without numbers nothing can be verified" if device.type == "meta" else why_not_row_split(encoder)


def checked(name: str, chosen: Choice, encoder: nn.Module, present: Any, absent: Any, passes: Passes) -> Choice:
    """The choice, or two passes if the numbers of the first batch are against it.

    Raises:
        ValueError: they are, and one pass is asked for.
    """
    if chosen.how == "two":
        return chosen
    strange = [type(x) for x in pytree.tree_leaves(present) if isinstance(x, Tensor) and type(x) not in _PLAIN]
    if strange:
        reason: str | None = f"its input is a {strange[0].__name__}, of which nothing is known"
    else:
        reason = disagreement(encoder, present, absent, chosen.how == "shared")
    if reason is None:
        return chosen
    if passes == "one":
        raise refused(name, reason)
    return Choice("two", reason)


class JointCall:
    """An encoder's forward in the joint pass, which also leaves the features that the masked passes need.

    Only a call with the modality's input as it is does, with gradients and under autocast as around the joint pass:
    what a network encodes otherwise (inside an activation checkpoint, say) is left to a second pass.

    Attributes:
        features: those of the joint pass if it shares them, else those in eval mode; None if there are none.
        rows: set if a second pass must follow: present rows and absent ones.
    """

    def __init__(self, encoder: nn.Module, chosen: Choice, inputs: Any, absent: Any) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.chosen = chosen
        self.shares = chosen.how == "shared"
        self.inputs = inputs
        self.absent_rows = absent
        self.around = surroundings()
        self.features: Any = None
        self.rows: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with answering({self.encoder: self.forward}):
            direct = len(args) == 1 and not kwargs and args[0] is self.inputs and surroundings() == self.around
            if not direct or self.features is not None:
                with torch.set_grad_enabled(self.around[0]):
                    self.rows = stacked(self.inputs, self.absent_rows)  # before the encoder may write to its input
                return self.encoder.forward(*args, **kwargs)
            if self.shares:
                features = self.encoder.forward(*args)
                self.features = copied(features)  # since the network may go on in place with what it gets
                return features
            features, self.features = split_features(self.encoder, args[0], stacked(args[0], self.absent_rows))
            return features

    def second_pass(self) -> Any:
        """The rows that the encoder has yet to see in eval mode, if its features are not known; else None."""
        if self.rows is None and self.features is None:
            self.rows = stacked(self.inputs, self.absent_rows)
        return self.rows


def surroundings() -> tuple[Any, ...]:
    """What a checkpoint, a `no_grad` or an autocast inside the network changes."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return torch.is_grad_enabled(), hooks, autocast
