"""Finds the encoders that paths name: modules, methods of modules, and towers that several modalities share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from agm._module_state.replace_forward import make_answerable
from agm._passes.encoder_recording import Target

__all__ = ["find_targets"]


def find_targets(network: nn.Module, paths: Mapping[str, str], modalities: tuple[str, ...]) -> list[Target]:
    """What encodes each modality.

    Args:
        network: in which the paths lead.
        paths: modality -> path of a module, or of a method ("clip.get_image_features").
        modalities: their names, in bit order.

    Raises:
        TypeError: a path is not a string.
        ValueError: a name is no modality, a path leads nowhere, or an encoder is a part of another.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise ValueError(
            "Expected a network with the paths of `encoders` not to be compiled by TorchScript as a whole, since calls "
            "of its encoders cannot be seen there. Compile the encoders, or leave `encoders` out."
        )
    names: dict[tuple[nn.Module, str], dict[int, str]] = {}
    for name, path in paths.items():
        if name not in modalities:
            raise ValueError(f"Expected argument `encoders` to name modalities among {modalities}, but got {name!r}.")
        if not isinstance(path, str):
            raise TypeError(
                f"Expected `encoders[{name!r}]` to be a path in the network, such as 'audio_net', but got a "
                f"{type(path).__name__}."
            )
        found = _find(network, path)
        if found is None:
            children = ", ".join(child for child, _ in network.named_children())
            raise ValueError(
                f"Expected `encoders[{name!r}]` to be the path of a submodule or of a method, but the network has no "
                f"{path!r}. Its children are: {children}."
            )
        if found == (network, "forward"):
            raise ValueError(f"Expected `encoders[{name!r}]` to be a part of the network, but got all of it.")
        names.setdefault(found, {})[modalities.index(name)] = name
    targets = [Target(owner, method, own) for (owner, method), own in names.items()]
    _check_apart([target for target in targets if target.method == "forward"])
    for target in targets:
        make_answerable(target.owner)
    return targets


def _find(network: nn.Module, path: str) -> tuple[nn.Module, str] | None:
    try:
        return network.get_submodule(path), "forward"
    except AttributeError:
        pass
    owner_path, _, method = path.rpartition(".")
    try:
        owner: Any = network.get_submodule(owner_path)
    except AttributeError:
        return None
    return (owner, method) if callable(getattr(type(owner), method, None)) else None


def _check_apart(targets: list[Target]) -> None:
    for target in targets:
        inside = set(target.owner.modules())
        for other in targets:
            if other is not target and other.owner in inside:
                names = [next(iter(one.names.values())) for one in (target, other)]
                raise ValueError(
                    f"Expected the encoders to have no module in common, but those of `{names[0]}` and `{names[1]}` "
                    "do. Leave both out of `encoders`: the masked inputs then go through the whole network."
                )
