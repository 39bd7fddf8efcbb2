"""Weights and prototypes of several clients, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["average", "merge_prototypes"]


def average(
    current: Mapping[str, Tensor], updates: Sequence[Mapping[str, Tensor]], samples: Sequence[int]
) -> dict[str, Tensor]:
    """The global weights after a round: of each tensor the mean over the clients that sent it, weighted by samples.

    A tensor that nobody sent stays; so an encoder is averaged over the clients that trained its modality (FedAvg, by
    module). Integer buffers, such as counts of batches, take the largest.

    Args:
        current: name -> tensor, before the round.
        updates: of each client, name -> tensor; any part of the names.
        samples: of each client, >= 1.

    Raises:
        ValueError: a client sent a name that is not among the current ones, or the lengths differ.

    Example:
        >>> average({"w": torch.zeros(1)}, [{"w": torch.ones(1)}, {}], [10, 30])
        {'w': tensor([1.])}
    """
    if len(updates) != len(samples):
        raise ValueError(f"Expected one number of samples for each of {len(updates)} updates, but got {len(samples)}.")
    if unknown := sorted({name for update in updates for name in update} - current.keys()):
        raise ValueError(f"Expected updates of tensors that the network has, but got {', '.join(unknown)}.")
    merged = {}
    for name, old in current.items():
        sent = [(update[name], count) for update, count in zip(updates, samples, strict=True) if name in update]
        if not sent:
            merged[name] = old.clone()
        elif not old.is_floating_point():
            merged[name] = torch.stack([value for value, _ in sent]).amax(0).to(old)
        else:
            total = sum(count for _, count in sent)
            # In float64, so that the result does not depend on the order of many clients.
            parts = torch.stack([value.double() * (count / total) for value, count in sent])
            merged[name] = parts.sum(0).to(old)
    return merged


def merge_prototypes(
    current: Mapping[str, Tensor],
    known: Tensor | None,
    prototypes: Sequence[Mapping[str, Tensor]],
    counts: Sequence[Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Global prototypes: of each class the mean of the clients' prototypes, weighted by their samples of the class.

    Args:
        current: modality -> (C, F) before the round; empty at first.
        known: (C,) bool, classes that have a prototype; None at first.
        prototypes: of each client, modality -> (C, F).
        counts: of each client, (C,) samples of each class.

    Returns:
        Modality -> (C, F), and (C,) which classes are known. A class of which nobody had a sample stays as it was.
    """
    total = torch.stack(list(counts)).sum(0)
    seen = total > 0
    merged = {}
    for name in prototypes[0]:
        weighted = torch.stack([p[name] * c.unsqueeze(1) for p, c in zip(prototypes, counts, strict=True)]).sum(0)
        new = weighted / total.clamp_min(1).unsqueeze(1)
        old = current.get(name, new)
        merged[name] = torch.where(seen.unsqueeze(1), new, old)
    return merged, seen if known is None else seen | known
