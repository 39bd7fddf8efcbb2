"""Encoders that are chains of torch's own layers: what runs in them is known, and need not be followed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from agm._module_state.hooks import ALL_KINDS
from agm._module_state.structure import Structure

__all__ = ["KnownLayers", "known_layers"]


class _Layer(NamedTuple):
    """What a kind of layer does to rows in the first dimension: nothing but to treat each by itself.

    Attributes:
        least, most: dimensions that it takes, in a batch.
        more: dimensions that its output has more.
        makes: whether the output has memory of its own, to which later layers may write.
        fits: whether it is so with the settings that it has.
    """

    least: int = 1
    most: int = 100
    more: int = 0
    makes: bool = True
    fits: Callable[[Any], bool] | None = None


def _lookup(layer: nn.Embedding) -> bool:
    """Neither does it write to its weights, nor scale gradients by what else is in the batch."""
    return layer.max_norm is None and not layer.scale_grad_by_freq


def _is_fixed(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


_LAYERS: dict[type, _Layer] = {
    nn.Linear: _Layer(2),
    nn.Conv1d: _Layer(3, 3),
    nn.Conv2d: _Layer(4, 4),
    nn.Conv3d: _Layer(5, 5),
    nn.MaxPool1d: _Layer(3, 3, fits=lambda pool: not pool.return_indices),
    nn.MaxPool2d: _Layer(4, 4, fits=lambda pool: not pool.return_indices),
    nn.MaxPool3d: _Layer(5, 5, fits=lambda pool: not pool.return_indices),
    nn.AvgPool1d: _Layer(3, 3),
    nn.AvgPool2d: _Layer(4, 4),
    nn.AvgPool3d: _Layer(5, 5),
    nn.AdaptiveAvgPool1d: _Layer(3, 3),
    nn.AdaptiveAvgPool2d: _Layer(4, 4),
    nn.AdaptiveAvgPool3d: _Layer(5, 5),
    nn.BatchNorm1d: _Layer(2, 3, fits=_is_fixed),
    nn.BatchNorm2d: _Layer(4, 4, fits=_is_fixed),
    nn.BatchNorm3d: _Layer(5, 5, fits=_is_fixed),
    nn.LayerNorm: _Layer(2, fits=lambda norm: len(norm.normalized_shape) == 1),
    nn.Embedding: _Layer(1, more=1, fits=_lookup),
    nn.Dropout: _Layer(makes=False, fits=lambda dropout: not dropout.training),
    nn.Flatten: _Layer(2, makes=False, fits=lambda flat: (flat.start_dim, flat.end_dim) == (1, -1)),
    nn.Identity: _Layer(makes=False),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish), _Layer()),
    **dict.fromkeys((nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LogSigmoid, nn.Hardsigmoid), _Layer()),
}
_FORWARDS: dict[type, Any] = {kind: kind.forward for kind in (*_LAYERS, nn.Sequential)}  # type: ignore[attr-defined]
_PLAIN = frozenset((nn.Parameter, Tensor, type(None)))


class KnownLayers:
    """A chain of layers in which no row has to do with another.

    Args:
        structure: of the encoder.
        layers: in their order, of exactly the kinds that are known, without hooks or functions of their own.

    Attributes:
        makes: whether what comes out has memory of its own; else it may be what has come in.
    """

    def __init__(self, structure: Structure, layers: list[nn.Module]) -> None:
        self._structure = structure
        self._layers = [(layer, type(layer), vars(layer), _LAYERS[type(layer)]) for layer in layers]
        self.makes = any(known.makes for *_, known in self._layers)

    def treat_apart(self, dims: int) -> bool:
        """Whether each row of a tensor of so many dimensions goes through by itself, whatever its numbers and its mode.

        It is asked for every batch, right before it runs: layers, hooks and settings may be others by then.
        """
        if nn.Sequential.forward is not _FORWARDS[nn.Sequential] or not self._structure.is_current(answers=True):
            return False
        fresh = False
        for layer, kind, own, known in self._layers:
            if kind.forward is not _FORWARDS[kind] or not known.least <= dims <= known.most:
                return False
            if known.fits is not None and not known.fits(layer):
                return False
            if own.get("inplace") and not fresh:  # it would write to what the encoder is given
                return False
            for held in (own["_parameters"], own["_buffers"]):
                for tensor in held.values():
                    if type(tensor) not in _PLAIN:
                        return False
            dims = 2 if kind is nn.Flatten else dims + known.more
            fresh = fresh or known.makes
        return True


def known_layers(structure: Structure) -> KnownLayers | None:
    """The chain that an encoder is; None where it is something else, or a hook would see what runs."""
    return structure.chosen("known layers", partial(_chain, structure))


def _chain(structure: Structure) -> KnownLayers | None:
    found: list[nn.Module] = []
    pending = [structure.root]
    while pending:
        module = pending.pop()
        if type(module) is not nn.Sequential and type(module) not in _LAYERS:
            return None
        own = vars(module)
        hooks = any(own[name] for name in ALL_KINDS)
        if hooks or "forward" in own or own.get("_compiled_call_impl") is not None:
            return None
        if type(module) is nn.Sequential:
            pending.extend(reversed(list(module._modules.values())))
        else:
            found.append(module)
    return KnownLayers(structure, found)
