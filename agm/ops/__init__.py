"""The operations of AGM: one schema, one plain-torch reference and any number of natives each.

`agm.ops.reference` is the specification; read it first. `agm.backends()` tells what serves each op here.
"""

from agm.ops._backends import Service, backends
from agm.ops.expand_subsets import expand_subsets, expand_subsets_backward
from agm.ops.modulate import modulate, modulate_backward
from agm.ops.modulate_additive import modulate_additive, modulate_additive_backward
from agm.ops.modulate_cross_entropy import modulate_cross_entropy, modulate_cross_entropy_backward
from agm.ops.scale_gradients import scale_gradients_

__all__ = [
    "Service",
    "backends",
    "expand_subsets",
    "expand_subsets_backward",
    "modulate",
    "modulate_additive",
    "modulate_additive_backward",
    "modulate_backward",
    "modulate_cross_entropy",
    "modulate_cross_entropy_backward",
    "scale_gradients_",
]
