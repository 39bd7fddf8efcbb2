"""Adaptive Gradient Modulation: balanced multimodal training, fast."""

from importlib import import_module
from typing import Any

from agm import competition
from agm._passes.masked_logits import masked_logits
from agm._passes.plan import Plan
from agm.contribution import ContributionMeter, Contributions, contributions, modality_values
from agm.engine import AGM
from agm.modulation.additive import fused_modulate_additive
from agm.modulation.expand_subsets import expand_subsets
from agm.modulation.functional import fused_modulate, fused_modulate_cross_entropy
from agm.modulation.linear import fused_modulate_linear_cross_entropy
from agm.modulation.modulator import Modulator
from agm.modulation.scale_gradients import scale_gradients_
from agm.modulation.state import ModulationState
from agm.ops import backends
from agm.shapley.sampling import SubsetSample, sample_subsets
from agm.shapley.weights import subset_weights
from agm.verification.verify import Verification, verify

__version__ = "0.1.0"

_ROOMS = ("data", "integrations", "models", "strategies", "training")

__all__ = [
    "AGM",
    "ContributionMeter",
    "Contributions",
    "ModulationState",
    "Modulator",
    "Plan",
    "SubsetSample",
    "Verification",
    "backends",
    "competition",
    "contributions",
    "expand_subsets",
    "fused_modulate",
    "fused_modulate_additive",
    "fused_modulate_cross_entropy",
    "fused_modulate_linear_cross_entropy",
    "masked_logits",
    "modality_values",
    "sample_subsets",
    "scale_gradients_",
    "subset_weights",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Rooms that `import agm` does not load: `agm.models`, `agm.strategies` and the like, when first asked for."""
    if name in _ROOMS:
        return import_module(f"agm.{name}")
    raise AttributeError(f"module 'agm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
