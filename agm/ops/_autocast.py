"""Whether autocast changes what a layer does on a device."""

import torch

__all__ = ["autocasts"]


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on there: on the meta device there is none, and torch would raise."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
