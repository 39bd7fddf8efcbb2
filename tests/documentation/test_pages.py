"""What the site shows is there: links, symbols, a page a method, and the command line as it is."""

import ast
import importlib
import posixpath
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import yaml

from agm.strategies import strategies
from docgen import commands, included, methods, reference
from docgen.pages import generated

from .blocks import ROOT

_FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Documents of the repository that are read where they lie.
_READ_IN_PLACE = ("README.md", "CONTRIBUTING.md", "bench/README.md", "bench/results/cost.md", "recipes/README.md")
# They import what an extra installs, which takes seconds: their names are looked for in their source.
_HEAVY = ("agm.integrations.", "agm.federated.flower", "agm.models.spiking")


@cache
def site() -> dict[str, str]:
    """Place -> text, of all pages."""
    docs = ROOT / "docs"
    written = {path.relative_to(docs).as_posix(): path.read_text(encoding="utf-8") for path in docs.rglob("*.md")}
    made = generated()
    assert not written.keys() & made.keys()
    return written | made


def prose(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCED.sub("", text))


def anchors(text: str) -> set[str]:
    """Of the headings, as MkDocs makes them."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", _FENCED.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()))
    return found


def _broken(place: str, text: str, pages: dict[str, str], files: set[str]) -> list[str]:
    broken = []
    for link in _LINK.findall(prose(text)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), path)) if path else place
        if (target in pages and anchor and anchor not in anchors(pages[target])) or (
            target not in pages and target not in files
        ):
            broken.append(f"{place}: {link}")
    return broken


def test_links_between_pages_lead_somewhere() -> None:
    docs = ROOT / "docs"
    files = {path.relative_to(docs).as_posix() for path in docs.rglob("*.*")} | set(included.FILES.values())
    assert len(site()) > 60
    assert [link for place, text in site().items() for link in _broken(place, text, site(), files)] == []


@pytest.mark.parametrize("place", _READ_IN_PLACE)
def test_links_in_the_repository_lead_somewhere(place: str) -> None:
    pages = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in _documents()}
    folder = posixpath.dirname(place)
    links = [link.partition("#")[0] for link in _LINK.findall(prose(pages[place]))]
    linked = {posixpath.normpath(posixpath.join(folder, link)) for link in links}
    files = {target for target in linked if (ROOT / target).exists()}
    assert _broken(place, pages[place], pages, files) == []


def _documents() -> list[Path]:
    return [
        *ROOT.glob("*.md"),
        *(path for room in ("docs", "bench", "recipes") for path in (ROOT / room).rglob("*.md")),
    ]


def test_a_broken_link_is_found() -> None:
    pages = {"a/b.md": "## One two\n", "c.md": "`[x](gone.md)` [x](a/b.md#one-two) [y](a/b.md#three) [z](gone.md)\n"}
    assert _broken("c.md", pages["c.md"], pages, set()) == ["c.md: a/b.md#three", "c.md: gone.md"]


def test_pages_of_the_menu_are_there() -> None:
    class Loader(yaml.SafeLoader):
        pass

    def places(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [place for value in entry.values() for place in places(value)]
        return [place for part in entry for place in places(part)] if isinstance(entry, list) else [str(entry)]

    menu = places(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    assert len(menu) == len(set(menu))
    assert set(menu) <= site().keys()
    left_out = site().keys() - set(menu)  # the hook adds the methods
    assert {place for place in left_out if not place.startswith(("results/", "methods/"))} == set()


def test_every_strategy_has_a_page() -> None:
    """With an idea, a row in the table of strategies, its settings, and its docstring."""
    for name, kind in strategies.items():
        assert name in methods.table(), f"agm/strategies/README.md has no row of {name}"
        page = site()[f"methods/{name}.md"]
        assert f"::: agm.strategies.{kind.__name__}\n" in page
        assert f"`agm train --method {name}`" in page
        assert f"({name}.md)" in site()["methods/index.md"]
    assert methods.ideas().keys() <= strategies.keys()
    assert "`alpha=0.3`" in site()["methods/ogm.md"]


def test_a_strategy_without_a_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: row for name, row in methods.table().items() if name != "mlb"}
    monkeypatch.setattr(methods, "table", lambda: rows)
    with pytest.raises(KeyError, match=r"agm/strategies/README.md to have a line for `mlb`.*Add: \| `NAME` \|"):
        methods.pages()


def test_evidence_is_what_was_measured() -> None:
    """A number of docs/results/methods/compare.csv, and that a run diverged."""
    assert "| methods | late | `mlb` | 76.9 | 86.7 | +9.8 [+7.9, +11.6] | 5 of 5 |" in site()["methods/mlb.md"]
    assert "| methods | early | `agm(alpha=3)` | 85.6 | 19.8 | -66.9 | 1 of 5 |" in site()["methods/agm.md"]


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def _symbols() -> list[str]:
    return sorted({name for text in site().values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)})


def test_symbols_of_the_reference_exist() -> None:
    found = _symbols()
    assert len(found) > 150
    modules = sorted({module for page in reference.PAGES.values() for module in page}, key=len, reverse=True)
    for symbol in found:
        module = next(module for module in modules if symbol == module or symbol.startswith(f"{module}."))
        if module.startswith(_HEAVY):
            tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
            defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
            assert symbol in (module, *(f"{module}.{name}" for name in defined))
            continue
        value = importlib.import_module(module)
        for part in symbol.removeprefix(module).split(".")[1:]:
            value = getattr(value, part)
        assert value is not None


def test_public_rooms_are_in_the_reference() -> None:
    """Each folder of agm without an underscore, but those whose names are public under `agm` itself."""
    shown = {".".join(module.split(".")[:2]) for page in reference.PAGES.values() for module in page}
    rooms = {f"agm.{path.parent.name}" for path in (ROOT / "agm").glob("[!_]*/__init__.py")}
    assert rooms - shown == {"agm.verification"}


def test_the_command_line_reference_is_current() -> None:
    assert commands.PAGE.read_text(encoding="utf-8") == commands.page(), "run: make docs, or python docgen"
