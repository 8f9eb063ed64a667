"""The probe bench on a model that takes no time: what it reports, not how fast anything is."""

from __future__ import annotations

import pytest

from jobs.bench import probe


def test_it_reports_every_arm_and_the_ratio_that_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = probe.run(probe.Config(size="tiny32", batch=3, classes=5, layers=2, rounds=2))
    assert found["subject"] == "probe"
    assert [(row["arm"], row["heads"], row["rounds"]) for row in found["rows"]] == [
        ("linear", 1, 2),
        ("attentive", 1, 2),
        ("grid", 20, 2),
    ]
    linear, attentive, grid = found["rows"]
    assert grid["parameters"] == 10 * (linear["parameters"] + attentive["parameters"])
    assert all(0 < row["encoder_seconds"] < row["seconds"] for row in found["rows"])
    assert found["ratios"]["grid_vs_single"] == linear["grid_ratio"] > 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_mistakes_are_named() -> None:
    for change, said in (({"size": "b17"}, "size is 'b17'"), ({"batch": 1}, "batch is 1; it must be at least 2")):
        with pytest.raises(ValueError, match=said):
            probe.Config(**change)
