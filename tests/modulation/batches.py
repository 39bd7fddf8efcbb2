"""Masked logits and targets of a batch."""

import torch
from torch import Tensor


def batch(modalities: int, size: int, classes: int, *, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masked = torch.randn(2**modalities - 1, size, classes, generator=generator, dtype=torch.float64) * scale
    return masked, torch.randint(classes, (size,), generator=generator)
