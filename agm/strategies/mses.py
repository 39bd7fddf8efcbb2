"""Modality-specific early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_count, check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Strategy

__all__ = ["MSES"]

Dataset = Literal["av-mnist", "ur-funny", "crema-d"]

# Epochs without a new lowest loss after which a modality stops, in the training scripts of AGM's baselines.
PATIENCE: Mapping[str, int] = MappingProxyType({"av-mnist": 10, "ur-funny": 30, "crema-d": 80})


class MSES(Strategy):
    """MSES (Fujimori et al., "Modality-Specific Learning Rate Control for Multimodal Classification", ACPR 2019), as
    re-implemented for AGM (Li et al., ICCV 2023), whose rules these are; the paper's own were not at hand.

        l_m(e)  = smoothing * v_m(e-1) + (1 - smoothing) * v_m(e),     v_m(e) = validation loss of modality m alone

    After more than `patience` epochs in which l_m has not fallen below its lowest value, modality m stops: its
    encoder and what only its feature meets behind it (its columns of a common layer, a layer of its own with its bias)
    get a gradient of 0 from then on, and the whole network (and the optimizer's state, where `optimizer` is set) goes
    back to the epoch of that lowest value. When all have stopped, training is `finished`. Momentum and weight decay act
    on a gradient of 0 too: they are the optimizer's.

    The snapshots (one for each distinct best epoch) are part of the state dict.

    Args:
        network: see `Strategy`.
        patience: epochs; or a dataset of AGM's baselines, whose patience it is: "av-mnist" 10, "ur-funny" 30, "crema-d"
            80, the default.
        smoothing: weight of the loss of the epoch before, in [0, 1).
        restore: go back to the best epoch.
        common: see `Strategy`.
    """

    needs = frozenset({"validation"})
    dense = True
    distributed = True
    coefficients: Tensor  # (M,) float64: 1, or 0 for a modality that stopped

    def __init__(
        self,
        network: nn.Module,
        *,
        patience: int | Dataset = 80,
        smoothing: float = 0.6,
        restore: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        if isinstance(patience, str):
            patience = PATIENCE[check_choice("patience", patience, tuple(PATIENCE))]
        self.patience = check_count("patience", patience, least=0)
        self.smoothing = check_number("smoothing", smoothing, below=1.0)
        self.restore = check_flag("restore", restore)
        self.register_buffer("coefficients", torch.ones(len(self.modalities), dtype=torch.float64))
        self._previous: dict[str, float] = {}
        self._best: dict[str, tuple[float, int]] = {name: (math.inf, -1) for name in self.modalities}
        self._stopped: dict[str, int] = {}  # modality -> epoch after which it stopped
        self._snapshots: dict[int, dict[str, Any]] = {}  # epoch -> weights and the optimizer's state

    @property
    def finished(self) -> bool:
        return len(self._stopped) == len(self.modalities)

    @property
    def stopped(self) -> dict[str, int]:
        """Modality -> the epoch after which it stopped."""
        return dict(self._stopped)

    def modulate(self, batch: Batch) -> None:
        if self._stopped:
            self.scale(self.coefficients, heads=True)
        self.latest = {"coefficient": self.coefficients}

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        losses = self.measure(self.required(validation, "validation")).losses
        stopping = []
        for name in self.modalities:
            if name in self._stopped:
                continue
            smooth = self.smoothing * self._previous.get(name, losses[name]) + (1 - self.smoothing) * losses[name]
            best, when = self._best[name]
            if smooth < best:
                self._best[name] = (smooth, self.epoch)
            elif self.epoch - when > self.patience:
                stopping.append(name)
        self._previous = losses
        self._keep_snapshots()
        for name in stopping:
            self._stopped[name] = self.epoch
            self.coefficients[self.modalities.index(name)] = 0.0
            if self.restore:
                self._go_back(self._snapshots[self._best[name][1]])
        self._keep_snapshots()

    def _keep_snapshots(self) -> None:
        """Of the best epochs of those that still train, taken now for the present epoch."""
        if not self.restore:
            return
        wanted = {when for name, (_, when) in self._best.items() if name not in self._stopped and when >= 0}
        self._snapshots = {when: kept for when, kept in self._snapshots.items() if when in wanted}
        if self.epoch in wanted and self.epoch not in self._snapshots:
            self._snapshots[self.epoch] = {
                "module": copy.deepcopy(self.module.state_dict()),
                "heads": copy.deepcopy(self.heads.state_dict()),
                "optimizer": None if self.optimizer is None else copy.deepcopy(self.optimizer.state_dict()),
            }

    def _go_back(self, snapshot: dict[str, Any]) -> None:
        self.module.load_state_dict(snapshot["module"])
        self.heads.load_state_dict(snapshot["heads"])
        if self.optimizer is not None and snapshot["optimizer"] is not None:
            self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))

    def get_extra_state(self) -> dict[str, Any]:
        best = {name: list(value) for name, value in self._best.items()}
        return {
            "previous": dict(self._previous),
            "best": best,
            "stopped": dict(self._stopped),
            "snapshots": dict(self._snapshots),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._previous = dict(state["previous"])
        self._best = {name: (float(value[0]), int(value[1])) for name, value in state["best"].items()}
        self._stopped = dict(state["stopped"])
        self._snapshots = dict(state["snapshots"])
