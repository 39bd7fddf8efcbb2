"""The operations of AGM: one schema, one plain-torch reference and any number of natives each.

`agm.ops.reference` is the specification; read it first. `agm.backends()` tells what serves each op here.
"""

from agm.ops._backends import Service, backends
from agm.ops.batch_norm_rows import batch_norm_rows
from agm.ops.dropout_rows import dropout_rows
from agm.ops.expand_subsets import expand_subsets, expand_subsets_backward
from agm.ops.modulate import modulate, modulate_backward, prepare
from agm.ops.modulate_additive import modulate_additive, modulate_additive_backward
from agm.ops.modulate_cross_entropy import modulate_cross_entropy, modulate_cross_entropy_backward
from agm.ops.modulate_linear_cross_entropy import (
    modulate_linear_cross_entropy,
    modulate_linear_cross_entropy_backward,
)
from agm.ops.scale_gradients import scale_gradients_

__all__ = [
    "Service",
    "backends",
    "batch_norm_rows",
    "dropout_rows",
    "expand_subsets",
    "expand_subsets_backward",
    "modulate",
    "modulate_additive",
    "modulate_additive_backward",
    "modulate_backward",
    "modulate_cross_entropy",
    "modulate_cross_entropy_backward",
    "modulate_linear_cross_entropy",
    "modulate_linear_cross_entropy_backward",
    "prepare",
    "scale_gradients_",
]
