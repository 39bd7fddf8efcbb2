"""What every process runs, in this order."""

from . import functions

CHECKS = {check.__name__: check for room in (functions,) for check in room.CHECKS}
