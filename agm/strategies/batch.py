"""One batch, and the statistics that strategies ask of it: each is computed when it is first asked for, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from agm._module_state.eval_mode import evaluation
from agm.distributed import summed
from agm.strategies.taken import IGNORED, is_dense, positions

if TYPE_CHECKING:
    from agm.strategies.parts import Parts

__all__ = ["Batch", "Criterion", "precise"]

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (B, C), target (B,) -> loss ()


class Batch:
    """Inputs and target of a step, and what the network says about them.

    Everything stays on the device. What is called a statistic has no graph; `logits`, `features`, `unimodal` and the
    losses have one.

    Where the target holds class indices for several positions of a sample (tokens, pixels), each is a row of its own
    here: N is their number, else it is B. Rows of `IGNORED` targets (-100) count in no statistic.

    Where processes train together, `confidences`, `cross_entropies` and `count` are those of all their rows, by one
    all-reduce each in which every process takes part; all else is of this process.

    Attributes:
        inputs: modality -> its input, and the rest of the network's call.
        target: (N,) class indices, or what the criterion takes.
        shaped_target: the target as it was given.
        index: (B,) numbers of the samples in the training set, or None.
        present: (B, M) bool, which modalities of each sample are to be used, or None for all.
        parts: the network.
    """

    def __init__(
        self,
        parts: Parts,
        given: Any,
        target: Tensor,
        criterion: Criterion,
        run: Callable[[Batch], tuple[dict[str, Any] | None, Tensor]],
        index: Tensor | None = None,
        present: Tensor | None = None,
    ) -> None:
        self.parts, self.inputs, self.shaped_target = parts, parts.taken(given), target
        self.target = target.flatten() if is_dense(target) else target
        self.index, self.present = index, present
        self._criterion, self._run = criterion, run

    @cached_property
    def _forward(self) -> tuple[dict[str, Any] | None, Tensor]:
        # A statistic may be the first to ask for it, and the loss the next.
        with torch.enable_grad():
            features, logits = self._run(self)
        return features, positions(logits, self.shaped_target)

    @property
    def logits(self) -> Tensor:
        """(N, C) joint logits; the forward runs when they, or the features, are first asked for."""
        return self._forward[1]

    @property
    def features(self) -> dict[str, Any]:
        """Modality -> what its encoder returned in that forward.

        Raises:
            ValueError: the forward of this strategy does not give them.
        """
        if self._forward[0] is None:
            raise ValueError(
                "Expected a forward that gives the features of its encoders, but this strategy's does not."
            )
        return self._forward[0]

    @cached_property
    def one_hot(self) -> Tensor:
        """(N, C) bool: the class of each row. Unlike `F.one_hot` it does not look at the target's values."""
        return self.target.unsqueeze(1) == torch.arange(self.logits.shape[-1], device=self.target.device)

    @cached_property
    def joint_loss(self) -> Tensor:
        """() criterion of the joint logits."""
        return self._criterion(self.logits, self.target)

    @cached_property
    def unimodal(self) -> dict[str, Tensor]:
        """Modality -> its logits (N, C) alone, with a graph."""
        with torch.enable_grad():
            return self._alone(self.features)

    def _alone(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        found = self.parts.unimodal(self.inputs, features)
        return {name: positions(logits, self.shaped_target) for name, logits in found.items()}

    @cached_property
    def unimodal_losses(self) -> dict[str, Tensor]:
        """Modality -> () criterion of its logits alone, with a graph."""
        return {name: self._criterion(logits, self.target) for name, logits in self.unimodal.items()}

    @cached_property
    def probes(self) -> dict[str, Tensor]:
        """Modality -> its logits (N, C) alone, with a graph that ends before the encoders."""
        cut = {
            name: pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, feature)
            for name, feature in self.features.items()
        }
        with torch.enable_grad():
            return self._alone(cut)

    @cached_property
    def probe_losses(self) -> dict[str, Tensor]:
        """Modality -> () criterion of its probe."""
        return {name: self._criterion(logits, self.target) for name, logits in self.probes.items()}

    @cached_property
    def _unimodal_values(self) -> Tensor:
        """(M, N, C) without a graph."""
        with torch.no_grad():
            known = "unimodal" in self.__dict__
            logits = self.unimodal if known else self._alone(self.features)
            return torch.stack([logits[name].detach() for name in self.parts.modalities])

    @cached_property
    def _log_probabilities(self) -> Tensor:
        """(M, N) log-probability of the true class by each modality alone; of ignored rows that of class 0."""
        values = self._unimodal_values
        logs = precise(values).log_softmax(-1)
        classes = torch.where(self.known, self.target, 0)
        return logs.gather(2, classes.expand(len(values), -1).unsqueeze(2)).squeeze(2)

    @cached_property
    def known(self) -> Tensor:
        """(N,) bool, rows whose target is not ignored."""
        return self.target != IGNORED

    @cached_property
    def count(self) -> Tensor:
        """() float64 statistic: rows that are not ignored, of all processes."""
        return summed(self.known.sum().double(), self.parts.group)

    def mean(self, values: Tensor) -> Tensor:
        """(M,) mean of values (M, N) over the rows that are not ignored, of this process."""
        return torch.where(self.known, values, 0.0).sum(1) / self.known.sum()

    def _mean_of_all(self, values: Tensor) -> Tensor:
        """The same over the rows of all processes."""
        if self.parts.group is None:
            return self.mean(values)
        sums = torch.where(self.known, values, 0.0).sum(1, dtype=torch.float64)
        totals = summed(torch.cat([sums, self.known.sum().double().view(1)]), self.parts.group)
        return (totals[:-1] / totals[-1]).to(values.dtype)

    @cached_property
    def confidences(self) -> Tensor:
        """(M,) statistic: mean probability of the true class by each modality alone."""
        return self._mean_of_all(self._log_probabilities.exp())

    @cached_property
    def cross_entropies(self) -> Tensor:
        """(M,) statistic: mean cross-entropy of each modality alone."""
        return -self._mean_of_all(self._log_probabilities)

    @cached_property
    def masked_logits(self) -> Tensor:
        """(2**M - 1, B, ..., C) statistic: the logits of every subset of modalities, in eval mode."""
        with evaluation(self.parts.network), torch.no_grad():
            return self.parts.masked_logits(self.inputs)

    @cached_property
    def gradient_traces(self) -> Tensor:
        """(M,) statistic: squared norm of the gradient of each encoder, as it was when first asked for.

        It is the trace of the empirical Fisher information of one batch. Ask for it after the backward.
        """
        rows = []
        for parameters in self.parts.parameters():
            gradients = [p.grad for p in parameters if p.grad is not None]
            norms = torch._foreach_norm(gradients) if gradients else [torch.zeros((), device=self.target.device)]
            rows.append(torch.stack([norm.double() for norm in norms]).square().sum())
        return torch.stack(rows)


def precise(values: Tensor) -> Tensor:
    """Values of float16 or bfloat16 as float32; others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
