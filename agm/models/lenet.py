"""LeNet as MultiBench has it, for digits and their spectrograms."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from agm.models._checks import check_count
from agm.models.frames import fold_frames

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """Blocks of convolution, batch norm, ReLU and a maximum over 2 x 2, each with twice the channels of the one before,
    until the shorter side is 1 (Liang et al., "MultiBench", NeurIPS Datasets 2021, of AV-MNIST's encoders).

    The first convolution is 5 x 5, the others 3 x 3.

    Args:
        in_channels: of the images; 1 for spectrograms.
        side: the shorter side of the images, which decides about the number of blocks: 4 for 28, 6 for 112.
        channels: of the first block.

    Shape: (B, in_channels, H, W), or frames (B, T, in_channels, H, W) -> (B, num_features), the mean over what is left.

    Attributes:
        num_features: channels * 2 ** (blocks - 1): 48 for side 28, 192 for 112.

    Raises:
        ValueError: an argument out of range; on forward another shape.
    """

    def __init__(self, in_channels: int, side: int, *, channels: int = 6) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("side", side, least=2)
        check_count("channels", channels)
        blocks = side.bit_length() - 1
        widths = [in_channels, *(channels * 2**block for block in range(blocks))]
        self.in_channels = in_channels
        self.num_features = widths[-1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, out, 3 if block else 5, padding=1 if block else 2, bias=False)
            for block, (width, out) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        x, frames = fold_frames(x, self.in_channels)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
        feature = x.mean((2, 3))
        return feature if frames == 1 else feature.unflatten(0, (-1, frames)).mean(1)
