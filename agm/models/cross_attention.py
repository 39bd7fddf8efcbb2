"""Cross-attention fusion: token sequences that attend to each other, layer by layer."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction, check_heads
from agm.models.factorised import FactorisedNetwork, concatenate
from agm.models.padding import (
    check_padding_mask,
    masked_attention_inputs,
    masked_mean,
    read_padded,
    zero_padding,
)

__all__ = ["CrossAttentionFusion"]


class CrossAttentionFusion(FactorisedNetwork):
    """Hybrid fusion: every modality's tokens attend to those of all others; pooled, they are classified.

    Tokens are projected to a common width and get a learned embedding of their modality. In each of `depth`
    layers, all modalities at once (co-attention: Lu et al., "ViLBERT", NeurIPS 2019; cross-modal blocks: Tsai
    et al., "MulT", ACL 2019), with n = LayerNorm(x):

        x_m <- x_m + Attention(query n_m, keys and values [n_j, j != m]),   x_m <- x_m + MLP(LayerNorm(x_m))

    A last LayerNorm, the mean over the valid tokens, and a linear layer on the concatenation follow. A single
    modality attends to itself. Positions are the encoders' business: attention sees a set.

    A feature is (B, T_m, D_m), or (B, D_m) for one token, or {"tokens": (B, T_m, D_m), "padding_mask":
    (B, T_m) bool, True = padding}; T_m may differ between modalities. Padded tokens influence nothing; a
    modality whose tokens are all padding gives nothing to the others and is pooled to zeros.

    Args:
        encoders: modality name -> module giving tokens, such as `SmallCNN(pool=None)`.
        num_classes: C.
        width: common width of the tokens, a multiple of `num_heads`.
        depth: number of layers.
        num_heads: heads of each attention.
        dropout: probability inside attention and MLPs.
        num_features: modality name -> D_m, for encoders without `num_features`.

    Raises:
        ValueError: `width` is no multiple of `num_heads`, a count below 1, `dropout` outside [0, 1); and as
            `FactorisedNetwork`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        check_heads(width, num_heads)
        check_count("depth", depth)
        check_fraction("dropout", dropout)
        self.projections = nn.ModuleDict({name: nn.Linear(d, width) for name, d in self.widths.items()})
        self.modality_embedding = nn.Parameter(torch.randn(len(self.widths), width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: _CrossBlock(width, num_heads, dropout) for name in self.widths}) for _ in range(depth)
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in self.widths})
        self.classifier = nn.Linear(len(self.widths) * width, num_classes)

    def fused_features(self, features: Mapping[str, Any]) -> Tensor:
        """The pooled tokens of all modalities, concatenated: (B, M * width)."""
        tokens, masks = self._embed(self.ordered(features))
        sources = [_other_masks(masks, tokens, index) for index in range(len(tokens))]
        for number, layer in enumerate(self.layers):
            blocks = [cast(_CrossBlock, block) for block in cast(nn.ModuleDict, layer).values()]
            normed = [block.norm(x) for block, x in zip(blocks, tokens, strict=True)]
            queries = self.queries(number, normed, masks)
            tokens = [block(tokens[i], queries[i], _others(normed, i), sources[i]) for i, block in enumerate(blocks)]
        norms = self.norms.values()
        return concatenate([masked_mean(n(x), k) for n, x, k in zip(norms, tokens, masks, strict=True)])

    def queries(self, layer: int, normed: list[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
        """What each modality asks the others in a layer: (B, T_m, width) of its own tokens, normalised, here."""
        return normed

    def _embed(self, features: list[Any]) -> tuple[list[Tensor], list[Tensor | None]]:
        tokens, masks = [], []
        named = zip(self.projections.items(), self.modality_embedding, features, strict=True)
        for (name, project), embedding, feature in named:
            x, mask = read_padded(feature, "tokens")
            x = x.unsqueeze(1) if x.ndim == 2 and mask is None else x
            if x.ndim != 3 or x.shape[2] != self.widths[name] or x.shape[1] == 0:
                raise ValueError(
                    f"Expected the feature of modality {name!r} to be tokens (B, T, {self.widths[name]}) "
                    f"with T >= 1, or (B, {self.widths[name]}), but got {tuple(x.shape)}."
                )
            if mask is not None:
                check_padding_mask(mask, x)
            tokens.append(project(zero_padding(x, mask)) + embedding)
            masks.append(mask)
        return tokens, masks


class _CrossBlock(nn.Module):
    """Pre-norm residual block of one modality: attention to the others' tokens, then an MLP."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, query: Tensor, source: Tensor, padding: tuple[Tensor, Tensor] | None) -> Tensor:
        """x, query (B, T, W), source (B, S, W), its padding (B, S) and empty rows (B, 1, 1) -> (B, T, W)."""
        mask, empty = (None, None) if padding is None else padding
        read, _ = self.attention(query, source, source, key_padding_mask=mask, need_weights=False)
        read = self.dropout(read)
        x = x + (read if empty is None else read.masked_fill(empty, 0))
        out: Tensor = x + self.mlp(x)
        return out


def _others(tokens: list[Tensor], index: int) -> Tensor:
    """The tokens (B, S, W) of all modalities but one; of that one itself when it is alone."""
    others = tokens[:index] + tokens[index + 1 :]
    return torch.cat(others, dim=1) if len(others) > 1 else (others or tokens)[0]


def _other_masks(masks: list[Tensor | None], tokens: list[Tensor], index: int) -> tuple[Tensor, Tensor] | None:
    """Which of `_others` is padding, ready for attention; None when nothing can be."""
    chosen = [i for i in range(len(masks)) if i != index] or [index]
    if all(masks[i] is None for i in chosen):
        return None
    known = []
    for i in chosen:
        mask = masks[i]
        known.append(tokens[i].new_zeros(tokens[i].shape[:2], dtype=torch.bool) if mask is None else mask)
    return masked_attention_inputs(torch.cat(known, dim=1))
