"""The operations of AGM: one schema, one plain-torch reference and any number of natives each.

`agm.ops.reference` is the specification; read it first. `agm.backends()` tells what serves each op here.
"""

from agm.ops._backends import Service, backends
from agm.ops.modulate import modulate, modulate_backward
from agm.ops.scale_gradients import scale_gradients_

__all__ = ["Service", "backends", "modulate", "modulate_backward", "scale_gradients_"]
