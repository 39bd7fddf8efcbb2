"""The calls of an encoder that is named by path, noted in the joint pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_opaque, is_rows
from agm._inputs.rows import EVERYWHERE, doubled
from agm._inputs.samples import is_listed
from agm._inputs.shared_memory import SharedMemory
from agm._inputs.trees import leaves_of
from agm._lazy_rows.tensor import Deferred
from agm._module_state.checkpoints import check_not_reentrant
from agm._module_state.replace_forward import called_function
from agm._one_pass.choice import Choice
from agm._one_pass.joint_call import OWN_WAY, JointCall, surroundings

__all__ = ["Call", "Handed", "Recorder", "Target"]


@dataclass(frozen=True, eq=False)
class Target:
    """What encodes one modality, or several one after another: a module, or a method of one.

    Attributes:
        owner: the module.
        method: the name of the method that is called, "forward" where the module itself is.
        names: bit -> modality, of those that it encodes.
    """

    owner: nn.Module
    method: str
    names: Mapping[int, str]

    @property
    def function(self) -> Callable[..., Any]:
        """What is called."""
        return called_function(self.owner, self.method)

    @property
    def name(self) -> str:
        """A modality that it encodes."""
        return next(iter(self.names.values()))

    def __str__(self) -> str:
        return f"the encoder of `{'` and `'.join(self.names.values())}`"


@dataclass
class Call:
    """One call of an encoder in the joint pass.

    Attributes:
        input_sizes, output_sizes: of the tensors and lists among its arguments and in what it returned, in their order.
        kept: a copy of what it returned, if that is to serve the masked passes and is not in `few`.
        direct: the bit of the modality whose input it was given as it is, and nothing else that has rows.
        is_whole: whether it ran with gradients and under autocast as the pass around it does.
        few: a copy of what known layers returned for the present rows, and for one absent row behind them.
    """

    input_sizes: list[torch.Size | None]
    output_sizes: list[torch.Size | None]
    kept: Any
    direct: int | None
    is_whole: bool
    few: Tensor | None = None

    @property
    def output(self) -> Any:
        """The copy."""
        if self.few is None:
            return self.kept
        (size,) = self.output_sizes
        assert size is not None
        return self.few[: size[0]]


@dataclass
class Handed:
    """The tensors that forward is given in a pass, by identity: of which modality each is.

    Attributes:
        is_compiled: whether the pass as a whole is compiled: it asks for no `id`, by which its graph would be guarded,
            knows of no version, and has checkpoints as operations. An encoder that is compiled by itself is in a pass
            that is not.
        of: id of a tensor -> (the tensor, what it was like, the bit of its modality, its few rows or None).
    """

    is_compiled: bool = False
    of: dict[int, tuple[Tensor, object, int, Tensor | None]] = field(default_factory=dict)

    def add(self, tensor: Any, bit: int, few: Tensor | None = None) -> None:
        if isinstance(tensor, Tensor):
            if self.is_compiled:
                self.of[len(self.of)] = (tensor, None, bit, few)
            else:
                self.of[id(tensor)] = (tensor, _likeness(tensor), bit, few)

    def find(self, leaf: Any) -> tuple[int, Tensor | None] | None:
        """The bit of a tensor that forward was given and nobody has written to, and its few rows.

        A compiled pass cannot tell who has written to it, and must not take these few rows for it.
        """
        if self.is_compiled:
            return next(((bit, few) for tensor, _, bit, few in self.of.values() if tensor is leaf), None)
        found = self.of.get(id(leaf))
        return None if found is None or found[0] is not leaf or found[1] != _likeness(leaf) else found[2:]


class Recorder:
    """Runs an encoder in the joint pass and notes its calls.

    Args:
        target: the encoder.
        calls_with: what takes the rows of the masked pass with it, by modality's bit.
        keeps: whether its outputs are to serve the masked passes.
        handed: what forward was given.
        shared: whether they serve whatever the mode.
        without: why no rows go with it, by modality's bit.
        around: the surroundings of the joint pass.

    Attributes:
        calls: of the encoder, so far.
        is_written: whether it returned memory that it was given, to which forward has then written.
    """

    def __init__(
        self,
        target: Target,
        calls_with: Mapping[int, JointCall],
        keeps: bool,
        handed: Handed,
        shared: bool,
        without: Mapping[int, str],
        around: tuple[Any, ...],
    ) -> None:
        self.target = target
        self.without = without
        self.function = target.function
        self.calls_with = calls_with
        self.keeps = keeps
        self.shared = shared
        self.handed = handed
        self.around = around
        self.calls: list[Call] = []
        self.is_written = False
        self._memory = SharedMemory()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.keeps and self.shared and not self.handed.is_compiled:
            check_not_reentrant(self.target)
        if len(args) == 1 and not kwargs and is_rows(args[0]):  # as nearly always
            found = self.handed.find(args[0])
            direct = None if found is None or found[0] == EVERYWHERE else found[0]
            sizes: list[torch.Size | None] = [args[0].shape]
        else:
            direct, sizes = self._direct((args, kwargs)), _sizes((args, kwargs))
        is_whole = surroundings(self.handed.is_compiled) == self.around
        with_rows = None if direct is None else self.calls_with.get(direct)
        if with_rows is not None and is_whole and not self.calls and len(args) == 1 and not kwargs:
            output = with_rows.of_known_layers(args[0])
            if output is not None:
                few = with_rows.few
                self.calls.append(Call(sizes, [output.shape], None, direct, is_whole, few))
                return output
        output, kept = (with_rows or self.function)(*args, **kwargs), None
        if not self.handed.is_compiled:
            self._memory.note((args, kwargs), output)
        if self.keeps:
            output, kept = doubled(output)
        self.calls.append(Call(sizes, _sizes(output), kept, direct, is_whole))
        return output

    def _direct(self, given: Any) -> int | None:
        bits = set()
        for leaf in leaves_of(given, is_leaf=is_listed):
            if not is_rows(leaf):
                if is_listed(leaf):
                    return None
                continue
            found = self.handed.find(leaf)
            if found is None:
                return None
            bits.add(found[0])
        return bits.pop() if len(bits) == 1 and EVERYWHERE not in bits else None

    def check_memory(self, gradient: bool) -> None:
        """Behind the joint pass: what forward has written to the memory of features.

        Args:
            gradient: whether one flows through absent rows.

        Raises:
            ValueError: more than a tensor of the features has changed, and the masked passes would not see that.
        """
        self.is_written = self._memory.inputs_written()
        written = "part of another one of them" if self._memory.outputs_written() else None
        if self.is_written and not (gradient and (self._memory.is_all_given or not self.shared)):
            written = "what it was given"
        if written is not None:
            raise ValueError(
                f"Expected the features of {self.target} not to be written to in place where they are {written}, since "
                "in the masked passes they are not. Let the encoder return a clone, or write to one "
                f"(features = features.clone()), or leave `{self.target.name}` out of `encoders`."
            )

    def outcome(self, bit: int, chosen: Choice) -> Choice:
        """What the choice for a modality came to."""
        call = self.calls_with.get(bit)
        if chosen.is_one and call is not None and call.is_done and len(self.calls) == 1:
            return call.chosen
        if chosen.how in ("two", "shared"):
            return chosen
        reason = self.without.get(bit) or (call.reason if call is not None and call.reason else OWN_WAY)
        return Choice("shared" if self.shared else "two", reason)


def _likeness(tensor: Tensor) -> object:
    """What is another one once the tensor has been written to."""
    if type(tensor) is Deferred:
        return id(tensor.content)
    return None if tensor.is_inference() else tensor._version


def _sizes(tree: Any) -> list[torch.Size | None]:
    if isinstance(tree, Tensor):
        return [tree.shape]
    leaves = leaves_of(tree, is_leaf=lambda leaf: is_listed(leaf) or is_opaque(leaf))
    return [
        leaf.shape if isinstance(leaf, Tensor) else torch.Size([len(leaf)]) if is_listed(leaf) else None
        for leaf in leaves
    ]
