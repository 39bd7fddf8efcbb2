"""CMD-HAR: a network for activities from wearable sensors, one encoder a sensor modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.models._checks import check_count
from agm.models.factorised import FactorisedNetwork, concatenate

__all__ = ["ChannelExpansion", "SensorEncoder", "SensorFusion", "disentangling_loss"]


class ChannelExpansion(nn.Module):
    """Split attention over groups of channels (CMD-HAR, arXiv 2503.21843; the form of ResNeSt).

        X^k = sum over i of X_ki,   s^k = its mean over time
        a_ki(c) = softmax over i of G_i^c(s^k)   for `radix` > 1, else its sigmoid
        f^k_c   = sum over i of a_ki(c) X_ki

    for k of `cardinality` groups of `radix` sub-groups each. G is two layers a group, which share nothing.

    Args:
        in_channels: of the signal.
        width: of the output, a multiple of `cardinality`.
        cardinality: K.
        radix: R.

    Shape: (B, in_channels, T) -> (B, width, T).

    Raises:
        ValueError: `width` is no multiple of `cardinality`.
    """

    def __init__(self, in_channels: int, width: int, *, cardinality: int = 2, radix: int = 2) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("cardinality", cardinality), ("radix", radix)):
            check_count(name, value)
        if width < 1 or width % cardinality:
            raise ValueError(f"Expected argument `width` to be a multiple of {cardinality} groups, but got {width}.")
        self.cardinality, self.radix = cardinality, radix
        self.expand = nn.Conv1d(in_channels, width * radix, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(width * radix)
        self.squeeze = nn.Conv1d(width, width, 1, groups=cardinality)
        self.excite = nn.Conv1d(width, width * radix, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.expand(x)))
        groups = x.unflatten(1, (self.cardinality, self.radix, -1))  # (B, K, R, W / K, T)
        pooled = groups.sum(2).mean(-1).flatten(1).unsqueeze(-1)  # (B, W, 1)
        scores = self.excite(F.relu(self.squeeze(pooled))).unflatten(1, (self.cardinality, self.radix, -1))
        shares = scores.softmax(2) if self.radix > 1 else scores.sigmoid()
        mixed: Tensor = (shares * groups).sum(2).flatten(1, 2)
        return mixed


class SensorEncoder(nn.Module):
    """Channel expansion, then the disentangled parts of a signal: spatial, temporal and public.

    The spatial part F_S is self-attention over the channels, the temporal part F_T over time, the public part F_P
    attention from time to channels, each averaged over its tokens. That there are these three, and the attention
    softmax(Q K^T / sqrt(d)) V, is CMD-HAR's; tokens and their averages are ours.

    Args:
        in_channels: of the sensor.
        width: W.
        cardinality, radix: of `ChannelExpansion`.

    Shape: (B, in_channels, T) -> (B, 3 W), F_S, F_T and F_P side by side.

    Attributes:
        num_features: 3 W.
    """

    def __init__(self, in_channels: int, width: int = 16, *, cardinality: int = 2, radix: int = 2) -> None:
        super().__init__()
        self.num_features, self.width = 3 * width, width
        self.expansion = ChannelExpansion(in_channels, width, cardinality=cardinality, radix=radix)
        self.spatial, self.temporal, self.public = (_Attention(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        channels = self.expansion(x)  # (B, W, T)
        times = channels.transpose(1, 2)
        # A token a channel, of W numbers whatever the length of the window.
        signals = F.adaptive_avg_pool1d(channels, self.width)
        parts = (self.spatial(signals, signals), self.temporal(times, times), self.public(times, signals))
        return torch.cat([part.mean(1) for part in parts], 1)


class SensorFusion(FactorisedNetwork):
    """CMD-HAR's alignment of modalities, and a linear layer.

        f^ = group norm of all features, one group a modality;   P = [mean, maximum] of each modality's f^
        A  = sigmoid(W_2 relu(W_1 P + b_1) + b_2);               f_m <- A_m * f^_m + f_m

    That A is one number a modality is ours: the paper does not say over what it pools.

    Args:
        encoders: modality -> module giving (B, F), of one width, such as `SensorEncoder`.
        num_classes: C.
        num_features: modality -> F, for encoders without `num_features`.

    Raises:
        ValueError: features of different widths; and as `FactorisedNetwork`.

    Example:
        >>> network = SensorFusion({"acceleration": SensorEncoder(3), "rotation": SensorEncoder(3)}, 6)
        >>> strategy = agm.strategies.AMGB(network, heads=linear_heads(network.widths, 6), moments="first")
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], num_classes: int, *, num_features: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        if len(set(self.widths.values())) != 1:
            raise ValueError(f"Expected features of one width, which are aligned, but got {self.widths}.")
        total, count = sum(self.widths.values()), len(self.widths)
        self.norm = nn.GroupNorm(count, total)
        self.first, self.second = nn.Linear(2 * count, 4 * count), nn.Linear(4 * count, count)
        self.classifier = nn.Linear(total, num_classes)

    def fused_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """The aligned features of all modalities, (B, M F)."""
        plain = concatenate(self.vectors(features))
        normal = self.norm(plain).unflatten(1, (len(self.widths), -1))  # (B, M, F)
        pooled = torch.cat([normal.mean(2), normal.amax(2)], 1)
        shares = self.second(F.relu(self.first(pooled))).sigmoid().unsqueeze(2)
        aligned: Tensor = (shares * normal).flatten(1) + plain
        return aligned


class _Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V of one head: (B, N, W) and (B, N', W) -> (B, N, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(own), self.key(other), self.value(other))


def disentangling_loss(feature: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """() CMD-HAR's loss between the parts of one modality's feature, mean over the samples.

        w_1 |F_S - F_T|^2 + w_2 |F_P - F_S|^2 + w_3 |F_P - F_T|^2

    as it is printed. The paper's text wants F_S and F_T apart, which a negative w_1 does; its weights are not given.

    Args:
        feature: (B, 3 W) of `SensorEncoder`.
        weights: w_1, w_2 and w_3.

    Raises:
        ValueError: the width is no multiple of 3.
    """
    if feature.shape[-1] % 3:
        raise ValueError(f"Expected a feature of three parts, (B, 3 W), but got {tuple(feature.shape)}.")
    spatial, temporal, public = feature.chunk(3, dim=-1)
    pairs = ((spatial, temporal), (public, spatial), (public, temporal))
    return torch.stack([w * (a - b).square().sum(-1).mean() for w, (a, b) in zip(weights, pairs, strict=True)]).sum()
