"""The soak test, small: workers and the driver killed on the way, every row accounted for."""

from __future__ import annotations

import pytest
import soak

from ingest.events import read_events

pytestmark = pytest.mark.slow  # a soak


def test_every_link_once_through_kills_of_workers_and_the_driver(tmp_path, capsys) -> None:
    out = str(tmp_path / "dataset")
    report = soak.main(["--links", "3000", "--unit", "100", "--kills", "1", "--seed", "3", "--out", out])
    assert (report["units"], report["runs"], len(report["killed"])) == (30, 2, 2)
    assert report["kept"] + sum(report["reasons"].values()) == 3000
    assert 0 < max(report["peak_mb"].values()) < 600
    (poison,) = report["poisons"]
    assert "kills its decoder (SIGSEGV)" in poison
    assert "worker lost" in {event.kind for event in read_events(out)}
