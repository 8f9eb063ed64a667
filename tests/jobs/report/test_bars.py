"""Counts as bars: what is drawn is what was counted, beside an axis that says how much that is."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from jobs.report.draw import histogram, ranked


def texts(figure: str, kind: str = "") -> list[str]:
    root = ElementTree.fromstring(figure)
    return [t.text or "" for t in root.iter("text") if (t.get("class") or "").split()[:1] == ([kind] if kind else [])]


def y_axis(figure: str) -> list[tuple[str, float]]:
    root = ElementTree.fromstring(figure)
    return [(t.text or "", float(t.get("y", "0")) - 4) for t in root.iter("text") if t.get("class") == "y"]


def test_bars_are_as_high_as_the_axis_beside_them_says() -> None:
    figure = histogram("bytes", [0, 50, 100, 0], ["1k", "2k", "5k"], "pictures")
    bars = list(ElementTree.fromstring(figure).iter("rect"))
    tops = [float(rect.get("y", "0")) for rect in bars]
    ticks = dict(y_axis(figure))
    assert list(ticks) == ["0", "50", "100"]
    assert tops == pytest.approx([ticks["0"], ticks["50"], ticks["100"], ticks["0"]])
    assert [title.text for title in ElementTree.fromstring(figure).iter("title")] == [
        "under 1k: 0 pictures",
        "1k to 2k: 50 pictures",
        "2k to 5k: 100 pictures",
        "5k or more: 0 pictures",
    ]
    assert "bytes" in texts(figure)
    assert "pictures" in "".join(texts(figure, "y"))


def test_nothing_counted_is_nothing_drawn() -> None:
    assert histogram("bytes", [0, 0, 0], ["1k", "2k"], "pictures") == ""
    assert ranked("classes", [], "pictures") == ranked("classes", [0, 0], "pictures") == ""


@pytest.mark.parametrize("many", [1, 2, 25, 344, 10_000, 300_000])
def test_classes_of_any_number_are_one_shape_that_falls(many: int) -> None:
    counts = [1 + (n * 7919) % 40 for n in range(many)]
    figure = ranked("classes", counts, "pictures")
    assert len(figure) < 12_000
    (shape,) = re.findall(r'class="shape" d="([^"]+)"', figure)
    heights = [float(y) for y in re.findall(r"V([\d.]+)H", shape)]
    assert heights == sorted(heights)
    assert len(heights) == min(many, 344)
    ends = [float(x) for x in re.findall(r"H([\d.]+)", shape)]
    assert ends[-1] == pytest.approx(390)
    assert f"{many:,}" in re.sub(r"<[^>]+>", " ", figure)
    assert f"from {max(counts)} down to {min(counts)}" in figure


def test_a_giant_among_small_classes_asks_for_a_logarithmic_scale_that_shows_ones() -> None:
    figure = ranked("classes", [100_000, *[10] * 10, *[1] * 30], "pictures")
    assert "pictures, log scale" in figure
    ticks = dict(y_axis(figure))
    assert list(ticks) == ["1", "10", "100", "1,000", "10k", "100k"]
    gaps = [a - b for a, b in zip(list(ticks.values()), list(ticks.values())[1:])]
    assert gaps == pytest.approx([gaps[0]] * 5, abs=0.2)
    (shape,) = re.findall(r'class="shape" d="([^"]+)"', figure)
    assert float(re.findall(r"V([\d.]+)H", shape)[-1]) == pytest.approx(ticks["1"], abs=0.1)
    assert float(re.findall(r"V([\d.]+)Z", shape)[0]) > ticks["1"] + 2, "a class of one picture can be seen"


def test_what_is_said_is_text() -> None:
    figure = histogram("<b>&", [1, 2], ["<i>"], "'\"<u>")
    ElementTree.fromstring(figure)
    assert "<b>" not in figure
    assert "<i>" not in figure
    assert "<u>" not in figure
