"""Learning the modality gap: classification mixed with matching between the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_choice, check_count, check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.heads import linear_heads, pooled
from agm.strategies.measuring import Batches
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Strategy
from agm.strategies.vectors import Vector, dot, gradient

__all__ = ["LFM"]

# Coefficients of 1, e, e^2 ... of the classification's weight in epoch e: the authors' fit to a learned run.
_FITTED = (2.04623704e-01, 3.35472727e-03, 1.22989557e-04, -2.92947416e-06, 2.23835486e-08, -5.39717505e-11)
_FITTED_MATCHING = 7.95376296e-01  # the first one of the matching's weight; the others have the other sign


class LFM(Strategy):
    """LFM (Yang et al., "Facilitating Multimodal Classification via Dynamically Learning Modality Gap", NeurIPS 2024),
    of two modalities.

        L  = (1 - a) CE(f, y) + a MM
        MM = -(1/2B) sum_i (log softmax_k(s_ik)_i + log softmax_k(s_ki)_i),  s_ik = cos(h_1i, h_2k) / temperature

    The weight a of matching is, by `schedule`, in epoch t = 1, 2, ...

        heuristic: a = 1 - exp(-1/t)
        fitted:    a polynomial that the authors fitted to a learned run of 200 epochs
        learned:   a <- a - rate * dV/da, kept in `limits`; V the CE of f on a batch that is not trained on, and
                   dV/da = -(d^2 L / da dtheta) . v,   (d^2 L / dtheta^2 + damping) v = dV/dtheta,
                   by `iterations` steps of conjugate gradients

    Features that are not vectors are averaged over their tokens.

    Departures of the released code (`released=True`): in the place of MM it takes A = (KL(m||p) + KL(m||q))/2 with p, q
    the predictions of the two modalities and m their mean (which is not the Jensen-Shannon divergence: m is the first
    argument); the loss is twice the mix; and the learned schedule has no inverse Hessian: a <- a - rate * mean(H g)
    with g = dV/dtheta on that batch as a constant, H the Hessian of L there, the mean over the entries that belong to
    the first parameter of the network; the rate is halved for good at every 20th epoch. (With batch norm, it
    measures the very first of these in training mode; here all are in eval mode.) It has no heuristic schedule.

    Args:
        network: see `Strategy`.
        schedule: "heuristic", "fitted" or "learned". The last looks at the first batch of the validation split.
        temperature: of MM; 0.2, ours: the paper's is not known.
        rate: of the learned weight; 1e-4 in the released code.
        initial: the weight of matching before it is learned; 0.95.
        limits: of the learned weight; (0.05, 0.95) in the released code, (0, 1) in the paper.
        iterations, damping: of the conjugate gradients; ours.
        released: as the released code.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Raises:
        ValueError: another number of modalities than two.

    Example:
        >>> strategy = LFM(network, schedule="heuristic")
    """

    weight: Tensor  # () float64, of matching
    rate: Tensor  # () float64

    def __init__(
        self,
        network: nn.Module,
        *,
        schedule: Literal["heuristic", "fitted", "learned"] = "heuristic",
        temperature: float = 0.2,
        rate: float = 1e-4,
        initial: float = 0.95,
        limits: Sequence[float] = (0.05, 0.95),
        iterations: int = 10,
        damping: float = 1e-2,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.schedule = check_choice("schedule", schedule, ("heuristic", "fitted", "learned"))
        self.temperature = check_number("temperature", temperature)
        self.iterations, self.damping = check_count("iterations", iterations), check_number("damping", damping)
        self.released = check_flag("released", released)
        if len(self.modalities) != 2:
            raise ValueError(f"Expected two modalities, which LFM matches, but got {len(self.modalities)}.")
        if len(limits) != 2 or not 0 <= limits[0] <= limits[1] <= 1:
            raise ValueError(f"Expected argument `limits` to be 0 <= low <= high <= 1, but got {tuple(limits)}.")
        self.limits = (float(limits[0]), float(limits[1]))
        if self.schedule == "learned":
            self.needs = frozenset({"validation"})
        self.register_buffer("weight", torch.tensor(check_number("initial", initial), dtype=torch.float64))
        self.register_buffer("rate", torch.tensor(check_number("rate", rate), dtype=torch.float64))
        self.hyper_gradient: Tensor | None = None  # () of the last epoch that learned
        if self.released:
            self._require_heads()

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        return None if hasattr(network, "unimodal_logits") else linear_heads(network.widths, num_classes)

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        if not self.active:
            return
        since = epoch - self.start
        if self.schedule == "heuristic":
            self.weight.fill_(-torch.expm1(torch.tensor(-1 / (since + 1), dtype=torch.float64)))
        elif self.schedule == "fitted":
            self.weight.fill_(_FITTED_MATCHING - sum(c * since**n for n, c in enumerate(_FITTED) if n))
        else:
            if self.released and since and since % 20 == 0:
                self.rate.mul_(0.5)
            inputs, target = next(iter(self.required(validation, "validation")))[:2]
            self.hyper_gradient = self._hyper_gradient(inputs, target)
            self.weight.sub_(self.rate * self.hyper_gradient).clamp_(*self.limits)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        classification, matching = batch.joint_loss, self._matching(batch)
        weight = self.weight.to(classification.dtype)
        self.latest = {"terms": torch.stack([classification.detach(), matching.detach()])}
        mixed = (1 - weight) * classification + weight * matching
        if not self.released:
            return mixed
        if self.schedule == "fitted":  # whose two weights are a rounding away from 1
            since = self.epoch - self.start
            mixed = sum(c * since**n for n, c in enumerate(_FITTED)) * classification + weight * matching
        return 2 * mixed

    def _matching(self, batch: Batch) -> Tensor:
        if self.released:
            first, second = (batch.unimodal[name].softmax(-1) for name in self.modalities)
            middle = (first + second) / 2
            rows = middle * (2 * middle.log() - first.log() - second.log())
            return rows.sum(-1).mean() / 2
        first, second = (F.normalize(pooled(batch.features[name]), dim=1) for name in self.modalities)
        products = first @ second.T / self.temperature
        both = products.log_softmax(1).diagonal() + products.log_softmax(0).diagonal()
        return -both.mean() / 2

    def _hyper_gradient(self, inputs: Mapping[str, Any], target: Tensor) -> Tensor:
        """() dV/da on a batch that is not trained on."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad(), evaluation(self.network):
            batch = self.batch(inputs, target)
            classification, matching = batch.joint_loss, self._matching(batch)
            weight = self.weight.to(classification.dtype)
            total = (1 - weight) * classification + weight * matching
            slope = _slope(total, parameters)
            outer = [g.detach() for g in _slope(classification, parameters)]
            if self.released:
                return torch.autograd.grad(dot(slope, outer), parameters)[0].mean().double()
            # The mixed derivative d^2 L / da dtheta is a difference of two gradients.
            mixed = [a - b for a, b in zip(_slope(matching, parameters), outer, strict=True)]
            solved = self._solve(slope, parameters, outer)
            return -dot([g.detach() for g in mixed], solved).double()

    def _solve(self, slope: Vector, parameters: list[nn.Parameter], right: Vector) -> Vector:
        """v of (H + damping) v = right, by conjugate gradients; stops where H is not positive along a direction."""
        solution = [torch.zeros_like(g) for g in right]
        rest, direction = list(right), list(right)
        size = dot(rest, rest)
        for _ in range(self.iterations):
            product = gradient(dot(slope, direction), parameters, retain=True)
            bent = [
                self.damping * d if h is None else h + self.damping * d for h, d in zip(product, direction, strict=True)
            ]
            curvature = dot(direction, bent)
            # Without a branch on the device: a step of 0 where there is nothing to go down.
            step = torch.where((curvature > 0) & (size > 0), size / curvature, 0.0)
            solution = [s + step * d for s, d in zip(solution, direction, strict=True)]
            rest = [r - step * b for r, b in zip(rest, bent, strict=True)]
            left = dot(rest, rest)
            ratio = torch.where(size > 0, left / size, 0.0)
            direction = [r + ratio * d for r, d in zip(rest, direction, strict=True)]
            size = left
        return solution


def _slope(loss: Tensor, parameters: list[nn.Parameter]) -> Vector:
    """Its gradient with a graph; zeros where it does not reach."""
    found = gradient(loss, parameters, graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
