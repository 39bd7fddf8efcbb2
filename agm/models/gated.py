"""Gated fusion: each modality's projection passes a gate that all modalities set."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from agm.models._checks import check_count
from agm.models.factorised import FactorisedNetwork, concatenate

__all__ = ["GatedFusion"]


class GatedFusion(FactorisedNetwork):
    """The gated multimodal unit (Arevalo et al., "Gated multimodal units for information fusion", 2017).

        h_m = tanh(W_m x_m),   g_m = sigmoid(V_m [x_1, ..., x_M]),   h = sum_m g_m * h_m,   z = W h + b

    W_m and V_m have no bias, as in the paper; this is its form for any number of modalities, with a gate each
    (its two-modality form ties them, g_2 = 1 - g_1).

    Args:
        encoders: modality name -> module giving features x_m (B, D_m).
        num_classes: C.
        width: of h; the largest D_m by default.
        num_features: modality name -> D_m, for encoders without `num_features`.

    Raises:
        ValueError: `width` < 1; and as `FactorisedNetwork`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        width: int | None = None,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        width = max(self.widths.values()) if width is None else width
        check_count("width", width)
        self.projections = nn.ModuleDict({name: nn.Linear(d, width, bias=False) for name, d in self.widths.items()})
        # Rows m * width ... (m + 1) * width are V_m: all gates read the same concatenation.
        self.gates = nn.Linear(sum(self.widths.values()), len(self.widths) * width, bias=False)
        self.classifier = nn.Linear(width, num_classes)

    def fused_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """h (B, width)."""
        vectors = self.vectors(features)
        gates = torch.sigmoid(self.gates(concatenate(vectors))).chunk(len(vectors), dim=1)
        return reduce(
            torch.add,
            (
                gate * torch.tanh(projection(vector))
                for gate, projection, vector in zip(gates, self.projections.values(), vectors, strict=True)
            ),
        )
