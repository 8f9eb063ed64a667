"""Figures as people read them."""

from __future__ import annotations

import numpy as np
import pytest

from shards.figures import percent, size, span, wilson


def test_spans_are_in_one_unit() -> None:
    assert [span(s) for s in (0, 0.2, 1, 99, 100, 5999, 6000, 2e5, 1e9)] == [
        *("0 s", "< 1 s", "1 s", "99 s", "2 min", "100 min", "1.7 h", "2.3 d", "11,574.1 d")
    ]


def test_sizes_have_three_digits() -> None:
    assert [size(b) for b in (0, 999, 999.6, 1000, 12_345, 123_456, 999_999, 1.5e9, 1.21e12, 2e15, 5e18)] == [
        *("0 B", "999 B", "1 kB", "1 kB", "12.3 kB", "123 kB", "1 MB", "1.5 GB", "1.21 TB", "2 PB", "5,000 PB")
    ]


def test_a_share_is_never_rounded_to_nothing() -> None:
    assert percent(1, 14_000_000) == "<0.1 %"
    assert percent(0, 14_000_000) == percent(0, 0) == "0.0 %"
    assert percent(0.1234) == percent(1234, 10_000) == "12.3 %"


def test_wilson_is_the_published_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for share in (0.02, 0.3, 0.65):
        hits = rng.binomial(500, share, 2000)
        covered = sum(low <= share <= high for low, high in (wilson(int(hit), 500) for hit in hits)) / 2000
        assert 0.93 < covered < 0.975
