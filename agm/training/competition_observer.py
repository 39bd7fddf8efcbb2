"""Measures competition strength while a run trains, from its checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from agm.competition import Strength
from agm.data import MultimodalData
from agm.training.checkpoint import load_checkpoint
from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.methods import build_method
from agm.training.observer import Observer
from agm.training.problem import Problem
from agm.training.run_folder import Row, RunFolder, Table, read_table

__all__ = ["COLUMNS", "CompetitionObserver", "strength_rows"]

COLUMNS = ("method", "epochs", "modality", "strength", "low", "high", "samples", "outputs", "rank", "ridge")


class CompetitionObserver(Observer):
    """Passes on what it is told, and measures the network of each checkpoint that is due, in the run's folder.

    A run that is continued keeps its rows up to the epoch that it continues from.
    """

    def __init__(
        self,
        inner: Observer,
        every: int,
        data: MultimodalData,
        strengths: Callable[[nn.Module], dict[str, Strength]],
    ) -> None:
        self._inner, self._every, self._data, self._strengths = inner, every, data, strengths
        self._table: Table | None = None
        self.rows: list[Row] = []

    def started(self, folder: Path, config: Config, epoch: int, steps: int) -> None:
        self._inner.started(folder, config, epoch, steps)
        self._run, self._epochs, self._config = RunFolder(folder), config.epochs, config
        device = torch.device(config.device)
        shapes = {name: tuple(values.shape[1:]) for name, values in self._data.train.inputs.items()}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(config.seed)  # the initial weights are the run's own
            self._method = build_method(config, shapes, self._data.num_classes, Problem.of(self._data, config))
        self._method.model.to(device)

        path = folder / "competition.csv"
        old = read_table(path, lambda row: row["epochs"] <= epoch, COLUMNS) if path.exists() else []
        counts = Counter(row["epochs"] for row in old)
        self.rows = [row for row in old if counts[row["epochs"]] == len(shapes)]
        missing = [str(e) for e in range(epoch) if self._is_due(e) and counts[e] != len(shapes)]
        if missing and epoch:
            raise UserError(
                f"Expected the run in {str(folder)!r} to have been measured as it trained, but got no strengths after "
                f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} epochs. Choose another folder with "
                "--out, or remove this one: it is trained again."
            )
        self._table = Table(path, COLUMNS, self.rows)
        if self._is_due(epoch) and counts[epoch] != len(shapes):
            self._measure(epoch)

    def stepped(self) -> None:
        self._inner.stepped()

    def epoch_finished(self, row: Row) -> None:
        if self._is_due(row["epoch"]):
            self._measure(row["epoch"])
        self._inner.epoch_finished(row)

    def close(self) -> None:
        if self._table is not None:
            self._table.close()

    def _is_due(self, epochs: int) -> bool:
        return epochs % self._every == 0 or epochs == self._epochs

    def _measure(self, epochs: int) -> None:
        assert self._table is not None
        if epochs:
            self._method.model.load_state_dict(load_checkpoint(self._run.checkpoint)["model"])
        rows = strength_rows(self._config.method, epochs, self._strengths(self._method.network))
        self._table.append(rows)
        self.rows += rows


def strength_rows(method: str, epochs: int, strengths: Mapping[str, Strength]) -> list[Row]:
    return [
        {"method": method, "epochs": epochs, "modality": name, "strength": s.value}
        | {key: value for key, value in asdict(s).items() if key != "value"}
        for name, s in strengths.items()
    ]
