"""`xtra bench dataset` at a small size."""

from __future__ import annotations

import pytest

from jobs.bench import dataset


def test_bench_dataset_measures_check_open_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    done = dataset.run(dataset.Config(images=20, units=30, commits=40, latency=0.001, rounds=2))
    rows = {what: [row for row in done["rows"] if row["what"] == what] for what in ("hash", "check", "open", "list")}
    assert [len(each) for each in rows.values()] == [2, 2, 2, 2]
    assert rows["check"][0]["bytes"] == rows["hash"][0]["bytes"] > 20 * 30_000
    assert (rows["open"][0]["units"], rows["list"][0]["commits"]) == (30, 40)
    ratios = done["ratios"]
    least, most = (ratios[f"check_cpu_vs_one_sha256_{end}"] for end in ("least", "most"))
    assert 0 < least <= ratios["check_cpu_vs_one_sha256"] <= most
    assert "40 commits, 1 ms a reply" in capsys.readouterr().out


def test_bench_dataset_refuses_no_rounds() -> None:
    with pytest.raises(ValueError, match="rounds is 0; it must be at least 1"):
        dataset.Config(rounds=0)
