"""Networks of one modality each beside the runs of a comparison, and what the competition cost the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from agm.competition import Strength
from agm.data import MultimodalData
from agm.data._files import read_text
from agm.training.competition_settings import keep_data
from agm.training.config import Config
from agm.training.environment import reproducible
from agm.training.errors import UserError
from agm.training.result import Result
from agm.training.run_folder import run_name
from agm.training.samples import hold_out, load_data, on_device
from agm.training.strengths import Concepts, concept_method, concepts_of, strength_apart, strength_of
from agm.training.writing import write_text

__all__ = ["APART", "UnimodalRuns", "check_fitting_split", "with_fitting_split"]

APART = "apart"  # in the place of a method: networks trained on one modality each, side by side
RIDGE: Literal["cv"] = "cv"
RESAMPLES = 2  # the least: intervals of a comparison are over its seeds


def with_fitting_split(config: Config, folder: Path) -> tuple[Config, MultimodalData]:
    """Settings and data with one validation split for all seeds, which no run is trained on.

    The data's own; else the share that `validation` holds out, drawn by the seed of `config` and kept in
    `folder`/data.npz, since a concept of another seed must not have seen it either.

    Raises:
        UserError: there is none, or that file holds other data.
    """
    data = check_fitting_split(config)
    if config.validation:
        config = replace(config, dataset=str(keep_data(data, folder / "data.npz")), validation=0.0)
    return config, data


def check_fitting_split(config: Config) -> MultimodalData:
    """The data with their validation split, or with the one that `config` holds out.

    Raises:
        UserError: there is none.
    """
    data = load_data(config)
    if data.validation is None and not config.validation:
        raise UserError(
            "Expected data with a validation split to measure the competition strength, but got none. "
            "Hold out a share of the training split, for example with --validation 0.2."
        )
    return hold_out(data, config)


class UnimodalRuns:
    """Measures the runs of one fusion against networks that were trained on one modality each.

    The concepts for a run of seed s are those of seed s + 1, so that they share no initial weights with it; those of
    seed s, side by side, are what "apart" measures.

    Args:
        config: of the comparison, with data that have a validation split.
        data: these.
        trained: (method, seed) -> its run, finished.
    """

    def __init__(self, config: Config, data: MultimodalData, trained: Callable[[str, int], Result]) -> None:
        assert data.validation is not None
        device = torch.device(config.resolved().device)
        self._config, self._trained, self._modalities = config, trained, data.modalities
        self._fit, self._test = (on_device(split, data.modalities, device) for split in (data.validation, data.test))
        self._known: tuple[int, Concepts] | None = None

    @staticmethod
    def requests(fusion: str, modalities: Sequence[str], seed: int) -> list[tuple[str, int]]:
        """(method, seed) of the runs that a run of this seed is measured with."""
        return [(concept_method(fusion, name), own) for own in (seed, _next(seed)) for name in modalities]

    def strengths(self, result: Result) -> dict[str, float]:
        """Modality -> competition strength of a run, kept in its folder."""

        def measured() -> dict[str, Strength]:
            concepts = self._concepts(result.config.seed)
            return strength_of(result.network, self._fit, self._test, concepts, ridge=RIDGE, resamples=RESAMPLES)

        return self._kept(result.folder / "strength.json", result.config.seed, result.data, measured)

    def figures(self, seed: int) -> dict[str, float]:
        """Those of the networks of this seed side by side: each one's accuracy, as a response, and strength."""
        results = {name: self._trained(concept_method(self._config.fusion, name), seed) for name in self._modalities}

        def measured() -> dict[str, Strength]:
            networks: dict[str, nn.Module] = {name: result.network for name, result in results.items()}
            return strength_apart(
                networks, self._fit, self._test, self._concepts(seed), ridge=RIDGE, resamples=RESAMPLES
            )

        first = next(iter(results.values()))
        strengths = self._kept(first.folder / "apart.json", seed, first.data, measured)
        return {
            **{f"response_{name}": result.evaluation.accuracy for name, result in results.items()},
            **{f"strength_{name}": value for name, value in strengths.items()},
        }

    def _concepts(self, seed: int) -> Concepts:
        if self._known is None or self._known[0] != seed:
            networks = {
                name: self._trained(concept_method(self._config.fusion, name), _next(seed)).network
                for name in self._modalities
            }
            self._known = seed, concepts_of(networks, self._fit, self._test)
        return self._known[1]

    def _kept(self, path: Path, seed: int, data: str, measured: Callable[[], dict[str, Strength]]) -> dict[str, float]:
        """The strengths in a file; measured where it is not there, or of other concepts or data."""
        concepts = [run_name(concept_method(self._config.fusion, name), _next(seed)) for name in self._modalities]
        of: dict[str, Any] = {"concepts": concepts, "ridge": RIDGE, "data": data}
        try:
            found = json.loads(read_text(path))
            if {name: found[name] for name in of} == of:
                return {name: float(found["strength"][name]) for name in self._modalities}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there, or cut off
        try:
            with reproducible(self._config.resolved()):
                strengths = {name: strength.value for name, strength in measured().items()}
        except ValueError as error:
            raise UserError(f"The competition strength cannot be measured: {error}") from error
        write_text(path, json.dumps({**of, "strength": strengths}, indent=2) + "\n")
        return strengths


def _next(seed: int) -> int:
    return (seed + 1) % 2**32
