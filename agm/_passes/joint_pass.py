"""The joint pass of a network with `encoders` and `fuse`, watched: what its encoders make, and that it is no more."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.rows import copied, doubled
from agm._inputs.trees import flattened, leaves_of
from agm._module_state.checkpoints import check_not_reentrant, reentrant_checkpoint
from agm._module_state.compiled import is_compiled
from agm._module_state.eval_mode import evaluation
from agm._module_state.replace_forward import answering, answering_methods, called_function
from agm._one_pass.joint_call import JointCall, autocasts
from agm._passes.outputs import Outputs
from agm._passes.record import Record

__all__ = ["Joint", "answer", "joint_pass", "refusal"]


@dataclass
class Joint:
    """What came of a joint pass.

    Attributes:
        output: what forward returned.
        logits: (B, C), where in the output they are.
        features: modality -> a copy of its features, if they are to serve the masked passes.
        frozen: modalities whose features forward leaves without a gradient that they would have.
        autocasts: modality -> under which autocast it was encoded, where that is known.
    """

    output: Any
    logits: Tensor
    features: Mapping[str, Any] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    autocasts: Mapping[str, Sequence[tuple[str, bool, torch.dtype]]] = field(default_factory=dict)

    @contextmanager
    def as_there(self, name: str) -> Iterator[None]:
        """Inside it is as where forward encoded a modality: without gradients, or under another autocast."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(name not in self.frozen and torch.is_grad_enabled()))
            here = autocasts()
            for there in self.autocasts.get(name, here):
                if there not in here:
                    device, enabled, dtype = there
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            yield


def joint_pass(
    network: Any,
    encoders: Mapping[str, nn.Module],
    inputs: Mapping[str, Any],
    keeps: bool,
    outputs: Outputs,
    record: Record,
) -> Joint:
    """The joint pass by the network's own forward; where the network is compiled, its encoders and `fuse` alone.

    Forward must be `fuse({name: encoders[name](x)})`: hand the features as they are, or without their gradient, to
    `fuse` and return what comes back. One that comes to the same numbers in another way is noted in `record`.

    Args:
        network: with `encoders` and `fuse`.
        encoders: modality -> its encoder.
        inputs: modality -> its input.
        keeps: whether the features are to serve the masked passes.
        outputs: where the network's output holds the logits.
        record: what is known of the network.

    Raises:
        ValueError: forward is something else.
    """
    compiling = torch.compiler.is_compiling()
    # The forward of a compiled network would be compiled with the watchers.
    if compiling or (record.calls_fuse is not None and is_compiled(network)):
        if not keeps:
            output = network(**inputs)
            return Joint(output, outputs.logits(output))
        handed, kept = doubled({name: encoder(inputs[name]) for name, encoder in encoders.items()})
        output = network.fuse(handed)
        return Joint(output, outputs.logits(output), kept)
    calls_fuse = record.calls_fuse
    # A compiled encoder would be compiled with its watcher, too; where `fuse` is given the features that is not needed.
    watched = [name for name, encoder in encoders.items() if not (calls_fuse and is_compiled(encoder))]
    encoded = {name: _Encoded(encoders[name], keeps) for name in watched}
    fused = _Fused(network, encoders.keys() - encoded.keys() if keeps else ())
    instead: list[tuple[nn.Module, str, Callable[..., Any]]] = [(network, "fuse", fused)]
    instead += [(one.encoder, "forward", one) for one in encoded.values()]
    with answering_methods(instead):
        output = network(**inputs)
    logits = outputs.logits(output)
    for name, one in encoded.items():
        if not one.has_encoded(inputs[name]):
            raise refusal(network, encoders)
    features = {name: one.calls[0][1] for name, one in encoded.items()}
    if not fused.is_all(features, output):
        # Equal numbers say so for this batch alone, and not for gradients: forward itself runs for masked rows.
        known = record.by_path or _equals_fuse(network, encoders, inputs, features, outputs)
        if len(features) < len(encoders) or not known:
            raise refusal(network, encoders)
        record.by_path = True
    if calls_fuse is None:
        calls_fuse = record.calls_fuse = fused.has_all(encoders)
    if calls_fuse and not fused.has_all(encoders):
        raise refusal(network, encoders)
    for name, one in encoded.items():
        record.autocasts[name] = one.autocast
    kept = fused.kept | {name: one.kept for name, one in encoded.items()} if keeps else {}
    frozen = {name for name, encoder in encoders.items() if _is_frozen(encoder, encoded.get(name), fused.given(name))}
    return Joint(
        output,
        logits,
        kept,
        frozenset(frozen),
        {name: record.autocasts[name] for name in encoders},
    )


def _is_frozen(encoder: nn.Module, encoded: "_Encoded | None", given: bool | None) -> bool:
    """Whether forward leaves features without the gradient that they would have.

    Args:
        encoder: theirs.
        encoded: its call, if that was watched.
        given: whether those that `fuse` was given have one; None: it was given none.
    """
    if not torch.is_grad_enabled() or given:  # what has none in a checkpoint of whatever kind has one outside
        return False
    if encoded is None:
        return any(parameter.requires_grad for parameter in encoder.parameters())
    return encoded.is_frozen or (given is False and encoded.has_gradient)


class _Encoded:
    """An encoder's forward in the joint pass, and what came of it.

    Attributes:
        calls: its arguments and its output, call by call.
        kept: a copy of the last output, if it is to serve the masked passes.
        has_gradient: whether that has a gradient.
        is_frozen: whether gradients were off, and not because of a reentrant checkpoint of torch's.
        autocast: under which it ran.
    """

    has_gradient: bool
    is_frozen: bool
    autocast: list[tuple[str, bool, torch.dtype]]

    def __init__(self, encoder: nn.Module, keeps: bool) -> None:
        self.encoder = encoder
        self.forward = called_function(encoder)
        self.keeps = keeps
        self.calls: list[tuple[Any, Any]] = []
        self.kept: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.keeps:
            check_not_reentrant(f"the encoder `{type(self.encoder).__name__}`")
        output = self.forward(*args, **kwargs)
        self.has_gradient = _requires_grad(output)
        self.is_frozen = not torch.is_grad_enabled() and reentrant_checkpoint() is None
        self.autocast = autocasts()
        if self.keeps:
            kept = self.forward.present if isinstance(self.forward, JointCall) else None
            if kept is None:
                output, self.kept = doubled(output)
            else:  # a copy, and what is handed on is a view
                self.kept = kept
        self.calls.append(((args, kwargs), output))
        return output

    def has_encoded(self, inputs: Any) -> bool:
        """Whether it was called once, with a modality's input as it is."""
        if len(self.calls) != 1:
            return False
        args, kwargs = self.calls[0][0]
        return len(args) == 1 and not kwargs and (args[0] is inputs or _identical(args[0], inputs))


class _Fused:
    """The network's `fuse` in the joint pass, and what it was given and returned.

    Args:
        network: with `encoders` and `fuse`.
        keeps: modalities whose features are to be copied.

    Attributes:
        kept: modality -> that copy.
    """

    def __init__(self, network: Any, keeps: Collection[str]) -> None:
        self.fuse = network.fuse
        self.keeps = keeps
        self.kept: dict[str, Any] = {}
        self._requires_grad: dict[str, bool] = {}
        self._calls: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Mapping):
            return self.fuse(*args, **kwargs)
        (handed,) = args
        given = dict(handed)
        self._requires_grad = {name: _requires_grad(features) for name, features in given.items()}
        if self.keeps:
            both = {name: doubled(features) for name, features in given.items() if name in self.keeps}
            self.kept = {name: kept for name, (_, kept) in both.items()}
            handed = given | {name: view for name, (view, _) in both.items()}
        output = self.fuse(handed)
        self._calls.append((given, output))
        return output

    def given(self, name: str) -> bool | None:
        """Whether the features of a modality that it was given have a gradient; None: it was given none."""
        return self._requires_grad.get(name)

    def has_all(self, modalities: Mapping[str, Any]) -> bool:
        """Whether it was called once, with the features of these modalities."""
        return len(self._calls) == 1 and self._calls[0][0].keys() == modalities.keys()

    def is_all(self, features: Mapping[str, Any], logits: Any) -> bool:
        """Whether forward handed these features to it, and others beside them, and returned what came back."""
        if len(self._calls) != 1 or not features.keys() <= self._calls[0][0].keys():
            return False
        given, output = self._calls[0]
        return output is logits and all(_identical(value, given[name]) for name, value in features.items())


def _requires_grad(tree: Any) -> bool:
    if isinstance(tree, Tensor):
        return tree.requires_grad
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves_of(tree))


def _equals_fuse(
    network: Any,
    encoders: Mapping[str, nn.Module],
    inputs: Mapping[str, Any],
    features: Mapping[str, Any],
    outputs: Outputs,
) -> bool:
    """Whether a forward that does not call `fuse` computes the same from the features, which are given to both."""
    answers = {encoders[name]: answer(value) for name, value in features.items()}
    with evaluation(network), torch.no_grad(), answering(answers):
        left, right = outputs.logits(network(**inputs)), outputs.logits(network.fuse(copied(dict(features))))
    fits = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
    return fits and torch.allclose(left, right, rtol=1e-3, atol=1e-5, equal_nan=True)


def answer(value: Any) -> Callable[..., Any]:
    """A forward that returns a copy of what is known."""
    return lambda *args, **kwargs: copied(value)


def refusal(network: nn.Module, encoders: Mapping[str, nn.Module]) -> ValueError:
    """What is raised where forward is more than its encoders and `fuse`."""
    first = next(iter(encoders))
    return ValueError(
        f"Expected the forward of {type(network).__name__}, which offers `encoders` and `fuse`, to return "
        "fuse({name: encoders[name](x)}) as it is, but it does something before, between or behind. Move that into the "
        f"encoders or into fuse, or name the encoders by path: {{{first!r}: 'encoders.{first}', ...}}."
    )


def _identical(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _are_one(left, right)
    leaves, structure = flattened(left)
    others, other = flattened(right)
    return structure == other and all(map(_are_one, leaves, others))


def _are_one(left: Any, right: Any) -> bool:
    """Whether both are the same, or the same memory, as what `detach` returns."""
    if left is right:
        return True
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.dtype != right.dtype:
        return False
    return left.shape == right.shape and left.stride() == right.stride() and left.data_ptr() == right.data_ptr() != 0
