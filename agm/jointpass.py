"""The joint pass of a network with `encoders` and `fuse`, watched: what its encoders make, and that it is no more."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.answering import answering
from agm.checkpointing import without_checkpointing
from agm.compiled import is_compiled
from agm.modes import evaluation
from agm.subsets import copied, doubled

__all__ = ["Encoded", "joint_pass"]

_verified: WeakSet[nn.Module] = WeakSet()  # networks whose forward is their encoders and fuse, and nothing else


class Encoded:
    """An encoder's forward in the joint pass, and what came of it.

    Attributes:
        calls: its arguments and its output, call by call.
        kept: a copy of the last output, if it is to serve the masked passes.
        has_gradients: whether they were enabled.
    """

    def __init__(self, encoder: nn.Module, keeps: bool) -> None:
        self.encoder = encoder
        self.forward = encoder.forward
        self.keeps = keeps
        self.calls: list[tuple[Any, Any]] = []
        self.kept: Any = None
        self.has_gradients = torch.is_grad_enabled()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        if self.keeps:
            output, self.kept = doubled(output)
        self.calls.append(((args, kwargs), output))
        self.has_gradients = torch.is_grad_enabled()
        return output

    def has_encoded(self, inputs: Any) -> bool:
        """Whether it was called once, with a modality's input as it is."""
        return len(self.calls) == 1 and _identical(self.calls[0][0], ((inputs,), {}))


def joint_pass(
    network: Any, encoders: Mapping[str, nn.Module], inputs: Mapping[str, Any], keeps: bool
) -> tuple[Tensor, dict[str, Encoded]]:
    """The joint logits by the network's own forward, and what each of its encoders did; these alone if it is compiled.

    The first batch verifies that forward is `fuse({name: encoders[name](x)})`.

    Args:
        network: with `encoders` and `fuse`.
        encoders: modality -> its encoder.
        inputs: modality -> its input.
        keeps: whether the features are to serve the masked passes.

    Raises:
        ValueError: forward is something else.
    """
    encoded = {name: Encoded(encoder, keeps) for name, encoder in encoders.items()}
    compiling = torch.compiler.is_compiling()
    # In this order: a graph would be guarded by the whole set, whose other members come and go.
    if compiling or (network in _verified and is_compiled(network)):  # its forward would be compiled with the watchers
        if not keeps:
            return network(**inputs), {}
        features = {name: encoded[name](inputs[name]) for name in encoders}
        return network.fuse(features), encoded
    fused = _Fused(network)
    # Features serve as they are: a reentrant checkpoint would hand them out without their gradient.
    plainly = without_checkpointing() if keeps else nullcontext()
    with plainly, answering({one.encoder: one for one in encoded.values()}), answering({network: fused}, "fuse"):
        joint: Tensor = network(**inputs)
    if not all(one.has_encoded(inputs[name]) for name, one in encoded.items()):
        raise _refusal(network, encoders)
    if network not in _verified:
        features = {name: one.calls[0][1] for name, one in encoded.items()}
        if not (fused.is_all(features, joint) or _equals_fuse(network, encoders, inputs, features)):
            raise _refusal(network, encoders)
        _verified.add(network)
    return joint, encoded


class _Fused:
    """The network's `fuse` in the joint pass, and what it was given and returned."""

    def __init__(self, network: Any) -> None:
        self.fuse = network.fuse
        self.calls: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, features: Any) -> Any:
        given = dict(features)
        self.calls.append((given, self.fuse(features)))
        return self.calls[-1][1]

    def is_all(self, features: Mapping[str, Any], joint: Any) -> bool:
        """Whether forward handed the features to it and returned what came back."""
        if len(self.calls) != 1 or self.calls[0][1] is not joint or self.calls[0][0].keys() != features.keys():
            return False
        return all(_identical(features[name], value) for name, value in self.calls[0][0].items())


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
