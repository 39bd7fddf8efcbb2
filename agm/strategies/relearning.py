"""Diagnosing and re-learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_number
from agm.strategies.heads import pooled
from agm.strategies.measuring import Batches
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Strategy

__all__ = ["Relearning", "k_means"]

Cluster = Callable[[Tensor, int], Tensor]  # features (N, F), clusters -> numbers of their clusters (N,)


class Relearning(Strategy):
    """Diagnosing & Re-learning (Wei et al., "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024).

    After some epochs each encoder goes back towards its first weights, by how much better its features separate the
    classes of the training samples than those of the validation samples:

        P_m(D)   = sum over clusters of the largest class count, over |D|     features scaled to [-1, 1], C clusters
        gap_m    = |P_m(train) - P_m(validation)|
        theta_m <- (1 - a_m) theta_m + a_m theta_m(0),   a_m = tanh(strength * gap_m)

    It happens at the end of epochs `start + every`, `start + 2 every`, ... (counted from 0), at most `times`. Buffers
    such as running statistics, all parameters outside the encoders and the optimizer's momentum stay. Each of the sets
    is scaled by its own minima and maxima, as in the released code. That code leaves the number of starts of k-means
    to scikit-learn, whose versions differ in it; here it is 10.

    Args:
        network: see `Strategy`. Its weights at this moment are the first ones.
        strength: lambda in the paper, >= 0; 3 on CREMA-D, 7 on Kinetics-Sounds and UCF-101, 8 on CMU-MOSI.
        every: epochs between two; 20, and 5 on CMU-MOSI.
        times: how often at most; 3 in the released code.
        cluster: (features (N, F), clusters) -> number of each sample's cluster (N,); k-means of scikit-learn by
            default, which needs the extra agm-torch[strategies].
        common: see `Strategy`.

    Example:
        >>> strategy = Relearning(network, strength=3.0)
        >>> strategy.end_epoch(train=train_loader, validation=validation_loader)
    """

    needs = frozenset({"train", "validation"})
    count: Tensor  # () int64, how often it happened
    strengths: Tensor  # (M,) float64, a_m of the last time

    def __init__(
        self,
        network: nn.Module,
        *,
        strength: float = 3.0,
        every: int = 20,
        times: int = 3,
        cluster: Cluster | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.strength = check_number("strength", strength)
        self.every, self.times = check_count("every", every), check_count("times", times)
        self.cluster = cluster or k_means
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("strengths", torch.zeros(len(self.modalities), dtype=torch.float64))
        self._first: list[list[str]] = []  # names of the buffers with the first weights of each encoder
        for name, encoder in self.parts.encoders.items():
            names = []
            for place, parameter in enumerate(encoder.parameters()):
                names.append(f"first_{name}_{place}")
                self.register_buffer(names[-1], parameter.detach().clone())
            self._first.append(names)

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        since = self.epoch - self.start
        if not self.active or since <= 0 or since % self.every or int(self.count) >= self.times:
            return
        seen = self._purities(self.required(train, "train"))
        new = self._purities(self.required(validation, "validation"))
        strengths = [math.tanh(self.strength * abs(a - b)) for a, b in zip(seen, new, strict=True)]
        for share, names, encoder in zip(strengths, self._first, self.parts.encoders.values(), strict=True):
            parameters: list[Tensor] = list(encoder.parameters())
            first = [self.get_buffer(name) for name in names]
            torch._foreach_mul_(parameters, 1 - share)
            torch._foreach_add_(parameters, first, alpha=share)
        self.strengths.copy_(torch.tensor(strengths, dtype=torch.float64))
        self.count.add_(1)

    def _purities(self, batches: Batches) -> list[float]:
        """Of the features of each modality in eval mode."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.modalities}
        targets = []
        for inputs, target in batches:
            with evaluation(self.network):
                features, logits = self.parts.run(inputs)
            targets.append(target)
            for name in self.modalities:
                rows[name].append(pooled(features[name]))
        classes, target = logits.shape[-1], torch.cat(targets)
        return [self._purity(torch.cat(rows[name]), target, classes) for name in self.modalities]

    def _purity(self, features: Tensor, target: Tensor, classes: int) -> float:
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        low, high = features.amin(0), features.amax(0)
        spread = torch.where(high > low, high - low, 1.0)
        clusters = self.cluster(2 * (features - low) / spread - 1, classes).to(target.device)
        counts = torch.bincount(clusters.long() * classes + target, minlength=classes * classes)
        return int(counts.view(-1, classes).amax(1).sum()) / len(target)


def k_means(features: Tensor, clusters: int) -> Tensor:
    """Numbers of the clusters (N,) of features (N, F) by k-means of scikit-learn: k-means++, 10 starts, seed 0.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Re-learning clusters features with scikit-learn. Install it with: pip install 'agm-torch[strategies]', or "
            "give a function of your own as `cluster`."
        ) from error
    found = KMeans(n_clusters=min(clusters, len(features)), n_init=10, random_state=0).fit_predict(
        features.cpu().numpy()
    )
    return torch.from_numpy(found)
