"""How many passes each encoder takes in exact mode, and why; and the encoder's calls that take one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.answering import answering
from agm.modes import mixes_samples, mode_dependent_layers
from agm.rowcheck import disagreement, split_features
from agm.rowproof import why_not_row_split
from agm.subsets import copied, stacked

__all__ = [
    "EncoderPlan",
    "JointCall",
    "Passes",
    "check_passes",
    "checked_plan",
    "plan_encoder",
    "refused",
    "shared_plan",
    "surroundings",
    "two_plan",
]

Passes = Literal["auto", "one", "two"]

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class EncoderPlan:
    """How an encoder computes the features of the joint pass and those of the masked passes."""

    modality: str
    passes: int  # over the samples; an absent row by itself is none
    rows: str  # that the encoder sees in a step
    mode: str  # in which the encoder is for them
    why: str

    @property
    def shares(self) -> bool:
        """Whether the joint pass's features serve the present rows."""
        return self.rows == "B + 1"

    @property
    def splits(self) -> bool:
        """Whether train rows and eval rows are one batch."""
        return self.passes == 1 and not self.shares

    def __str__(self) -> str:
        number = "one pass" if self.passes == 1 else "two passes"
        return f"{self.modality}: {number}, {self.rows} rows, {self.mode}: {self.why}"


def check_passes(passes: object) -> None:
    if passes not in ("auto", "one", "two"):
        raise ValueError(f"Expected argument `passes` to be 'auto', 'one' or 'two', but got {passes!r}.")


def shared_plan(name: str, why: str) -> EncoderPlan:
    return EncoderPlan(name, 1, "B + 1", "joint features serve the present rows", why)


def two_plan(name: str, why: str) -> EncoderPlan:
    return EncoderPlan(name, 2, "B, then B + 1", "training mode, then eval mode", why)


def refused(name: str, reason: str) -> ValueError:
    return ValueError(
        f"Expected argument `passes` to be 'auto' or 'two' for the encoder of `{name}`, but got 'one', which cannot be "
        f"proved to be the same there: {reason}."
    )


def plan_encoder(
    name: str,
    encoder: nn.Module,
    passes: Passes,
    device: torch.device,
    unsplit: Callable[[], str | None] = lambda: None,
) -> EncoderPlan:
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
        return two_plan(name, "asked for")
    depends = bool(mode_dependent_layers(encoder) or mixes_samples(encoder))
    reason = None
    if depends and passes == "auto" and device.type != "cuda":
        reason = f"some layers depend on the mode, and one pass saves kernel launches, which cost little on {device}"
    elif depends:
        reason = unsplit()
    reason = reason or _why_not(encoder, device)
    if reason is not None and passes == "one":
        raise refused(name, reason)
    if reason is not None:
        return two_plan(name, reason)
    if not depends:
        return shared_plan(name, "no layer depends on the mode")
    why = "asked for" if passes == "one" else "half the kernel launches"
    return EncoderPlan(name, 1, "2 * B + 1", "train rows and eval rows apart in norms and dropouts", why)


def _why_not(encoder: nn.Module, device: torch.device) -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile traces two passes"
    return "without numbers nothing can be verified" if device.type == "meta" else why_not_row_split(encoder)


def checked_plan(plan: EncoderPlan, encoder: nn.Module, present: Any, absent: Any, passes: Passes) -> EncoderPlan:
    """The plan, or two passes if the numbers of the first batch are against it.

    Raises:
        ValueError: they are, and one pass is asked for.
    """
    if plan.passes == 2:
        return plan
    strange = [type(x) for x in pytree.tree_leaves(present) if isinstance(x, Tensor) and type(x) not in _PLAIN]
    if strange:
        reason: str | None = f"its input is a {strange[0].__name__}, of which nothing is known"
    else:
        reason = disagreement(encoder, present, absent, plan.shares)
    if reason is None:
        return plan
    if passes == "one":
        raise refused(plan.modality, reason)
    return two_plan(plan.modality, reason)


class JointCall:
    """An encoder's forward in the joint pass, which also leaves the features that the masked passes need.

    Only a call with the modality's input as it is does, with gradients and under autocast as around the joint pass:
    what a network encodes otherwise (inside an activation checkpoint, say) is left to a second pass.

    Attributes:
        features: those of the joint pass if it shares them, else those in eval mode; None if there are none.
        rows: set if a second pass must follow: present rows and absent ones.
    """

    def __init__(self, encoder: nn.Module, shares: bool, inputs: Any, absent: Any) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.shares = shares
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
        """The rows that an encoder whose features are not known has to see in eval mode."""
        return stacked(self.inputs, self.absent_rows) if self.rows is None else self.rows


def surroundings() -> tuple[Any, ...]:
    """What a checkpoint, a `no_grad` or an autocast inside the network changes."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return torch.is_grad_enabled(), hooks, autocast
