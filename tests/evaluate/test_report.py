"""report.html as a browser shows it: whole, without a network, nothing missing."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from jaxkv.evaluate.plots.pictures import draw_all
from jaxkv.evaluate.report import report
from tests.evaluate.made import TASKS, made_table

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars"
).split()
COUNT = """<script>
window.onload = () => {
  const images = [...document.images];
  document.title = images.filter(i => i.naturalWidth > 300).length + " shown of "
    + images.length + ", wide " + document.documentElement.scrollWidth;
};
</script>"""


@pytest.fixture(scope="module")
def pictures():
    return draw_all(made_table())


@pytest.fixture(scope="module")
def page(pictures):
    return report(made_table(), pictures)


@pytest.fixture
def browser(tmp_path):
    """Runs a headless browser on a page; returns what it prints."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")

    def run(page, *arguments):
        file = tmp_path / "report.html"
        file.write_text(page)
        command = [found, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, *arguments, file.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_browser_shows_every_picture_and_method(browser, page, pictures):
    shown = browser(page.replace("</body>", f"{COUNT}</body>"), "--dump-dom")
    title = re.search(r"<title>(.*)</title>", shown)[1]
    assert title.startswith(f"{len(pictures)} shown of {len(pictures)},")
    assert int(title.rsplit(" ", 1)[1]) <= 1000  # nothing sticks out of the window
    for name in ("full", "snapkv", "adakv", *(t.split("_")[0] for t in TASKS)):
        assert name in shown


def test_the_screenshot_holds_text_tables_and_colours(browser, page, tmp_path):
    file = tmp_path / "shot.png"
    browser(page, f"--screenshot={file}", "--window-size=1000,5000")
    shot = imread(file)[..., :3]
    assert shot.shape == (5000, 1000, 3)
    ink = (shot < 0.5).all(axis=2)
    rows_with_ink = ink.any(axis=1)
    assert rows_with_ink[:120].any()  # the heading
    assert 0.2 < rows_with_ink[:3000].mean() < 1
    for color in (
        "#0072B2",
        "#D55E00",
    ):  # the two methods, in one picture after another
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        close = (np.abs(shot - rgb) < 0.02).all(axis=2)
        bands = close.any(axis=1)
        starts = np.flatnonzero(np.diff(bands.astype(int)) == 1)
        assert close.sum() > 2000 and np.ptp(starts) > 1000


def test_nothing_comes_from_elsewhere(page):
    class Links(HTMLParser):
        found = []

        def handle_starttag(self, tag, attributes):
            self.found += [v for k, v in attributes if k in ("src", "href")]

    parser = Links()
    parser.feed(page)
    assert parser.found
    assert all(at.startswith(("data:image/png;base64,", "#")) for at in parser.found)
    assert "@import" not in page and "url(" not in page


def test_what_was_run_is_said_and_escaped(page):
    assert "jaxkv compare --model &lt;made&gt; &amp; more" in page
    for said in ("2026-01-02T03:04:05", "cpu", "jax 0.0", "64 tokens", "seed 0"):
        assert said in page


def test_a_row_that_could_not_take_part_says_why():
    table = made_table()
    out = replace(table.rows[1], score=None, tasks=None, note="holds 32 slots at least")
    page = report(replace(table, rows=(table.rows[0], out)), [])
    assert page.count("holds 32 slots at least") == 1
