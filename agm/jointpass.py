"""The joint pass of a network with `encoders` and `fuse`, watched: what its encoders make, and that it is no more."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.answering import answering
from agm.checkpointing import without_checkpointing
from agm.compiled import is_compiled
from agm.modes import evaluation
from agm.subsets import copied, doubled

__all__ = ["Joint", "joint_pass"]

# Networks whose forward is their encoders and fuse, and nothing else: whether it calls `fuse`.
_verified: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass
class Joint:
    """What came of a joint pass.

    Attributes:
        logits: (B, C).
        features: modality -> a copy of its features, if they are to serve the masked passes.
    """

    logits: Tensor
    features: Mapping[str, Any] = field(default_factory=dict)
    _encoded: Mapping[str, "_Encoded"] = field(default_factory=dict)

    def as_there(self, name: str) -> AbstractContextManager[None]:
        """Inside it is as where the joint pass encoded a modality: without gradients, say, or without autocast."""
        return self._encoded[name].as_there() if name in self._encoded else nullcontext()


def joint_pass(network: Any, encoders: Mapping[str, nn.Module], inputs: Mapping[str, Any], keeps: bool) -> Joint:
    """The joint pass by the network's own forward; where the network is compiled, its encoders and `fuse` alone.

    The first batch verifies that forward is `fuse({name: encoders[name](x)})`.

    Args:
        network: with `encoders` and `fuse`.
        encoders: modality -> its encoder.
        inputs: modality -> its input.
        keeps: whether the features are to serve the masked passes.

    Raises:
        ValueError: forward is something else.
    """
    compiling = torch.compiler.is_compiling()
    # In this order: a graph would be guarded by the whole mapping, whose other keys come and go.
    if compiling or (network in _verified and is_compiled(network)):  # its forward would be compiled with the watchers
        if not keeps:
            return Joint(network(**inputs))
        handed, kept = doubled({name: encoder(inputs[name]) for name, encoder in encoders.items()})
        return Joint(network.fuse(handed), kept)
    calls_fuse = _verified.get(network)
    fused = _Fused(network, keeps)
    # A compiled encoder would be compiled with its watcher, too; where `fuse` is given the features that is not needed.
    watched = {name: encoder for name, encoder in encoders.items() if not (calls_fuse and is_compiled(encoder))}
    encoded = {name: _Encoded(encoder, keeps and not calls_fuse) for name, encoder in watched.items()}
    # Features serve as they are: a reentrant checkpoint would hand them out without their gradient.
    plainly = without_checkpointing() if keeps else nullcontext()
    with plainly, answering({one.encoder: one for one in encoded.values()}), answering({network: fused}, "fuse"):
        logits: Tensor = network(**inputs)
    if not all(one.has_encoded(inputs[name]) for name, one in encoded.items()):
        raise _refusal(network, encoders)
    if calls_fuse is None:
        features = {name: one.calls[0][1] for name, one in encoded.items()}
        if not (fused.is_all(features, logits) or _equals_fuse(network, encoders, inputs, features)):
            raise _refusal(network, encoders)
        calls_fuse = _verified[network] = fused.has_all(encoders)
    if calls_fuse and not fused.has_all(encoders):
        raise _refusal(network, encoders)
    for name, one in encoded.items():
        one.note(fused.requires_grad.get(name, True))
    if not keeps:
        return Joint(logits, {}, encoded)
    return Joint(logits, fused.kept if calls_fuse else {name: one.kept for name, one in encoded.items()}, encoded)


class _Encoded:
    """An encoder's forward in the joint pass, and what came of it.

    Attributes:
        calls: its arguments and its output, call by call.
        kept: a copy of the last output, if it is to serve the masked passes.
    """

    def __init__(self, encoder: nn.Module, keeps: bool) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.keeps = keeps
        self.calls: list[tuple[Any, Any]] = []
        self.kept: Any = None
        self._has_gradients = torch.is_grad_enabled()
        self._autocast = _autocast()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if self.keeps:
            output, self.kept = doubled(output)
        self.calls.append(((args, kwargs), output))
        self._has_gradients = torch.is_grad_enabled()
        self._autocast = _autocast()
        return output

    def has_encoded(self, inputs: Any) -> bool:
        """Whether it was called once, with a modality's input as it is."""
        return len(self.calls) == 1 and _identical(self.calls[0][0], ((inputs,), {}))

    def note(self, has_gradient: bool) -> None:
        """What was without gradients inside a checkpoint of whatever kind has one outside."""
        self._has_gradients |= has_gradient

    @contextmanager
    def as_there(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self._has_gradients and torch.is_grad_enabled()))
            for there, here in zip(self._autocast, _autocast(), strict=True):
                if there != here:
                    device, enabled, dtype = there
                    stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
            yield


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    devices = ("cpu", "cuda")
    return [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]


class _Fused:
    """The network's `fuse` in the joint pass, and what it was given and returned.

    Attributes:
        kept: modality -> a copy of its features, if they are to serve the masked passes.
        requires_grad: modality -> whether its features have a gradient.
    """

    def __init__(self, network: Any, keeps: bool) -> None:
        self.fuse = network.fuse
        self.keeps = keeps
        self.kept: dict[str, Any] = {}
        self.requires_grad: dict[str, bool] = {}
        self._calls: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Mapping):
            return self.fuse(*args, **kwargs)
        given = dict(args[0])
        self.requires_grad = {name: _requires_grad(features) for name, features in given.items()}
        handed = args[0]
        if self.keeps:
            handed, self.kept = doubled(given)
        output = self.fuse(handed)
        self._calls.append((given, output))
        return output

    def has_all(self, encoders: Mapping[str, nn.Module]) -> bool:
        """Whether it was called once, with features of these encoders."""
        return len(self._calls) == 1 and self._calls[0][0].keys() == encoders.keys()

    def is_all(self, features: Mapping[str, Any], logits: Any) -> bool:
        """Whether forward handed the features to it and returned what came back."""
        if len(self._calls) != 1 or self._calls[0][1] is not logits or self._calls[0][0].keys() != features.keys():
            return False
        return all(_identical(features[name], value) for name, value in self._calls[0][0].items())


def _requires_grad(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(tree))


def _equals_fuse(
    network: Any, encoders: Mapping[str, nn.Module], inputs: Mapping[str, Any], features: Mapping[str, Any]
) -> bool:
    """Whether a forward that does not call `fuse` computes the same from the features, which are given to both."""
    answers = {encoders[name]: _answer(value) for name, value in features.items()}
    with evaluation(network), torch.no_grad(), answering(answers):
        left, right = network(**inputs), network.fuse(copied(dict(features)))
    fits = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
    return fits and torch.allclose(left, right, rtol=1e-3, atol=1e-5, equal_nan=True)


def _answer(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: copied(value)


def _refusal(network: nn.Module, encoders: Mapping[str, nn.Module]) -> ValueError:
    first = next(iter(encoders))
    return ValueError(
        f"Expected the forward of {type(network).__name__}, which offers `encoders` and `fuse`, to return "
        "fuse({name: encoders[name](x)}) as it is, but it does something before, between or behind. Move that into the "
        f"encoders or into fuse, or name the encoders by path: {{{first!r}: 'encoders.{first}', ...}}."
    )


def _identical(left: Any, right: Any) -> bool:
    leaves, structure = pytree.tree_flatten(left)
    others, other = pytree.tree_flatten(right)
    return structure == other and all(a is b for a, b in zip(leaves, others, strict=True))
