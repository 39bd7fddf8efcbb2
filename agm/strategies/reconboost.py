"""Boosting over modalities, one in each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_flag, check_number
from agm.strategies.alternating import Alternating
from agm.strategies.batch import Batch
from agm.strategies.heads import LinearHead, linear_heads
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Outcome

__all__ = ["ReconBoost"]


class ReconBoost(Alternating):
    """ReconBoost (Hua et al., "ReconBoost: Boosting Can Achieve Modality Reconcilement", ICML 2024).

    Stage s = 0, 1, ... belongs to modality m = s mod M and has `stage_epochs` epochs in which its encoder and head are
    trained on what the others leave, then `rectify_epochs` in which all that have joined are trained together:

        boosting:   mean over batch and classes of -(fit - residual * P_y) y log softmax(u_m)
                      + agreement * mean (softmax(u_m) - softmax(u_n))^2
        rectifying: CE(F, y),    F = rate * sum of u_j over those that have joined, the present one among them

    y (B, C) is one-hot. P = softmax(rate * sum over j != m that have joined of u_j), without a graph, so that samples
    on which the others are right count less; where none has joined P_y is 1. u_n are the logits of the stage before,
    without a graph; the first stage has no such term. `rate` is trained while rectifying, 1 at first. Before each of
    the two the optimizer forgets its momentum (set `optimizer`; the authors make a new one). F predicts. The losses are
    those of the authors' code; the paper derives the first from a KL divergence between u_m and the others.

    The network's own fusion is neither trained nor used: `predictor` predicts. Every modality has had its stage after
    M (stage_epochs + rectify_epochs) epochs, without which a run is no ReconBoost (`least_epochs`). An epoch of
    boosting trains one encoder of M. BalanceBenchmark's port counts a round of all stages as one epoch, so that its 30
    are 60 M passes over the data.

    Departures of the released code (`released=True`): softmax(u_m) is detached in the agreement, which then has no
    gradient. Heads there are common, of two layers on images and sound and linear on features.

    Args:
        network: see `Strategy`; only its encoders are used.
        fit, residual: w1 and w2, >= 0; 5 and 1.
        agreement: alpha, >= 0; 0.5.
        stage_epochs, rectify_epochs: >= 1; 4 and 4.
        released: see above.
        common: see `Strategy`. `heads` may map all modalities to one head; `default_heads` makes a common linear one
            where the widths are one, else one a modality. Stages count from `start`; outside the window all are
            trained together.

    Raises:
        ValueError: no heads.

    Example:
        >>> head = LinearHead(512, 6)
        >>> strategy = ReconBoost(network, heads={"audio": head, "image": head})
    """

    trains_heads = True

    def __init__(
        self,
        network: nn.Module,
        *,
        fit: float = 5.0,
        residual: float = 1.0,
        agreement: float = 0.5,
        stage_epochs: int = 4,
        rectify_epochs: int = 4,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.fit, self.residual = check_number("fit", fit), check_number("residual", residual)
        self.agreement = check_number("agreement", agreement)
        self.stage_epochs = check_count("stage_epochs", stage_epochs)
        self.rectify_epochs = check_count("rectify_epochs", rectify_epochs)
        self.released = check_flag("released", released)
        if not self.heads:
            raise ValueError(
                "Expected argument `heads` to map each modality to its head, but got none: ReconBoost does not use the "
                "network's own. Give for example heads=linear_heads(widths, num_classes)."
            )
        like = next(network.parameters())
        self.rate = nn.Parameter(torch.ones((), device=like.device, dtype=like.dtype))
        self._joined = self._joining()

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        widths = set(network.widths.values())
        if len(widths) == 1:
            return dict.fromkeys(network.widths, LinearHead(widths.pop(), num_classes))
        return linear_heads(network.widths, num_classes)

    @property
    def least_epochs(self) -> int:
        return self.start + len(self.modalities) * (self.stage_epochs + self.rectify_epochs)

    @property
    def boosted(self) -> str | None:
        """The modality whose residual is fitted in the present epoch; None where all are trained together."""
        stage, place = self._place()
        boosting = self.active and place < self.stage_epochs
        return self.modalities[stage % len(self.modalities)] if boosting else None

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self._joined = self._joining()
        _, place = self._place()
        if self.active and place in (0, self.stage_epochs) and self.optimizer is not None:
            self.optimizer.state.clear()

    def _place(self) -> tuple[int, int]:
        """The stage of the present epoch, and its place in there."""
        return divmod(self.epoch - self.start, self.stage_epochs + self.rectify_epochs)

    def _joining(self) -> int:
        """How many modalities, in their order, have joined in the present epoch; outside the window all."""
        stage, _ = self._place()
        return min(stage + 1, len(self.modalities)) if self.active else len(self.modalities)

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        logits = torch.stack([alone[name] for name in self.modalities[: self._joined]])
        return self.rate * logits.sum(0)

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        self.zero_grad(set_to_none=True)
        own, alone = self.boosted, {}
        for name in self.modalities[: self._joined]:
            with torch.set_grad_enabled(own in (None, name)):
                feature = self.feature(name, self.parts.encode(name, batch.inputs), batch)
                alone[name] = self.alone(name, feature)
        loss = self.criterion(self.combine(alone), batch.target) if own is None else self._boosting(own, alone, batch)
        loss.backward()
        with torch.no_grad():
            logits = self.combine(alone)
            yield Outcome(self.criterion(logits, batch.target), logits)

    def _boosting(self, own: str, alone: Mapping[str, Tensor], batch: Batch) -> Tensor:
        logs = alone[own].log_softmax(-1)
        target = batch.target.unsqueeze(1)
        others = [logits for name, logits in alone.items() if name != own]
        weights = torch.full_like(logs[:, :1], self.fit - self.residual)
        if others:
            known = (self.rate.detach() * torch.stack(others).sum(0)).softmax(-1)
            weights = self.fit - self.residual * known.gather(1, target)
        loss = -(weights * logs.gather(1, target)).mean() / logs.shape[-1]
        before = self.modalities[self.modalities.index(own) - 1]
        if before in alone:
            probabilities = logs.exp().detach() if self.released else logs.exp()
            loss = loss + self.agreement * (probabilities - alone[before].softmax(-1)).square().mean()
        return loss

    def get_extra_state(self) -> dict[str, Any]:
        return {"joined": self._joined}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._joined = int(state["joined"])
