"""Loads the folder `docgen` as the package of that name, as `python docgen` does."""

import importlib.util
import sys
from pathlib import Path

if "docgen" not in sys.modules:
    folder = Path(__file__).parents[2] / "docgen"
    spec = importlib.util.spec_from_file_location("docgen", folder / "__init__.py")
    assert spec is not None
    sys.modules["docgen"] = importlib.util.module_from_spec(spec)
