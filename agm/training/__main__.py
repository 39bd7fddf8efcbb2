"""Entry of `python -m agm.training`, and of the command `agm` behind `_agm_command`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

# Packages of the extra "train". The core of agm needs none of them.
_EXTRA = ("click", "rich")


def main(arguments: Sequence[str] | None = None, *, imported: Callable[[], Any] = lambda: None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: without the program's name; those of the process by default.
        imported: called when everything is imported, before anything is done.
    """
    try:
        from agm.training import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(
            f"agm: error: The command line needs {package}. Install with: pip install 'agm-torch[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("agm: error: interrupted", file=sys.stderr)
        return 130
    imported()
    return cli.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
