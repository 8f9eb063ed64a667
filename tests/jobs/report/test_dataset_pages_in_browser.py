"""ingest.html and peek.html in a real headless browser: quiet, on a phone too, in both colour schemes, and what is tiny
can be seen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import headless
import numpy as np
import pytest
from made_datasets import jpeg
from PIL import Image
from test_dataset_page import EVIL, crawl
from test_report_in_browser import CONTRAST, WIDE

from ingest.filter import FilterConfig
from ingest.sets import folders
from jobs.report import dataset_page, peek

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(headless.found() is None, reason="no Chromium on this machine: the pages are not opened in one"),
]
LONG = "a-class-whose-name-goes-on-and-on-without-a-place-to-break-it-" * 3
# Sides in pixels, frame and rendering of the tiny pictures.
TINY = """[...document.querySelectorAll('img.tiny')].map(e => [e.clientWidth, e.naturalWidth,
  getComputedStyle(e).borderTopStyle, getComputedStyle(e).imageRendering])"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of an import of 40 classes with rejects, and of a crawl of hostile links."""
    folder = tmp_path_factory.mktemp("pages")
    for n in range(120):
        path = folder / "pictures" / (LONG if n % 40 == 0 else f"class {n % 40}") / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n, side=64))
    for side in (1, 3, 12):
        Image.new("RGB", (side, side), "white").save(path.parent / f"tiny{side}.png")
    (path.parent / "cut.jpg").write_bytes(jpeg(3, side=200)[:-2000])
    folders.run(folders.Config(str(folder / "pictures"), str(folder / "set"), filter=FilterConfig(min_side=32)))
    crawl(folder / "crawl", evil=EVIL, each=200)
    crawl(folder / "plain", each=40)
    found = {"import": Path(dataset_page.write(str(folder / "set")))}
    found["crawl"] = Path(dataset_page.write(str(folder / "crawl"), {"filter.min-side": "48"}))
    for name, dataset, reason in (
        ("kept", "crawl", "kept"),
        ("undecodable", "set", "undecodable"),
        ("timeout", "crawl", "timeout"),
        ("followed", "plain", "kept"),
    ):
        found[name] = folder / f"{name}.html"
        peek.run(peek.Config(str(folder / dataset), out=str(found[name]), reason=reason, samples=40))
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[headless.Tab]:
    with headless.browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("name", ["import", "crawl", "kept", "undecodable", "timeout", "followed"])
def test_every_page_fits_asks_for_nothing_and_can_be_read(tab: headless.Tab, pages: dict[str, Path], name: str) -> None:
    page = pages[name]
    assert page.stat().st_size < dataset_page.MOST_BYTES
    for width in (1200, 390):
        for dark in (False, True):
            tab.requests.clear()
            tab.open(page, width, dark=dark)
            tab.value("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value(WIDE) == [], (width, dark)
            assert tab.value(CONTRAST) >= 4.5, (width, dark)
            assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
            assert tab.console == []


def test_tiny_pictures_are_enlarged_pixel_by_pixel_in_a_frame(tab: headless.Tab, pages: dict[str, Path]) -> None:
    for dark in (False, True):
        tab.open(pages["import"], dark=dark)
        shown = tab.value(TINY)
        assert sorted(natural for _, natural, _, _ in shown) == [1, 3, 12]
        for wide, _, border, rendering in shown:
            assert wide > 80
            assert (border, rendering) == ("dashed", "pixelated")
        clip = _place(tab) | {"scale": 1}
        png = tab.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)["data"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"), float)
        assert pixels[pixels.shape[0] // 2, pixels.shape[1] // 2] > 250, "the white pixel"
        assert pixels.max() - pixels.min() > 60, "and its frame"


def _place(tab: headless.Tab) -> dict[str, float]:
    """Where the first tiny picture is on the page."""
    return tab.value(
        "(() => { const r = document.querySelector('img.tiny').getBoundingClientRect();"
        "return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}; })()"
    )


def test_hostile_links_run_nothing_and_those_that_can_be_followed_say_nothing_of_us(
    tab: headless.Tab, pages: dict[str, Path]
) -> None:
    for name in ("kept", "timeout", "crawl"):
        tab.open(pages[name])
        assert tab.value("document.querySelectorAll('script, img[onerror], a[href^=javascript]').length") == 0
    tab.open(pages["followed"])
    links = tab.value("[...document.querySelectorAll('a')].map(e => [e.protocol, e.rel, e.textContent])")
    assert len(links) == 40
    assert {(protocol, rel) for protocol, rel, _ in links} == {("http:", "noreferrer noopener nofollow")}
    assert tab.value("document.querySelector('meta[name=referrer]').content") == "no-referrer"
