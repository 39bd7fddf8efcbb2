"""The transformer of MultiBench and of those who followed: no positions, and the first step's output as the feature."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction, check_heads
from agm.models.padding import check_padding_mask, masked_attention_inputs, read_padded, zero_padding

__all__ = ["FirstTokenTransformer"]


class FirstTokenTransformer(nn.Module):
    """A linear map of each step to `width`, then a post-norm transformer whose first step's output is the feature.

    This is how AGM's authors read UR-FUNNY (width 768, 4 heads, 8 layers) and BalanceBenchmark CMU-MOSEI (1024, 4, 2),
    after MultiBench. It has no positions, so that the other steps are a set to the first. Where nothing is to be
    reproduced, use `agm.models.TransformerEncoder`.

    Args:
        in_features: D.
        width: of the tokens, a multiple of `num_heads`.
        num_heads, num_layers: of the transformer; its MLPs have 2048 hidden units.
        hidden: units of these.
        dropout: probability inside it.

    Shape: (B, T, in_features), or {"x": (B, T, in_features), "padding_mask": (B, T) bool, True = padding} ->
    (B, width).

    Attributes:
        num_features: `width`.

    Raises:
        ValueError: an argument out of range; on forward another shape.
    """

    def __init__(
        self,
        in_features: int,
        *,
        width: int = 768,
        num_heads: int = 4,
        num_layers: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_heads(width, num_heads)
        check_count("num_layers", num_layers)
        check_count("hidden", hidden)
        check_fraction("dropout", dropout)
        self.in_features = in_features
        self.num_features = width
        self.embedding = nn.Linear(in_features, width, bias=False)
        # Not nn.TransformerEncoder: it copies one layer, so that all would start with the same weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, hidden, dropout, batch_first=True) for _ in range(num_layers)
        )

    def forward(self, inputs: Tensor | Mapping[str, Any]) -> Tensor:
        x, mask = read_padded(inputs, "x")
        if x.ndim != 3 or x.shape[2] != self.in_features or x.shape[1] == 0 or not x.is_floating_point():
            raise ValueError(
                f"Expected the input to be a float sequence (B, T, {self.in_features}) with T >= 1, but got {x.dtype} "
                f"{tuple(x.shape)}."
            )
        if mask is not None:
            check_padding_mask(mask, x)
        x = self.embedding(zero_padding(x, mask))
        attended = None if mask is None else masked_attention_inputs(mask)[0]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attended)
        first: Tensor = x[:, 0]
        return first
