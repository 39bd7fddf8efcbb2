"""Multimodal learning with alternating unimodal adaptation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_number
from agm.strategies.alternating import Alternating
from agm.strategies.batch import Batch
from agm.strategies.heads import LinearHead, pooled
from agm.strategies.measuring import Batches
from agm.strategies.projectors import project_
from agm.strategies.strategy import Common, Outcome

__all__ = ["MLA"]


class MLA(Alternating):
    """MLA (Zhang et al., "Multimodal Representation Learning by Alternating Unimodal Adaptation", CVPR 2024).

    All modalities have one head, a linear layer W. Each batch makes one update a modality, of its encoder and of W with
    CE(W h_m, y), and all but the very first project the gradient of W away from what the features before asked of it:

        q   = P r / (alpha + r.P r),    r the batch mean of h_m,    P = I at first
        P  <- P - q (P r)^T,            dL/dW <- dL/dW P^T

    The features of all modalities are those before the first of these updates. Predictions are the logits of the
    modalities, weighted sample by sample by softmax_m(max_j e_j - e_m), e_m the entropy of softmax(u_m).

    The network's own fusion is neither trained nor used: `predictor` predicts.

    Departures of the released code: it projects nothing, since it looks for the weight under a name that the head does
    not have (`projection="none"`). Its formula with that name mended, which others have copied
    (`projection="elementwise"`), divides k k^T, k = P r, element by element by the matrix a + k r^T, and P by its
    Frobenius norm; a = 0.1^(i/n + 1) in batch i of the n of an epoch.

    Args:
        network: see `Strategy`; only its encoders are used.
        projection: "scalar", the paper's; "elementwise" or "none".
        alpha: > 0, of the scalar quotient; 0.1, ours, where the elementwise form begins.
        common: see `Strategy`. `heads` maps every modality to the same module, with one matrix of weights, so that
            features have one width. Outside the window nothing is projected.

    Raises:
        ValueError: heads that are missing or not one and the same, or without exactly one matrix of weights.

    Example:
        >>> head = LinearHead(512, 6)
        >>> strategy = MLA(network, heads={"audio": head, "image": head})
    """

    projector: Tensor  # (F, F)

    def __init__(
        self,
        network: nn.Module,
        *,
        projection: Literal["scalar", "elementwise", "none"] = "scalar",
        alpha: float = 0.1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.projection = check_choice("projection", projection, ("scalar", "elementwise", "none"))
        self.alpha = check_number("alpha", alpha)
        if self.projection == "elementwise":
            self.needs = frozenset({"train"})
        distinct = set(self.heads.values())
        matrices = [p for head in distinct for p in head.parameters() if p.dim() == 2]
        if len(distinct) != 1 or len(matrices) != 1:
            raise ValueError(
                f"Expected argument `heads` to map every modality to one and the same head with one matrix of weights, "
                f"but got {len(distinct)} heads with {len(matrices)}. Give for example head = LinearHead(width, "
                "num_classes) and heads=dict.fromkeys(modalities, head)."
            )
        (weight,) = matrices
        self.register_buffer("projector", torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device))
        self._updates = self._batch = 0
        self._batches = 1  # of an epoch

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        widths = set(network.widths.values())
        if len(widths) != 1:
            raise ValueError(f"Expected features of one width for the common head of MLA, but got {network.widths}.")
        return dict.fromkeys(network.widths, LinearHead(widths.pop(), num_classes))

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self._batch = 0
        if self.projection == "elementwise":
            batches: Any = self.required(train, "train")
            self._batches = len(batches)

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        logits = torch.stack([alone[name] for name in self.modalities])  # (M, B, C)
        logs = logits.log_softmax(-1)
        entropies = -(logs.exp() * logs).sum(-1, keepdim=True)
        weighted: Tensor = ((entropies.amax(0) - entropies).softmax(0) * logits).sum(0)
        return weighted

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        losses = []
        for name, feature in batch.features.items():
            self.zero_grad(set_to_none=True)
            loss = self.criterion(self.alone(name, feature), batch.target)
            loss.backward()
            losses.append(loss.detach())
            if self.active and self.projection != "none" and self._updates:
                self._project(pooled(feature).detach().mean(0))
            self._updates += 1
            if len(losses) == len(self.modalities):
                self._batch += 1
                self.latest = {"score": torch.stack(losses)}
            yield self.ensemble_outcome(batch)

    @torch.no_grad()
    def _project(self, mean: Tensor) -> None:  # (F,)
        with torch.autocast(mean.device.type, enabled=False):
            mean = mean.to(self.projector)
            ahead = self.projector @ mean
            outer = torch.outer(ahead, ahead)
            if self.projection == "scalar":
                self.projector -= outer / (self.alpha + mean @ ahead)
            else:
                share = 0.1 ** (self._batch / self._batches + 1)
                self.projector -= outer / (share + torch.outer(ahead, mean))
                self.projector /= self.projector.norm()
        for parameter in self.heads.parameters():
            if parameter.dim() == 2:
                project_(parameter, self.projector.T)

    def get_extra_state(self) -> dict[str, Any]:
        return {"updates": self._updates, "batch": self._batch}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._updates, self._batch = int(state["updates"]), int(state["batch"])
