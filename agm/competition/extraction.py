"""Fused features and mono-modal concepts, read from networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._inputs.absent import Absent, absent_input, batch_size, check_absent, is_rows
from agm._inputs.arguments import Binding
from agm._inputs.rows import tile
from agm._module_state.eval_mode import evaluation

__all__ = ["alone", "fused_features", "mono_modal_concept"]


def alone(inputs: Mapping[str, Any], modality: str, absent: Mapping[str, Absent] | None = None) -> dict[str, Any]:
    """The inputs with every modality but one absent.

    Whoever trains the concept of a fusion that is not late trains the whole network on these, `net(**alone(batch,
    "audio"))`, and reads it with `mono_modal_concept`.

    Args:
        inputs: modality -> tensor, or pytree of tensors, (B, ...).
        modality: the one that stays as it is.
        absent: modality -> what its absent input is, as for `agm.AGM`; zeros by default.

    Raises:
        ValueError: an unknown modality, or inputs of different batch sizes; and as `agm.AGM` for what is absent.
    """
    if modality not in inputs:
        raise ValueError(f"Expected argument `modality` to be one of {tuple(inputs)}, but got {modality!r}.")
    batch, fills = batch_size(inputs), check_absent(absent, tuple(inputs))

    def empty(name: str, value: Any) -> Any:
        rows = absent_input(name, value, fills.get(name))
        return pytree.tree_map(lambda leaf: tile(leaf, batch) if is_rows(leaf) else leaf, rows)

    return {name: value if name == modality else empty(name, value) for name, value in inputs.items()}


def mono_modal_concept(
    network: nn.Module, inputs: Mapping[str, Any], modality: str, *, absent: Mapping[str, Absent] | None = None
) -> Tensor:
    """What a network that was trained on one modality says of a batch: its logits, in eval mode, without a graph.

    Args:
        network: for late fusion the unimodal network (its inputs hold that modality only); for other fusions the whole
            network, trained on inputs in which the others were absent, as `alone` makes them.
        inputs: the modalities that `network` takes, (B, ...) each.
        modality: the one that it was trained on.
        absent: modality -> what its absent input is: the same as in training.

    Returns:
        (B, p).

    Raises:
        ValueError: as `alone`; the network does not take these modalities or returns no (B, p) tensor.
    """
    binding = Binding(network, tuple(inputs))
    with torch.no_grad(), evaluation(network):
        output = binding.call(binding.split((), alone(inputs, modality, absent)))
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"Expected {type(network).__name__} to return logits (B, p), but got {got}. Wrap it in a module that "
            "returns them."
        )
    return output


def fused_features(network: nn.Module, inputs: Mapping[str, Any], *, layer: str | None = None) -> Tensor:
    """The features in which a network has joined its modalities, in eval mode, without a graph.

    Args:
        network: offers `encoders` and `fused_features(features)`, as those of `agm.models` do; or anything, with
            `layer`.
        inputs: the modalities that it takes, (B, ...) each.
        layer: path of the module whose (first) input the fused features are, such as "classifier" or "head.fc2".

    Returns:
        (B, D); features of more dimensions are flattened sample by sample.

    Raises:
        ValueError: no such module, one that does not run exactly once or that gets no tensor of B rows; or a network
            that does not say what its fused features are.
    """
    batch = batch_size(inputs)
    read = _reader(network) if layer is None else None
    with torch.no_grad(), evaluation(network):
        features = read(inputs) if read is not None else _intercepted(network, inputs, cast(str, layer))
    if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != batch:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        place = f"the module {layer!r}" if layer is not None else "fused_features"
        raise ValueError(
            f"Expected the fused features at {place} to be a tensor with one row for each of the {batch} samples, "
            f"but got {got}. Name another module by `layer`."
        )
    return features.flatten(1)


def _reader(network: nn.Module) -> Callable[[Mapping[str, Any]], Any]:
    encoders, fuse = getattr(network, "encoders", None), getattr(network, "fused_features", None)
    if fuse is None or not isinstance(encoders, Mapping | nn.ModuleDict):
        raise ValueError(
            f"Expected argument `layer` to name the module of {type(network).__name__} that reads the fused features, "
            "but got None: only networks that offer `encoders` and `fused_features` tell it themselves. The last "
            "linear layer is a good choice."
        )

    def read(inputs: Mapping[str, Any]) -> Any:
        missing = [name for name in encoders if name not in inputs]
        if missing:
            raise ValueError(f"Expected argument `inputs` to hold {', '.join(encoders)}, but {missing} are missing.")
        return fuse({name: encoders[name](inputs[name]) for name in encoders})

    return read


def _intercepted(network: nn.Module, inputs: Mapping[str, Any], layer: str) -> Any:
    try:
        module = network.get_submodule(layer)
    except AttributeError as error:
        raise ValueError(
            f"Expected argument `layer` to be the path of a module in {type(network).__name__}, but got {layer!r}: "
            f"{error}."
        ) from error
    seen: list[Any] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        # A copy, since the module may go on in place.
        seen.append(first.clone() if isinstance(first, Tensor) else first)

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        binding = Binding(network, tuple(inputs))
        binding.call(binding.split((), inputs))
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(
            f"Expected the module {layer!r} of argument `layer` to run once in a forward pass, but it ran "
            f"{len(seen)} times. Name one that does."
        )
    return seen[0]
