"""A small convolutional encoder of images and spectrograms."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from agm.models._checks import check_count, check_pool
from agm.models.frames import fold_frames, gather_maps

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three blocks of 3x3 convolution with stride 2, batch norm and ReLU.

    Made for a CPU and any size from 1 x 1 on: 8 x 8 digits and 40 x 80 spectrograms alike. Strides
    halve the sides rather than pooling, which takes three times as long on a CPU.

    Args:
        in_channels: of the images; 1 for spectrograms.
        num_features: width of the last block; the first two have a quarter and half of it.
        pool: "mean" over positions and frames, or None for all positions as tokens.

    Shape: (B, in_channels, H, W), or frames (B, T, in_channels, H, W) -> (B, num_features); with pool=None
    (B, T * H/8 * W/8, num_features), sides rounded up.

    Attributes:
        num_features: as given.
    """

    def __init__(self, in_channels: int = 1, num_features: int = 64, *, pool: Literal["mean"] | None = "mean") -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("num_features", num_features, least=4)
        check_pool(pool)
        self.in_channels = in_channels
        self.num_features = num_features
        self.pool = pool
        widths = [in_channels, num_features // 4, num_features // 2, num_features]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, out, kernel_size=3, stride=2, padding=1, bias=False) for width, out in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for out in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        x, frames = fold_frames(x, self.in_channels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return gather_maps(x, frames, self.pool)
