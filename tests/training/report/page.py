"""A page as a browser reads it, and the small dataset that the runs of these tests are of."""

from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import torch

from agm.data import Split
from agm.training import Config

EVIL = "<script>alert(1)</script>"
NAMES = ("a", "b", EVIL)


class Page(HTMLParser):
    """Its tables, links, places, samples and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tables: list[SimpleNamespace] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.samples: list[int] = []
        self.words: list[str] = []
        self._cell: list[str] | None = None
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag in ("use", "image"):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if "data-sample" in given:
            self.samples.append(int(given["data-sample"]))
        if tag == "table":
            self.tables.append(SimpleNamespace(rows=[], view=(given.get("data-view"), given.get("data-modality"))))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self._cell = []
        if tag == "br" and self._cell is not None:
            self._cell.append(" ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, text):
        self.words.append(text)
        if self._cell is not None:
            self._cell.append(text)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def table(self, *head: str) -> list[list[str]]:
        """The rows below this head."""
        (found,) = [table.rows[1:] for table in self.tables if table.rows[0] == list(head)]
        return found

    def matrix(self, kind: str, modality: str = "") -> list[list[int]]:
        (found,) = [table.rows[1:] for table in self.tables if table.view == (kind, modality)]
        return [list(map(int, row[1:])) for row in found]


def split_of(samples: int, seed: int) -> Split:
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (samples,), generator=random)
    audio = torch.eye(3)[target].repeat(1, 4) + 0.5 * torch.randn(samples, 12, generator=random)
    picture = target.view(-1, 1, 1, 1) / 2 + torch.randn(samples, 1, 4, 4, generator=random)
    return Split({"audio": audio, "image": picture}, target)


def config_of(place: Path, **changes) -> Config:
    base = {"dataset": str(place / "tiny.npz"), "width": 8, "epochs": 3, "batch_size": 16, "threads": 1}
    return Config(**{**base, "device": "cpu", "lr": 0.1, **changes})


def page_matrix(page: Page) -> list[list[int]]:
    first = next(table for table in page.tables if table.view == ("joint", ""))
    return [list(map(int, row[1:])) for row in first.rows[1:]]
