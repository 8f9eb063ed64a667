"""Charts as SVG: scales, ticks, legends, words; and what each chart of the report draws."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
import run_folders

from jobs.report import multipliers
from jobs.report.arms import study
from jobs.report.draw import (
    Chart,
    Mark,
    Series,
    accuracy_axis,
    axis,
    baselines,
    front,
    held_out_charts,
    log_axis,
    loss_charts,
    stand_alone,
    training_charts,
)
from jobs.report.draw.plot import RIGHT, WIDTH, log_ticks, ticks
from jobs.report.ledger import read_runs
from jobs.report.measured import by_cell, measured, points
from jobs.report.tables import human, percent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.write_study(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize(("low", "high"), [(0.031, 0.262), (0, 5000), (0.5, 0.52), (-3.0, 12.0)])
def test_linear_ticks_are_round_few_and_inside(low: float, high: float):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert low <= found[0]
    assert found[-1] <= high + 1e-9
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(90, 600_000), (1.1, 1.9), (8e12, 7e14), (0.2, 4.0)])
def test_log_ticks_are_inside_and_at_least_three(low: float, high: float):
    found = log_ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= tick <= high for tick in found)


def test_a_log_axis_of_few_values_names_them_and_says_that_it_is_one():
    x = log_axis("samples", [1000, 4000, 16000], human)
    assert x.at() == [1000, 4000, 16000]
    assert x.label == "samples, log scale"
    assert x.place(4000) == pytest.approx(0.5)
    many = log_axis("samples", [1000 * 1.1**n for n in range(40)], human)
    assert len(many.at()) < 8


def chart(**changes: object) -> Chart:
    marks = [Mark(10.0**n, 0.1 * n, f"point {n} <b>", 0.1 * n - 0.05, 0.1 * n + 0.05) for n in (1, 2, 3)]
    series = [Series("one & only", 0, marks, [(100.0, 0.21)], [[(m.x, m.y) for m in marks]])]
    x, y = log_axis("samples", [m.x for m in marks], human), axis("accuracy in %", [0.05, 0.35], percent)
    return Chart(**{"title": "title <i>", "x": x, "y": y, "series": series, **changes})


def test_a_chart_is_well_formed_escaped_and_in_words():
    root = ElementTree.fromstring(chart().svg())
    assert root.get("aria-label") == "title <i>"
    assert root.findtext("desc") == "accuracy in % against samples, log scale. one & only: 10 at 10, 30 at 1k."
    marks = [g for g in root.iter("g") if g.get("tabindex") == "0"]
    assert [g.findtext("title") for g in marks] == ["point 1 <b>", "point 2 <b>", "point 3 <b>"]
    assert not root.findall(".//script")


def test_larger_values_are_higher_and_further_to_the_right():
    root = ElementTree.fromstring(chart().svg())
    paths = [g.find("path").get("d") for g in root.iter("g") if g.get("tabindex")]
    places = [tuple(map(float, re.findall(r"[\d.]+", path)[:2])) for path in paths]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert all(0 < x < WIDTH - RIGHT + 1 for x, _ in places)


def test_a_legend_takes_as_many_rows_as_it_needs():
    few = chart()
    many = chart(series=[Series(f"a rather long name, number {n}", n) for n in range(6)])
    heights = [int(re.search(r'viewBox="0 0 \d+ (\d+)"', c.svg())[1]) for c in (few, many)]
    assert heights[1] >= heights[0] + 2 * 17


def test_a_file_of_its_own_brings_its_style():
    text = stand_alone(chart().svg())
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_baselines_are_those_of_the_head(runs: Path):
    rules = {rule.label: (rule.low, rule.high) for rule in baselines(read_runs(str(runs)).rows, "linear")}
    assert rules == {"chance": (1 / 200, 1 / 200), "raw pixels": (0.034, 0.034), "untrained": (0.062, 0.062)}


def test_the_front_is_what_nothing_beats_at_its_cost(runs: Path):
    ledger = read_runs(str(runs))
    at = points(next(iter(by_cell(measured(ledger, study(ledger.runs))).values())))
    best = front(at)
    assert [p.bar.mean for p in best] == sorted(p.bar.mean for p in best)
    for p in at:
        cheaper = [q for q in best if q.x("flops") <= p.x("flops")]
        assert max(q.bar.mean for q in cheaper) >= p.bar.mean


def test_trainings_have_a_chart_for_each_quantity_and_block(runs: Path):
    ledger = read_runs(str(runs))
    rows = training_charts(study(ledger.runs), ledger.runs)
    titles = [[ElementTree.fromstring(svg).get("aria-label") for svg in row] for row in rows]
    assert titles[0] == ["4x4 blocks: training loss", "1x1 blocks: training loss"]
    assert [row[0].partition(": ")[2] for row in titles] == [
        "training loss",
        "learning rate",
        "gradient norm before clipping",
        "throughput since the start",
        "waiting for data",
    ]


def test_laws_are_those_of_the_fit_and_reasons_stand_in_for_missing_ones(runs: Path, tmp_path: Path):
    ledger = read_runs(str(runs))
    group = next(iter(by_cell(measured(ledger, study(ledger.runs))).values()))
    known = multipliers.laws(group)
    assert known.reference == "AIM-like 1x1"
    assert known.fit is not None
    assert {arm.name for arm in known.fit.arms} == {m.line.label for m in group}
    against = [m for m in known.fit.multipliers["samples_seen"] if (m.arm, m.against) == ("XTRA 4x4", "AIM-like 1x1")]
    assert against
    assert all(m.value > 1 for m in against), "the made-up law has XTRA learn faster"
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2)
    alone = read_runs(str(tmp_path))
    (few,) = by_cell(measured(alone, study(alone.runs))).values()
    assert multipliers.laws(few).why == "No law: a line needs 3 sample counts, and none here has more than 1."


def test_accuracy_over_the_held_out_loss_is_inside_one_block_size(tmp_path: Path):
    for block in (1, 4):
        for samples in (6400, 12800, 25600):
            folder = run_folders.write_run(tmp_path / f"{block}-{samples}", samples, block=block)
            last = run_folders.metric(samples, block, val_loss=1.0 / samples**0.1)
            run_folders.write_metrics(folder, 1, 2, [last])
            run_folders.write_probe(folder, samples**0.1 / 10)
    ledger = read_runs(str(tmp_path))
    known = study(ledger.runs)
    (group,) = by_cell(measured(ledger, known)).values()
    at = points(group)
    drawn = loss_charts(at, accuracy_axis(at, ()))
    assert [ElementTree.fromstring(svg).get("aria-label") for svg in drawn] == [
        "4x4 blocks: accuracy in %",
        "1x1 blocks: accuracy in %",
    ]
    assert all("held-out loss" in svg for svg in drawn)
    assert len(held_out_charts(known, ledger.runs)) == 2


def test_one_value_makes_an_axis_with_air():
    y = axis("rate", [0.001, 0.001 + 1e-18], human)
    assert y.low < 0.00095
    assert y.high > 0.00105
    assert len({y.form(tick) for tick in y.at()}) == len(y.at())
