"""An encoder of plain vectors."""

from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction

__all__ = ["MLPEncoder"]


class MLPEncoder(nn.Module):
    """Linear -> ReLU -> Dropout -> Linear -> ReLU, the same in train and eval mode unless `dropout` > 0.

    Args:
        in_features: D.
        num_features: width of the feature.
        hidden: width of the hidden layer; `num_features` by default.
        dropout: probability on the hidden layer.

    Shape: (B, in_features) -> (B, num_features).
    """

    def __init__(
        self, in_features: int, *, num_features: int = 64, hidden: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = num_features if hidden is None else hidden
        check_count("in_features", in_features)
        check_count("num_features", num_features)
        check_count("hidden", hidden)
        check_fraction("dropout", dropout)
        self.num_features = num_features
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_features),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.layers(x)
        return feature
