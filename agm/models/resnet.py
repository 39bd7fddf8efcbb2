"""ResNet-18, with torchvision's parameter names."""

from typing import Literal

from torch import Tensor, nn

from agm.models._checks import check_count, check_pool
from agm.models.frames import fold_frames, gather_maps

__all__ = ["BasicBlock", "ResNet18"]


class ResNet18(nn.Module):
    """The 18-layer residual network without its classifier (He et al., "Deep residual learning", CVPR 2016).

    Parameters carry torchvision's names (`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0` ...), so
    that its weights load once `fc` is left out:

        weights = {k: v for k, v in torchvision_state_dict.items() if not k.startswith("fc.")}
        ResNet18(in_channels=3).load_state_dict(weights)

    Args:
        in_channels: of the images; 1 for spectrograms.
        pool: "mean" over positions and frames, or None for all positions as tokens.

    Shape: (B, in_channels, H, W), or frames (B, T, in_channels, H, W) -> (B, 512); with pool=None
    (B, T * H/32 * W/32, 512), sides rounded up.

    Attributes:
        num_features: 512.
    """

    num_features = 512

    def __init__(self, in_channels: int = 3, *, pool: Literal["mean"] | None = "mean") -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_pool(pool)
        self.in_channels = in_channels
        self.pool = pool
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _layer(64, 64, stride=1)
        self.layer2 = _layer(64, 128, stride=2)
        self.layer3 = _layer(128, 256, stride=2)
        self.layer4 = _layer(256, 512, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x, frames = fold_frames(x, self.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return gather_maps(x, frames, self.pool)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (projected where the shape changes)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(x)) + identity)
        return out


def _layer(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels))
