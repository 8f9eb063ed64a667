"""Equal and nearly equal hashes: found all, found once, at any size of a part."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ingest.select import duplicates

HASH = st.integers(1, 2**64 - 1)


@st.composite
def alike(draw) -> list[int]:
    """Hashes of which many are a few bits from each other."""
    found = set(draw(st.lists(HASH, min_size=1, max_size=4)))
    for base in list(found):
        for bits in draw(st.lists(st.sets(st.integers(0, 63), max_size=7), max_size=6)):
            found.add(base ^ sum(1 << bit for bit in bits))
    return sorted(found)


@settings(max_examples=150, deadline=None)
@given(hashes=alike(), distance=st.integers(0, 6), at_once=st.sampled_from([1, 3, 1 << 20]))
def test_near_pairs_are_those_that_comparing_all_finds(hashes, distance, at_once):
    found = duplicates.near_pairs(np.array(hashes, np.uint64), distance, at_once)
    wanted = [(a, b) for a, b in combinations(hashes, 2) if (a ^ b).bit_count() <= distance]
    assert [tuple(pair) for pair in found.tolist()] == wanted


def test_the_bands_suit_the_number_of_rows():
    for rows in (10, 10**6, 14 * 10**6, 10**9):
        for distance in range(1, 7):
            bands = duplicates._bands(rows, distance)
            assert sorted(bands) == bands
            assert sum(width for _, width in bands) == 64
            assert len(bands) > distance


def test_a_crowd_of_alike_hashes_takes_linear_time(monkeypatch):
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(duplicates.np, "bitwise_count", lambda x: compared.append(len(x)) or count(x))
    crowd = (0x1234 << 48) + np.arange(20_000, dtype=np.uint64)
    found = duplicates.near_pairs(crowd, 1)
    assert len(found) > 70_000
    assert sum(compared) <= 2 * duplicates.WINDOW * len(crowd)


def test_progress_of_the_passes_is_reported():
    reports = []
    report = lambda done, total: reports.append((done, total))  # noqa: E731
    duplicates.near_pairs(np.arange(1, 50, dtype=np.uint64), 2, report=report)
    assert reports == [(n, len(reports)) for n in range(1, len(reports) + 1)]
    assert reports


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0, 1, 5, 2**63, 2**64 - 1]), st.integers(0, 2)), max_size=30),
    at_once=st.sampled_from([2, 7, 1 << 20]),
    seed=st.integers(0, 9),
)
def test_equal_groups_are_the_rows_with_equal_keys_in_row_order(rows, at_once, seed):
    first = np.array([a for a, _ in rows], np.uint64)
    second = np.array([b for _, b in rows], np.uint64)
    row = np.random.default_rng(seed).permutation(len(rows))
    at, bounds = duplicates.equal_groups(first, second, row, at_once)
    found = [at[a:b].tolist() for a, b in pairwise(bounds)]
    wanted: dict[tuple[int, int], list[int]] = {}
    for place in np.argsort(row).tolist():
        if rows[place][0]:
            wanted.setdefault(rows[place], []).append(place)
    assert sorted(found) == sorted(group for group in wanted.values() if len(group) > 1)


@settings(max_examples=150, deadline=None)
@given(edges=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda e: e[0] < e[1]), max_size=40))
def test_whoever_goes_resembles_a_lower_row_that_stays(edges):
    low, high = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    gone, stands = duplicates.leaders(low, high)
    stays = {end for edge in edges for end in edge} - set(gone.tolist())
    assert len(set(gone.tolist())) == len(gone)
    for one, other in zip(gone.tolist(), stands.tolist()):
        assert (other, one) in edges
        assert other in stays
    assert not [edge for edge in edges if edge[0] in stays and edge[1] in stays]


def test_a_chain_keeps_its_ends():
    gone, stands = duplicates.leaders(np.array([1, 2]), np.array([2, 3]))
    assert (gone.tolist(), stands.tolist()) == ([2], [1]), "3 looks like 2, and 2 is not there any more"


@pytest.mark.parametrize("at_once", [3, 100])
def test_parts_hold_every_key_once_in_order(at_once):
    key = np.array([7, 0, 2**64 - 1, 7, 2**62, 0, 2**63], np.uint64)
    found = list(duplicates.parts(key, at_once))
    keys, places = (np.concatenate([part[side] for part in found]).tolist() for side in (0, 1))
    assert keys == [7, 7, 2**62, 2**63, 2**64 - 1]
    assert places == [0, 3, 4, 6, 2]
