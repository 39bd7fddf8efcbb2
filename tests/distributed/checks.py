"""What every process runs, in this order."""

from . import functions, sharding, strategies, synchronised, training

_ROOMS = (functions, training, strategies, synchronised, sharding)

CHECKS = {check.__name__: check for room in _ROOMS for check in room.CHECKS}
