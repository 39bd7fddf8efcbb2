"""docs/datasets.md names every layout, its splits and its front ends."""

from pathlib import Path

from agm.data.layouts import LAYOUTS
from agm.data.layouts.front_ends import FRONT_ENDS

PAGE = (Path(__file__).parents[3] / "docs/datasets.md").read_text(encoding="utf-8")


def test_the_page_names_every_layout_and_its_splits():
    rows = {
        name.strip(" `"): line
        for line in PAGE.split("\n")
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    assert rows.keys() == LAYOUTS.keys()
    for name, layout in LAYOUTS.items():
        assert set(layout.schemes) <= {"clean", "authors", "actors", "random"}
        for scheme in set(layout.schemes) & {"actors", "random"}:
            assert f"`{scheme}`" in rows[name]
        named = {option for option in layout.options if f"`{option}`" in rows[name]}
        assert bool(named) == bool(layout.options)


def test_the_page_names_every_front_end():
    for name in FRONT_ENDS:
        assert f"`{name}`" in PAGE
