"""Entry of the command `agm`, and of `python -m agm.training`."""

import sys
from collections.abc import Sequence

# Packages of the extra "train". The core of agm needs none of them.
_EXTRA = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        from agm.training import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(
            f"agm: error: The command line needs {package}. Install with: pip install 'agm[train]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("agm: error: interrupted", file=sys.stderr)
        return 130
    return cli.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
