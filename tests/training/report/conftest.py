"""A run and its page, made once."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agm import data as datasets
from agm.data import MultimodalData
from agm.training import load_run, train
from agm.training.report import write_report

from .page import NAMES, Page, config_of, split_of


@pytest.fixture(scope="package")
def place(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("report")
    tiny = MultimodalData("tiny", split_of(49, 0), split_of(30, 1), None, NAMES)
    datasets.save(tiny, path / "tiny.npz")
    return path


@pytest.fixture(scope="package")
def run(place) -> Path:
    train(config_of(place), place / "run")
    return place / "run"


@pytest.fixture(scope="package")
def page(run) -> Page:
    path, _ = write_report([run], samples=5)
    assert path == run / "report.html"
    return Page(path)


@pytest.fixture(scope="package")
def asked(run) -> SimpleNamespace:
    """The network asked directly: all inputs, and each with zeros in the place of the other."""
    network, test = load_run(run).network.eval(), datasets.load(run.parent / "tiny.npz").test
    zeros = {name: torch.zeros_like(values) for name, values in test.inputs.items()}
    with torch.no_grad():
        joint = network(**test.inputs)
        audio = network(**{**zeros, "audio": test.inputs["audio"]})
        picture = network(**{**zeros, "image": test.inputs["image"]})
    half = (joint - audio - picture) / 2
    return SimpleNamespace(
        target=test.target, joint=joint, alone=[audio, picture], responses=[audio + half, picture + half]
    )


@pytest.fixture
def quick(place):
    def report(dataset: Path, name: str, **changes):
        train(config_of(place, dataset=str(dataset), epochs=1, **changes), place / name)
        path, (section,) = write_report([place / name], samples=2)
        return Page(path), section

    return report
