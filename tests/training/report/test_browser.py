"""The page of `agm report` in a real browser: nothing is blank, cut off or of one theme in the other."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from agm.training import train
from agm.training.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def browse(profile: Path, page: Path, *options: str) -> str:
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def page(settings, tmp_path) -> Path:
    train(settings(epochs=2), tmp_path / "run")
    return write_report([tmp_path / "run"], samples=2)[0]


def test_both_themes_show_ink_on_paper(page, tmp_path):
    papers = []
    for theme, paper in ((1, (255, 255, 255)), (0, (21, 24, 28))):  # light, dark
        shot = tmp_path / f"{theme}.png"
        browse(
            tmp_path / f"profile{theme}",
            page,
            f"--blink-settings=preferredColorScheme={theme}",
            "--window-size=1280,1500",
            f"--screenshot={shot}",
        )
        pixels = (255 * image.imread(shot)[..., :3]).round().astype(int)
        assert pixels.shape[:2] == (1500, 1280)
        assert tuple(pixels[5, 5]) == paper
        far = np.abs(pixels - np.array(paper)).max(-1) > 100  # text and lines, which must stand out
        assert 0.005 < far.mean() < 0.3
        papers.append(far)
    # What stands out in one theme does in the other, so nothing is drawn in the colour of the paper.
    assert 0.6 < papers[1].mean() / papers[0].mean() < 1.6


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page, tmp_path, width):
    """Measured by a script around the page, which has none of its own."""
    wrapper = tmp_path / "wrapper.html"
    measure = """
      const d = document.querySelector("iframe").contentDocument;
      const box = svg => { const b = svg.getBoundingClientRect(); return [b.width, b.height]; };
      document.body.innerHTML = JSON.stringify({
        wide: d.documentElement.scrollWidth, seen: d.documentElement.clientWidth,
        cut: [...d.querySelectorAll("svg text, h1, h3, p, summary, .panel svg")].filter(e => {
          const b = e.getBoundingClientRect(); return b.left < -1 || b.right > d.documentElement.clientWidth + 1;
        }).map(e => e.textContent),
        tables: d.querySelectorAll("table").length, svgs: [...d.querySelectorAll(".panel svg")].map(box),
        broken: [...d.images].filter(i => !i.complete || !i.naturalWidth).length, images: d.images.length});
    """
    wrapper.write_text(
        f'<body><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page.read_text())}">'
        f"</iframe><script>onload = () => {{ {measure} }}</script>"
    )
    found = browse(tmp_path / "profile", wrapper, "--dump-dom", "--window-size=1400,1000")
    measured = json.loads(html.unescape(re.search(r"<body>(\{.*\})", found, re.DOTALL)[1]))
    assert measured["wide"] <= measured["seen"] <= width
    assert measured["cut"] == []
    assert measured["tables"] == page.read_text().count("<table")
    assert len(measured["svgs"]) == 6
    assert all(w > 250 and h > 150 for w, h in measured["svgs"])
    assert (measured["broken"], measured["images"]) == (0, 4)
