"""Subsets of modalities as bitmasks, and the Shapley weights of their masked logits."""

from collections.abc import Callable
from functools import lru_cache, wraps
from math import factorial

import torch
from torch import Tensor

__all__ = ["num_modalities", "subset_weights"]

MAX_MODALITIES = 16  # 65,535 subsets


def num_modalities(rows: int) -> int:
    """M for a stack of `rows` = 2**M - 1 masked logits, M >= 2.

    Raises:
        ValueError: `rows` is not 2**M - 1 for an M from 2 to 16.
    """
    modalities = (rows + 1).bit_length() - 1
    if rows != 2**modalities - 1 or not 2 <= modalities <= MAX_MODALITIES:
        raise ValueError(
            f"Expected 2**M - 1 rows of masked logits (3 for two modalities, 7 for three ...), but got {rows}. "
            "Stack one row for each non-empty subset, row i for bitmask i + 1, as agm.masked_logits does."
        )
    return modalities


def subset_weights(modalities: int, *, device: torch.device | str | None = None) -> Tensor:
    """Shapley weights w(m, S) of the masked logits, the empty subset being worth 0.

    The mono-modal response of modality m is `phi_m = sum_S w(m, S) * z_S` (Li et al., ICCV 2023, eq. 3-4),
    and the responses sum to the joint logits.

    Args:
        modalities: M, from 2 to 16.
        device: where the weights shall be.

    Returns:
        (M, 2**M - 1) float64; column i belongs to the subset with bitmask i + 1, the last one to all modalities.

    Raises:
        ValueError: `modalities` is not an integer from 2 to 16.
    """
    if isinstance(modalities, bool) or not isinstance(modalities, int) or not 2 <= modalities <= MAX_MODALITIES:
        raise ValueError(
            f"Expected argument `modalities` to be an integer from 2 to {MAX_MODALITIES}, but got {modalities!r}."
        )
    return torch.tensor(_weights(modalities), dtype=torch.float64, device="cpu" if device is None else device)


def without_numbers() -> bool:
    """Whether tensors that are made now are fake, or a compiler's: none may outlive the graph or the mode.

    Such a mode takes no others either.
    """
    modes = torch._C._TorchDispatchModeKey
    return torch.compiler.is_compiling() or any(
        torch._C._get_dispatch_mode(key) is not None for key in (modes.FAKE, modes.FUNCTIONAL)
    )


def kept(make: Callable[[torch.device, int], Tensor]) -> Callable[[torch.device, int], Tensor]:
    """Makes the table of so many modalities on a device once, and anew where it cannot be kept."""
    cached = lru_cache(maxsize=64)(make)

    @wraps(make)
    def table(device: torch.device, modalities: int) -> Tensor:
        return make(device, modalities) if without_numbers() else cached(device, modalities)

    table.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return table


@kept
def weights_on(device: torch.device, modalities: int) -> Tensor:
    """`subset_weights` without its checks, copied to a device once: the caller must not write to it."""
    if torch.compiler.is_compiling():  # a graph with tensors of the host in it cannot become a CUDA graph
        return _computed(device, modalities)
    return torch.tensor(_weights(modalities), dtype=torch.float64, device=device)


def _computed(device: torch.device, modalities: int) -> Tensor:
    """The same weights, of nothing that is on the host."""
    subsets = torch.arange(1, 2**modalities, device=device)
    holds = (subsets >> torch.arange(modalities, device=device).unsqueeze(1) & 1).bool()
    sizes = holds.sum(0)
    inside, outside = _by_size(modalities)
    weights = torch.zeros(holds.shape, dtype=torch.float64, device=device)
    for size in range(modalities):
        weights = torch.where(holds & (sizes == size + 1), inside[size], weights)
        weights = torch.where(~holds & (sizes == size), outside[size], weights)
    return weights


def _by_size(modalities: int) -> tuple[list[float], list[float]]:
    """Weights of the subsets with the modality, of 1 to M, and of those without it, of 0 to M - 1."""
    total = factorial(modalities)
    inside = [factorial(k - 1) * factorial(modalities - k) / total for k in range(1, modalities + 1)]
    return inside, [-factorial(k) * factorial(modalities - k - 1) / total for k in range(modalities)]


@lru_cache(maxsize=MAX_MODALITIES)
def _weights(modalities: int) -> list[list[float]]:
    inside, outside = _by_size(modalities)
    subsets = range(1, 2**modalities)
    return [
        [inside[s.bit_count() - 1] if s >> m & 1 else outside[s.bit_count()] for s in subsets]
        for m in range(modalities)
    ]


def proper_subsets(modalities: int) -> range:
    """The bitmasks of all non-empty subsets but that of all modalities: the blocks of the masked rows, in order."""
    return range(1, 2**modalities - 1)
