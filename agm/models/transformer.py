"""A transformer encoder of sequences."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction, check_heads
from agm.models.padding import (
    check_padding_mask,
    masked_attention_inputs,
    masked_mean,
    read_padded,
    zero_padding,
)

__all__ = ["TransformerEncoder"]


class TransformerEncoder(nn.Module):
    """Pre-norm transformer with learned positions (Vaswani et al., "Attention is all you need", 2017).

    Reads float sequences or token ids, padded or not. Padded steps influence nothing, whatever they hold; a
    row that is all padding gives finite numbers (zeros from the mean).

    Args:
        in_features: D of a float sequence (B, T, D); leave it out for token ids.
        vocab_size: number of token ids; leave it out for float sequences.
        width: of the tokens, a multiple of `num_heads`.
        num_layers: number of layers, each with an MLP of 4 * width.
        num_heads: heads of each attention.
        max_length: longest T.
        pool: "mean" over the valid steps; "cls": a learned token in front of the sequence; None: all tokens.
        dropout: probability inside attention, MLPs and on the embedded input.
        padding_id: the token id that is padding, where the input brings no mask.

    Shape: x is (B, T, in_features) float, or (B, T) int64 token ids; the input is x or
    {"x": x, "padding_mask": (B, T) bool, True = padding}. Returns (B, width); with pool=None
    (B, T, width), or {"tokens": (B, T, width), "padding_mask": (B, T)} where there is a mask.

    Attributes:
        num_features: `width`.

    Raises:
        ValueError: both or neither of `in_features` and `vocab_size`, or another argument out of range; on
            forward an input of another rank, dtype or width, T > `max_length`, or a mask of another shape.
    """

    def __init__(
        self,
        in_features: int | None = None,
        *,
        vocab_size: int | None = None,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        max_length: int = 512,
        pool: Literal["mean", "cls"] | None = "mean",
        dropout: float = 0.1,
        padding_id: int | None = None,
    ) -> None:
        super().__init__()
        if (in_features is None) == (vocab_size is None):
            raise ValueError(
                "Expected one of the arguments `in_features` (float sequences) and `vocab_size` (token ids), "
                f"but got {in_features!r} and {vocab_size!r}."
            )
        if padding_id is not None and vocab_size is None:
            raise ValueError("Expected argument `padding_id` with `vocab_size` only. Pass a `padding_mask` instead.")
        if pool not in ("mean", "cls", None):
            raise ValueError(f"Expected argument `pool` to be 'mean', 'cls' or None, but got {pool!r}.")
        check_heads(width, num_heads)
        check_count("num_layers", num_layers)
        check_count("max_length", max_length)
        check_fraction("dropout", dropout)
        self.num_features = width
        self.pool = pool
        self.padding_id = padding_id
        self.embedding: nn.Module
        if in_features is not None:
            check_count("in_features", in_features)
            self.embedding = nn.Linear(in_features, width)
        elif vocab_size is not None:
            check_count("vocab_size", vocab_size)
            self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.cls = nn.Parameter(torch.randn(width) * 0.02) if pool == "cls" else None
        self.dropout = nn.Dropout(dropout)
        # Not nn.TransformerEncoder: it copies one layer, so that all would start with the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, dropout, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        x, mask = read_padded(inputs, "x")
        self._check(x, mask)
        if mask is None and self.padding_id is not None:
            mask = x == self.padding_id
        x = self.embedding(zero_padding(x, mask)) + self.positions[: x.shape[1]]
        seen = mask
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], dim=1)
            seen = None if mask is None else torch.cat([mask.new_zeros(mask.shape[0], 1), mask], dim=1)
        x = self.dropout(x)
        attended = None if seen is None else masked_attention_inputs(seen)[0]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attended)
        tokens: Tensor = self.norm(x)
        if self.pool == "cls":
            return tokens[:, 0]
        if self.pool == "mean":
            return masked_mean(tokens, mask)
        return tokens if mask is None else {"tokens": tokens, "padding_mask": mask}

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if isinstance(self.embedding, nn.Linear):
            width = self.embedding.in_features
            right = x.ndim == 3 and x.shape[2] == width and x.is_floating_point()
            wanted = f"a float sequence (B, T, {width})"
        else:
            right, wanted = x.ndim == 2 and x.dtype in (torch.int64, torch.int32), "int64 token ids (B, T)"
        if not right or not 1 <= x.shape[1] <= len(self.positions):
            raise ValueError(
                f"Expected the input to be {wanted} with 1 <= T <= {len(self.positions)} (`max_length`), "
                f"but got {x.dtype} {tuple(x.shape)}."
            )
        if mask is not None:
            check_padding_mask(mask, x)
