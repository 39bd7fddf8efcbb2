"""The modulation as a module that carries its own state and settings."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, get_rank
from torch.nn.parallel import DistributedDataParallel

from agm.distributed import Peers, summed
from agm.modulation import order
from agm.modulation.additive import AdditiveLogits, modulate_summands
from agm.modulation.checks import check_backend
from agm.modulation.functional import fused_modulate
from agm.modulation.given import modulate_by
from agm.modulation.linear import fused_modulate_linear_cross_entropy
from agm.modulation.scores import ScoreName, find_score
from agm.modulation.state import ModulationState
from agm.ops import _checks
from agm.ops._backends import BACKENDS
from agm.shapley.sampling import SubsetSample

__all__ = ["Modulator", "Outside"]

Outside = Literal["joint", "published"]


class Modulator(nn.Module):
    """`agm.fused_modulate` with its settings, its state in buffers, and a window of epochs.

    In training mode, in the epochs `start <= epoch < stop`, a call is `fused_modulate`; otherwise, and under
    `torch.no_grad()`, where no gradient is to be modulated, it returns the joint logits and leaves the state alone.

    What the authors' code (lihong2303/AGM_ICCV2023) does in the other epochs is `outside="published"`. It counts epochs
    from 1 and has its last one in the window: `modulation_starts` a and `modulation_ends` b are `start=a - 1, stop=b`.

    Example:

        >>> modulator = agm.Modulator(("audio", "visual"), alpha=1.5, start=9, stop=50, outside="published")
        >>> for modulator.epoch in range(100):          # their epochs 1 to 100, modulated from 10 to 50
        ...     for masked, target in loader:           # (3, B, C), (B,)
        ...         loss = F.cross_entropy(modulator(masked, target), target)

    Args:
        modalities: their names, in bit order (the first is bit 0 of a subset); two or more.
        alpha, max_gap, floor, ignore_index, score, backend: as in `agm.fused_modulate`.
        start: first epoch that is modulated.
        stop: first epoch that no longer is; None for no end.
        outside: what a training step in another epoch does. "joint": plain joint training, no score is taken.
            "published": every step takes its scores into the running ones; before `start` the coefficients are 1, and
            from `stop` on those of the last step in the window stay. They are saved in the state dict, as
            `state.coefficients`.
        process_group: of processes that train together, as in `agm.fused_modulate`. None: the default group wherever
            `torch.distributed` is initialised with more than one process; False: each process by itself. Every process
            of the group must then take every training step, or enter torch's `Join` with `agm.joining.joinable(model)`.

    Attributes:
        peers: the processes of the group.
        state: the `agm.ModulationState`, saved in the state dict as `state.*`. Beside it are the names of the
            `modalities`: a state that was saved in another order is loaded by name.
        epoch: the current epoch, from 0; set it at the start of each epoch if there is a window.

    Raises:
        ValueError: names that are fewer than two or not distinct, or a setting that cannot be.
        TypeError: `process_group` is none.
    """

    # Of the state dict: (M,), in the order of the modalities.
    _by_modality: tuple[str, ...] = ("state.running_scores", "state.coefficients")

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        alpha: float = 1.0,
        max_gap: float | None = 10.0,
        floor: float = 1e-8,
        ignore_index: int = -100,
        score: ScoreName = "cross_entropy",
        start: int = 0,
        stop: int | None = None,
        outside: Outside = "joint",
        process_group: ProcessGroup | Literal[False] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.modalities = _checks.check_modalities(modalities)
        _checks.check_modulation(alpha, max_gap, floor)
        _checks.check_ignore_index(ignore_index)
        if outside not in ("joint", "published"):
            raise ValueError(f"Expected argument `outside` to be 'joint' or 'published', but got {outside!r}.")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(
                f"Expected argument `backend` to be 'auto' or one of {sorted(BACKENDS)}, but got {backend!r}."
            )
        if not find_score(score).served:
            check_backend(backend, "score")
        self.alpha = alpha
        self.max_gap = max_gap
        self.floor = floor
        self.ignore_index = ignore_index
        self._window = _window(start, stop)
        self.outside = outside
        self.score = score
        self.backend = backend
        self.epoch = 0
        self.peers = Peers(process_group)
        self._begun = False
        self.state = ModulationState(len(self.modalities))
        if outside == "published":
            self.state.save_coefficients()

    @property
    def start(self) -> int:
        """First epoch that is modulated."""
        return self._window[0]

    @start.setter
    def start(self, start: int) -> None:
        self._window = _window(start, self.stop)
        self.epoch = self._epoch

    @property
    def stop(self) -> int | None:
        """First epoch that no longer is; None for no end."""
        return self._window[1]

    @stop.setter
    def stop(self, stop: int | None) -> None:
        self._window = _window(self.start, stop)
        self.epoch = self._epoch

    @property
    def epoch(self) -> int:
        """The current epoch, from 0; set it at the start of each epoch if there is a window."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if not (_checks.is_number(epoch) and epoch == epoch):
            raise ValueError(f"Expected argument `epoch` to be the number of an epoch, from 0, but got {epoch!r}.")
        self._epoch = epoch
        # A graph is guarded by what a call reads: by the number of the epoch, each epoch would be compiled anew.
        after = epoch >= (math.inf if self.stop is None else self.stop)
        self._within = epoch >= self.start and not after
        self._holds = self.outside == "published" and epoch >= self.start and after

    @property
    def active(self) -> bool:
        """Whether a call is a step: training mode, gradients enabled, and the epoch inside the window, or any epoch
        where `outside` is "published"."""
        return self.modulates_now and torch.is_grad_enabled()

    @property
    def modulates_now(self) -> bool:
        """Whether calls with gradients are steps, see `active`."""
        return self.training and (self.outside == "published" or self._within)

    @property
    def alpha_now(self) -> float:
        """The strength of this epoch's steps: `alpha`, or 0 outside the window."""
        return self.alpha if self._within else 0.0

    @property
    def held(self) -> Tensor | None:
        """(M,) copy of the coefficients that this epoch's steps leave as they are; None before `stop`."""
        return self.state.coefficients.clone() if self._holds else None

    def forward(
        self,
        masked_logits: Tensor | AdditiveLogits,
        target: Tensor | None = None,
        *,
        present: Tensor | None = None,
        sample: SubsetSample | None = None,
    ) -> Tensor:
        """Joint logits (B, ..., C) of masked logits, modulated when `active`.

        Args:
            masked_logits: (2**M - 1, B, ..., C), or (R, B, ..., C) of a sample of subsets, or the parts of a sum.
            target: (B,) class indices, or what `score` takes.
            present: (B, M) bool, which samples have which modalities, as in `agm.fused_modulate`.
            sample: of whose subsets the masked logits are, as there; a sum needs none.

        Raises:
            ValueError: `target` is missing although the call modulates; otherwise as `agm.fused_modulate` and
                `agm.fused_modulate_additive`.
        """
        if not self.active:
            if isinstance(masked_logits, AdditiveLogits):
                return masked_logits.joint
            if sample is None:
                _checks.check_masked_logits(masked_logits, len(self.modalities))
            return masked_logits[-1]
        if target is None:
            raise ValueError("Expected argument `target` to hold the batch's targets in training mode, but got None.")
        group = self._group()
        settings: dict[str, Any] = {
            "alpha": self.alpha_now,
            "max_gap": self.max_gap,
            "floor": self.floor,
            "ignore_index": self.ignore_index,
            "score": self.score,
            "process_group": group,
            "backend": self.backend,
        }
        held = self.held
        if held is None:
            return self._step(masked_logits, target, present, sample, settings)
        with torch.no_grad():
            self._step(masked_logits, target, present, sample, settings)
            self.state.coefficients.copy_(held)
        count = len(self.modalities)
        return modulate_by(held, masked_logits, count, present=present, sample=sample, backend=self.backend)

    def linear_cross_entropy(
        self,
        hidden: Tensor,  # (2**M - 1, B, ..., D), or (1, B, ..., D) where no step is taken
        weight: Tensor,  # (C, D)
        target: Tensor,  # (B, ...)
        bias: Tensor | None = None,  # (C,)
    ) -> Tensor:
        """The mean cross-entropy () of a linear head's joint logits, modulated when `active`; no logits are made whole.

            >>> loss = modulator.linear_cross_entropy(hidden, lm_head.weight, tokens)
            >>> loss.backward()

        Args:
            hidden, weight, target, bias: as in `agm.fused_modulate_linear_cross_entropy`. Where the call is no step
                only the last row of `hidden` counts, which is that of the joint pass.

        Raises:
            ValueError: a score other than the cross-entropy, or `outside="published"`; as there.
        """
        self.check_linear()
        settings: dict[str, Any] = {"ignore_index": self.ignore_index, "backend": self.backend}
        if self.active:
            settings |= {"alpha": self.alpha, "max_gap": self.max_gap, "floor": self.floor}
            group = self._group()
            return fused_modulate_linear_cross_entropy(
                hidden, weight, target, self.state, bias, process_group=group, **settings
            )
        # With alpha = 0 all coefficients are 1, and the gradient is that of the joint pass alone.
        rows = hidden[-1:].expand(3, *hidden.shape[1:])
        state = ModulationState(2, device=hidden.device)
        settings |= {"alpha": 0.0, "update": False}
        return fused_modulate_linear_cross_entropy(rows, weight, target, state, bias, **settings)

    def check_linear(self) -> None:
        """That its settings are such as `linear_cross_entropy` has.

        Raises:
            ValueError: they are not.
        """
        if self.score != "cross_entropy":
            raise ValueError(
                "Expected argument `score` to be 'cross_entropy' for the loss of a linear head, but got "
                f"{self.score!r}. Modulate the logits instead."
            )
        if self.outside != "joint":
            raise ValueError(
                f"Expected argument `outside` to be 'joint' for the loss of a linear head, but got {self.outside!r}, "
                "whose held coefficients are applied to logits. Modulate the logits instead."
            )

    def _step(
        self,
        masked_logits: Tensor | AdditiveLogits,
        target: Tensor,
        present: Tensor | None,
        sample: SubsetSample | None,
        settings: dict[str, Any],
    ) -> Tensor:
        if isinstance(masked_logits, AdditiveLogits):
            return modulate_summands(masked_logits, target, self.state, available=present, **settings)
        return fused_modulate(masked_logits, target, self.state, present=present, sample=sample, **settings)

    def _group(self) -> ProcessGroup | None:
        """Those who take this step together; None for this process alone.

        Raises:
            ValueError: some of them may be without a batch, in a Join that does not know of the modulation.
        """
        group = self.peers.group
        if group is None:
            return None
        if not torch.compiler.is_compiling():
            wrapper = DistributedDataParallel._get_active_ddp_module()
            if wrapper is not None and wrapper._join_config.enable and not self.peers.joined:
                raise ValueError(
                    "Expected torch's Join to hold what exchanges the scores of AGM with the other processes, but got "
                    "the DistributedDataParallel alone, with which a process that runs out of batches would leave the "
                    "others waiting. Enter Join([agm.joining.joinable(model)])."
                )
        self.begin_together(group)
        return group

    def begin_together(self, group: ProcessGroup) -> None:
        """Before the first step: all processes go on from the state of the group's first one.

        It may be the only one that loaded a checkpoint, as DistributedDataParallel allows for parameters and buffers.
        """
        if self._begun:
            return
        self._begun = True
        first = get_rank(group) == 0
        for tensor in (self.state.values, self.state.counts):
            # A sum of which the others add nothing; torch.compile traces no broadcast.
            tensor.copy_(summed(tensor.clone() if first else torch.zeros_like(tensor), group))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + order.KEY] = order.order_of(self.modalities, self.state.values.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, error_msgs = args
        saved = state_dict.pop(prefix + order.KEY, None)  # none in checkpoints of versions before
        if saved is not None and not saved.is_meta:
            try:
                places = order.places_of(saved, self.modalities, prefix + order.KEY)
            except ValueError as error:
                error_msgs.append(str(error))
                return
            for key in (prefix + name for name in self._by_modality):
                values = state_dict.get(key)
                if places != sorted(places) and values is not None and len(values) == len(places):
                    state_dict[key] = values[places]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def report(self) -> dict[str, dict[str, float]]:
        """The last step in numbers, by modality; reading them synchronises with the device.

        Returns:
            modality -> {"score", "running_score", "ratio", "reference_ratio", "coefficient", "accuracy"}; the last is
            the accuracy of the mono-modal response on those samples of the last batch that have the modality, NaN
            where there are none, before the first step, and where the score does not tell what is right.
        """
        state = self.state
        right = state.mono_correct.double() if find_score(self.score).has_hits else torch.nan
        columns = {
            "score": state.scores,
            "running_score": state.running_scores,
            "ratio": state.ratios,
            "reference_ratio": state.reference_ratios,
            "coefficient": state.coefficients,
            "accuracy": right / state.mono_samples,
        }
        rows = torch.stack([column.double() for column in columns.values()]).cpu().T.tolist()
        return {name: dict(zip(columns, row, strict=True)) for name, row in zip(self.modalities, rows, strict=True)}

    def extra_repr(self) -> str:
        window = "" if (self.start, self.stop) == (0, None) else f", start={self.start}, stop={self.stop}"
        window += f", outside={self.outside!r}" if window and self.outside != "joint" else ""
        score = "" if self.score == "cross_entropy" else f", score={self.score!r}"
        return f"{', '.join(self.modalities)}, alpha={self.alpha}, max_gap={self.max_gap}{score}{window}"


def _window(start: int, stop: int | None) -> tuple[int, int | None]:
    """The epochs from `start` to `stop`, checked."""
    whole = _checks.is_whole(start) and (stop is None or _checks.is_whole(stop))
    if not whole or start < 0 or (stop is not None and stop < start):
        raise ValueError(f"Expected whole epochs 0 <= `start` <= `stop`, but got start={start!r}, stop={stop!r}.")
    return start, stop
