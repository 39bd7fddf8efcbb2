"""Competition strength over the epochs of a training: concepts first, then the methods, measured as they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agm.competition import Strength
from agm.data import MultimodalData
from agm.training.competition_observer import COLUMNS, CompetitionObserver, strength_rows
from agm.training.competition_settings import CompetitionSettings, held_out, keep_data, keep_settings
from agm.training.config import Config
from agm.training.environment import reproducible
from agm.training.errors import UserError
from agm.training.methods import check_method
from agm.training.observer import Observer
from agm.training.result import Result
from agm.training.run_folder import Row, RunFolder, Table, run_name
from agm.training.samples import fingerprint, load_data, on_device
from agm.training.strengths import Concepts, concept_method, concepts_of, strength_apart, strength_of
from agm.training.trainer import check_settings, train
from agm.training.unimodal_runs import APART
from agm.training.writing import check_no_link, locked

__all__ = ["Competition", "run_competition"]

Request = Callable[[str, int], Observer]


@dataclass(frozen=True)
class Competition:
    """A finished measurement.

    Args:
        methods: in the order asked for.
        modalities: of the data.
        rows: of competition.csv: a method, a number of finished epochs, and a modality each; for `APART` only one.
        concepts: modality -> accuracy of its concept on the test split.
        accuracies: method -> joint accuracy on the test split.
    """

    methods: tuple[str, ...]
    modalities: tuple[str, ...]
    rows: list[Row]
    concepts: Mapping[str, float]
    accuracies: Mapping[str, float]

    def last(self, method: str, modality: str) -> Row:
        """The row of the trained network."""
        return [row for row in self.rows if (row["method"], row["modality"]) == (method, modality)][-1]


def run_competition(
    config: Config,
    methods: Sequence[str],
    folder: Path,
    measurement: CompetitionSettings | None = None,
    observer: Request = lambda method, seed: Observer(),
    finished: Callable[[Result], None] = lambda result: None,
) -> Competition:
    """Train the concept of each modality, networks apart, and each method, and measure the methods' strengths.

    The concepts are trained with seed `config.seed` + 1, so that they share no initial weights with the networks that
    are measured; those trained apart with `config.seed`, as the methods. The regression is fitted on the validation
    split; where there is none, on a part of the training split that is held out from all trainings (data.npz holds the
    data so divided). Strength is measured on the test split.

    Every run has an ordinary run folder in `folder`, those of the methods with a competition.csv: one that is finished
    is not repeated, one that was interrupted goes on. `folder` gets competition.csv, and the settings in training.toml
    (a --config file) and competition.toml.

    Args:
        config: the settings; method, and where samples are held out the dataset, are replaced.
        methods: one or more, of networks that take all modalities.
        folder: made if it does not exist.
        measurement: its settings.
        observer: (method, seed) -> who is told about that run.
        finished: called after each run.

    Raises:
        UserError: settings or data that do not fit, also with what is in `folder` already; a concept that cannot be
            measured.
    """
    measurement = measurement or CompetitionSettings()
    if config.validation:
        raise UserError(
            f"Expected setting `validation` to be 0 for a measurement of competition strength, but got "
            f"{config.validation}. The share that is held out for it is --holdout."
        )
    config = config.resolved()
    original = load_data(config)
    _check_request(methods, original)
    data = original if original.validation is not None else held_out(original, measurement.holdout, config.seed)
    for method in methods:
        check_settings(replace(config, method=method))
    with locked(folder):
        keep_settings(folder, config, methods, measurement)
        if data is not original:
            config = replace(config, dataset=str(keep_data(data, folder / "data.npz")))
        session = _Session(config, measurement, folder, data, observer, finished)
        session.train_concepts()
        for method in methods:
            session.train_measured(method)
        Table(folder / "competition.csv", COLUMNS, session.rows).close()
        return Competition(
            tuple(methods), data.modalities, session.rows, session.concept_accuracies, session.accuracies
        )


class _Session:
    """What the trainings of one measurement share."""

    def __init__(
        self,
        config: Config,
        measurement: CompetitionSettings,
        folder: Path,
        data: MultimodalData,
        observer: Request,
        finished: Callable[[Result], None],
    ) -> None:
        assert data.validation is not None
        device = torch.device(config.device)
        self.config, self.measurement, self.folder, self.data = config, measurement, folder, data
        self.observer, self.finished = observer, finished
        self.fit, self.test = (on_device(split, data.modalities, device) for split in (data.validation, data.test))
        self.concepts: Concepts = {}
        self.concept_accuracies: dict[str, float] = {}
        self.accuracies: dict[str, float] = {}
        self.rows: list[Row] = []

    def train_concepts(self) -> None:
        """Sets `concepts`, and begins `rows` with those of networks trained apart."""
        seed = self.config.seed
        networks: list[dict[str, nn.Module]] = []
        for own in ((seed + 1) % 2**32, seed):
            results = {
                name: self._train(concept_method(self.config.fusion, name), own) for name in self.data.modalities
            }
            networks.append({name: result.network for name, result in results.items()})
            self.concept_accuracies = self.concept_accuracies or {
                name: result.evaluation.accuracy for name, result in results.items()
            }
        with reproducible(self.config):
            self.concepts = concepts_of(networks[0], self.fit, self.test)
            apart = self._measured(strength_apart, networks[1])
        self.rows = strength_rows(APART, self.config.epochs, apart)

    def train_measured(self, method: str) -> None:
        """Adds the rows of a method, measured while it trains."""
        watcher = CompetitionObserver(
            self.observer(method, self.config.seed),
            self.measurement.every,
            self.data,
            lambda network: self._measured(strength_of, network),
        )
        try:
            result = self._train(method, self.config.seed, watcher)
        finally:
            watcher.close()
        self.accuracies[method] = result.evaluation.accuracy
        self.rows += watcher.rows

    def _train(self, method: str, seed: int, observer: Observer | None = None) -> Result:
        run = self.folder / run_name(method, seed)
        check_no_link(run)
        request = replace(self.config, method=method, seed=seed)
        result = train(
            request, run, resume=RunFolder(run).holds_run(), observer=observer or self.observer(method, seed)
        )
        if result.data != fingerprint(self.data):
            raise UserError(
                f"Expected the data {self.config.dataset!r} to stay as they were at the start, but their contents "
                "changed meanwhile. Measure again into another folder with --out."
            )
        self.finished(result)
        return result

    def _measured(self, measure: Callable[..., dict[str, Strength]], networks: Any) -> dict[str, Strength]:
        chosen = self.measurement
        try:
            return measure(networks, self.fit, self.test, self.concepts, ridge=chosen.ridge, resamples=chosen.resamples)
        except ValueError as error:
            raise UserError(f"The competition strength cannot be measured: {error}") from error


def _check_request(methods: Sequence[str], data: MultimodalData) -> None:
    for method in methods:
        _, argument = check_method(method)
        if argument:
            raise UserError(
                f"Expected --methods to be methods that train on all modalities, but got {method!r}. "
                f"Leave it out: networks of one modality are trained anyway, as {APART!r}."
            )
    if not methods or len(set(methods)) != len(methods):
        raise UserError(
            f"Expected --methods to be one or more different methods, but got {', '.join(methods) or 'none'}. "
            "Use for example --methods joint,agm."
        )
    if len(data.modalities) < 2:
        raise UserError(
            f"Expected the data to have two modalities or more, but got {', '.join(data.modalities)}: "
            "one alone has nothing to compete with."
        )
