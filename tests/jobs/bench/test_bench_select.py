"""The bench of selecting: what it plants is what selecting finds, and its rows say so."""

import pytest

from jobs.bench import select


def test_what_is_planted_is_found(tmp_path):
    config = select.Config(rows=6_000, unit=1_000, open_units=50)
    made = select.make(str(tmp_path), config)
    assert made["placeholder"] > 500 < made["duplicate"]
    assert made["near_duplicate"] > 50 < made["joined"]
    found = select.measure_select(str(tmp_path), config)
    assert {name: found[name] for name in ("placeholder", "duplicate", "near_duplicate", "joined")} == {
        name: made[name] for name in ("placeholder", "duplicate", "near_duplicate", "joined")
    }
    assert found["others"] == 0


@pytest.mark.slow
def test_a_manifest_of_many_units_opens(tmp_path):
    opened = select.measure_open(str(tmp_path), select.Config(rows=1_000, open_units=3_000))
    assert (opened["units"], opened["samples"]) == (3_000, 27_000_000)
    assert opened["peak_gib"] > 0
