"""`python docgen`: writes docs/command-line-reference.md again."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from docgen import commands

if __name__ == "__main__":
    commands.PAGE.write_text(commands.page(), encoding="utf-8")
    print(commands.PAGE)
