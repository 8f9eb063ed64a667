"""Pictures shared by a training and an evaluation set, which do not test a probe that was trained on them.

Two tests, both from the index alone. Equal sha256: the stored bytes are the same. Perceptual hashes at most
`phash.NEAR` bits apart: copies that were rescaled, recompressed or recoloured (`shards.pixels.phash` documents what it
finds; it misses mirrored and cropped ones). On CIFAR-10, 50,000 against 10,000: none equal in bytes, 6 with an equal
hash, 104 at most 4 bits apart, 103 of these with one label. CIFAR-10 against Tiny ImageNet, 3e9 pairs: 5, and those
inspected are the same photographs.

A hash without exactly half of its bits set is ignored: its picture is so plain that coefficients tie, and different
pictures share it. A picture without a hash (null) was not decoded or has one colour.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.manifest import Manifest
from shards.pixels import phash
from shards.selection import selected_index

KEYS = 16  # most pairs named
_AT_ONCE = 8  # indexes read at once
_PAIRS = 1 << 22  # hashes compared in one step
# Hashes that differ in at most four bits agree in at least one of five bands (the pigeonhole principle).
_EDGES = np.linspace(0, 64, phash.NEAR + 2).astype(int)


@dataclass(frozen=True)
class Shared:
    """The number of evaluation pictures that are also in the training set; each counts once, equal bytes first."""

    sha256: int  # equal bytes
    phash: int | None  # other bytes, but similar; None: unknown, as one of the sets has no perceptual hashes
    keys: tuple[tuple[str, str], ...]  # (training key, evaluation key) of the first KEYS, in evaluation order

    @property
    def total(self) -> int:
        return self.sha256 + (self.phash or 0)

    def __str__(self) -> str:
        if self.phash is None:
            alike = "not known how many look alike: the sets were imported without perceptual hashes"
        else:
            alike = f"{self.phash:,} more look alike"
        named = ", ".join(f"{ours} = {theirs}" for theirs, ours in self.keys[:3]) + ", …" * (self.total > 3)
        return f"{self.sha256:,} evaluation images are in the training set too, {alike}" + f" ({named})" * bool(named)


def shared(train: Manifest, evaluation: Manifest) -> Shared:
    """Compare both indexes, evaluation's in memory: 1.3 million rows against 50,000 take some seconds."""
    ours = pa.concat_tables(_rows(evaluation))
    sha_E, hash_E = ours["sha256"].combine_chunks(), _hashes(ours)
    bands = _bands(hash_E)
    equal: dict[int, str] = {}  # evaluation row -> key of its first training twin
    alike: dict[int, str] = {}
    hashed = False
    for theirs in _rows(train):
        keys = theirs["key"]
        at_T = pc.index_in(theirs["sha256"], value_set=sha_E, skip_nulls=True).combine_chunks()
        for row in np.flatnonzero(at_T.is_valid().to_numpy(zero_copy_only=False)).tolist():
            equal.setdefault(at_T[row].as_py(), keys[row].as_py())
        hash_T = _hashes(theirs)
        hashed = hashed or bool((hash_T != 0).any())
        mine, other = _near(bands, hash_E, hash_T)
        order = np.lexsort((other, mine))
        rows, first = np.unique(mine[order], return_index=True)
        for row, twin in zip(rows.tolist(), other[order][first].tolist()):
            alike.setdefault(row, keys[twin].as_py())
    # A picture may be in the evaluation set twice; index_in returned only its first row.
    first_E = pc.index_in(sha_E, value_set=sha_E, skip_nulls=True).to_pylist()
    equal = {row: equal[first] for row, first in enumerate(first_E) if first in equal}
    twins = alike | equal
    named = tuple((twins[row], ours["key"][row].as_py()) for row in sorted(twins)[:KEYS])
    known = hashed and bool((hash_E != 0).any())
    return Shared(len(equal), len(alike.keys() - equal.keys()) if known else None, named)


def _rows(manifest: Manifest) -> Iterator[pa.Table]:
    columns = ["key", "sha256", "phash"]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="index") as pool:
        yield from pool.map(lambda n: selected_index(manifest, n, columns).select(columns), range(len(manifest.shards)))


def _hashes(table: pa.Table) -> np.ndarray:
    """uint64 [rows]; 0 for no usable hash."""
    hash_N = pc.fill_null(table["phash"], 0).to_numpy().astype(np.uint64)
    return np.where(np.bitwise_count(hash_N) == 32, hash_N, np.uint64(0))


def _band(hash_N: np.ndarray, number: int) -> np.ndarray:
    low, high = int(_EDGES[number]), int(_EDGES[number + 1])
    return (hash_N >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _bands(hash_E: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each band: its values in ascending order, and their rows."""
    rows = np.flatnonzero(hash_E)
    found = []
    for number in range(len(_EDGES) - 1):
        value = _band(hash_E[rows], number)
        order = np.argsort(value, kind="stable")
        found.append((value[order], rows[order]))
    return found


def _near(
    bands: list[tuple[np.ndarray, np.ndarray]], hash_E: np.ndarray, hash_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of evaluation and training whose hashes are at most `NEAR` bits apart; a pair may occur several times."""
    asked = np.flatnonzero(hash_T)
    mine, other = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, (value, rows) in enumerate(bands):
        wanted = _band(hash_T[asked], number)
        begin, end = np.searchsorted(value, wanted), np.searchsorted(value, wanted, "right")
        ends = np.cumsum(end - begin)
        start = 0
        while start < len(asked):  # as many at a time as make _PAIRS pairs, but at least one
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS)))
            count = (end - begin)[start:stop]
            inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            row = rows[np.repeat(begin[start:stop], count) + inside]
            asker = np.repeat(asked[start:stop], count)
            near = np.bitwise_count(hash_E[row] ^ hash_T[asker]) <= phash.NEAR
            mine.append(row[near])
            other.append(asker[near])
            start = stop
    return np.concatenate(mine), np.concatenate(other)
