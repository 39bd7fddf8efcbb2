"""A linear head on what networks of one modality each have learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_count, check_number
from agm.strategies.ensemble import UnimodalEnsemble
from agm.strategies.heads import pooled
from agm.strategies.measuring import Batches
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common

__all__ = ["StackedEnsemble"]


class StackedEnsemble(UnimodalEnsemble):
    """Stacked ensemble (Wolpert, "Stacked Generalization", Neural Networks 1992) of unimodal networks: these are
    trained as in `UnimodalEnsemble`, and after each epoch a linear head is fitted to what they say, as they stand.

        f = W x + b,     x = (u_1, ..., u_M) or (h_1, ..., h_M), in eval mode
        minimised: mean criterion(f, y) + penalty / 2 |W'|^2,    W' = W times the deviation of each x

    The fit is a convex problem for cross-entropy: L-BFGS from W = 0, in double precision, anew each time, so that the
    head depends on the networks of that moment alone. It costs a pass over the split, forward only, and the fit.

    Networks are surer of samples that they were trained on than of others, and the head weighs them by that. Wolpert
    fits it to samples that they have not seen: `split="validation"`. The form with `split="train"` is the usual
    linear head on frozen encoders.

    Losses and logits of the steps are those of the mean of logits; `predictor` has the head.

    Args:
        network: see `Strategy`; only its encoders are used.
        on: "logits", or "features", which are averaged over their tokens.
        split: that the head is fitted to: "train" or "validation".
        penalty: >= 0; 0.001, ours. Without one there may be no best head.
        iterations: of L-BFGS at most; 100.
        widths: modality -> width of its feature, for a network that does not say it.
        num_classes: C, for a network that does not say it.
        common: see `UnimodalEnsemble`.

    Raises:
        ValueError: see `UnimodalEnsemble`; or widths or classes that are not known.

    Example:
        >>> strategy = StackedEnsemble(network, heads=linear_heads(network.widths, 6))
        >>> strategy.end_epoch(train=train_loader)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        on: Literal["logits", "features"] = "logits",
        split: Literal["train", "validation"] = "train",
        penalty: float = 1e-3,
        iterations: int = 100,
        widths: Mapping[str, int] | None = None,
        num_classes: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.on = check_choice("on", on, ("logits", "features"))
        self.split = check_choice("split", split, ("train", "validation"))
        self.needs = frozenset({self.split})
        self.penalty, self.iterations = check_number("penalty", penalty), check_count("iterations", iterations)
        known: Any = network
        widths, classes = widths or getattr(known, "widths", None), num_classes or getattr(known, "num_classes", None)
        if not classes or (self.on == "features" and not widths):
            raise ValueError(
                "Expected arguments `num_classes` and, on features, `widths` (modality -> width of its feature) for a "
                f"network that does not say them, but got {classes!r} and {widths!r}."
            )
        size = classes * len(self.modalities)
        if self.on == "features" and widths:
            size = sum(widths[name] for name in self.modalities)
        like = next(network.parameters())
        self.stack = nn.Linear(size, classes, device=like.device, dtype=like.dtype).requires_grad_(False)

    def together(self, features: Mapping[str, Any]) -> Tensor:
        logits: Tensor = self.stack(self._read(features))
        return logits

    def _read(self, features: Mapping[str, Any]) -> Tensor:
        """(B, D) what the head reads."""
        if self.on == "features":
            return torch.cat([pooled(features[name]) for name in self.modalities], 1)
        return torch.cat([self.alone(name, features[name]) for name in self.modalities], 1)

    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        given = train if self.split == "train" else validation
        rows, targets = [], []
        with torch.no_grad(), evaluation(self.network), evaluation(self.heads):
            for inputs, target, *_ in self.required(given, self.split):
                taken = self.parts.taken(inputs)
                rows.append(self._read({name: self.parts.encode(name, taken) for name in self.modalities}))
                targets.append(target)
        self._fit(torch.cat(rows).double(), torch.cat(targets))

    def _fit(self, rows: Tensor, target: Tensor) -> None:  # (N, D) float64, (N, ...)
        mean, deviation = rows.mean(0), rows.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        rows = (rows - mean) / deviation
        target = target.double() if target.is_floating_point() else target
        weight = rows.new_zeros(self.stack.weight.shape, requires_grad=True)
        bias = rows.new_zeros(len(weight), requires_grad=True)
        # Its own tolerances end the search while logits still move in their fourth digit.
        search = torch.optim.LBFGS(
            [weight, bias],
            max_iter=self.iterations,
            tolerance_grad=1e-9,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            search.zero_grad()
            fit = self.criterion(torch.addmm(bias, rows, weight.T), target)
            total = fit + self.penalty / 2 * weight.square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            search.step(loss)
        with torch.no_grad():
            scaled = weight / deviation
            self.stack.weight.copy_(scaled)
            self.stack.bias.copy_(bias - scaled @ mean)
