"""Multimodal Pareto: the joint and the unimodal gradient of each encoder, without conflict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy
from agm.strategies.vectors import dot, gradient

__all__ = ["MMPareto"]


class MMPareto(Strategy):
    """MMPareto (Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024).

    Of each encoder m, with J and U the gradients of the joint loss CE(f, y) and of its own CE(u_m, y), each a vector
    over all of the encoder's parameters:

        (a, b) = (1/2, 1/2)                                           if cos(J, U) > 0
                 ((U - J).U / |U - J|^2, 1 - a)                       else: the shortest vector between them
        n      = 2 a J + 2 b U
        g_m    = gamma * n * (|J + U| / |n| in a conflict, 1 else)

    All other parameters get the gradient of `CE(f, y) + sum_m CE(u_m, y)`. Where n is 0 so is g_m: the encoder is
    Pareto-stationary. M + 1 backward passes a step.

    Departures of the released code (`released=True`): the rescaling is a tensor at a time and only upwards,
    `max(|J_p + U_p| / |n_p|, 1)`, in a conflict or not. A tensor whose n_p is 0 while J_p + U_p is not becomes NaN
    there, as it does here.

    Args:
        network: see `Strategy`.
        gamma: > 0; 1.5 in the released code.
        released: rescale as the released code does.
        common: see `Strategy`. Outside the window all gradients are those of the plain sum of the losses.

    Example:
        >>> strategy = MMPareto(network, heads=linear_heads(network.widths, 6))
    """

    trains_heads = True
    why_alone = "it takes gradients of single losses, which are not averaged over the processes"
    dense = True
    tasks = frozenset({"classes", "labels", "numbers"})

    def __init__(
        self, network: nn.Module, *, gamma: float = 1.5, released: bool = False, **common: Unpack[Common]
    ) -> None:
        super().__init__(network, **common)
        self.gamma = check_number("gamma", gamma)
        self.released = check_flag("released", released)

    def backward(self, batch: Batch) -> None:
        losses = batch.unimodal_losses
        trained = [p for p in self.parameters() if p.requires_grad]
        joint = gradient(batch.joint_loss, trained, retain=True)
        last = self.modalities[-1]
        own = [gradient(losses[name], trained, retain=name != last) for name in self.modalities]
        for place, parameter in enumerate(trained):
            known = [g for g in (joint[place], *(row[place] for row in own)) if g is not None]
            if known:
                parameter.grad = torch.stack(known).sum(0) if len(known) > 1 else known[0].clone()
        if not self.active:
            return
        places = {id(parameter): place for place, parameter in enumerate(trained)}
        weights = []
        with torch.no_grad():
            for group, row in zip(self.parts.parameters(), own, strict=True):
                rows = [(p, joint[places[id(p)]], row[places[id(p)]]) for p in group]
                weights.append(self._combine([(p, j, u) for p, j, u in rows if j is not None and u is not None]))
        # (M,) the weight of the joint gradient; 1 is the plain sum
        self.latest = {"coefficient": 2 * torch.stack(weights)}

    def _combine(self, rows: Sequence[tuple[nn.Parameter, Tensor, Tensor]]) -> Tensor:
        """Writes the gradients of one encoder; () its weight a of the joint gradient."""
        if not rows:
            return torch.full((), 0.5, device=next(self.network.parameters()).device)
        parameters, joint, own = [p for p, _, _ in rows], [j for _, j, _ in rows], [u for _, _, u in rows]
        total, difference = list(torch._foreach_add(joint, own)), list(torch._foreach_sub(own, joint))
        conflict = ~(dot(joint, own) > 0)  # NaN as well, as released
        # |U - J| = 0 in a conflict: both are 0, and any weight will do.
        share = (dot(difference, own) / dot(difference, difference)).nan_to_num(0.5).clamp(0.0, 1.0)
        share = torch.where(conflict, share, 0.5)
        combined = list(torch._foreach_mul(joint, 2 * share))
        torch._foreach_add_(combined, torch._foreach_mul(own, 2 * (1 - share)))
        if self.released:
            for part, whole in zip(combined, total, strict=True):
                part.mul_((whole.norm() / part.norm()).clamp(min=1.0))
        else:
            norm, wanted = dot(combined, combined).sqrt(), dot(total, total).sqrt()
            scale = torch.where(conflict & (norm > 0), wanted / norm, 1.0)
            torch._foreach_mul_(combined, scale)
        torch._foreach_mul_(combined, self.gamma)
        for parameter, part in zip(parameters, combined, strict=True):
            parameter.grad = part
        return share
