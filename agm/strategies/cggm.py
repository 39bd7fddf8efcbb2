"""Classifier-guided gradient modulation."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.heads import hidden_heads, last_linear
from agm.strategies.strategy import Common, Strategy

__all__ = ["CGGM"]


class CGGM(Strategy):
    """CGGM (Guo et al., "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning", NeurIPS 2024).

    A classifier of each modality is trained on its encoder's features without reaching the encoder. How its accuracy
    on the batch rose since the batch before, d_m, says how fast modality m learns:

        B_m  = (sum_k d_k - d_m) / sum_k d_k                  1 where the sum is 0; kept within [-limit, limit]
        D    = (1/M) sum_m (|B_m| - B_m cos_m),   cos_m between dL/dW and the gradient of classifier m's last weight
        L    = CE(f, y) + direction * D,          W the weight (C, F) of the network's last layer
        g_m <- rho * B_m * g_m                    of all parameters of encoder m

    Only dL/dW in cos_m has a graph, so that a step with `direction` > 0 takes a second derivative. The classifiers
    are the `heads`; their last linear layers need the shape of W. Give them a group of their own in the optimizer for
    a learning rate of their own, and clip without them, as the authors do (norm 0.8).

    Departures of the released code (`released=True`): `B_m = (S - d_m) / S` with `S = sum_k d_k + 1e-8` and no limit,
    so that improvements that cancel scale an encoder by 1e7; cos_m is between the weights themselves, not their
    gradients; and D acts a step late, as a constant gradient on W.

    Args:
        network: see `Strategy`.
        rho: >= 0; 1.3 on Food-101, CMU-MOSI and IEMOCAP, 1.0 on BraTS.
        direction: weight of D, lambda in the paper, >= 0; 0.2 on CMU-MOSI and IEMOCAP, 0.05 on Food-101, 0.1 on BraTS.
        limit: of |B_m|, > 0; ours.
        last_layer: path of the network's last linear layer; `classifier` in the networks of `agm.models`.
        released: as the released code.
        common: see `Strategy`. Outside the window the classifiers are trained, and the rest is joint training.

    Raises:
        ValueError: `direction` > 0, and no last linear layer or classifiers whose last weights have another shape.

    Example:
        >>> strategy = CGGM(network, heads=hidden_heads(network.widths, network.classifier.in_features, 6))
        >>> groups = [{"params": network.parameters()}, {"params": strategy.heads.parameters(), "lr": 5e-4}]
    """

    scales = True

    accuracies: Tensor  # (M,) float64, of the batch before
    direction_gradient: Tensor  # the released form: gradient of D with respect to W, for the next step

    def __init__(
        self,
        network: nn.Module,
        *,
        rho: float = 1.3,
        direction: float = 0.2,
        limit: float = 10.0,
        last_layer: str | None = None,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.rho, self.direction = check_number("rho", rho), check_number("direction", direction)
        self.limit = check_number("limit", limit)
        self.released = check_flag("released", released)
        if not self.heads:
            raise ValueError(
                "Expected argument `heads` to map each modality to its classifier, but got none. Give for example "
                "heads=agm.strategies.hidden_heads(network.widths, network.classifier.in_features, num_classes)."
            )
        self._weights: list[Tensor] = []  # of the network's last layer, then of the classifiers'
        if self.direction:
            self._weights = self._last_weights(last_layer)
            if self.released:
                self.register_buffer("direction_gradient", torch.zeros_like(self._weights[0]))
        self.register_buffer("accuracies", torch.zeros(len(self.modalities), dtype=torch.float64))

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        last = getattr(network, "classifier", None)
        hidden = last.in_features if isinstance(last, nn.Linear) else max(network.widths.values())
        return hidden_heads(network.widths, hidden, num_classes)

    def backward(self, batch: Batch) -> None:
        probes = batch.probe_losses  # no graph leads from them to an encoder
        classifying = torch.stack([probes[name] for name in self.modalities]).sum()
        if not self.active:
            (batch.joint_loss + classifying).backward()
            return
        total = batch.joint_loss
        scale, improved = self._magnitude(batch)
        if self.direction and not self.released:
            last, *own = self._weights
            (gradient,) = torch.autograd.grad(batch.joint_loss, last, create_graph=True)
            theirs = torch.autograd.grad(classifying, own, retain_graph=True)
            cosines = torch.stack([F.cosine_similarity(gradient.flatten(), g.flatten(), dim=0) for g in theirs])
            total = total + self.direction * self._direction(scale, cosines)
        (total + classifying).backward()
        if self.direction and self.released:
            self._direct_late(scale)
        self.latest["coefficient"] = self.rho * scale
        self.latest["improvement"] = improved

    def modulate(self, batch: Batch) -> None:
        self.scale(self.latest["coefficient"])

    @torch.no_grad()
    def _magnitude(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(M,) B_m and (M,) d_m."""
        hits = torch.stack([batch.probes[name].argmax(-1).eq(batch.target) for name in self.modalities])
        accuracies = hits.double().mean(1)
        improved = accuracies - self.accuracies
        self.accuracies.copy_(accuracies)
        total = improved.sum()
        if self.released:
            return (total + 1e-8 - improved) / (total + 1e-8), improved
        # Accuracies are shares of whole samples: a smaller sum is rounding.
        moved = total.abs() > 1e-9
        scale = ((total - improved) / torch.where(moved, total, 1.0)).clamp(-self.limit, self.limit)
        return torch.where(moved, scale, 1.0), improved

    def _direction(self, scale: Tensor, cosines: Tensor) -> Tensor:  # (M,), (M,) -> ()
        loss = (scale.abs() - scale * cosines).mean()
        self.latest = {"direction_loss": loss.detach().expand(len(scale)), "cosine": cosines.detach()}
        return loss

    def _direct_late(self, scale: Tensor) -> None:
        """Adds the gradient of the D of the step before, and keeps that of this step's for the next."""
        last, *own = (weight.detach() for weight in self._weights)
        last.requires_grad_()
        with torch.enable_grad():
            cosines = torch.stack([F.cosine_similarity(w.flatten(), last.flatten(), dim=0) for w in own])
            (gradient,) = torch.autograd.grad(self._direction(scale, cosines), last)
        if self._weights[0].grad is not None:
            self._weights[0].grad.add_(self.direction_gradient, alpha=self.direction)
        self.direction_gradient.copy_(gradient)

    def _last_weights(self, last_layer: str | None) -> list[Tensor]:
        layer = self.network.get_submodule(last_layer) if last_layer else getattr(self.network, "classifier", None)
        last = [layer] if isinstance(layer, nn.Linear) else []
        layers = [*last, *(last_linear(head) for head in self.heads.values())]
        shapes = [tuple(layer.weight.shape) for layer in layers if layer is not None]
        if not last or len(shapes) != len(layers) or len(set(shapes)) != 1:
            raise ValueError(
                "Expected the last linear layers of the network (argument `last_layer`) and of all `heads` to have "
                f"weights of one shape for the direction of gradients, but got {shapes}. Give such heads, as "
                "agm.strategies.hidden_heads makes them, or direction=0."
            )
        return [layer.weight for layer in layers if layer is not None]
