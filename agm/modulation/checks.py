"""Checks of what the functions of one step are given, beside the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from agm.distributed import check_group
from agm.modulation.scores import Score
from agm.modulation.state import ModulationState
from agm.modulation.surroundings import check_surroundings
from agm.ops import _checks
from agm.shapley.sampling import SubsetSample

__all__ = ["check_backend", "check_presence", "check_sample", "check_settings", "check_step"]


def check_state(state: ModulationState) -> None:
    if not isinstance(state, ModulationState):
        raise TypeError(f"Expected argument `state` to be an agm.ModulationState, but got {type(state).__name__}.")
    check_surroundings()


def check_settings(
    state: ModulationState,
    alpha: float,
    max_gap: float | None,
    floor: float,
    ignore_index: int,
    update: bool,
    process_group: ProcessGroup | None,
) -> float:
    """What can be said before the logits are looked at; returns `max_gap` as a float."""
    gap = _checks.check_modulation(alpha, max_gap, floor)
    _checks.check_ignore_index(ignore_index)
    _checks.check_flag("update", update)
    check_state(state)
    check_group(process_group)
    return gap


def check_step(
    target: Tensor,
    state: ModulationState,
    shape: Sequence[int],
    device: torch.device,
    ignore_index: int,
    score: Score,
    backend: str = "auto",
) -> None:
    """The target, the state and the score beside logits of a shape (B, ..., C)."""
    score.check(target, shape, device, ignore_index)
    if state.values.device != device:
        raise ValueError(
            f"Expected argument `state` to be on {device}, where the logits are, but it is on "
            f"{state.values.device}. Move it with state.to(logits.device)."
        )
    if not score.served:
        check_backend(backend, "score")


def check_presence(name: str, present: Tensor, batch: int, modalities: int, device: torch.device) -> None:
    """Which samples have which modalities: (B, M) bool on the device of the logits."""
    _checks.check_tensor(name, present, device)
    if present.dtype != torch.bool:
        raise TypeError(
            f"Expected argument `{name}` to be of dtype torch.bool, but got {present.dtype}. Compare it with 0, or "
            "convert it with .bool()."
        )
    if present.shape != (batch, modalities):
        raise ValueError(
            f"Expected argument `{name}` to have shape ({batch}, {modalities}), a row a sample and a column a modality "
            f"in bit order, but got {tuple(present.shape)}."
        )


def check_sample(sample: SubsetSample, masked_logits: Tensor, modalities: int) -> None:
    """A sample of subsets, of which the masked logits (R, B, ..., C) hold a row each."""
    if not isinstance(sample, SubsetSample):
        raise TypeError(
            f"Expected argument `sample` to be what agm.sample_subsets returns, but got {type(sample).__name__}."
        )
    if sample.modalities != modalities:
        raise ValueError(
            f"Expected argument `sample` to be of the {modalities} modalities of the state, but got one of "
            f"{sample.modalities}."
        )
    _checks.check_logits_stack(masked_logits)
    if masked_logits.shape[0] != len(sample.subsets):
        raise ValueError(
            f"Expected argument `masked_logits` to have {len(sample.subsets)} rows, one for each subset of the sample, "
            f"but got {masked_logits.shape[0]}."
        )


def check_backend(backend: str, what: str) -> None:
    """That the reference may serve what no kernel does.

    Raises:
        RuntimeError: another backend is asked for by name.
    """
    if backend not in ("auto", "reference"):
        raise RuntimeError(
            f"Backend {backend!r} was asked for by name but cannot serve `{what}`, which the reference alone does. "
            "Use backend='auto'."
        )
