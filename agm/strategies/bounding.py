"""A modulated backward that cannot turn an encoder's update around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm._passes.masked_passes import MaskedPasses
from agm.modulation.modulator import Modulator
from agm.strategies.batch import Batch
from agm.strategies.parts import Parts

__all__ = ["BoundedPasses"]


class BoundedPasses:
    """The masked passes of AGM, and a backward in which their part of each encoder's gradient is bounded.

    The modulated gradient of encoder m is a sum over passes, `g_m = j_m + r_m`: j_m = mean(kappa) * dL/dtheta_m comes
    through the joint pass, r_m through the masked ones, which run in eval mode and, under batch norm, can be several
    times larger and point against it. With |.| the norm over all of the encoder's parameters,

        g_m = j_m + min(1, bound * |j_m| / |r_m|) * r_m

    so that `<g_m, j_m> >= (1 - bound) |j_m|^2`: for a bound below 1 the update keeps the direction of joint training.
    Parameters outside the encoders get the modulated gradient as it is. Not part of the published method.

    The two parts are one backward each. In exact mode with two encoder passes their graphs are apart, and both
    together are what one backward would be; where features are shared, the encoders' backward runs twice.

    Args:
        parts: the network.
        bound: >= 0.
        masked: as of `agm.AGM`.
    """

    def __init__(
        self,
        parts: Parts,
        bound: float,
        *,
        masked: Literal["exact", "shared"] = "exact",
    ) -> None:
        self.parts, self.bound = parts, bound
        self._passes = MaskedPasses(parts.network, replace(parts.options, masked=masked))
        self._pending: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None

    def forward(self, modulator: Modulator, batch: Batch) -> Tensor:
        """Joint logits (B, ..., C), whose loss goes to `backward`."""
        joint, masked, rows = self._passes.apart(batch.inputs.arguments)
        # Here the graphs are cut off, so that each can be gone through by itself.
        leaf = joint.detach().requires_grad_()
        cut = pytree.tree_map(lambda tensor: tensor.detach().requires_grad_(), masked)
        self._pending = ([joint], pytree.tree_leaves(masked), [leaf, *pytree.tree_leaves(cut)])
        logits: Tensor = modulator(self._passes.put_together(leaf, cut, rows), batch.shaped_target)
        return logits

    def backward(self, loss: Tensor) -> None:
        """Leaves the gradients of a loss of the last forward's logits in the parameters."""
        if self._pending is None:
            raise RuntimeError("Expected a forward before each backward, but there was none.")
        (joint, masked, leaves), self._pending = self._pending, None
        scaled = torch.autograd.grad(loss, leaves)
        parameters = [p for p in self.parts.network.parameters() if p.requires_grad]
        # The graphs may have nodes in common, which the second one needs as well.
        of_joint = _gradients(joint, parameters, scaled[:1], retain=True)
        of_masked = _gradients(masked, parameters, scaled[1:], retain=False)
        place = {id(p): number for number, p in enumerate(parameters)}
        for group in self.parts.parameters():
            numbers = [place[id(p)] for p in group]
            large = _norm([of_joint[number] for number in numbers], loss)
            share = self.bound * large / _norm([of_masked[number] for number in numbers], loss)
            bounded = [g for number in numbers if (g := of_masked[number]) is not None]
            if bounded:
                # 0 / 0, where there is nothing to bound, is no number.
                torch._foreach_mul_(bounded, share.nan_to_num(1.0).clamp(max=1.0))
        for parameter, first, second in zip(parameters, of_joint, of_masked, strict=True):
            if first is not None and second is not None:
                first = first + second
            gradient = second if first is None else first
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _gradients(
    outputs: Sequence[Tensor], parameters: Sequence[nn.Parameter], scaled: Sequence[Tensor], *, retain: bool
) -> list[Tensor | None]:
    pairs = [(output, grad) for output, grad in zip(outputs, scaled, strict=True) if output.requires_grad]
    if not pairs:
        return [None] * len(parameters)
    trained, grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(trained, parameters, grads, retain_graph=retain, allow_unused=True)
    # A copy of what autograd may have handed out twice, since it is scaled in place.
    return [None if gradient is None else gradient.clone() for gradient in found]


def _norm(gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """() L2 norm of all of them together."""
    known = [gradient for gradient in gradients if gradient is not None]
    return nn.utils.get_total_norm(known) if known else like.new_zeros(())
