"""A client of a federation: it reports what it has, and trains what it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from agm.strategies import Strategy
from agm.strategies.heads import pooled
from agm.strategies.parts import evaluation

__all__ = ["Client", "Report", "Update"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Report:
    """What a client tells of its data and the global weights, without training.

    Args:
        samples: of the client.
        joint: (P,) mean gradient of the strategy's loss, of all encoders.
        own: modality -> (P_m,) of its encoder.
        prototypes: modality -> (C, F) class means of features; 0 for a class without a sample.
        counts: (C,) samples of each class.
        ratio: accuracy of the first modality over that of the second, by the nearest prototype.
    """

    samples: int
    joint: Tensor
    own: dict[str, Tensor]
    prototypes: dict[str, Tensor]
    counts: Tensor
    ratio: float


@dataclass(frozen=True)
class Update:
    """What a client sends after training.

    Args:
        samples: of the client.
        weights: name -> tensor of the network: all, or without the encoders of modalities that it did not train.
        prototypes, counts: as of `Report`, after training.
    """

    samples: int
    weights: dict[str, Tensor]
    prototypes: dict[str, Tensor]
    counts: Tensor


class Client:
    """Local data and a strategy over a network of the client's own.

    Args:
        strategy: any of `agm.strategies`, or `agm.federated.ModalEnhancement`, which takes the global prototypes. It
            looks at no split between epochs but `train`.
        batches: local data, (inputs, target), iterated once an epoch.
        make_optimizer: parameters -> optimizer of a round; SGD with learning rate 1e-3 by default.
        epochs: local epochs of a round; 10 in the released settings of BMSFed.

    Example:
        >>> client = Client(ModalEnhancement(network), batches, epochs=2)
        >>> update = client.fit(weights, prototypes, known, modality="audio")
    """

    def __init__(
        self,
        strategy: Strategy,
        batches: Sequence[tuple[Mapping[str, Any], Tensor]],
        *,
        make_optimizer: MakeOptimizer | None = None,
        epochs: int = 10,
    ) -> None:
        self.strategy, self.batches, self.epochs = strategy, batches, epochs
        self.make_optimizer = make_optimizer or _sgd

    def report(self, weights: Mapping[str, Tensor], prototypes: Mapping[str, Tensor], known: Tensor | None) -> Report:
        """At the global weights; the client's are those afterwards."""
        self._take(weights, prototypes, known, None)
        own, samples = self._gradients()
        means, counts = self._prototypes()
        flat = {name: torch.cat([g.flatten() for g in rows]) for name, rows in own.items()}
        return Report(samples, torch.cat(list(flat.values())), flat, means, counts, self._ratio(means, counts))

    def fit(
        self,
        weights: Mapping[str, Tensor],
        prototypes: Mapping[str, Tensor],
        known: Tensor | None,
        modality: str | None = None,
    ) -> Update:
        """Train from the global weights, on all modalities or one."""
        self._take(weights, prototypes, known, modality)
        strategy = self.strategy.train()
        optimizer = self.make_optimizer(strategy.parameters())
        strategy.optimizer, samples = optimizer, 0
        for epoch in range(self.epochs):
            strategy.begin_epoch(epoch, train=self.batches)
            samples = 0
            for inputs, target in self.batches:
                present = self._present(len(target), modality, target.device)
                for _ in strategy.steps(inputs, target, present=present):
                    optimizer.step()
                samples += len(target)
            strategy.end_epoch(train=self.batches)
        means, counts = self._prototypes()
        return Update(samples, self._sent(modality), means, counts)

    def _take(
        self,
        weights: Mapping[str, Tensor],
        prototypes: Mapping[str, Tensor],
        known: Tensor | None,
        modality: str | None,
    ) -> None:
        self.strategy.network.load_state_dict(dict(weights))
        receive = getattr(self.strategy, "receive", None)
        if callable(receive) and known is not None:
            receive(prototypes, known, modality)

    def _present(self, samples: int, modality: str | None, device: torch.device) -> Tensor | None:
        if modality is None:
            return None
        names = self.strategy.modalities
        return torch.tensor([name == modality for name in names], device=device).expand(samples, len(names))

    def _gradients(self) -> tuple[dict[str, list[Tensor]], int]:
        """Modality -> mean gradient of each parameter of its encoder over all samples."""
        strategy = self.strategy.train()
        groups = dict(zip(strategy.modalities, strategy.parts.parameters(), strict=True))
        totals = {name: [torch.zeros_like(p) for p in group] for name, group in groups.items()}
        buffers = {name: value.clone() for name, value in strategy.network.named_buffers()}
        samples = 0
        for inputs, target in self.batches:
            strategy.zero_grad(set_to_none=True)
            strategy.loss(strategy.batch(inputs, target)).backward()
            samples += len(target)
            for name, group in groups.items():
                for total, p in zip(totals[name], group, strict=True):
                    if p.grad is not None:
                        total.add_(p.grad, alpha=len(target))
        strategy.zero_grad(set_to_none=True)
        with torch.no_grad():
            # A report changes nothing, running statistics among it.
            for name, buffer in strategy.network.named_buffers():
                buffer.copy_(buffers[name])
        return {name: [total / samples for total in rows] for name, rows in totals.items()}, samples

    @torch.no_grad()
    def _prototypes(self) -> tuple[dict[str, Tensor], Tensor]:
        sums: dict[str, Tensor] = {}
        counts: Tensor | None = None
        for features, hot, _ in self._features():
            counts = hot.sum(0) if counts is None else counts + hot.sum(0)
            for name, feature in features.items():
                total = hot.T.to(feature.dtype) @ feature
                sums[name] = total if name not in sums else sums[name] + total
        assert counts is not None
        return {name: total / counts.clamp_min(1).unsqueeze(1) for name, total in sums.items()}, counts

    @torch.no_grad()
    def _ratio(self, prototypes: Mapping[str, Tensor], counts: Tensor) -> float:
        hits = dict.fromkeys(self.strategy.modalities, 0)
        for features, _, target in self._features():
            for name, feature in features.items():
                distances = torch.cdist(feature, prototypes[name]).masked_fill(counts == 0, torch.inf)
                hits[name] += int(distances.argmin(1).eq(target).sum())
        first, second = list(hits.values())[:2]
        return first / max(second, 1)

    def _features(self) -> Iterable[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Of each batch in eval mode: features (B, F), classes (B, C) one-hot and (B,)."""
        for inputs, target in self.batches:
            with evaluation(self.strategy.network):
                features, logits = self.strategy.parts.run(inputs)
            vectors = {name: pooled(value) for name, value in features.items()}
            yield vectors, F.one_hot(target, logits.shape[-1]), target

    def _sent(self, modality: str | None) -> dict[str, Tensor]:
        """Weights of the network, without encoders that were not trained."""
        parts = self.strategy.parts
        others = {id(m) for name, m in parts.encoders.items() if modality not in (None, name)}
        paths = [path for path, module in self.strategy.network.named_modules() if id(module) in others]
        state = self.strategy.network.state_dict()
        return {n: v.clone() for n, v in state.items() if not any(n.startswith(f"{path}.") for path in paths)}


def _sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)
