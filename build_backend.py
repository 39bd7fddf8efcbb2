"""The build backend: setuptools, and a sentence where there is none or an old one.

Without build isolation, which the native library needs, pip takes what is installed.
"""

import sys

OLDEST = 77  # the first that reads `license` and `license-files` in pyproject.toml as they stand there

try:
    import setuptools
except ModuleNotFoundError:
    setuptools = None

_found = None if setuptools is None else setuptools.__version__
if _found is None or int(_found.partition(".")[0]) < OLDEST:
    sys.exit(
        f"Expected setuptools {OLDEST} or newer to build agm-torch, but got {_found or 'none'}. "
        f"Install it first: pip install 'setuptools>={OLDEST}' wheel"
    )

from setuptools.build_meta import *  # noqa: E402, F403
