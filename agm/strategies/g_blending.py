"""Gradient blending."""

from __future__ import annotations

import copy
from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_flag
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches, Measured
from agm.strategies.strategy import Common, Strategy
from agm.strategies.teachers import MakeOptimizer, sgd

__all__ = ["GBlending"]


class GBlending(Strategy):
    """G-Blend (Wang et al., "What Makes Training Multi-modal Classification Networks Hard?", CVPR 2020).

        L   = sum_k w_k L_k,       k over the modalities (L_k = CE(u_k, y)) and the joint network (L_k = CE(f, y))
        w_k = (G_k / O_k^2) / Z,   with the w_k summing to 1
        G_k = V_k(before) - V_k(after)                                       generalisation gained
        O_k = (V_k - T_k)(after) - (V_k - T_k)(before)                       overfitting gained

    V and T are the losses on the validation and the training set in eval mode, before and after `super_epoch` epochs
    in which a copy of the network is trained, from the present weights, on L_k alone: M + 1 copies for each estimate,
    so that the online form costs M + 2 times joint training. It is estimated anew every `super_epoch` epochs
    (online), or once at the first epoch (offline, for which the paper trains the copies to the end).

    Departures from the paper: the joint copy begins from the present weights in every estimate, not at the first one
    alone; |G_k| by default; O_k^2 of at least 1e-12; validation and training loss are measured in eval mode over the
    whole splits; and there is one learning rate for all copies.

    Args:
        network: see `Strategy`.
        super_epoch: epochs of an estimate, and between two; 10 in BalanceBenchmark.
        online: estimate anew every `super_epoch` epochs.
        absolute: take |G_k|, as BalanceBenchmark does: a validation loss that rose otherwise gives a negative weight,
            that is, ascent. False is the formula as it stands.
        make_optimizer: parameters -> the optimizer of a copy; SGD with learning rate 0.01 and momentum 0.9 by default.
        common: see `Strategy`. Outside the window the loss is the joint one.
    """

    needs = frozenset({"train", "validation"})
    trains_heads = True
    why_alone = "it trains copies of the network on single losses"
    dense = True
    weights: Tensor  # (M + 1,) float64, the last of the joint loss
    estimates: Tensor  # () int64, how many there were

    def __init__(
        self,
        network: nn.Module,
        *,
        super_epoch: int = 10,
        online: bool = True,
        absolute: bool = True,
        make_optimizer: MakeOptimizer | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.super_epoch = check_count("super_epoch", super_epoch)
        self.online = check_flag("online", online)
        self.absolute = check_flag("absolute", absolute)
        self.make_optimizer = make_optimizer or sgd
        losses = len(self.modalities) + 1
        self.register_buffer("weights", torch.full((losses,), 1 / losses, dtype=torch.float64))
        self.register_buffer("estimates", torch.zeros((), dtype=torch.int64))

    @property
    def extra_epochs(self) -> int:
        return int(self.estimates) * len(self.weights) * self.super_epoch

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        train, validation = self.required(train, "train"), self.required(validation, "validation")
        since = epoch - self.start
        if self.active and (since % self.super_epoch == 0 if self.online else since == 0):
            self.weights.copy_(self.estimate(train, validation))
            self.estimates.add_(1)

    def estimate(self, train: Batches, validation: Batches) -> Tensor:
        """(M + 1,) float64 weights from copies of the network trained on one loss each; the network stays as it is."""
        before_train, before = _losses(self.measure(train)), _losses(self.measure(validation))
        raw = []
        for place in range(len(self.weights)):
            probe = self._probe(place)
            optimizer = self.make_optimizer(probe.parameters())
            for _ in range(self.super_epoch):
                for inputs, target in train:
                    for _ in probe.steps(inputs, target):
                        optimizer.step()
            after_train, after = _losses(probe.measure(train)), _losses(probe.measure(validation))
            gained = before[place] - after[place]
            overfit = (after[place] - after_train[place]) - (before[place] - before_train[place])
            # The floor only keeps a division by 0 away.
            raw.append((abs(gained) if self.absolute else gained) / max(overfit**2, 1e-12))
        weights = torch.tensor(raw, dtype=torch.float64)
        return weights / weights.sum()

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        losses = batch.unimodal_losses
        stacked = torch.stack([*(losses[name] for name in self.modalities), batch.joint_loss])
        return (self.weights.to(stacked.dtype) * stacked).sum()

    def _probe(self, place: int) -> GBlending:
        """A copy in training mode whose loss is one of them alone."""
        # The user's optimizer would bring copies of its state along.
        optimizer, self.optimizer = self.optimizer, None
        try:
            probe = copy.deepcopy(self)
        finally:
            self.optimizer = optimizer
        probe.weights.zero_()
        probe.weights[place] = 1.0
        return probe.train()


def _losses(measured: Measured) -> list[float]:
    return [*measured.losses.values(), measured.loss]
