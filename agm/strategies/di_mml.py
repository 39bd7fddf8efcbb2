"""Detached and interactive multimodal learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm._passes.by_protocol import is_factorised
from agm.strategies._checks import check_count, check_number, check_positive
from agm.strategies.batch import Batch
from agm.strategies.heads import LinearHead, linear_heads, pooled
from agm.strategies.measuring import Batches
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Outcome, Strategy
from agm.strategies.taken import Taken

__all__ = ["DIMML", "effective_dimensions"]


class DIMML(Strategy):
    """DI-MML (Fan et al., "Detached and Interactive Multimodal Learning", ACM MM 2024).

    Encoders are trained apart, meet in a common head and help each other in single dimensions of their features; then
    the fusion is trained.

    In the epochs before `stage_epochs` the loss is

        L = sum_m CE(u_m, y) + shared * sum_m CE(phi(h_m), y) + D

    with u_m the logits of a head of modality m, phi one linear head for the features h_m (B, F) of all, and D = 0 in
    the epochs before `contrast_from`, the dimension-decoupled unidirectional contrast from then on:

        D = sum over ordered pairs (m, j) of CE(S, (0, ..., B-1)),    S_ik = sum over d in E_m, not in E_j of
                                                                             h_j[i, d] h_m[k, d] / temperature

    h_m without a graph: j learns from m where m is effective and j is not. E_m are the dimensions in which the nearest
    class mean of a training sample is more often that of its class than in the mean dimension, measured once, in eval
    mode. From epoch `stage_epochs` on the encoders stay as they are, in eval mode, and the network's own fusion is
    trained with CE(f, y). Predictions weigh all that is said, o = u_1, ..., u_M and in the second stage f, by how
    certain it is: sum_k w_k o_k, w = softmax_k(max softmax(o_k) / certainty). In the first stage, of which the authors
    measure no prediction of all modalities, that is ours; and so is the sum over pairs of more than two.

    A run has both stages: `stage_epochs` + 1 epochs are the least (`least_epochs`). The authors train 150 and 20, each
    with a learning rate that begins anew, and keep the last weights of the first stage to have improved either
    modality on the test set.

    Args:
        network: see `Strategy`.
        stage_epochs: of the first stage, >= 1; 150.
        contrast_from: the first epoch with D, >= 0; 20.
        shared: weight of the common head's losses, >= 0; 1.
        temperature: of D, > 0; 1 in the released code's arguments, 50 on CREMA-D and ModelNet, 10 on AVE and UCF-101.
        certainty: temperature of the weights w, > 0; 1.
        widths: modality -> F, one for all, for a network that does not say it.
        num_classes: C, for a network that does not say it.
        common: see `Strategy`. `heads` maps each modality to its head. The stages are counted from epoch 0 whatever the
            window. Features that are not vectors are averaged over their tokens.

    Raises:
        ValueError: no heads, widths that are not one, or widths or classes that are not known.

    Example:
        >>> strategy = DIMML(network, heads=linear_heads(network.widths, 6), temperature=50.0)
    """

    needs = frozenset({"train"})
    trains_heads = True
    effective: Tensor  # (M, F) bool, whether d is in E_m

    def __init__(
        self,
        network: nn.Module,
        *,
        stage_epochs: int = 150,
        contrast_from: int = 20,
        shared: float = 1.0,
        temperature: float = 1.0,
        certainty: float = 1.0,
        widths: Mapping[str, int] | None = None,
        num_classes: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.stage_epochs = check_count("stage_epochs", stage_epochs)
        self.contrast_from = check_count("contrast_from", contrast_from, least=0)
        self.shared = check_number("shared", shared)
        self.temperature = check_positive("temperature", temperature)
        self.certainty = check_positive("certainty", certainty)
        known: Any = network
        widths, classes = widths or getattr(known, "widths", None), num_classes or getattr(known, "num_classes", None)
        if not widths or not classes or len({widths[name] for name in self.modalities}) != 1:
            raise ValueError(
                "Expected arguments `widths`, one for all modalities as DI-MML compares dimensions, and `num_classes` "
                f"for a network that does not say them, but got {widths!r} and {classes!r}."
            )
        if not self.heads:
            raise ValueError(
                "Expected argument `heads` to map each modality to its head, but got none: DI-MML does not use the "
                "network's own. Give heads=linear_heads(widths, num_classes)."
            )
        width, like = widths[self.modalities[0]], next(network.parameters())
        self.common_head = LinearHead(width, classes).to(like)
        self.register_buffer("effective", torch.zeros(len(self.modalities), width, dtype=torch.bool))
        self._contrasts = self._joins = False

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        return linear_heads(network.widths, num_classes)

    @property
    def least_epochs(self) -> int:
        return self.stage_epochs + 1

    @property
    def predictor(self) -> nn.Module:
        return Predictor(self) if is_factorised(self.network) else WholePredictor(self)

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self._joins = epoch >= self.stage_epochs
        if epoch >= self.contrast_from and not self._joins and not self._contrasts:
            self._measure(self.required(train, "train"))
            self._contrasts = True

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        self.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(not self._joins):
            features = {name: self.feature(name, self._encoded(name, batch.inputs), batch) for name in self.modalities}
            said = [self.heads[name](features[name]) for name in self.modalities]
        if self._joins:
            said.append(self._fused(features, batch.inputs))
            loss = self.criterion(said[-1], batch.target)
            self.latest = {}
        else:
            loss = self._apart(features, said, batch.target)
        loss.backward()
        with torch.no_grad():
            logits = self.combine(said)
            yield Outcome(self.criterion(logits, batch.target), logits)

    def combine(self, said: list[Tensor]) -> Tensor:
        """(B, C) logits of each head and of the fusion, (B, C) each, weighted by their certainty."""
        logits = torch.stack(said)
        weights = (logits.softmax(-1).amax(-1, keepdim=True) / self.certainty).softmax(0)
        return (weights * logits).sum(0)

    def together(self, features: Mapping[str, Any], given: Taken | None = None) -> Tensor:
        """(B, C) what is predicted from the features of all modalities.

        Args:
            features: modality -> its feature.
            given: what the network was called with, for one without `fuse`.
        """
        said = [self.heads[name](features[name]) for name in self.modalities]
        if self._joins:
            said.append(self._fused(features, given))
        return self.combine(said)

    def _apart(self, features: Mapping[str, Any], said: list[Tensor], target: Tensor) -> Tensor:
        """() loss of the first stage."""
        vectors = [pooled(features[name]) for name in self.modalities]
        own = [self.criterion(logits, target) for logits in said]
        common = [self.criterion(self.common_head(vector), target) for vector in vectors]
        self.latest = {"score": torch.stack(own).detach()}
        loss = torch.stack(own).sum() + self.shared * torch.stack(common).sum()
        return loss + self._contrast(vectors) if self._contrasts else loss

    def _contrast(self, vectors: list[Tensor]) -> Tensor:
        places, terms = torch.arange(len(vectors[0]), device=vectors[0].device), []
        for m, teacher in enumerate(vectors):
            for j, learner in enumerate(vectors):
                if m != j:
                    dimensions = self.effective[m] & ~self.effective[j]
                    products = (learner * dimensions) @ teacher.detach().T / self.temperature
                    terms.append(F.cross_entropy(products, places))
        return torch.stack(terms).sum()

    @torch.no_grad()
    def _measure(self, batches: Batches) -> None:
        rows: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        targets = []
        for inputs, target, *_ in batches:
            taken = self.parts.taken(inputs)
            with evaluation(self.network):
                for name in self.modalities:
                    rows[name].append(pooled(self.parts.encode(name, taken)))
            targets.append(target)
        target, classes = torch.cat(targets), self.common_head.linear.out_features
        for place, name in enumerate(self.modalities):
            self.effective[place] = effective_dimensions(torch.cat(rows[name]), target, classes)

    def _encoded(self, name: str, given: Taken) -> Any:
        if not self._joins:
            return self.parts.encode(name, given)
        with evaluation(self.parts.encoders[name]):
            return self.parts.encode(name, given)

    def _fused(self, features: Mapping[str, Any], given: Taken | None) -> Tensor:
        if is_factorised(self.network):
            network: Any = self.network
            logits: Tensor = network.fuse(features)
            return logits
        return self.parts.fused(given, features)

    def get_extra_state(self) -> dict[str, Any]:
        return {"contrasts": self._contrasts, "joins": self._joins}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._contrasts, self._joins = bool(state["contrasts"]), bool(state["joins"])


class WholePredictor(nn.Module):
    """What a `DIMML` predicts with: the network, the heads beside it, and their certainty.

    Args:
        strategy: whose modules it shares.
    """

    def __init__(self, strategy: DIMML) -> None:
        super().__init__()
        self.network: nn.Module = strategy.network
        self.heads: nn.Module = strategy.heads
        self._strategy = (strategy,)  # in a tuple, so that it is no submodule
        self.training = strategy.training

    def forward(self, /, *batch: Any, **inputs: Any) -> Tensor:
        """Logits (B, C) from one input a modality, by keyword; or from what a step is given, by position."""
        (strategy,) = self._strategy
        given = strategy.parts.taken(batch[0] if batch else inputs)
        return strategy.together({name: strategy.parts.encode(name, given) for name in strategy.modalities}, given)


class Predictor(WholePredictor):
    """The same of a network with `encoders` and `fuse`, which it offers too."""

    def __init__(self, strategy: DIMML) -> None:
        super().__init__(strategy)
        self.encoders = nn.ModuleDict(strategy.parts.encoders)

    def fuse(self, features: Mapping[str, Any]) -> Tensor:
        """Logits (B, C) from the features of all modalities."""
        return self._strategy[0].together(features)

    def fused_features(self, features: Mapping[str, Any]) -> Tensor:
        """(B, sum of the widths) the features side by side, all that the logits are read from."""
        return torch.cat([pooled(features[name]) for name in self.encoders], 1)


def effective_dimensions(features: Tensor, target: Tensor, classes: int) -> Tensor:
    """(F,) bool, dimensions in which more samples than in the mean one are nearest to the mean of their own class.

    Args:
        features: (N, F).
        target: (N,) class indices below `classes`; classes without a sample have no mean.
        classes: C.
    """
    counts = torch.bincount(target, minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, target, features)
    nearest = torch.full(features.shape, torch.inf, dtype=features.dtype, device=features.device)
    found = torch.zeros(features.shape, dtype=torch.int64, device=features.device)
    for number in counts.nonzero().flatten().tolist():  # class by class: (N, C, F) would be large
        distances = (features - sums[number] / counts[number]).abs()
        closer = distances < nearest
        nearest, found = torch.where(closer, distances, nearest), torch.where(closer, number, found)
    shares = (found == target.unsqueeze(1)).to(torch.float64).mean(0)
    return shares > shares.mean()
