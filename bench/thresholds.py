"""bench/thresholds.toml, read."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("thresholds.toml")


@dataclass(frozen=True)
class Ratio:
    """The time of `variant` is at most `most` times that of `over`."""

    suite: str
    variant: str
    over: str
    most: float
    op: str = ""
    shape: str = ""
    network: str = ""
    fusion: str = ""
    modalities: int = 0
    batch: int = 0  # 0: that of the network
    device: str = ""

    @property
    def case(self) -> tuple[Any, ...]:
        return self.suite, self.op, self.shape, self.network, self.fusion, self.modalities, self.batch

    def __str__(self) -> str:
        what = f"{self.op} {self.shape}" if self.op else f"{self.network} {self.fusion} M={self.modalities}"
        what += f" B={self.batch}" if self.batch else ""
        return f"{what}: {self.variant} over {self.over}"


@cache
def load() -> Mapping[str, Any]:
    """The tables of counts, by name."""
    return tomllib.loads(PATH.read_text(encoding="utf-8"))


def ratios(device: str) -> list[Ratio]:
    """The bounds on times that hold on a kind of device."""
    found = [Ratio(**bound) for bound in load()["ratio"]]
    return [bound for bound in found if bound.device in ("", device)]
