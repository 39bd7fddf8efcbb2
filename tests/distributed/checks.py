"""What every process runs, in this order."""

from . import functions, sharding, synchronised, training

CHECKS = {check.__name__: check for room in (functions, training, synchronised, sharding) for check in room.CHECKS}
