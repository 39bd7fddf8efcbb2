"""What a suite measures: cases, and the variants of each that take turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Notes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        device: where everything runs.
        rounds: measurements of each variant, at least 2.
        quick: few cases, small ones, nothing that is compiled.
        networks, fusions, modalities, ops, variants: those to measure; empty: the suite's own choice.
        batch: samples of a step; None: that of the network.
    """

    device: torch.device
    rounds: int = 7
    quick: bool = False
    networks: tuple[str, ...] = ()
    fusions: tuple[str, ...] = ()
    modalities: tuple[int, ...] = ()
    ops: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    batch: int | None = None

    def takes(self, variant: str) -> bool:
        return not self.variants or variant in self.variants


@dataclass(frozen=True)
class Built:
    """A case that is ready to run.

    Attributes:
        variants: name -> one call, which is what is timed.
        notes: counts each variant, before anything is timed; keys of the rows by variant.
    """

    variants: Mapping[str, Callable[[], object]]
    notes: Callable[[], Notes] = field(default=dict)


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        facts: what it is; they stand in each of its rows.
        baseline: the variant whose time the ratios are over.
        own: the variants that are the project's, which `--base` compares between revisions.
        build: makes it ready, on demand: a case may take much memory. The variants it returns are those asked for and
            the baseline.
    """

    facts: Mapping[str, Any]
    baseline: str
    own: tuple[str, ...]
    build: Callable[[], Built]
