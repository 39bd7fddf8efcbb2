"""Coefficients that act on Adam's first moment, so that its normalisation does not cancel them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["FirstMoment", "normalises"]


def normalises(optimizer: Optimizer) -> bool:
    """Whether it divides by a second moment (Adam, AdamW); for SGD the gradient's scale is the step's.

    Raises:
        ValueError: another optimizer, whose moments are not known.
    """
    if isinstance(optimizer, (Adam, AdamW)):
        if any(not float(group["betas"][0]) for group in optimizer.param_groups):
            raise ValueError(
                "Expected `betas` of the optimizer to begin above 0 for moments='first', but got 0: there is no first "
                "moment then. Use moments='gradient'."
            )
        return True
    if isinstance(optimizer, SGD):
        return False
    raise ValueError(
        f"Expected the optimizer to be torch's Adam, AdamW or SGD for moments='first', but got "
        f"{type(optimizer).__name__}. Use moments='gradient'."
    )


class FirstMoment:
    """Steps of an Adam in which the first moment of some parameters takes `k * g` in the place of g.

        m <- b1 m + (1 - b1) k g
        v <- b2 v + (1 - b2) g^2                    as ever, and all else too

    Scaling the gradient itself would scale m and the root of v alike, and their quotient not at all. The coefficients
    are CMD-HAR's (adaptive modality gradient balancing). Torch's own step is left as it is, foreach or fused: before it
    `(1 - b1) / b1 * (k - 1) * g` is added to m, which its decay turns into the difference.

    The gradients that count are those at the step, after clipping. A step whose gradients are still multiplied by a
    `torch.amp.GradScaler` needs `scaler.unscale_(optimizer)` before it.

    Args:
        optimizer: torch's Adam or AdamW; hooked until it is collected.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._factors: dict[nn.Parameter, Tensor] = {}
        optimizer.register_step_pre_hook(self._before)

    def scale(self, factors: Mapping[nn.Parameter, Tensor]) -> None:
        """For the next step: parameter -> its coefficient k, () or one an element."""
        self._factors = dict(factors)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        factors, self._factors = self._factors, {}
        for group in optimizer.param_groups:
            first = float(group["betas"][0])
            share = (-1 if group["maximize"] else 1) * (1 - first) / first
            moments, added = [], []
            for parameter in group["params"]:
                factor = factors.get(parameter)
                if factor is None or parameter.grad is None:
                    continue
                state = optimizer.state[parameter]
                if not state:
                    _initialise(parameter, state, group)
                moments.append(state["exp_avg"])
                added.append(parameter.grad * (factor - 1).to(parameter.grad.dtype))
            if moments:
                torch._foreach_add_(moments, added, alpha=share)


def _initialise(parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
    """The state of a parameter before its first step, as `torch.optim.Adam` makes it."""
    wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
    dtype = torch.float64 if wide else torch.float32
    on_device = group["capturable"] or group["fused"]
    state["step"] = torch.zeros((), dtype=dtype, device=parameter.device if on_device else "cpu")
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    for name in names:
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
