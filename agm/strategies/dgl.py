"""Disentangled gradient learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy
from agm.strategies.taken import positions

__all__ = ["DGL"]


class DGL(Strategy):
    """DGL (Wei et al., "Boosting Multimodal Learning via Disentangled Gradient Learning", ICCV 2025): encoders learn
    from unimodal losses alone, and the fusion from the joint loss alone.

        encoders:  the gradient of alpha * sum_m CE(u_m, y),    u_m = f(h_m, 0)
        the rest:  the gradient of CE(f(h), y)

    u_m are the network's logits from the feature of m and zeros for the others', in eval mode behind the encoders, so
    that the encoders read the fusion's weights without moving them. With `heads` they are those of the heads, which
    learn from the unimodal losses too.

    Departures of the released code: FiLM and gated fusions have (h_m, h_m) in the place of (h_m, 0); and the gated one
    cuts the graph behind its first layers, which then have no gradient and stay as they were. It clips the norm of all
    gradients at 40, for which there is `agm train --clip-norm`.

    Args:
        network: see `Strategy`.
        alpha: weight of the unimodal losses, >= 0; 4, the released default. The released scripts have 4 and 5 on
            CREMA-D, 2 and 3 on Kinetics-Sounds.
        common: see `Strategy`. Outside the window the loss is the joint one, for all parameters.

    Example:
        >>> strategy = DGL(network, alpha=4.0)
    """

    why_alone = "it takes gradients of single losses, which are not averaged over the processes"
    dense = True
    tasks = frozenset({"classes", "labels", "numbers"})

    def __init__(self, network: nn.Module, *, alpha: float = 4.0, **common: Unpack[Common]) -> None:
        super().__init__(network, **common)
        self.alpha = check_number("alpha", alpha)

    def backward(self, batch: Batch) -> None:
        if not self.active:
            super().backward(batch)
            return
        losses = torch.stack([self.criterion(logits, batch.target) for logits in self._alone(batch)])
        encoders = [p for group in self.parts.parameters() for p in group]
        own = {id(p) for p in encoders}
        fusion = [p for p in self.network.parameters() if p.requires_grad and id(p) not in own]
        _leave(batch.joint_loss, fusion)
        _leave(self.alpha * losses.sum(), [*encoders, *self.heads.parameters()])
        self.latest = {"score": losses.detach()}

    def _alone(self, batch: Batch) -> list[Tensor]:
        if self.heads:
            return [batch.unimodal[name] for name in self.modalities]
        found = (self.parts.with_only((name,), batch.inputs, batch.features) for name in self.modalities)
        return [positions(logits, batch.shaped_target) for logits in found]


def _leave(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Leaves the gradient of the loss in these parameters alone."""
    trained = [p for p in parameters if p.requires_grad]
    if trained:
        torch.autograd.backward(loss, inputs=trained)
