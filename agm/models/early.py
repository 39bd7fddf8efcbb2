"""Early fusion: a MaxOut MLP on the concatenated features."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction
from agm.models.factorised import FactorisedNetwork, concatenate
from agm.models.maxout import Maxout

__all__ = ["EarlyFusion"]


class EarlyFusion(FactorisedNetwork):
    """Early fusion of AGM (Li et al., ICCV 2023): features meet before a non-linear network.

    BatchNorm(D, eps 1e-4) -> [Maxout -> BatchNorm -> Dropout] for each hidden width -> linear to the classes.

    Args:
        encoders: modality name -> module giving features (B, D_m); D = sum D_m.
        num_classes: C.
        hidden: widths of the Maxout layers; the paper's are twice and once its D = 1024.
        pieces: linear pieces of each Maxout unit.
        dropout: probability after each hidden layer.
        num_features: modality name -> D_m, for encoders without `num_features`.

    Raises:
        ValueError: empty or non-positive `hidden`, `pieces` < 1, `dropout` outside [0, 1); and as
            `FactorisedNetwork`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        hidden: Sequence[int] = (2048, 1024),
        pieces: int = 2,
        dropout: float = 0.3,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        check_fraction("dropout", dropout)
        if not hidden:
            raise ValueError("Expected argument `hidden` to hold at least one width, but got none.")
        width = sum(self.widths.values())
        layers: list[nn.Module] = [nn.BatchNorm1d(width, eps=1e-4)]
        for out in hidden:
            check_count("hidden", out)
            layers += [Maxout(width, out, pieces), nn.BatchNorm1d(out), nn.Dropout(dropout)]
            width = out
        self.trunk = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def fused_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """The last hidden layer (B, hidden[-1])."""
        hidden: Tensor = self.trunk(concatenate(self.vectors(features)))
        return hidden
