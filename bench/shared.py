"""What the benchmarks take from the tests: the inputs of the ops, how exact their results must be, and the launches.

The folder `tests` is no package that is installed, and others by that name may be: it is found by its place.
"""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
_NAME = "agm_tests"

if _NAME not in sys.modules:
    _package = ModuleType(_NAME)
    _package.__path__ = [str(ROOT / "tests")]
    sys.modules[_NAME] = _package

try:
    from agm_tests.ops import additive_steps, losses, samples, steps
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise
    raise SystemExit(
        "The benchmarks take their inputs and tolerances from the tests, which need pytest: pip install pytest."
    ) from error

__all__ = ["ROOT", "additive_steps", "losses", "samples", "steps"]
