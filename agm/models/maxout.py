"""Maxout: the largest of several linear pieces."""

from torch import Tensor, nn

from agm.models._checks import check_count

__all__ = ["Maxout"]


class Maxout(nn.Module):
    """`y_j = max_k (W_jk x + b_jk)` (Goodfellow et al., "Maxout networks", ICML 2013).

    Piece k of output j is row `j * pieces + k` of `linear`.

    Args:
        in_features: D.
        out_features: H.
        pieces: linear pieces an output.

    Shape: (..., D) -> (..., H).
    """

    def __init__(self, in_features: int, out_features: int, pieces: int = 2) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        check_count("pieces", pieces)
        self.pieces = pieces
        self.linear = nn.Linear(in_features, out_features * pieces)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x).unflatten(-1, (-1, self.pieces)).max(dim=-1).values
        return out
