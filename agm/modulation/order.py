"""The names of the modalities in a state dict, so that what was saved by their places is loaded by their names."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["KEY", "names_in", "order_of", "places_of"]

KEY = "modalities"


def order_of(modalities: Sequence[str], device: torch.device | str | None = None) -> Tensor:
    """(N,) float32: the UTF-8 bytes of the names in order, as JSON.

    A tensor, since safetensors and others keep nothing else; of floats, since averages of state dicts, and casts of
    them down to bfloat16, leave whole numbers below 256 as they are.
    """
    return torch.tensor(list(json.dumps(list(modalities)).encode()), dtype=torch.float32, device=device)


def names_in(saved: Tensor) -> tuple[str, ...] | None:
    """The names that `order_of` wrote; None where it wrote nothing that can be read."""
    try:
        names = json.loads(bytes(saved.detach().cpu().float().round().int().tolist()))
    except (ValueError, TypeError, RuntimeError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def places_of(saved: Tensor, own: Sequence[str], key: str) -> list[int]:
    """Of each of the `own` modalities, the place that it had when the state was saved.

    Args:
        saved: what `order_of` gave then.
        own: the names, in the order of now.
        key: where `saved` is in the state dict.

    Raises:
        ValueError: the state is of other modalities.
    """
    names = names_in(saved)
    if names is None or sorted(names) != sorted(own):
        found = "no names that can be read" if names is None else str(names)
        raise ValueError(
            f"Expected a state of the modalities {tuple(own)}, but {key} holds {found}. Name them as then; or, where "
            "the same have other names now, take that key out: values then go by place."
        )
    return [names.index(name) for name in own]
