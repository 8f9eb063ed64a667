"""Keys are valid and unique, the first to ask for one gets it, and it does not matter how a list is cut."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pyarrow as pa
from hypothesis import given, settings, strategies as st

from ingest.lists.keys import Seen, clean, hashed

IDS = st.one_of(
    st.sampled_from(["a", "b", "a_r3", "a_r3_1", "000000004", "12345678901", "", " ", "ä", "x" * 200]), st.none()
)


def keys_of(names: list[str | None], cuts: list[int]) -> list[str]:
    seen, out = Seen(), []
    edges = sorted({0, len(names), *(cut for cut in cuts if cut < len(names))})
    for start, stop in itertools.pairwise(edges):
        batch = pa.array([None if name is None else name.encode() for name in names[start:stop]], pa.binary())
        rows = np.arange(start, stop)
        named = batch.is_valid().to_numpy(zero_copy_only=False)
        out += seen.unique(clean(batch, rows), rows, named).to_pylist()
    return out


@settings(deadline=None)
@given(st.lists(IDS, max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_keys_are_valid_and_unique(names: list[str | None], cuts: list[int]) -> None:
    keys = keys_of(names, cuts)
    assert len(set(keys)) == len(keys) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)
    for row, (name, key) in enumerate(zip(names, keys)):
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", (name or "").strip())[:90] or f"{row:09d}"
        assert key == plain or re.fullmatch(rf"{re.escape(plain[:70])}.*_r{row}(_\d+)?", key)
        if plain not in keys[:row] and name in ("a", "b", "ä"):  # ids that no row number or suffix can look like
            assert key == plain


def test_an_id_like_a_row_number_in_either_order() -> None:
    assert keys_of(["000000002", None, None], []) == ["000000002", "000000001", "000000002_r2"]
    assert keys_of(["000000002", None, None], [1, 2]) == ["000000002", "000000001", "000000002_r2"]
    assert keys_of([None, None, "000000000", "000000000"], [2, 3]) == [
        "000000000",
        "000000001",
        "000000000_r2",
        "000000000_r3",
    ]
    assert keys_of([None, "000000007"], [1]) == ["000000000", "000000007"]  # no row without an id has come that far


def test_one_id_for_a_whole_list() -> None:
    n = 20_000
    assert keys_of(["cat"] * n, [7000, 7001]) == ["cat"] + [f"cat_r{row}" for row in range(1, n)]


def test_hashes_do_not_depend_on_the_company_a_key_has() -> None:
    keys = ["", "a", "ab", "12345678", "123456789", "x" * 90, "a\0b"]
    together = hashed(pa.array(keys))
    assert [hashed(pa.array([key]))[0] for key in keys] == together.tolist()
    assert len(set(together.tolist())) == len(keys)
    many = hashed(pa.array([f"n{n % 1000:08d}_{n}" for n in range(200_000)]))
    assert len(np.unique(many)) == 200_000
