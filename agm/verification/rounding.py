"""How much rounding alone changes a step: in a network where that is a lot, it is no error."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.verification.result import Verification

__all__ = ["allowing", "perturb", "perturbed"]

_MOST = 30.0  # times what a single perturbation changes: another order of summing may be that much worse
_LARGEST = 0.01  # where rounding changes more than this, nothing can be told


@torch.no_grad()
def perturb(network: nn.Module) -> None:
    """Changes each parameter by the rounding of its dtype, as if it were computed in another order."""
    for parameter in network.parameters():
        parameter.data.copy_(perturbed(parameter.data))


def perturbed(tree: Any) -> Any:
    """A pytree with floating tensors that differ by rounding."""
    return pytree.tree_map(lambda leaf: _other(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _other(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or not tensor.numel():
        return tensor
    places = torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32)
    return tensor * (1.0 + 4.0 * torch.finfo(tensor.dtype).eps * places.cos().to(tensor.dtype).view(tensor.shape))


def allowing(result: Verification, rounding: Mapping[str, Mapping[str, float]]) -> Verification:
    """The result with a tolerance of what rounding explains, if it explains all that exceeds the tolerance.

    Where that is too much for a verdict, it stays as it is, and says so.

    Args:
        result: which is not ok.
        rounding: kind -> where -> how far the definition itself goes when everything is changed by rounding.
    """
    for kind, found in rounding.items():
        for where, value in getattr(result, kind).items():
            if value > result.tolerance and not value <= _MOST * found.get(where, 0.0):
                return result
    most = max(value for found in rounding.values() for value in found.values())
    told = result.worst <= _LARGEST
    then = f"{result.worst:.0e} instead of {result.tolerance:.0e} is tolerated" if told else "nothing can be told"
    advice = (
        f"Rounding alone changes numbers of this step by up to {most:.0e}, as where absent rows amplify (of which "
        f"agm.AGM warns), so that {then}. Say what an absent input is (absent=), or leave its gradient out: "
        "absent_gradient=False."
    )
    return replace(result, tolerance=result.worst if told else result.tolerance, advice=(advice,))
