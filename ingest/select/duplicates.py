"""Which of many hashes are equal or nearly equal: pure functions over columns of 64-bit numbers.

Columns may be memory-mapped and larger than memory. One part of the key space is handled at a time: about `AT_ONCE`
rows whose keys start with the same bits. So memory grows only with what is found, not with the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import numpy as np

AT_ONCE = 1 << 22  # rows sorted at once
WINDOW = 256  # the next rows of its bucket that a row is compared with
_CHUNK = 1 << 20  # rows of a column that are read in one step


def parts(key_N: np.ndarray, at_once: int = AT_ONCE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys, positions) of each part of the key space, sorted by key, then position, without keys of 0 ("unknown")."""
    bits = max(0, math.ceil(math.log2(max(1, len(key_N)) / at_once)))
    for part in range(1 << bits):
        keys, places = [], []
        for start in range(0, len(key_N), _CHUNK):
            chunk = np.asarray(key_N[start : start + _CHUNK])
            mine = chunk != 0
            if bits:
                mine &= chunk >> np.uint64(64 - bits) == part
            at = np.flatnonzero(mine)
            keys.append(chunk[at])
            places.append(at + start)
        if keys:
            key_P, place_P = np.concatenate(keys), np.concatenate(places)
            order = np.argsort(key_P, kind="stable")
            yield key_P[order], place_P[order]


def equal_groups(
    first_N: np.ndarray, second_N: np.ndarray, row_N: np.ndarray, at_once: int = AT_ONCE
) -> tuple[np.ndarray, np.ndarray]:
    """Positions with equal (first, second), in groups of at least two, and the bounds of the groups.

    Returns (positions [M], bounds [groups + 1]); each group is sorted by row. A first key of 0 equals nothing.
    """
    found, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for key_P, place_P in parts(first_N, at_once):
        same = key_P[1:] == key_P[:-1]
        several = np.zeros(len(key_P), bool)
        several[1:] |= same
        several[:-1] |= same
        key_M, place_M = key_P[several], place_P[several]
        second_M = second_N[place_M]
        order = np.lexsort((row_N[place_M], second_M, key_M))
        key_M, second_M, place_M = key_M[order], second_M[order], place_M[order]
        begins = np.ones(len(key_M), bool)
        begins[1:] = (key_M[1:] != key_M[:-1]) | (second_M[1:] != second_M[:-1])
        size = np.diff(np.flatnonzero(np.concatenate([begins, [True]])))
        found.append(place_M[np.repeat(size, size) > 1])
        sizes.append(size[size > 1])
    return np.concatenate(found), np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)


def near_pairs(
    hash_N: np.ndarray, distance: int, at_once: int = AT_ONCE, report: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """All pairs of these distinct hashes that are at most `distance` bits apart, [pairs, 2], the smaller hash first.

    Multi-index hashing (Norouzi, Punjani, Fleet: Fast Exact Search in Hamming Space with Multi-Index Hashing, 2014): of
    m bands of bits, two such hashes agree in at least m - distance. So for every choice of that many bands, the hashes
    are sorted with these bands in front; hashes that agree in them become neighbours and are compared. In a bucket of
    more than WINDOW rows only rows within that window are compared: a crowd of similar hashes costs linear time, and a
    pair may be missed if no other choice of bands finds it.
    """
    bands = _bands(len(hash_N), distance)
    choices = list(combinations(range(len(bands)), len(bands) - distance)) if distance else []
    bits = max(0, math.ceil(math.log2(max(1, len(hash_N)) / at_once)))
    found = [np.empty((0, 2), np.uint64)]
    for done, choice in enumerate(choices, start=1):
        order = [*choice, *(band for band in range(len(bands)) if band not in choice)]
        front = [bands[band] for band in order]
        agree = sum(width for _, width in front[: len(choice)])
        for part in range(1 << bits):
            sorted_P = _permuted_part(hash_N, front, bits, part)
            sorted_P.sort()
            pairs = _window(sorted_P, 64 - agree, distance)
            found.append(_restored(pairs, front))
        if report:
            report(done, len(choices))
    pair_M = np.concatenate(found)
    pair_M.sort(axis=1)
    return np.unique(pair_M, axis=0) if len(pair_M) else pair_M


def _bands(rows: int, distance: int) -> list[tuple[int, int]]:
    """(shift, width) of each band, chosen to minimise the cost of sorting and comparing.

    Real hashes are not uniform: buckets are assumed as full as if a fifth of the bits were constant.
    """

    def bucket(count: int) -> float:
        return rows / 2 ** (0.8 * 64 * (count - distance) / count)

    def cost(count: int) -> float:
        return math.comb(count, distance) * rows * (100 + 4 * bucket(count))

    count = min((c for c in range(distance + 1, 17) if bucket(c) < WINDOW / 4), key=cost, default=16)
    edges = [64 * band // count for band in range(count + 1)]
    return [(low, high - low) for low, high in pairwise(edges)]


def _permuted_part(hash_N: np.ndarray, front: list[tuple[int, int]], bits: int, part: int) -> np.ndarray:
    """The hashes with their bands in this order; only those that then start with the bits of `part`."""
    chunks = [np.empty(0, np.uint64)]
    for start in range(0, len(hash_N), _CHUNK):
        chunk, left = np.asarray(hash_N[start : start + _CHUNK]), bits
        for shift, width in front:  # drop hashes of other parts before any bits are moved
            if left <= 0:
                break
            here = min(left, width)
            left -= here
            wanted = (part >> left) & ((1 << here) - 1)
            chunk = chunk[(chunk >> np.uint64(shift + width - here)) & np.uint64((1 << here) - 1) == wanted]
        moved, left = np.zeros_like(chunk), 64
        for shift, width in front:
            left -= width
            moved |= ((chunk >> np.uint64(shift)) & np.uint64((1 << width) - 1)) << np.uint64(left)
        chunks.append(moved)
    return np.concatenate(chunks)


def _restored(moved: np.ndarray, front: list[tuple[int, int]]) -> np.ndarray:
    """The inverse of the permutation."""
    value, left = np.zeros_like(moved), 64
    for shift, width in front:
        left -= width
        value |= ((moved >> np.uint64(left)) & np.uint64((1 << width) - 1)) << np.uint64(shift)
    return value


def _window(sorted_P: np.ndarray, rest: int, distance: int) -> np.ndarray:
    """Pairs [pairs, 2] that agree in all but the last `rest` bits and are at most `distance` bits apart."""
    found = [np.empty((0, 2), np.uint64)]
    bucket = np.uint64((1 << rest) - 1)
    for start in range(0, len(sorted_P), _CHUNK):
        at = np.arange(start, min(start + _CHUNK, len(sorted_P)))
        for ahead in range(1, WINDOW + 1):
            at = at[: np.searchsorted(at, len(sorted_P) - ahead)]
            differ = sorted_P[at] ^ sorted_P[at + ahead]
            together = differ <= bucket
            at, differ = at[together], differ[together]
            if not len(at):
                break
            near = at[np.bitwise_count(differ) <= distance]
            found.append(np.stack([sorted_P[near], sorted_P[near + ahead]], 1))
    return np.concatenate(found)


def leaders(lower_M: np.ndarray, higher_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows go and which replace them, given pairs (lower, higher) of similar rows: (removed, replacement) [n].

    In row order, a row that resembles no lower kept row is kept, and higher rows that resemble it are removed. So each
    removed row resembles its replacement, and no two kept rows resemble each other. The transitive closure (union-find)
    would also merge long chains whose ends have nothing in common, and millions of rows contain such chains.
    """
    names, ends = np.unique(np.concatenate([lower_M, higher_M]), return_inverse=True)
    ends = ends.reshape(2, -1)
    low, high = ends[:, np.lexsort((ends[1], ends[0]))].tolist()
    stands = list(range(len(names)))
    for a, b in zip(low, high):  # the pairs in which `a` is the higher row came before those in which it is the lower
        if stands[a] == a and stands[b] == b:
            stands[b] = a
    stands_N = np.array(stands, np.int64)
    gone = np.flatnonzero(stands_N != np.arange(len(names)))
    return names[gone], names[stands_N[gone]]
