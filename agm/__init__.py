"""Adaptive Gradient Modulation: balanced multimodal training, fast."""

from agm import competition
from agm.additive import fused_modulate_additive
from agm.contribution import ContributionMeter, Contributions, contributions, modality_values
from agm.engine import AGM
from agm.expansion import expand_subsets
from agm.functional import fused_modulate, fused_modulate_cross_entropy
from agm.gradients import scale_gradients_
from agm.masking import masked_logits
from agm.modulator import Modulator
from agm.ops import backends
from agm.sampling import SubsetSample, sample_subsets
from agm.shapley import subset_weights
from agm.state import ModulationState
from agm.verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "AGM",
    "ContributionMeter",
    "Contributions",
    "ModulationState",
    "Modulator",
    "SubsetSample",
    "Verification",
    "backends",
    "competition",
    "contributions",
    "expand_subsets",
    "fused_modulate",
    "fused_modulate_additive",
    "fused_modulate_cross_entropy",
    "masked_logits",
    "modality_values",
    "sample_subsets",
    "scale_gradients_",
    "subset_weights",
    "verify",
]
