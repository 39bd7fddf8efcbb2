"""Prototypical modal rebalance."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.distributed import summed
from agm.strategies._checks import check_count, check_flag, check_fraction, check_number
from agm.strategies.batch import Batch
from agm.strategies.heads import pooled
from agm.strategies.measuring import Batches
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Strategy

__all__ = ["PMR"]


class PMR(Strategy):
    """PMR (Fan et al., "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023), of two modalities.

        d_m = -|h_m - c_mk|                      (B, C), c_mk the prototype of class k, a mean of features
        L   = CE(f, y) + alpha (b_1 CE(d_1, y) + b_2 CE(d_2, y))
        rho = s_1 / s_2,                         s_m = sum over the batch of softmax(d_m)_y
        b_1 = min(1 / rho - 1, 1) if rho < 1 else 0;   b_2 = min(rho - 1, 1) if rho >= 1 else 0

    so that only the modality that is behind gets the loss. In the first `regulated` epochs of the window the loss also
    has `- entropy * (b_2 H_1 + b_1 H_2)`, H_m the mean entropy of softmax(d_m). Before each epoch the prototypes are
    measured in eval mode on the first `share` of the batches of the training split, and

        c <- (1 - momentum) * measured + momentum * c

    A class without a sample there keeps its prototype; one that never had a sample has no part in d_m, and its samples
    none in CE(d_m, y) and s_m. Features that are not vectors are averaged over their tokens. Where processes train
    together, prototypes and s_m are those of the samples of all.

    Departures of the released code (`released=True`): a hard switch, b = 1 for the modality that is behind; no
    entropy; no momentum before the third set of prototypes; and a class without a sample has a prototype of NaN.

    Args:
        network: see `Strategy`.
        alpha: weight of the prototypes' losses, >= 0; 1 in the released code, 0.6 in BalanceBenchmark.
        entropy: mu in the paper, >= 0; tuned there, 0.01 in BalanceBenchmark.
        regulated: epochs with the entropy term; ours.
        momentum: of the prototypes, in [0, 1); 0.2 in the released code.
        share: of the batches that prototypes are measured on; 0.1 in the released code, one batch at least.
        released: as the released code.
        common: see `Strategy`.

    Attributes:
        prototypes: modality -> (C, F); empty before the first epoch.

    Raises:
        ValueError: another number of modalities than two.

    Example:
        >>> strategy = PMR(network, alpha=1.0)
        >>> strategy.begin_epoch(0, train=train_loader)
    """

    needs = frozenset({"train"})
    distributed = True

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 1.0,
        entropy: float = 0.01,
        regulated: int = 5,
        momentum: float = 0.2,
        share: float = 0.1,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        if len(self.modalities) != 2:
            raise ValueError(f"Expected two modalities, between which PMR decides, but got {len(self.modalities)}.")
        self.alpha, self.entropy = check_number("alpha", alpha), check_number("entropy", entropy)
        self.regulated = check_count("regulated", regulated, least=0)
        self.momentum, self.share = check_number("momentum", momentum, below=1), check_fraction("share", share)
        self.released = check_flag("released", released)
        self.hard = self.released  # whether the modality that is behind has its loss whole
        self.prototypes: dict[str, Tensor] = {}
        self._known: Tensor | None = None  # (C,) bool, classes that have had a sample
        self._sets = 0  # of prototypes, measured

    @torch.no_grad()
    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        measured, counts = self._measured(self.required(train, "train"))
        seen = counts > 0
        carry = self.momentum if self._sets >= (2 if self.released else 1) else 0.0
        for name, new in measured.items():
            old = self.prototypes.get(name, new).to(new.device)
            mixed = (1 - carry) * new + carry * old
            if not self.released:
                first = seen if self._known is None else seen & ~self._known.to(seen.device)
                mixed = torch.where(first.unsqueeze(1), new, torch.where(seen.unsqueeze(1), mixed, old))
            self.prototypes[name] = mixed
        self._known = seen if self._known is None else seen | self._known.to(seen.device)
        self._sets += 1

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        losses, scores, entropies = zip(*(self._near(name, batch) for name in self.modalities), strict=True)
        score = summed(torch.stack(scores), self.parts.group)
        ratios = score / score.flip(0)
        behind = ratios.flip(0) - 1  # of the other over this one, less 1
        shares = (behind > 0).to(score.dtype) if self.hard else behind.clamp(0.0, 1.0)
        total = batch.joint_loss + self.alpha * (shares * torch.stack(losses)).sum()
        if not self.released and self.epoch - self.start < self.regulated:
            total = total - self.entropy * (shares.flip(0) * torch.stack(entropies)).sum()
        self.latest = {"score": score, "ratio": ratios, "coefficient": shares}
        return total

    def _near(self, name: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """() cross-entropy, () score without a graph and () entropy of the distances of one modality."""
        if name not in self.prototypes or self._known is None:
            raise RuntimeError("Expected `begin_epoch` to be called before the first step, but it was not.")
        feature = pooled(batch.features[name])
        # The norm has a gradient of 0 at 0.
        distances = -(feature.unsqueeze(1) - self.prototypes[name].to(feature.dtype)).norm(dim=2)
        if self.released:
            logs = distances.log_softmax(1)
            own, known = logs, torch.ones_like(batch.target, dtype=torch.bool)
        else:
            logs = distances.masked_fill(~self._known, -torch.inf).log_softmax(1)
            own, known = logs.masked_fill(~self._known, 0.0), self._known[batch.target]
        true = own.gather(1, batch.target.unsqueeze(1)).squeeze(1)
        loss = -torch.where(known, true, 0.0).sum() / known.sum().clamp_min(1)
        entropy = -(logs.exp() * own).sum(1).mean()
        return loss, torch.where(known, true.detach().exp(), 0.0).sum(), entropy

    def _measured(self, train: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Modality -> (C, F) class means of features, and (C,) numbers of samples."""
        if not hasattr(train, "__len__"):
            raise ValueError(
                "Expected argument `train` to have a length, so that the first share of its batches is known, but got "
                f"{type(train).__name__}. Give a list or a DataLoader."
            )
        sums: dict[str, Tensor] = {}
        counts: Tensor | None = None
        for place, (inputs, target, *_) in enumerate(train):
            if place >= max(int(self.share * len(train)), 1):
                break
            with evaluation(self.network):
                features, logits = self.parts.run(inputs)
            hot = F.one_hot(target, logits.shape[-1])
            counts = hot.sum(0) if counts is None else counts + hot.sum(0)
            for name in self.modalities:
                feature = pooled(features[name])
                total = hot.T.to(feature.dtype) @ feature
                sums[name] = total if name not in sums else sums[name] + total
        if counts is None:
            raise ValueError("Expected the train split to hold a batch or more, but got none.")
        if self.parts.group is not None:
            counts = summed(counts, self.parts.group)
            sums = {name: summed(total, self.parts.group) for name, total in sums.items()}
        divisor = counts if self.released else counts.clamp_min(1)
        return {name: total / divisor.unsqueeze(1) for name, total in sums.items()}, counts

    def get_extra_state(self) -> dict[str, Any]:
        return {"prototypes": dict(self.prototypes), "known": self._known, "sets": self._sets}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.prototypes, self._known, self._sets = dict(state["prototypes"]), state["known"], int(state["sets"])
