"""Commands where people run them: any name, encoding, plotting backend and stream; and settings that cannot be."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agm.training import cli
from agm.training.commands import one_run
from agm.training.printable import cell, printable

from .conftest import SETTINGS, SOAK, Forked, started

Command = Callable[..., tuple[int, str, str]]
RUN = ("train", "--dataset", "d.npz", *SETTINGS, "--epochs", "1")


@pytest.mark.parametrize("out", ["run[v2]", "night[/late] $x^{2", "ünï" + "x" * 200])
def test_the_folder_that_was_written_is_printed(agm: Command, out: str) -> None:
    status, said, _ = agm(*RUN, "--out", out)
    assert status == 0
    assert f"picture, tables, checkpoint: {out}\n" in said


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "new\nline", "\u202e[red]$x^{2"])
def test_names_do_not_reach_terminals_and_tables_raw(place: Path, agm: Command, name: str) -> None:
    shutil.copy(place / "d.npz", place / f"{name}.npz")
    status, out, error = agm("train", "--dataset", f"./{name}.npz", *SETTINGS, "--epochs", "1", "--out", f"run {name}")
    assert status == 0, error
    assert not any(c in out + error for c in "\x1b\u202e\x07")
    assert printable(f"run {name}") in out
    status, out, error = agm("train", "--dataset", f"./{name}.npz", *SETTINGS, "--out", f"run {name}")
    assert (status, error.count("\n")) == (2, 1)
    assert not any(c in out + error for c in "\x1b\u202e\x07")
    assert agm("train", "--config", f"run {name}/config.toml", "--out", "again")[0] == 0


def test_a_comparison_of_data_of_any_name(place: Path, agm: Command) -> None:
    name = "a|b\x1b[1m\nc"
    shutil.copy(place / "d.npz", place / f"{name}.npz")
    words = (
        "compare",
        "--methods",
        "joint,agm",
        "--dataset",
        f"./{name}.npz",
        *SETTINGS,
        "--epochs",
        "1",
        "--seeds",
        "1",
    )
    assert agm(*words, "--out", "all")[0] == 0
    written = (place / "all/compare.md").read_text()
    assert "\x1b" not in written
    assert written.rstrip().splitlines()[-1].startswith("    agm compare --methods joint,agm")
    assert agm("compare", "--config", "all/compare.toml", "--out", "again")[0] == 0


def test_text_on_one_line() -> None:
    assert printable("a\n\x1b[1m\u202e\ud800ü…") == r"a\n\x1b[1m\u202e\ud800ü…"
    assert cell("a|b\n") == r"a\|b\n"


def test_a_long_name_of_data_without_a_folder_of_its_own(place: Path, agm: Command) -> None:
    name = "n" * 240 + ".npz"
    shutil.copy(place / "d.npz", place / name)
    assert agm("train", "--dataset", name, *SETTINGS, "--epochs", "1")[0] == 0


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r"])
def test_output_in_any_encoding(place: Path, encoding: str) -> None:

    streams = [open(place / name, "w", encoding=encoding) for name in ("out", "error")]  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            patch.setattr(f"sys.{name}", stream)
        words = ("--seeds", "2", "--methods", "joint,agm", "--dataset", "d.npz", *SETTINGS, "--epochs", "1")
        assert cli.run(["compare", *words, "--out", "ünï…±日本"]) == 0
        assert cli.run(["train", "--dataset", "日本±.npz"]) == 2
        assert streams[0].errors == "strict"
    for stream in streams:
        stream.close()
    said = (place / "out").read_text(encoding)
    assert "joint" in said
    assert "+-" in said or "±" in said
    assert "agm: error:" in (place / "error").read_text(encoding)


def _full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def _broken() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


@pytest.mark.parametrize("spoil", [_full, _broken, lambda: os.close(1)])
def test_output_that_nobody_takes_ends_no_run(place: Path, spoil: Callable[[], None]) -> None:
    for words in ((*RUN, "--out", "run"), ("info",)):
        status, said = Forked(*words, before=spoil).end()
        assert (status, said) == (0, "")
    assert (place / "run/training.png").exists()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "not-here"][:SOAK])
def test_a_plotting_backend_that_is_not_here(place: Path, backend: str) -> None:
    process = started(place, *RUN, "--out", "run", env={"MPLBACKEND": backend})
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert (place / "run/training.png").exists()


OUT: dict[str, Callable[[Path], str]] = {
    "below a file": lambda place: "d.npz/run",
    "below /proc": lambda place: "/proc/none/run",
    "a device": lambda place: "/dev/null",
    "too long": lambda place: "x" * 300,
    "NUL": lambda place: "a\0b",
    "a link to nowhere": lambda place: ((place / "x").symlink_to(place / "nowhere"), "x")[1],
    "a link to itself": lambda place: ((place / "x").symlink_to(place / "x"), "x")[1],
}


@pytest.mark.parametrize("kind", OUT)
def test_folders_that_cannot_be_written(place: Path, refused: Callable[..., str], kind: str) -> None:
    out = OUT[kind](place)
    refused(*RUN, "--out", out)
    refused("compare", "--dataset", "d.npz", *SETTINGS, "--seeds", "1", "--out", out)
    refused("tune", "--setting", "alpha=1", "--validation", "0.2", "--dataset", "d.npz", *SETTINGS, "--out", out)
    refused("train", "--resume", out)
    refused("evaluate", out)


def test_a_folder_in_the_way_of_a_file(place: Path, refused: Callable[..., str]) -> None:
    (place / "run/result.json").mkdir(parents=True)
    assert "result.json" in refused(*RUN, "--out", "run")


@pytest.mark.parametrize(
    "line",
    [
        "width = 10000000000",
        "width = 1e10",
        "threads = 1000000000000000000000000000000",
        "threads = 1e30",
        "epochs = 1000000000000000000000000000000",
        "epochs = true",
        "batch_size = []",
        "lr = 1e400",
        "lr = nan",
        "alpha = " + "9" * 400,
        "seed = -1",
        'device = "cuda:99"',
        'device = "meta"',
        'device = "cpu:7"',
        'device = "warp"',
        'device = "mps:0"',
        'device = ""',
        'dataset = "a\\u0000b"',
        "dataset = 3",
        "options = 4",
        "[options]\nalpha = 1979-05-27",
        "stop = {}",
        "width = " + "[" * 3000,
    ],
)
def test_settings_that_cannot_be(place: Path, refused: Callable[..., str], line: str) -> None:
    name = line.partition(" ")[0]
    (place / "s.toml").write_text(("" if name == "dataset" else 'dataset = "d.npz"\n') + line + "\n")
    said = refused("train", "--config", "s.toml", "--out", "run")
    assert "s.toml" in said or name in said
    assert not (place / "run").exists()


def test_a_configuration_file_with_a_mark_and_a_pipe_in_its_place(place: Path, agm: Command) -> None:
    (place / "s.toml").write_bytes(b"\xef\xbb\xbf" + b'dataset = "d.npz"\r\nepochs = 1\r\nwidth = 4\r\n')
    assert agm("train", "--config", "s.toml", "--out", "run")[0] == 0
    os.mkfifo(place / "pipe.toml")
    status, _, said = agm("train", "--config", "pipe.toml")
    assert (status, said.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
        OSError(5, "Input/output error"),
    ],
)
def test_what_ends_a_command_while_it_trains(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(one_run, "train", train)
    refused(*RUN)


def test_a_mistake_of_the_program_is_no_mistake_of_the_user(agm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(one_run, "train", train)
    with pytest.raises(ZeroDivisionError):
        agm(*RUN)
