"""The simulation of coverage: resumable, and a sample of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from places import ROOT

from jobs.bench import coverage


def test_a_simulation_goes_on_where_it_stopped(tmp_path):
    whole, parts = str(tmp_path / "whole.json"), str(tmp_path / "parts.json")
    config = coverage.Config(whole, ledgers=4, experiments=4, images=200, only=("both", "5 equal arms"))
    rows = coverage.run(config)["rows"]
    assert [row["done"] for row in rows] == [4, 4]
    coverage.run(dataclasses.replace(config, out=parts, ledgers=2, experiments=3))
    assert coverage.run(dataclasses.replace(config, out=parts))["rows"] == rows
    kept = json.loads((tmp_path / "parts.json").read_text())
    assert kept["rows"] == rows
    assert kept["hardware"]
    assert set(rows[0]) == {"design", "done", "E", "a", "A", "multiplier", "held out"}
    with pytest.raises(ValueError, match="has settings"):
        coverage.run(dataclasses.replace(config, seed=1))
    with pytest.raises(ValueError, match="'neither' is not a design"):
        coverage.run(coverage.Config(only=("neither",)))


@pytest.mark.slow
@pytest.mark.parametrize("design", ["offset of the trunk", "noise of the point", "both", "both, 10 to 12 trunks"])
def test_intervals_hold_the_truth_as_often_as_they_say(design):
    """A sample; 90 % of 250 is 85 to 95 % in 99 of 100 samples."""
    (row,) = coverage.run(coverage.Config(ledgers=250, only=(design,)))["rows"]
    for name in ("E", "a", "A", "multiplier", "held out"):
        assert 0.84 <= row[name] <= 0.96, name


@pytest.mark.slow
def test_equal_arms_are_seldom_called_different():
    rows = coverage.run(coverage.Config(experiments=300, only=("2 equal arms", "5 equal arms")))["rows"]
    assert all(row["primary differs"] <= 0.085 for row in rows), "5 % of 300, and three standard errors"


STATED = ("offset of the trunk", "noise of the point", "both", "drift")  # 3 to 5 trunks, 6 counts


def test_the_committed_results_keep_what_is_promised():
    kept = json.loads((ROOT / "docs" / "study" / "coverage.json").read_text())
    rows = {row["design"]: row for row in kept["rows"]}
    assert set(rows) == set(coverage.DESIGNS)
    for name, row in rows.items():
        stated = name in STATED or name in ("2 equal arms", "5 equal arms")
        assert row["done"] >= (2000 if stated else 100)
        if isinstance(coverage.DESIGNS[name], coverage.Laws):
            slack = 3 * (0.09 / row["done"]) ** 0.5 * (row["done"] < 2000)  # three standard errors of a small sample
            for value in ("E", "a", "multiplier"):
                assert 0.85 - slack <= row[value] <= 0.95 + slack, (name, value)
    for name in ("2 equal arms", "5 equal arms"):
        assert rows[name]["primary differs"] <= 0.06
        assert rows[name].get("any exploratory differs", 0) <= 0.06


def test_the_page_has_the_tables_of_the_committed_results():
    kept = json.loads((ROOT / "docs" / "study" / "coverage.json").read_text())
    page = (ROOT / "docs" / "laws.md").read_text()
    assert page.count("\n| both") >= 5
    assert coverage.rewritten(page, kept) == page
