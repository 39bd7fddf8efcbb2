"""Initial weights by rule."""

import torch
from torch import nn

__all__ = ["initialise_"]


@torch.no_grad()
def initialise_(network: nn.Module, rule: str) -> None:
    """Draw the weights of linear layers and convolutions anew, from torch's generator; biases and norms stay.

    Args:
        network: changed in place.
        rule: "torch" leaves all as it is; "xavier", of AGM's authors for CREMA-D, draws linear weights from Glorot's
            normal distribution and those of 2-D convolutions from He's uniform one over the outputs.

    Raises:
        ValueError: another rule.
    """
    if rule not in ("torch", "xavier"):
        raise ValueError(f"Expected argument `rule` to be 'torch' or 'xavier', but got {rule!r}.")
    if rule == "torch":
        return
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, mode="fan_out", nonlinearity="relu")
