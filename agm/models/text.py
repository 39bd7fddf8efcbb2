"""An encoder of text: bytes, characters or tokens by number, padded with zeros."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm.models._checks import check_count, check_fraction

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module):
    """Convolutions of several widths over an embedding, and the maximum over the text (Kim, "Convolutional neural
    networks for sentence classification", EMNLP 2014).

    Reads UTF-8 as it is: `vocab_size=256` knows every byte, so that no text of any language needs a tokenizer. Number 0
    is padding and influences nothing. A text that is all padding, as an absent one is, gives zeros. The same in train
    and eval mode unless `dropout` > 0.

    Args:
        vocab_size: numbers that can occur, 0 among them.
        num_features: width of the feature.
        kernels: how many bytes or tokens each group of features looks at.
        embedding: width of the embedding.
        dropout: probability on the feature.
        pool: "max" over the text; None for all places as tokens, with the mask of those that are padding.

    Shape: (B, T) uint8, int32 or int64 -> (B, num_features); with pool=None {"tokens": (B, T, num_features),
    "padding_mask": (B, T) bool, True = padding}.

    Attributes:
        num_features: as given.

    Raises:
        ValueError: an argument out of range; on forward an input of another shape or dtype.

    Example:
        >>> encoder = TextEncoder(num_features=64)
        >>> text = torch.tensor([list("日本".encode().ljust(16, b"\\0"))], dtype=torch.uint8)
        >>> encoder(text).shape
        torch.Size([1, 64])
    """

    def __init__(
        self,
        vocab_size: int = 256,
        *,
        num_features: int = 64,
        kernels: Sequence[int] = (3, 5, 7),
        embedding: int = 32,
        dropout: float = 0.0,
        pool: Literal["max"] | None = "max",
    ) -> None:
        super().__init__()
        check_count("vocab_size", vocab_size, least=2)
        check_count("num_features", num_features)
        check_count("embedding", embedding)
        check_fraction("dropout", dropout)
        if pool not in ("max", None):
            raise ValueError(f"Expected argument `pool` to be 'max' or None (all tokens), but got {pool!r}.")
        if not kernels or num_features < len(kernels):
            raise ValueError(
                f"Expected argument `kernels` to hold 1 to {num_features} widths, one feature each at least, but got "
                f"{tuple(kernels)}."
            )
        for kernel in kernels:
            check_count("kernels", kernel)
        self.num_features = num_features
        self.pool = pool
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=0)
        # What does not divide evenly goes to the first.
        widths = [num_features // len(kernels)] * len(kernels)
        widths[0] += num_features - sum(widths)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(embedding, width, kernel, padding="same") for width, kernel in zip(widths, kernels, strict=True)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor | dict[str, Tensor]:
        if text.ndim != 2 or text.shape[1] == 0 or text.dtype not in (torch.uint8, torch.int32, torch.int64):
            raise ValueError(
                f"Expected the input to be (B, T) uint8, int32 or int64 with T >= 1, but got {text.dtype} "
                f"{tuple(text.shape)}."
            )
        padding = text == 0
        embedded = self.embedding(text.int() if text.dtype == torch.uint8 else text).transpose(1, 2)  # (B, E, T)
        maps = torch.cat([F.relu(convolution(embedded)) for convolution in self.convolutions], dim=1)
        # None is below 0, so that a text of padding alone has the maximum 0.
        maps = maps.masked_fill(padding.unsqueeze(1), 0)  # (B, num_features, T)
        if self.pool is None:
            return {"tokens": self.dropout(maps.transpose(1, 2)), "padding_mask": padding}
        feature: Tensor = self.dropout(maps.amax(dim=2))
        return feature
