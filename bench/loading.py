"""Examples a second of the data, so that nobody takes a loader for a kernel.

The bundled AV-Digits: reading the file (once a run); an epoch of batches in the order of the trainer, which indexes
what is in memory; and the same samples by torch's DataLoader, sample by sample.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

from agm import data
from agm.training.samples import batches
from bench.cases import Built, Case, Options

BASELINE = "memory"
OWN = ("memory", "file")
BATCH = 64


def cases(options: Options) -> Iterator[Case]:
    train = data.load("av-digits").train
    facts = {"op": "load", "shape": f"av-digits B={BATCH}", "dtype": "float32", "examples": len(train)}
    yield Case(facts, BASELINE, OWN, lambda: _built(options))


def _built(options: Options) -> Built:
    train = data.load("av-digits").train
    dataset = TensorDataset(*train.inputs.values(), train.target)

    def memory() -> None:
        for index in batches(len(train), BATCH, 0, 0):
            for values in (*train.inputs.values(), train.target):
                values[index]

    def loader() -> None:
        for _ in DataLoader(dataset, BATCH, shuffle=True):
            pass

    calls = {"memory": memory, "DataLoader": loader, "file": lambda: data.load("av-digits")}
    return Built({name: call for name, call in calls.items() if name == BASELINE or options.takes(name)})


def extras(row: Mapping[str, Any]) -> str:
    return f"{row['examples'] / row['seconds']:10,.0f} examples/s"
