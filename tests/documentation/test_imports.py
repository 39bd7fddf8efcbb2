"""The rooms of the package import one another in one direction, as docs/architecture.md says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "agm"

# Room -> the rooms and files of the package that its modules may import, beside their own.
BELOW = {
    "shapley": set[str](),
    "_module_state": set[str](),
    "distributed.py": {"shapley", "waiting.py"},
    "ops": {"shapley", "kernels", "_C"},
    "modulation": {"ops", "shapley", "distributed.py"},
    "_inputs": {"ops"},
    "_lazy_rows": {"_inputs", "_module_state", "modulation", "ops", "shapley", "distributed.py"},
    "_one_pass": {"_inputs", "_module_state", "ops"},
    "models": {"modulation"},
    "competition": {"_inputs", "_module_state"},
}
BELOW["_passes"] = (BELOW["_lazy_rows"] - {"ops"}) | {"_lazy_rows", "_one_pass"}
BELOW["engine.py"] = BELOW["_passes"] | {"_passes"}
BELOW["verification"] = BELOW["contribution.py"] = BELOW["engine.py"] | {"engine.py", "ops"}


def imported(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "agm":
            yield from (f"agm.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room_of(name: str) -> str:
    first = name.split(".")[1]
    return f"{first}.py" if (PACKAGE / f"{first}.py").is_file() else first


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_those_below(room: str) -> None:
    modules = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))
    assert modules
    found = {room_of(name) for module in modules for name in imported(module) if name.startswith("agm.")}
    assert found - {room} <= BELOW[room]


def test_no_room_is_above_itself() -> None:
    order: list[str] = []
    while len(order) < len(BELOW):
        ready = [room for room in BELOW if room not in order and BELOW[room] & BELOW.keys() <= set(order)]
        assert ready, "rooms import one another in a circle"
        order += ready
