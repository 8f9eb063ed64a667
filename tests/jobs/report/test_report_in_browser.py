"""The report in a real headless browser: it is quiet, asks for nothing, fits a phone, and has both colour schemes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import headless
import pytest
import run_folders
from places import ROOT

from jobs.report.scaling import MOST_BYTES, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(headless.found() is None, reason="no Chromium on this machine: the page is not opened in one"),
]

# The smallest contrast between any text that is shown and the page behind it (WCAG 2.2).
CONTRAST = """(() => {
  const back = getComputedStyle(document.body).backgroundColor;
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const worst = [...document.querySelectorAll('h1, h2, p, li, td, th, dd, summary, .chart text')]
    .filter(e => e.checkVisibility() && !e.classList.contains('hint') && e.textContent.trim())
    .map(e => ratio(light(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color']), light(back)));
  return Math.min(...worst);
})()"""
# What is wider than the window, outside of what scrolls by itself.
WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, svg') &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module", params=["made", "docs/study"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small made study, from its run folders; and of the block-size study, from its rows."""
    if request.param != "made":
        return Path(write_report(str(ROOT / request.param), str(tmp_path_factory.mktemp("rows") / "report.html")))
    study = run_folders.write_study(tmp_path_factory.mktemp("study"))
    return Path(write_report(str(study), note="A note, with a_very_long_word_" + "that_does_not_end_" * 12))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[headless.Tab]:
    with headless.browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def test_it_is_quiet_and_asks_for_nothing(tab: headless.Tab, page: Path) -> None:
    tab.requests.clear()
    tab.open(page)
    tab.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.console == []
    assert page.stat().st_size < MOST_BYTES
    tab.value("console.log('heard')")
    assert "heard" in tab.console.pop(), "a message would have been noticed"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_and_can_be_read(tab: headless.Tab, page: Path, width: int, dark: bool) -> None:
    tab.open(page, width, dark=dark)
    tab.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(WIDE) == []
    assert tab.value(CONTRAST) >= 4.5
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    smallest = "Math.min(...[...document.querySelectorAll('.chart')].filter(e => e.checkVisibility())"
    smallest += ".map(e => e.getScreenCTM().a * 12))"
    assert tab.value(smallest) >= 9.5, "text in charts, in pixels"


def test_the_first_screen_has_the_answer_and_a_chart(tab: headless.Tab, page: Path) -> None:
    tab.open(page, 1200)
    for what in (".answer", ".first .chart"):
        assert tab.value(f"document.querySelector('{what}').getBoundingClientRect().bottom") < 900


def test_charts_have_words_and_colours_of_each_scheme(tab: headless.Tab, page: Path) -> None:
    colours = []
    for dark in (False, True):
        tab.open(page, dark=dark)
        colours.append(tab.value("getComputedStyle(document.querySelector('.chart .s0 .i')).stroke"))
    assert colours[0] != colours[1]
    charts = "[...document.querySelectorAll('svg')]"
    assert tab.value(f"{charts}.length") > 8
    assert tab.value(f"{charts}.every(e => e.getAttribute('aria-label') && e.querySelector('desc').textContent)")
    assert tab.value("[...document.querySelectorAll('img')].every(e => e.alt)")


def test_a_mark_says_what_it_is_by_keyboard_alone(tab: headless.Tab, page: Path) -> None:
    tab.open(page)
    shown = "getComputedStyle(document.querySelector('.chart .p[tabindex] .r')).visibility"
    assert tab.value(shown) == "hidden"
    for _ in range(40):  # until the first mark has the focus
        for kind in ("rawKeyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        if tab.value("document.activeElement.matches('.chart .p')"):
            break
    assert tab.value(shown) == "visible"
    assert "seeds" in tab.value("document.activeElement.querySelector('title').textContent")


def test_the_ledger_can_be_saved(tab: headless.Tab, page: Path) -> None:
    tab.open(page)
    link = "document.querySelector('a[download]')"
    assert tab.value(f"{link}.download") == "ledger.csv"
    assert tab.value(f"atob({link}.href.split(',')[1]).split('\\n')[0].split(',').includes('accuracy')")


def test_the_link_saves_the_ledger(tab: headless.Tab, page: Path, tmp_path: Path) -> None:
    tab.open(page)
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.value("document.querySelector('a[download]').click()")
    end = time.monotonic() + headless.PATIENCE
    while not (tmp_path / "ledger.csv").exists():
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.1)
    written = page.parent / "ledger.csv"
    if not written.exists():  # of a page made from rows, which older builds wrote with fewer columns
        written = ROOT / "docs/study/grid.csv"
    saved, beside = (path.read_text().splitlines() for path in (tmp_path / "ledger.csv", written))
    assert saved[0].startswith(beside[0])
    assert len(saved) == len(beside)
    assert written.parent != page.parent or saved[0] == beside[0]
