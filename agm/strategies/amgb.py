"""Adaptive modality gradient balancing."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_number
from agm.strategies.batch import Batch
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.strategy import Common
from agm.strategies.vectors import gradient

__all__ = ["AMGB"]


class AMGB(MultiLoss):
    """The gradient balancing of CMD-HAR (Liu et al., "CMD-HAR: Cross-Modal Disentanglement for Wearable Human Activity
    Recognition", arXiv 2503.21843), from its equations; there is no released code.

        n_m     = |gradient of CE(u_m, y)| over encoder m
        rho_m   = n_m / mean over j != m of n_j
        gamma_m = 1 - tanh(beta * max(rho_m - 1, 0))
        Adam's first moment of encoder m takes gamma_m g, its second g             `moments="first"`
        theta  <- theta + N(0, s_t^2),  s_t^2 = sigma_max^2 (cos(pi t / T) + 1)/2 + sigma_min^2      in step t of T

    so that a modality whose gradient is large is held back, and none is pushed. What is ours: the loss, which the
    paper leaves open for one fused head, is `CE(f, y) + weight * sum_m CE(u_m, y)`; beta; and no noise by default, of
    which the paper gives neither size nor place (here: all parameters, after the step).

    Args:
        network: see `Strategy`.
        beta: >= 0; 0.5, ours.
        weight: of the unimodal losses, >= 0; 1, ours.
        sigma_max, sigma_min: of the noise, >= 0; 0.
        total_steps: T, needed with `sigma_max`.
        common: see `Strategy`; `moments` is "gradient" by default, as for every strategy, and "first" is the paper's.

    Example:
        >>> strategy = AMGB(network, beta=0.5, moments="first")
        >>> strategy.optimizer = torch.optim.Adam(strategy.parameters(), lr=1e-3)
    """

    scales = True
    distributed = False
    why_alone = "it compares gradients of single losses, which are not averaged over the processes"

    def __init__(
        self,
        network: nn.Module,
        *,
        beta: float = 0.5,
        weight: float = 1.0,
        sigma_max: float = 0.0,
        sigma_min: float = 0.0,
        total_steps: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, weight=weight, **common)
        self.beta = check_number("beta", beta)
        self.sigma_max, self.sigma_min = check_number("sigma_max", sigma_max), check_number("sigma_min", sigma_min)
        self.total_steps = None if total_steps is None else check_count("total_steps", total_steps)
        if self.sigma_max and self.total_steps is None:
            raise ValueError(
                "Expected argument `total_steps` to be the number of steps over which the noise is annealed, but got "
                "None. Give it along with sigma_max."
            )
        self._norms: Tensor | None = None
        self._steps = 0

    def stepped(self) -> None:
        if self.active and (self.sigma_max or self.sigma_min):
            share = (math.cos(math.pi * self._steps / self.total_steps) + 1) / 2 if self.total_steps else 0.0
            deviation = math.sqrt(self.sigma_max**2 * share + self.sigma_min**2)
            with torch.no_grad():
                for parameter in self.parameters():
                    if parameter.requires_grad:
                        parameter.add_(self.draws.normal(parameter), alpha=deviation)
        self._steps += 1

    def backward(self, batch: Batch) -> None:
        if self.active:
            losses = batch.unimodal_losses
            norms = []
            for name, group in zip(self.modalities, self.parts.parameters(), strict=True):
                known = [g for g in gradient(losses[name], group, retain=True) if g is not None] if group else []
                norms.append(nn.utils.get_total_norm(known) if known else losses[name].new_zeros(()))
            self._norms = torch.stack(norms).double()
        super().backward(batch)

    def modulate(self, batch: Batch) -> None:
        assert self._norms is not None
        others = (self._norms.sum() - self._norms) / (len(self._norms) - 1)
        # Where all the others' are 0, there is nothing to balance.
        ratios = torch.where(others > 0, self._norms / others, 1.0)
        coefficients = 1 - torch.tanh(self.beta * (ratios - 1).clamp_min(0.0))
        self.scale(coefficients)
        self.latest = {"score": self._norms, "ratio": ratios, "coefficient": coefficients}

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._steps = int(state["steps"])
