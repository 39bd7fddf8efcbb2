"""How many passes each encoder takes, and why; and the encoder's calls that take one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agm._inputs.rows import copied, doubled, stacked
from agm._inputs.samples import has_samples
from agm._inputs.trees import leaves_of
from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import depends_on_mode
from agm._module_state.modules import submodules
from agm._module_state.replace_forward import answering
from agm._one_pass.numeric_check import NO_SAMPLES, disagreement, split_features
from agm._one_pass.row_proof import why_not_row_split
from agm._one_pass.row_split import splits_norms
from agm.distributed import Peers

__all__ = [
    "OWN_WAY",
    "Choice",
    "Choices",
    "JointCall",
    "Passes",
    "apart",
    "autocasts",
    "check_apart",
    "check_passes",
    "checked",
    "choose",
    "in_common",
    "refused",
    "surroundings",
    "versions",
]

Passes = Literal["auto", "one", "two"]

OWN_WAY = "the network encodes in its own way (in an activation checkpoint, without gradients, more than once)"

_PLAIN = (Tensor, nn.Parameter)


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
    peers: Peers | None = None,
    *,
    shared: bool = False,
) -> Choice:
    """What is to be done if the numbers of a first batch agree.

    Args:
        name: of the modality.
        encoder: in the modes of the joint pass.
        passes: what the user asks for.
        device: of the input.
        unsplit: tells why train rows and eval rows cannot be one batch in this network, if so.
        peers: the processes that look at a first batch together; None: none do.
        shared: whether the joint pass's features serve the present rows whatever the mode.

    Raises:
        ValueError: one pass is asked for and not known to be safe.
    """
    if passes == "two":
        return Choice("shared" if shared else "two", "passes='two'")
    modules = submodules(encoder)
    depends = any(module.training and depends_on_mode(module) for module in modules)
    reason = None
    if depends and passes == "auto" and device.type != "cuda" and splits_norms(encoder):
        reason = f"norms would take one batch apart, which costs more than it saves on {device}"
    if passes == "auto" and (depends or shared) and any(map(is_compiled, modules)):
        reason = "it is compiled, and a graph would break where its rows are told apart"
    if depends and reason is None:
        reason = unsplit()
    reason = reason or _why_not(encoder, device, peers is not None and peers.has_all)
    if reason is not None:
        return apart(name, passes, reason, shared=shared)
    if shared:
        return Choice("joined", "passes='one'" if passes == "one" else "an absent row alone would cost a pass")
    if not depends:
        return Choice("joined", "no layer depends on the mode")
    return Choice("split", "passes='one'" if passes == "one" else "weights are read once and kernels launched once")


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


def _why_not(encoder: nn.Module, device: torch.device, together: bool) -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile traces two passes"
    if device.type == "meta":
        return "without numbers nothing can be verified"
    return why_not_row_split(encoder, together)


def checked(
    name: str,
    chosen: Choice,
    encoder: nn.Module,
    present: Any,
    absent: Any,
    passes: Passes,
    peers: Peers,
    *,
    shared: bool = False,
    known: dict[object, str | None] | None = None,
) -> Choice:
    """The choice, or passes apart if the numbers of the first batch are against one, in any of the processes.

    Raises:
        ValueError: they are, and one pass is asked for.
    """
    if not chosen.is_one:
        return chosen
    strange = [type(x) for x in leaves_of(present) if isinstance(x, Tensor) and type(x) not in _PLAIN]
    if has_samples(present):
        reason: str | None = "its input holds values of Python"
    elif strange:
        reason = f"its input is a {strange[0].__name__}, of which nothing is known"
    else:
        joined = chosen.how == "joined"
        rows = absent if joined else stacked(present, absent)
        serves = joined and not shared
        reason = disagreement(encoder, present, rows, name, known, again=not joined, serves=serves, peers=peers)
    if reason is None:
        return chosen
    return apart(name, "auto" if reason is NO_SAMPLES else passes, reason, shared=shared)


class JointCall:
    """An encoder's forward in the joint pass that takes the rows of the masked passes with it.

    Only a call with the modality's input as it is does, with gradients and under autocast as around the joint pass:
    what a network encodes otherwise (inside an activation checkpoint, say) is left to a second pass.

    Args:
        encoder: the module that it stands in for.
        chosen: "joined" or "split".
        inputs: the modality's.
        absent: its absent rows.
        shared: whether whoever has the joint pass run keeps its features, to serve the present rows.
        agrees: asked at such a call for the choice that its numbers leave; None: that is known.

    Attributes:
        present: features of the present rows for the masked passes, if these are "joined" and not shared.
        more: those of the rows that went with it: "joined": the absent ones; "split": the present and the absent ones.
        rows: set if a second pass must follow: what it takes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        chosen: Choice,
        inputs: Any,
        absent: Any,
        shared: bool,
        agrees: Callable[[], Choice] | None = None,
    ) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.chosen = chosen
        self.shared = shared
        self.inputs = inputs
        self.absent_rows = absent
        self.agrees = agrees
        self.before = (surroundings(), versions(inputs))
        self.is_done = False
        self.disagrees: str | None = None  # what the numbers have against one pass
        self.present: Any = None
        self.more: Any = None
        self.rows: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with answering({self.encoder: self.forward}):
            if self.is_done or not self._is_direct(args, kwargs) or not self._agrees():
                with torch.set_grad_enabled(self.before[0][0]):
                    self.rows = self._apart()  # before the encoder may write to its input
                return self.encoder.forward(*args, **kwargs)
            self.is_done = True
            if self.chosen.how == "split":
                features, self.more = split_features(self.encoder, args[0], stacked(args[0], self.absent_rows))
                return features
            features, self.more = split_features(self.encoder, args[0], self.absent_rows)
            if self.shared:
                return features
            handed, self.present = doubled(features)
            return handed

    def _agrees(self) -> bool:
        left = self.chosen if self.agrees is None else self.agrees()
        self.disagrees = None if left.is_one else left.why
        return left.is_one

    def _is_direct(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether it is given the modality's input, which nobody has written to."""
        given = len(args) == 1 and not kwargs and args[0] is self.inputs
        return given and (surroundings(), versions(self.inputs)) == self.before

    def second_pass(self) -> Any:
        """The rows that the encoder has yet to see, in eval mode, if their features are not known; else None."""
        if self.rows is None and not self.is_done:
            self.rows = self._apart()
        return self.rows

    def _apart(self) -> Any:
        return copied(self.absent_rows) if self.shared else stacked(self.inputs, self.absent_rows)


def versions(inputs: Any) -> list[tuple[int, int | None]]:
    """What is another one once a tensor of a pytree has been replaced or written to."""
    leaves = [leaf for leaf in leaves_of(inputs) if isinstance(leaf, Tensor)]
    return [(id(leaf), None if leaf.is_inference() else leaf._version) for leaf in leaves]


def surroundings() -> tuple[Any, ...]:
    """What a checkpoint, a `no_grad` or an autocast inside the network changes."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), hooks, autocasts()


def autocasts() -> list[tuple[str, bool, torch.dtype]]:
    """Of each kind of device whether autocast is on, and its dtype."""
    return [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
