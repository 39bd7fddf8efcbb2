"""Every op in plain torch: the specification, the fallback, and the oracle of the tests.

Notation as in the paper (Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient
Modulation", ICCV 2023): z_S masked logits of subset S, phi_m mono-modal response, s_m score, r_m
discrepancy ratio, tau_m reference ratio, kappa_m modulation coefficient, R_m running score.
"""

from agm.ops.reference.batch_norm_rows import batch_norm_rows, batch_norm_rows_backward, memory_format
from agm.ops.reference.dropout_rows import dropout_rows, dropout_rows_backward
from agm.ops.reference.expand_subsets import expand_subsets, expand_subsets_backward
from agm.ops.reference.modulate import (
    accumulation_dtype,
    modulate,
    modulate_backward,
    responses,
    subset_scales,
    without,
)
from agm.ops.reference.modulate_additive import (
    additive_responses,
    additive_scales,
    modulate_additive,
    modulate_additive_backward,
)
from agm.ops.reference.modulate_cross_entropy import modulate_cross_entropy, modulate_cross_entropy_backward
from agm.ops.reference.modulate_linear_cross_entropy import (
    modulate_linear_cross_entropy,
    modulate_linear_cross_entropy_backward,
)
from agm.ops.reference.scale_gradients import philox_normal, scale_gradients_
from agm.ops.reference.steps import (
    COEFFICIENTS,
    JOINT_CORRECT,
    RATIOS,
    REFERENCE_RATIOS,
    RUNNING_SCORES,
    SAMPLES,
    SCORES,
    SKIPPED,
    STEP,
    batch_totals,
    discrepancy_ratios,
    finish_step,
    sample_scores,
    step_totals,
)

__all__ = [
    "COEFFICIENTS",
    "JOINT_CORRECT",
    "RATIOS",
    "REFERENCE_RATIOS",
    "RUNNING_SCORES",
    "SAMPLES",
    "SCORES",
    "SKIPPED",
    "STEP",
    "accumulation_dtype",
    "additive_responses",
    "additive_scales",
    "batch_norm_rows",
    "batch_norm_rows_backward",
    "batch_totals",
    "discrepancy_ratios",
    "dropout_rows",
    "dropout_rows_backward",
    "expand_subsets",
    "expand_subsets_backward",
    "finish_step",
    "memory_format",
    "modulate",
    "modulate_additive",
    "modulate_additive_backward",
    "modulate_backward",
    "modulate_cross_entropy",
    "modulate_cross_entropy_backward",
    "modulate_linear_cross_entropy",
    "modulate_linear_cross_entropy_backward",
    "philox_normal",
    "responses",
    "sample_scores",
    "scale_gradients_",
    "step_totals",
    "subset_scales",
    "without",
]
