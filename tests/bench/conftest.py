"""Loads the folder `bench` as the package of that name, as `python bench` does."""

import runpy
import sys
from pathlib import Path

if "bench" not in sys.modules:
    runpy.run_path(str(Path(__file__).parents[2] / "bench" / "__main__.py"))["load"]()
