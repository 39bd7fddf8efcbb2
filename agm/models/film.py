"""FiLM fusion: the other modalities scale and shift one modality's feature."""

from collections.abc import Mapping

from torch import Tensor, nn

from agm.models.factorised import FactorisedNetwork, concatenate

__all__ = ["FiLMFusion"]


class FiLMFusion(FactorisedNetwork):
    """`z = W (gamma * h_base + beta) + b` with `[gamma, beta] = W_f [h_j, j != base] + b_f`.

    Feature-wise linear modulation (Perez et al., "FiLM", AAAI 2018) as a fusion, in the convention of OGM-GE
    (Peng et al., CVPR 2022): gamma is predicted itself, not its difference from 1, and with two modalities
    the first conditions the second. With more, the concatenation of all the others conditions `base`. With
    one there is nothing to condition it: gamma = 1, beta = 0, a linear layer.

    Args:
        encoders: modality name -> module giving features (B, D_m).
        num_classes: C.
        base: the modality that is modulated; the last one by default.
        num_features: modality name -> D_m, for encoders without `num_features`.

    Raises:
        ValueError: `base` is no modality; and as `FactorisedNetwork`.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        base: str | None = None,
        num_features: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(encoders, num_classes, num_features=num_features)
        self.base = self.modalities[-1] if base is None else base
        if self.base not in self.widths:
            raise ValueError(f"Expected argument `base` to be one of {', '.join(self.widths)}, but got {base!r}.")
        width = self.widths[self.base]
        others = sum(self.widths.values()) - width
        self.generator = nn.Linear(others, 2 * width) if others else None
        self.classifier = nn.Linear(width, num_classes)

    def fused_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """The modulated feature (B, D_base)."""
        vectors = dict(zip(self.encoders, self.vectors(features), strict=True))
        modulated = vectors.pop(self.base)
        if self.generator is None:
            return modulated
        gamma, beta = self.generator(concatenate(list(vectors.values()))).chunk(2, dim=1)
        fused: Tensor = gamma * modulated + beta
        return fused
