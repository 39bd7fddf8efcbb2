"""AVERFormer: a balanced audio-visual transformer for emotions, as far as its abstract tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.models._checks import check_count, check_heads
from agm.models.cnn import SmallCNN
from agm.models.cross_attention import CrossAttentionFusion
from agm.models.padding import masked_mean
from agm.models.transformer import TransformerEncoder

__all__ = ["DualBranchAudioEncoder", "GuidedAttentionFusion", "averformer"]


class DualBranchAudioEncoder(nn.Module):
    """Sound as a waveform in one branch and as spectrogram and MFCCs in another, which read each other.

    AVERFormer (Sun et al., "AVERFormer: End-to-end audio-visual emotion recognition transformer framework with balanced
    modal contributions", Digital Signal Processing 2025, doi 10.1016/j.dsp.2025.105081) has two branches that take the
    raw waveform, the spectrogram and the MFCCs, one of local details and one that represents long audio globally, and
    lets them interact. Its text is not open, and no code is known. What is ours is everything below that: strided
    convolutions of the waveform, whose maps are averaged to `local_tokens`; a transformer over the frames of
    spectrogram and MFCCs, side by side; and one attention each way, added, with a LayerNorm, between the two.

    The three representations are the input, so that any library may compute them (torchaudio.transforms.Spectrogram and
    MFCC with one hop length have as many frames).

    Args:
        bins: F, of the spectrogram.
        coefficients: K, of the MFCCs.
        width: W, of the tokens, a multiple of `num_heads`.
        num_heads: of every attention.
        num_layers: of the transformer of the global branch.
        local_tokens: of the local branch.
        max_frames: the most frames T.
        dropout: in the global branch.

    Shape: {"waveform": (B, S), "spectrogram": (B, F, T), "mfcc": (B, K, T)}, floating, S >= 41 -> (B, local_tokens + T,
    W), the local tokens first.

    Attributes:
        num_features: W.

    Raises:
        ValueError: a setting that cannot be; on forward, an input that lacks one of the three, or has another shape.
    """

    def __init__(
        self,
        bins: int,
        coefficients: int,
        *,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 1,
        local_tokens: int = 16,
        max_frames: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("bins", bins), ("coefficients", coefficients), ("local_tokens", local_tokens)):
            check_count(name, value)
        check_heads(width, num_heads)
        self.num_features, self.local_tokens, self.bins, self.coefficients = width, local_tokens, bins, coefficients
        self.local = nn.Sequential(
            nn.Conv1d(1, width, 10, stride=5), nn.GELU(), nn.Conv1d(width, width, 8, stride=4), nn.GELU()
        )
        self.local_norm = nn.LayerNorm(width)
        self.globally = TransformerEncoder(
            bins + coefficients,
            width=width,
            num_heads=num_heads,
            num_layers=num_layers,
            max_length=max_frames,
            pool=None,
            dropout=dropout,
        )
        self.to_local, self.to_global = (nn.MultiheadAttention(width, num_heads, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, sound: Mapping[str, Tensor]) -> Tensor:
        wave, spectrogram, mfcc = self._checked(sound)
        local = F.adaptive_avg_pool1d(self.local(wave.unsqueeze(1)), self.local_tokens).transpose(1, 2)
        local = self.local_norm(local)
        frames: Tensor = self.globally(torch.cat([spectrogram, mfcc], 1).transpose(1, 2))
        read, _ = self.to_local(local, frames, frames, need_weights=False)
        written, _ = self.to_global(frames, local, local, need_weights=False)
        first, second = self.norms
        return torch.cat([first(local + read), second(frames + written)], 1)

    def _checked(self, sound: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        names = ("waveform", "spectrogram", "mfcc")
        if not isinstance(sound, Mapping) or set(sound) != set(names):
            got = sorted(sound) if isinstance(sound, Mapping) else type(sound).__name__
            raise ValueError(f"Expected the sound to be a mapping of {', '.join(names)} to tensors, but got {got}.")
        wave, spectrogram, mfcc = (sound[name] for name in names)
        right = wave.dim() == 2 and spectrogram.dim() == mfcc.dim() == 3 and spectrogram.shape[2] == mfcc.shape[2]
        if not right or spectrogram.shape[1] != self.bins or mfcc.shape[1] != self.coefficients or wave.shape[1] < 41:
            raise ValueError(
                f"Expected a waveform (B, S) with S >= 41, a spectrogram (B, {self.bins}, T) and an MFCC "
                f"(B, {self.coefficients}, T) of as many frames, but got {tuple(wave.shape)}, "
                f"{tuple(spectrogram.shape)} and {tuple(mfcc.shape)}."
            )
        return wave, spectrogram, mfcc


class GuidedAttentionFusion(CrossAttentionFusion):
    """Cross-attention whose queries are guided by a summary of all modalities.

        g_l = W_l [mean of n_1, ..., mean of n_M] + b_l
        x_m <- x_m + Attention(query n_m + g_l, keys and values [n_j, j != m])

    in layer l, and otherwise `CrossAttentionFusion`. "Guided cross-modal attention" is AVERFormer's (see
    `DualBranchAudioEncoder`); that the guide is this sum is ours, for what guides it there is not known.

    Args:
        encoders, num_classes, width, depth, num_heads, dropout, num_features: as of `CrossAttentionFusion`.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, **settings: Any) -> None:
        super().__init__(encoders, num_classes, **settings)
        width = self.modality_embedding.shape[1]
        self.guides = nn.ModuleList(nn.Linear(len(self.widths) * width, width) for _ in self.layers)

    def queries(self, layer: int, normed: list[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
        means = torch.cat([masked_mean(x, mask) for x, mask in zip(normed, masks, strict=True)], 1)
        guide = self.guides[layer](means).unsqueeze(1)
        return [x + guide for x in normed]


def averformer(
    num_classes: int,
    *,
    bins: int,
    coefficients: int,
    channels: int = 3,
    width: int = 64,
    num_heads: int = 4,
    depth: int = 1,
    dropout: float = 0.1,
) -> GuidedAttentionFusion:
    """A small AVERFormer: sound in two branches, raw frames of the video, and guided attention between them.

    The hybrid loss of the paper, with unimodal losses and a divergence between the modalities, is the strategy
    `agm.strategies.HybridLoss`; heads of each modality come from `agm.strategies.linear_heads(network.widths, C)`. The
    visual encoder, which takes whole frames as the paper's does, is a `SmallCNN` here.

    Args:
        num_classes: C.
        bins, coefficients: of the sound, as of `DualBranchAudioEncoder`.
        channels: of the frames.
        width, num_heads, dropout: of all parts.
        depth: layers of the fusion.

    Shape: audio as `DualBranchAudioEncoder` takes it, visual (B, T, channels, H, W) -> (B, C).

    Example:
        >>> network = averformer(6, bins=64, coefficients=20)
        >>> heads = agm.strategies.linear_heads(network.widths, 6)
        >>> strategy = agm.strategies.HybridLoss(network, heads=heads)
    """
    encoders = {
        "audio": DualBranchAudioEncoder(bins, coefficients, width=width, num_heads=num_heads, dropout=dropout),
        "visual": SmallCNN(channels, width, pool=None),
    }
    return GuidedAttentionFusion(encoders, num_classes, width=width, depth=depth, num_heads=num_heads, dropout=dropout)
