import numpy as np
import torch

from agm import data as datasets
from agm import models
from agm.data import MultimodalData, Split
from agm.training.config import Config
from agm.training.described import described


def test_what_is_trained_on():
    inputs = {
        "picture": torch.zeros(4, 3, 8, 8),
        "film": torch.zeros(4, 2, 3, 8, 8),
        "sound": torch.zeros(4, 5, 2),
        "age": torch.zeros(4, 1),
        "words": torch.ones(4, 7, dtype=torch.int64),
        "title": torch.ones(4, 9, dtype=torch.uint8),
    }
    present = torch.ones(4, 6, dtype=torch.bool)
    present[0, 2] = False
    split = Split(inputs, torch.tensor([0, 1, 2, 0]), present)
    data = MultimodalData("mine", split, split.take(slice(1, 3)), None, tuple("abcdefgh"))
    shapes = {name: tuple(values.shape[1:]) for name, values in inputs.items()}
    network = models.build("late", shapes, 8, width=8, vocabularies={"words": 4, "title": 256})
    lines = described(Config(dataset="mine"), data, network)
    assert lines[:-1] == [
        "mine: 4 samples to train on, 2 to test on",
        "to predict: one of 8 classes (a, b, c, d, e, f, ...)",
        "picture: 3 channels of 8 x 8; SmallCNN",
        "film: 2 frames, 3 channels of 8 x 8; SmallCNN",
        "sound: sequences of 5 steps of 2 features, lacking in 25 % of the training samples; TransformerEncoder",
        "age: 1 feature; MLPEncoder",
        "words: up to 7 token ids; TextEncoder",
        "title: up to 9 bytes of text in UTF-8; TextEncoder",
    ]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert lines[-1] == f"late fusion, {count:,} parameters"


def test_numbers(tmp_path):
    arrays = {"a": np.zeros((3, 2)), "target": np.array([0.5, 1.5, 2.5]), "split": ["train", "train", "test"]}
    np.savez(tmp_path / "x.npz", **arrays)
    data = datasets.load(tmp_path / "x.npz")
    assert described(Config(), data, torch.nn.Linear(2, 1))[1] == "to predict: numbers (1 a sample) (number1)"
