"""What every process runs, in this order: all of it, or with two processes what depends most on who does what."""

from . import functions, sharding, strategies, synchronised, training

_ROOMS = (functions, training, strategies, synchronised, sharding)

CHECKS = {check.__name__: check for room in _ROOMS for check in room.CHECKS}
CHECKS_OF_TWO = {check.__name__: check for check in synchronised.CHECKS}
