"""Spiking encoders and the residual cross-modal attention of S-CMRL, on snnTorch's neurons.

Needs the extra agm-torch[spiking]; nothing else in `agm.models` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from agm.models._checks import check_count
from agm.models.factorised import FactorisedNetwork

__all__ = ["LIF", "SpikingCrossAttention", "SpikingEncoder", "semantic_alignment"]


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons, `snntorch.Leaky`, over a whole sequence.

        u_t = decay * u_(t-1) + x_t,   s_t = 1 if u_t > threshold else 0,   u_t <- 0 where s_t = 1

    with the gradient of atan in the place of the step's. The membranes are at rest at the beginning of every call, and
    nothing of them is left after it: two calls with the same input give the same spikes.

    Args:
        decay: of the membrane, in (0, 1).
        threshold: of firing, > 0.

    Shape: (B, T, ...) -> (B, T, ...) of zeros and ones.

    Raises:
        ModuleNotFoundError: snnTorch is not installed.
    """

    def __init__(self, decay: float = 0.5, threshold: float = 1.0) -> None:
        super().__init__()
        try:
            import snntorch
            from snntorch import surrogate
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Spiking networks need snnTorch. Install it with: pip install 'agm-torch[spiking]'."
            ) from error
        self.neurons = snntorch.Leaky(
            beta=decay, threshold=threshold, spike_grad=surrogate.atan(), reset_mechanism="zero", reset_delay=False
        )

    def forward(self, currents: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(currents[:, 0]), []
        for current in currents.unbind(1):
            fired, membrane = self.neurons(current, membrane)
            spikes.append(fired)
        # The library keeps the last membranes, with their graph.
        self.neurons.mem = torch.zeros(0, device=currents.device)
        return torch.stack(spikes, 1)


class SpikingEncoder(nn.Module):
    """Two blocks of 3x3 convolution with stride 2, batch norm and LIF, over `steps` repetitions of an image.

    A small patch splitting in the manner of S-CMRL's (its has more stages).

    Args:
        in_channels: of the images; 1 for spectrograms.
        num_features: C, width of the last block.
        steps: T, how often the image is presented.

    Shape: (B, in_channels, H, W) -> (B, T, C, N) spikes, N = H/4 * W/4, sides rounded up.

    Attributes:
        num_features: as given.
    """

    def __init__(self, in_channels: int = 1, num_features: int = 32, *, steps: int = 4) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("num_features", num_features, least=2)
        check_count("steps", steps)
        self.num_features, self.steps = num_features, steps
        widths = (in_channels, num_features // 2, num_features)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.neurons = nn.ModuleList(LIF() for _ in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1).expand(-1, self.steps, *x.shape[1:])
        for convolution, norm, neurons in zip(self.convolutions, self.norms, self.neurons, strict=True):
            maps = norm(convolution(x.flatten(0, 1)))
            x = neurons(maps.unflatten(0, (-1, self.steps)))
        return x.flatten(3)


class SpikingCrossAttention(FactorisedNetwork):
    """S-CMRL (He et al., "Enhancing Audio-Visual Spiking Neural Networks through Semantic-Alignment and Cross-Modal
    Residual Learning", arXiv 2502.12488): features of other modalities, added as residuals.

        A_m  = LIF(Linear(S(x_m, x_j) * R(x_m, x_j)))              summed over the other modalities j
        S    = mean over positions of attention over positions,    R = mean over time of attention over time
        x_m <- x_m + strength * A_m,   x_m <- x_m + MLP(x_m)
        z    = sum over m of the mean over positions and time of x_m,   logits = Linear(z)

    Queries come from x_m, keys and values from x_j, each by a linear layer, batch norm and LIF (threshold 0.5); the
    attention is `scale * q k^T v`, without a softmax, over time at each position. Of two modalities with as many
    positions that is the paper's. Ours: over time the mean over x_j's positions where the numbers differ; the sum over
    the others of more than two modalities. The MLP is linear, batch norm, LIF, twice.

    Neurons begin at rest in every call and keep nothing, so that masked passes see the network that joint passes see.

    Args:
        encoders: modality name -> module giving spikes (B, T, C, N_m), such as `SpikingEncoder`; T and C are common.
        num_classes: the number of classes.
        strength: of the residuals, alpha in the paper; 1.5.
        scale: of the attention; 0.25.
        num_features: modality name -> C, for encoders without `num_features`.

    Raises:
        ValueError: encoders of different widths; and as `FactorisedNetwork`.
        ModuleNotFoundError: snnTorch is not installed.

    Example:
        >>> network = SpikingCrossAttention({"audio": SpikingEncoder(), "image": SpikingEncoder()}, 10)
        >>> model = agm.AGM(network)
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        strength: float = 1.5,
        scale: float = 0.25,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        if len(set(self.widths.values())) != 1:
            raise ValueError(f"Expected encoders of one width, whose features are added, but got {self.widths}.")
        self.strength = strength
        width = next(iter(self.widths.values()))
        self.blocks = nn.ModuleDict({name: _Block(width, scale) for name in self.widths})
        self.classifier = nn.Linear(width, num_classes)

    def residuals(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """Modality -> A_m, (B, T, C, N_m)."""
        spikes = dict(zip(self.encoders, self.ordered(features), strict=True))
        found = {}
        for name, own in spikes.items():
            block = cast(_Block, self.blocks[name])
            others = [block.attend(own, other) for j, other in spikes.items() if j != name]
            found[name] = torch.stack(others).sum(0) if others else torch.zeros_like(own)
        return found

    def fused_features(self, features: Mapping[str, Any]) -> Tensor:
        """The sum over the modalities (B, C)."""
        return self._pooled(features, self.residuals(features))

    def aligned_features(self, features: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and modality -> A_m averaged over time and positions (B, C), for `semantic_alignment`."""
        residuals = self.residuals(features)
        logits: Tensor = self.classifier(self._pooled(features, residuals))
        return logits, {name: value.mean((1, 3)) for name, value in residuals.items()}

    def _pooled(self, features: Mapping[str, Any], residuals: Mapping[str, Tensor]) -> Tensor:
        total = []
        for name, own in zip(self.encoders, self.ordered(features), strict=True):
            x = own + self.strength * residuals[name]
            total.append((x + cast(_Block, self.blocks[name]).mlp(x)).mean((1, 3)))
        return torch.stack(total).sum(0)


class _Block(nn.Module):
    """What one modality takes from another, and its MLP."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.space, self.time = _Attention(width, scale), _Attention(width, scale)
        self.align, self.neurons = nn.Linear(width, width), LIF(threshold=0.5)
        self.mlp = nn.Sequential(_Fire(width), _Fire(width))

    def attend(self, own: Tensor, other: Tensor) -> Tensor:  # (B, T, C, N), (B, T, C, N') -> (B, T, C, N)
        # Over positions at each time, then over time; of two lengths, the queries' stay.
        space = self.space(own, other, over_time=False).mean(3, keepdim=True)
        time = self.time(own, other, over_time=True).mean(1, keepdim=True)
        mixed = (space * time).movedim(2, 3)
        return cast(Tensor, self.neurons(self.align(mixed).movedim(3, 2)))


class _Attention(nn.Module):
    """`scale * q k^T v` of spikes, over positions at each time or over time at each position."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (_Fire(width, threshold=0.5) for _ in range(3))
        self.scale = scale

    def forward(self, own: Tensor, other: Tensor, *, over_time: bool) -> Tensor:
        query, key, value = self.query(own), self.key(other), self.value(other)
        if over_time:
            if own.shape[3] != other.shape[3]:
                key, value = (part.mean(3, keepdim=True) for part in (key, value))
            query, key, value = (part.permute(0, 3, 1, 2) for part in (query, key, value))  # (B, N or 1, T, C)
            mixed: Tensor = self.scale * (query @ key.transpose(2, 3)) @ value
            return mixed.permute(0, 2, 3, 1)
        query, key, value = (part.transpose(2, 3) for part in (query, key, value))  # (B, T, N, C)
        over_space: Tensor = self.scale * (query @ key.transpose(2, 3)) @ value
        return over_space.transpose(2, 3)


class _Fire(nn.Module):
    """A linear layer over channels, batch norm and LIF: (B, T, C, N) -> (B, T, C, N)."""

    def __init__(self, width: int, threshold: float = 1.0) -> None:
        super().__init__()
        self.linear, self.norm = nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width)
        self.neurons = LIF(threshold=threshold)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(self.linear(x.flatten(0, 1)))
        return cast(Tensor, self.neurons(mixed.unflatten(0, x.shape[:2])))


def semantic_alignment(features: Mapping[str, Tensor], target: Tensor, temperature: float = 0.07) -> Tensor:
    """() the semantic-alignment loss of S-CMRL between two modalities.

        -mean over i, j of [y_i = y_j] log softmax_j(a_i . v_j / temperature)

    Args:
        features: modality -> (B, C), of two modalities, not normalised; `aligned_features` gives them.
        target: (B,) class indices.
        temperature: 0.07 on CREMA-D, 0.08 on UrbanSound8K-AV.

    Raises:
        ValueError: another number of modalities than two.
    """
    if len(features) != 2:
        raise ValueError(f"Expected features of two modalities, which are aligned, but got {len(features)}.")
    first, second = features.values()
    logs = (first @ second.T / temperature).log_softmax(1)
    alike = target.unsqueeze(1) == target.unsqueeze(0)
    return -torch.where(alike, logs, 0.0).mean()
