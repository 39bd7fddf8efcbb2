"""Every example is short, runs, and says what it should."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NEEDS = {"with_lightning": "lightning", "with_accelerate": "accelerate", "with_transformers": "transformers"}
SAYS = {
    "mixed_precision": r"steps (\d+), overflowed [1-9]",
    "compiled": r"loss [01]\.\d+, steps 24\b",
    "cuda_graph": r"loss [01]\.\d+, steps 11\b" if torch.cuda.is_available() else r"needs a GPU, and there is none",
    "with_lightning": r"steps 24\b.*coefficient",
    "with_accelerate": r"loss [01]\.\d+, steps 24, kappa \d",
    "with_transformers": r"steps 30\b.*coefficient",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example writes lands in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("COMPILE_BACKEND", "eager")  # inductor needs a compiler, and its time
    monkeypatch.delitem(sys.modules, "networks", raising=False)


def run(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before
        sys.modules.pop("networks", None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if "accelerate" in sys.modules:  # whose settings are one for the process: other tests may have made others
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    assert re.search(SAYS[name], run(name, capsys))


def test_the_resumed_example_ends_as_the_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run("resume", capsys)
    Path("checkpoint.pt").unlink()
    for until in ("3", "4", "17", "40"):
        parts = run("resume", capsys, until)
    assert "steps 40" in whole
    assert parts == whole


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) >= 6
    assert {name for name, length in lengths.items() if length > 40} == set()
