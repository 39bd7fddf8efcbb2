"""Entry of `python bench`: loads this folder as the package `bench`, whatever else is on the path."""

import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def load() -> None:
    """Not by way of `sys.path`: the folder above holds an `agm` too, and which one is measured is for the user to say
    (PYTHONPATH, or what is installed).
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != FOLDER]
    spec = importlib.util.spec_from_file_location(
        "bench", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler, which counts memory, would talk between the figures
    load()
    from bench.cli import main

    main()
