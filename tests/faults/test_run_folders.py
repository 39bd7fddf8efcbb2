"""Run folders that were cut, spoiled, moved, linked, filled or written by two: whole again, or one line."""

import errno
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agm.training import Config, Observer, cli, load_run, read_config, train, writing
from agm.training.checkpoint import load_checkpoint, save_checkpoint
from agm.training.errors import UserError
from agm.training.writing import locked, write_bytes

from .conftest import SETTINGS, SOAK, Forked, arrays

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, beside its data."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "d.npz", **arrays())
    assert cli.run(["train", "--dataset", str(folder / "d.npz"), *SETTINGS, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, place: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished, place / "run"))


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def same(left: Path, right: Path) -> bool:
    one, two = (load_checkpoint(folder / "checkpoint.pt")["model"] for folder in (left, right))
    return all(torch.equal(one[name], two[name]) for name in one)


class _Stop(Observer):
    def epoch_finished(self, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def begun(place: Path) -> Path:
    """The folder of a run that was interrupted after the first of its two epochs."""
    settings = {"epochs": 2, "width": 6, "batch_size": 16, "threads": 1, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        train(Config(dataset="d.npz", **settings), place / "run", observer=_Stop())
    return place / "run"


def test_one_process_at_a_time(place: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.2)
    (place / "run").mkdir()
    with locked(place / "run"):
        said = refused("train", "--dataset", "d.npz", *SETTINGS, "--out", "run")
        assert "no other process to write into 'run'" in said
        assert list((place / "run").iterdir()) == []
    with locked(place / "all"):
        assert "write into 'all'" in refused("compare", "--dataset", "d.npz", *SETTINGS, "--out", "all")


def test_two_commands_at_once_leave_one_whole_run(place: Path, agm: Command) -> None:
    words = ("train", "--dataset", "d.npz", *SETTINGS, "--epochs", "20", "--out")
    both = [Forked(*words, "run") for _ in range(2)]
    said = [process.end() for process in both]
    assert sorted(status for status, _ in said) == [0, 2], said
    assert all("Traceback" not in text for _, text in said)
    assert agm(*words, "alone")[0] == 0
    assert same(place / "run", place / "alone")
    for table in ("metrics.csv", "steps.csv"):
        assert len(lines(place / "run" / table)) == len(lines(place / "alone" / table))


def test_what_a_killed_process_left_half_written_is_removed(begun: Path, agm: Command) -> None:
    (begun / ".steps.csv.0123456789abcdef.partial").write_text("x")
    assert agm("train", "--resume", "run")[0] == 0
    assert not [path.name for path in begun.iterdir() if "partial" in path.name]


def test_settings_that_were_cut_off_are_not_defaults(run: Path, refused: Callable[..., str]) -> None:
    text = (run / "config.toml").read_bytes()
    for name in ("checkpoint.pt", "metrics.csv", "steps.csv", "result.json"):
        (run / name).unlink()
    chance = random.Random(0)
    environment = text.index(b"[environment]")
    for cut in [0, environment, *(chance.randrange(environment + 12) for _ in range(6 * SOAK))]:
        (run / "config.toml").write_bytes(text[:cut])
        assert "config.toml" in refused("train", "--resume", "run")
    assert not (run / "checkpoint.pt").exists()


@pytest.mark.parametrize("table", ["steps.csv", "metrics.csv"])
def test_tables_with_damage_do_not_end_a_resumed_run(begun: Path, place: Path, agm: Command, table: str) -> None:
    content = (begun / table).read_bytes()
    config = read_config(begun / "config.toml")
    train(config, place / "whole")
    whole = {path.name: path.read_bytes() for path in begun.iterdir()}
    for spoiled in (b"", b'"' + content, content.replace(b",", b";"), content[:60] + b"\xff\x00\xfe" + content[63:]):
        for name, kept in whole.items():
            (begun / name).write_bytes(spoiled if name == table else kept)
        train(config, begun, resume=True)
        assert same(begun, place / "whole")
        assert len(lines(begun / "metrics.csv")) == 3
    (begun / table).write_bytes(spoiled)
    assert agm("plot", "run")[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"history": []},
        {"history": [{"epoch": 1}, {"epoch": 2}]},
        {"history": "none"},
        {"epoch": 7},
        {"epoch": -1},
        {"epoch": 1.5},
        {"step": "x"},
        {"step": -4},
        {"random": {"cpu": torch.zeros(3)}},
        {"model": {}},
        {"optimizer": None},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_history(run: Path, refused: Callable[..., str], change: dict[str, Any]) -> None:
    state = load_checkpoint(run / "checkpoint.pt") | change
    save_checkpoint(run / "checkpoint.pt", {name: value for name, value in state.items() if name != "format"})
    assert "checkpoint.pt" in refused("train", "--resume", "run")


def test_data_that_moved(begun: Path, place: Path, agm: Command, refused: Callable[..., str]) -> None:
    (place / "store").mkdir()
    (place / "d.npz").rename(place / "store/d.npz")
    assert "--dataset" in refused("evaluate", "run")
    assert "--dataset" in refused("train", "--resume", "run")
    accuracy = load_run(begun, place / "store/d.npz").evaluation.accuracy
    assert f"{100 * accuracy:.1f}" in agm("evaluate", "run", "--dataset", "store/d.npz")[1]
    assert agm("train", "--resume", "run", "--dataset", "store/d.npz")[0] == 0
    assert read_config(begun / "config.toml").dataset == str(place / "store/d.npz")
    assert agm("evaluate", "run")[0] == 0


@pytest.mark.parametrize("checkpoint", [True, False])
def test_other_data_are_refused(begun: Path, place: Path, refused: Callable[..., str], checkpoint: bool) -> None:
    np.savez(place / "other.npz", **{**arrays(), "b": arrays()["b"] + 1})
    if not checkpoint:
        (begun / "checkpoint.pt").unlink()
    before = (begun / "config.toml").read_bytes()
    assert "contents" in refused("train", "--resume", "run", "--dataset", "other.npz")
    assert (begun / "config.toml").read_bytes() == before


NAMES = ("metrics.csv", "steps.csv", "checkpoint.pt", "result.json", "training.png")


def test_links_in_a_foreign_folder_lead_nowhere(begun: Path, place: Path, agm: Command) -> None:
    """Each file of a run, and the names that its parts had while they were written, lead to a file of the user's."""
    mine = place / "mine.txt"
    mine.write_text("mine")
    kept = {name: (begun / name).read_bytes() for name in NAMES if (begun / name).exists()}
    for name in NAMES:
        (begun / name).unlink(missing_ok=True)
        if name == "checkpoint.pt":
            (place / "theirs.pt").write_bytes(kept[name])
            (begun / name).symlink_to(place / "theirs.pt")
        else:
            (begun / name).symlink_to(mine)
        (begun / f"{name}.partial").symlink_to(mine)
    assert agm("train", "--resume", "run")[0] == 0
    assert mine.read_text() == "mine"
    assert (place / "theirs.pt").read_bytes() == kept["checkpoint.pt"]
    assert not any((begun / name).is_symlink() for name in NAMES)


def test_a_link_in_the_place_of_a_run_of_a_comparison(place: Path, refused: Callable[..., str]) -> None:
    (place / "mine").mkdir()
    (place / "all").mkdir()
    (place / "all/joint-seed0").symlink_to(place / "mine")
    assert "a link" in refused("compare", "--dataset", "d.npz", *SETTINGS, "--seeds", "1", "--out", "all")
    assert list((place / "mine").iterdir()) == []


@pytest.mark.parametrize("word", ["no space", "too large"])
def test_a_full_disk_leaves_the_old_file_or_the_new_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    write_bytes(place / "x", b"old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC if word == "no space" else errno.EFBIG, word)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=word):
        write_bytes(place / "x", b"new")
    assert (place / "x").read_bytes() == b"old"
    assert [path.name for path in place.iterdir() if path.name != "d.npz"] == ["x"]


def _limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_at_any_size(place: Path, agm: Command) -> None:
    """One line and status 2; then the same run with room ends as one that always had room."""
    assert agm("train", "--dataset", "d.npz", *SETTINGS, "--out", "whole")[0] == 0
    largest = max(path.stat().st_size for path in (place / "whole").iterdir())
    chance = random.Random(1)
    for number in range(4 * SOAK):
        size, folder = chance.randrange(400, largest), place / f"r{number}"
        words = ("train", "--dataset", "d.npz", *SETTINGS, "--checkpoint-every", "1", "--out", folder)
        status, said = Forked(*words, before=_limited(size)).end()
        assert (status, said.count("agm: error:"), said.count("Traceback")) == (2, 1, 0), (size, said)
        assert not [path.name for path in folder.iterdir() if "partial" in path.name]
        if (folder / "config.toml").exists():
            train(read_config(folder / "config.toml"), folder, resume=True)
            assert same(folder, place / "whole")


def test_kills_at_any_moment(place: Path, agm: Command) -> None:
    """kill -9 of a command, then the same again until it is through, ends as one that was left alone."""
    words = ("train", "--dataset", "d.npz", *SETTINGS, "--epochs", "40", "--fusion", "early", "--out")
    assert agm(*words, "whole")[0] == 0
    chance, kills = random.Random(2), 0
    process = Forked(*words, "run")
    while kills < 3 * SOAK:
        deadline = time.monotonic() + chance.uniform(0, 0.3)
        while time.monotonic() < deadline and not process.poll():
            time.sleep(0.001)
        if process.poll():
            shutil.rmtree(place / "run")
            process = Forked(*words, "run")
            continue
        process.kill()
        kills += 1
        if (place / "run/checkpoint.pt").exists():
            load_checkpoint(place / "run/checkpoint.pt")
        again = ("train", "--resume", "run", "--checkpoint-every", "7")
        process = Forked(*(again if (place / "run/config.toml").exists() else (*words, "run")))
    status, said = process.end()
    assert status == 0, said
    assert same(place / "run", place / "whole")
    assert len(lines(place / "run/steps.csv")) == len(lines(place / "whole/steps.csv"))


def test_interrupts_anywhere_in_training(place: Path) -> None:
    """KeyboardInterrupt at the n-th write, whichever it is; then on from there."""
    from agm.data import _files

    settings = {"epochs": 2, "width": 6, "batch_size": 16, "threads": 1, "device": "cpu"}
    config = Config(dataset=str(place / "d.npz"), fusion="early", **settings)
    train(config, place / "whole")
    replace = os.replace
    for number in range(8):
        calls = []

        def interrupted(*places: Any, calls: list[int] = calls, number: int = number) -> None:
            calls.append(1)
            if len(calls) == number + 1:
                raise KeyboardInterrupt
            replace(*places)

        folder = place / f"run{number}"
        try:
            _files.os.replace = interrupted
            train(config, folder, checkpoint_every=1)
        except KeyboardInterrupt:
            pass
        finally:
            _files.os.replace = replace
        assert not [path.name for path in folder.iterdir() if "partial" in path.name]
        train(config, folder, resume=(folder / "config.toml").exists())
        assert same(folder, place / "whole")


def test_locks_end_with_their_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.0)
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(UserError, match="no other process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
