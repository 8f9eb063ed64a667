"""The soak of the stream, small: kills, other world sizes, a store with faults, a cache that is too small."""

from __future__ import annotations

import pytest
import stream_soak
from buckets import bucket

pytestmark = pytest.mark.slow  # a soak


@pytest.mark.usefixtures("on_moto")
def test_five_epochs_from_a_store_with_faults_through_a_cache_that_is_too_small(
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers = {"epochs": 5, "samples": 60, "batch": 20, "kills": 3, "outage": 1, "check": 1, "seed": 1}
    words = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    report = stream_soak.main([*words, "--faults", "--cache", "--data", bucket() + "/soak"])
    assert (report["batches"], report["attempts"]) == (15, 4)
    assert "the store is away" in capsys.readouterr().err
    assert report["faults"]["slow_down"] > 0
    assert report["cache"]["most"] > 0
