"""A study small enough for a test: two datasets of one hundred samples, networks of a few units, one epoch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from agm import data as datasets
from agm.data import MultimodalData, Split
from agm.training.study import Study, StudyFigures, read_study, run_study


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def split_of(samples: int, seed: int, noise: float) -> Split:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (samples,), generator=random)
    audio = torch.eye(3)[target].repeat(1, 2) + 0.5 * torch.randn(samples, 6, generator=random)
    table = torch.eye(3)[target] + noise * torch.randn(samples, 3, generator=random)
    return Split({"audio": audio, "table": table}, target)


TEXT = """
[study]
seeds = 2
trials = 2
tuning_seeds = [50]
strength = true
cost_tasks = ["clean"]
cost_rounds = 2
pairs = [["agm, exact", "joint"]]

[settings]
epochs = 1
batch_size = 16
width = 4

[tasks.clean]
dataset = "{folder}/clean.npz"

[tasks.noisy]
dataset = "{folder}/noisy.npz"
validation = 0.3
fusion = "early"

[methods.joint]
grid = {{lr = [0.02, 0.1]}}

[methods."agm, exact"]
method = "agm"
masked = "exact"
grid = {{alpha = [0.5, 1.5]}}

[methods.ogm]
grid = {{alpha = [0.1, 0.3]}}
except = ["noisy"]
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data are."""
    path = tmp_path_factory.mktemp("data")
    splits = [split_of(100, 0, 0.3), split_of(40, 1, 0.3), split_of(40, 2, 0.3)]
    datasets.save(MultimodalData("clean", splits[0], splits[1], splits[2], ("a", "b", "c")), path / "clean.npz")
    splits = [split_of(100, 3, 2.0), split_of(40, 4, 2.0)]
    datasets.save(MultimodalData("noisy", splits[0], splits[1], None, ("a", "b", "c")), path / "noisy.npz")
    return path


@pytest.fixture(scope="session")
def study(folder: Path) -> Callable[..., Study]:
    """Writes the file of the study, with pieces of it replaced, and reads it."""

    def build(**replaced: str) -> Study:
        text = TEXT.format(folder=folder)
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "tiny.toml").write_text(text)
        return read_study(folder / "tiny.toml")

    return build


@dataclass(frozen=True)
class Done:
    """A study that was run in this process, and what was told of it."""

    study: Study
    path: Path
    figures: StudyFigures
    told: list[tuple[str, int, int]]


@pytest.fixture(scope="session")
def done(study: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Done:
    asked, told = study(), []
    path = tmp_path_factory.mktemp("done")
    figures = run_study(asked, path, finished=lambda row, number, total: told.append((row["kind"], number, total)))
    return Done(asked, path, figures, told)
