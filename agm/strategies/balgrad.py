"""See-saw modality balance: gradients of the task and of agreement, without conflict."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.strategies._checks import check_number
from agm.strategies.batch import Batch
from agm.strategies.strategy import Common, Strategy
from agm.strategies.vectors import dot, gradient

__all__ = ["BalGrad"]


class BalGrad(Strategy):
    """BalGrad ("See-Saw Modality Balance: See Gradient, and Sew Impaired Vision-Language Balance to Mitigate Dominant
    Modality Bias", NAACL 2025), of two modalities, as far as it is known.

        g_T  = gradient of CE(f, y);      g_u of CE(u_1, y) + CE(u_2, y);      k_m of KL(p_other || p_m)
        g_kl = kl * (w_1 k_1 + w_2 k_2)
        g    = g_T - min(<g_T, g_kl>, 0) / |g_kl|^2 * g_kl  +  g_u  +  g_kl

    over all parameters as one vector: agreement of the modalities' predictions never costs the task. What is known
    from the paper: these gradients, that the two of agreement are weighed by how well each modality has learned, and
    the projection. What is ours: the weights w_m = 2 CE_m / (CE_1 + CE_2), larger for the modality that is behind;
    p_other without a graph; and `kl`.

    Args:
        network: see `Strategy`.
        kl: weight of agreement, >= 0; 1, ours.
        common: see `Strategy`. Outside the window it is training with unimodal losses.

    Raises:
        ValueError: another number of modalities than two.

    Example:
        >>> strategy = BalGrad(network)
    """

    trains_heads = True
    why_alone = "it takes gradients of single losses, which are not averaged over the processes"
    dense = True

    def __init__(self, network: nn.Module, *, kl: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(network, **common)
        self.kl = check_number("kl", kl)
        if len(self.modalities) != 2:
            raise ValueError(f"Expected two modalities, which are to agree, but got {len(self.modalities)}.")

    def backward(self, batch: Batch) -> None:
        unimodal = torch.stack([batch.unimodal_losses[name] for name in self.modalities]).sum()
        if not self.active:
            (batch.joint_loss + unimodal).backward()
            return
        parameters = [p for p in self.parameters() if p.requires_grad]
        agreement, weights = self._agreement(batch)
        task = gradient(batch.joint_loss, parameters, retain=True)
        own = gradient(unimodal, parameters, retain=True)
        agree = gradient(agreement, parameters)
        both = [(t, a) for t, a in zip(task, agree, strict=True) if t is not None and a is not None]
        size = dot([a for a in agree if a is not None], [a for a in agree if a is not None])
        product = dot([t for t, _ in both], [a for _, a in both])
        # Agreement that has no gradient is in nobody's way.
        back = torch.where(size > 0, product.clamp_max(0.0) / size, 0.0)
        for parameter, t, u, a in zip(parameters, task, own, agree, strict=True):
            parts = [g for g in (t, u, None if a is None else (1 - back) * a) if g is not None]
            if parts:
                parameter.grad = torch.stack(parts).sum(0)
        self.latest = {"coefficient": weights, "product": product}

    def _agreement(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """() loss, and (M,) weights."""
        weights = batch.cross_entropies / batch.cross_entropies.mean().clamp_min(1e-12)
        first, second = (batch.unimodal[name].log_softmax(-1) for name in self.modalities)
        pairs = ((first, second.detach()), (second, first.detach()))
        rows = [F.kl_div(own, other, reduction="none", log_target=True).sum(-1) for own, other in pairs]
        return self.kl * (weights.to(first.dtype) * batch.mean(torch.stack(rows))).sum(), weights
