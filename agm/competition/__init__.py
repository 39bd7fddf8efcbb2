"""Competition strength: what each modality lost to the competition with the others (Li et al., ICCV 2023).

The mono-modal concept of a modality is what a network learns from it alone. How badly it can be predicted, linearly,
from the fused features of a jointly trained network is that modality's competition strength.
"""

from agm.competition.extraction import alone, fused_features, mono_modal_concept
from agm.competition.regression import Predictor, RidgeStatistics, choose_ridge, fit_ridge
from agm.competition.strength import (
    CUTOFF,
    Strength,
    StrengthStatistics,
    competition_strength,
    measure_strength,
    strength_over_batches,
)

__all__ = [
    "CUTOFF",
    "Predictor",
    "RidgeStatistics",
    "Strength",
    "StrengthStatistics",
    "alone",
    "choose_ridge",
    "competition_strength",
    "fit_ridge",
    "fused_features",
    "measure_strength",
    "mono_modal_concept",
    "strength_over_batches",
]
