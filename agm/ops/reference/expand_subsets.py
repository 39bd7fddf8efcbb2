"""The features of every proper subset of the modalities, as rows for the fusion."""

import torch
from torch import Tensor


def expand_subsets(present: list[Tensor], absent: list[Tensor], concatenate: bool) -> Tensor:
    """Features (B, D_m) and absent rows (1, D_m) of M modalities -> ((2**M - 2) * B, D).

    The rows go by subset, bitmask 1 to 2**M - 2, then by sample. In each, modality m is its sample's features if it
    is in the subset, else its absent row; the modalities are concatenated, or summed where D_m = D for all.
    """
    modalities, batch = len(present), present[0].shape[0]
    subset = torch.arange(1, 2**modalities - 1, device=present[0].device)[:, None, None]
    parts = [
        torch.where((subset >> m & 1).bool(), one.unsqueeze(0), none.unsqueeze(0)).flatten(0, 1)
        for m, (one, none) in enumerate(zip(present, absent, strict=True))
    ]
    if concatenate:
        return torch.cat(parts, 1)
    wide = torch.float64 if present[0].dtype == torch.float64 else torch.float32
    total = torch.zeros(len(subset) * batch, present[0].shape[1], dtype=wide, device=present[0].device)
    for part in parts:
        total = total + part.to(wide)
    return total.to(present[0].dtype)


def expand_subsets_backward(
    grad: Tensor,  # ((2**M - 2) * B, D)
    widths: list[int],  # D_m
    batch: int,
    concatenate: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the features and of the absent rows, modality after modality: (sum B * D_m,), (sum D_m,).

    Each is compact in memory: the part of modality m may be viewed as (B, D_m), or (1, D_m). Summed in float32
    (float64 for float64) and rounded once.
    """
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    modalities = len(widths)
    rows = grad.reshape(2**modalities - 2, batch, grad.shape[1])
    subset = torch.arange(1, 2**modalities - 1, device=grad.device)
    starts = [sum(widths[:m]) if concatenate else 0 for m in range(modalities)]
    present, absent = [], []
    for m, (start, width) in enumerate(zip(starts, widths, strict=True)):
        own = rows[:, :, start : start + width].to(wide)
        inside = (subset >> m & 1).bool()
        present.append(own[inside].sum(0).flatten())
        absent.append(own[~inside].sum((0, 1)))
    return torch.cat(present).to(grad.dtype), torch.cat(absent).to(grad.dtype)
