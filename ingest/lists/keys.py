"""Keys: sample names that are valid in a tar and unique in a dataset, made from the ids of a list.

Memory: 8 bytes an id (16 while sorted runs are merged): at most 16 MB a million, 220 MB for the 14 million of fall11.
A list without ids costs nothing: its keys are row numbers.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.stream import U64, mix64

KEY_LENGTH = 90  # characters, at most
_PLAIN = f"^[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}$"
_ODD = re.compile(r"[^A-Za-z0-9_-]")
_WORDS = 12  # of 8 bytes: KEY_LENGTH, rounded up


def clean(names: pa.BinaryArray, rows: np.ndarray) -> pa.StringArray:
    """Valid keys, perhaps repeated: other characters become `_`; a null or empty name becomes its row number."""
    if names.null_count:
        numbers = pc.utf8_lpad(pa.array(rows).cast(pa.string()), 9, "0")
        if names.null_count == len(names):
            return numbers
        names = pc.coalesce(names, numbers.cast(pa.binary()))
    odd = ~pc.match_substring_regex(names, _PLAIN).to_numpy(zero_copy_only=False)
    if odd.any():
        made = [_clean(name, row) for name, row in zip(names.filter(pa.array(odd)).to_pylist(), rows[odd].tolist())]
        names = pc.replace_with_mask(names, odd, pa.array(made, pa.binary()))
    return names.cast(pa.string())


def _clean(name: bytes, row: int) -> bytes:
    text = _ODD.sub("_", name.decode("utf-8", "surrogateescape").strip())
    return (text[:KEY_LENGTH] or f"{row:09d}").encode()


def renamed(key: str, row: int, tries: int) -> str:
    """Another key for what repeats one: `_r<row>` appended, and the number of names tried before, if there were any."""
    suffix = f"_r{row}" + (f"_{tries}" if tries else "")
    return key[: KEY_LENGTH - len(suffix)] + suffix


class Seen:
    """The keys in use: 64-bit hashes of ids in sorted runs, each at least twice as long as the next, and the span of
    rows without an id.

    Any two of n keys share a hash with probability n^2 / 2^65 (5e-6 for 14 million); the cost is a needless suffix.
    """

    def __init__(self) -> None:
        self._runs: list[U64] = []
        self._nameless = (1 << 62, -1)  # first and last row whose key is its number

    def unique(self, keys: pa.StringArray, rows: np.ndarray, named: np.ndarray) -> pa.StringArray:
        """The keys, with `_r<row>` appended to those already in use. `named` [n] marks the keys made from ids."""
        if not self._runs and not named.any():  # all keys so far are row numbers, and these rows are new
            self._span(rows)
            return keys
        hashes = hashed(keys)
        order = np.argsort(hashes, kind="stable")
        batch = hashes[order]
        again = order[_repeats(batch) | self._hold(batch)]
        if named.any() and self._nameless[1] >= 0:
            again = np.union1d(again, self._like_rows(keys, named))
        kept = np.sort(hashes[named])
        if again.size:
            keys, made = self._renamed(keys, rows, np.sort(again), batch)
            kept = np.sort(np.concatenate([kept, made]))
        self._add(kept[~_repeats(kept)])
        if not named.all():
            self._span(rows[~named])
        return keys

    def _span(self, rows: np.ndarray) -> None:
        if len(rows):
            self._nameless = (min(self._nameless[0], int(rows[0])), max(self._nameless[1], int(rows[-1])))

    def _like_rows(self, keys: pa.StringArray, named: np.ndarray) -> np.ndarray:
        """Where an id equals a row number in the span without ids. The row may have an id after all, which is safe."""
        numbers = pc.match_substring_regex(keys, "^[0-9]{9,18}$").to_numpy(zero_copy_only=False) & named
        at = np.flatnonzero(numbers)
        value = keys.take(pa.array(at)).cast(pa.int64()).to_numpy()
        return at[(self._nameless[0] <= value) & (value <= self._nameless[1])]

    def _renamed(
        self, keys: pa.StringArray, rows: np.ndarray, again: np.ndarray, batch: U64
    ) -> tuple[pa.StringArray, U64]:
        """The keys, with those at `again` renamed so that they are unique in this and earlier batches; and the hashes
        of the new names."""
        old = keys.take(pa.array(again)).to_pylist()
        new: list[str] = list(old)
        made = np.empty(0, np.uint64)
        todo, tries = np.arange(len(again)), 0
        while todo.size:
            for at in todo.tolist():
                new[at] = renamed(old[at], rows[again[at]], tries)
            hashes = hashed(pa.array([new[at] for at in todo.tolist()], pa.string()))
            _, firsts = np.unique(hashes, return_index=True)
            free = ~(np.isin(hashes, batch) | np.isin(hashes, made))
            free &= np.isin(np.arange(len(todo)), firsts)
            order = np.argsort(hashes)
            free[order] &= ~self._hold(hashes[order])
            made = np.concatenate([made, hashes[free]])
            todo, tries = todo[~free], tries + 1
        mask = np.zeros(len(keys), bool)
        mask[again] = True
        return pc.replace_with_mask(keys, mask, pa.array(new, pa.string())), made

    def _hold(self, values: U64) -> np.ndarray:
        """Which of the sorted values are in use."""
        held = np.zeros(len(values), bool)
        for run in self._runs:
            held |= run[np.minimum(np.searchsorted(run, values), len(run) - 1)] == values
        return held

    def _add(self, run: U64) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort()
        if len(run):
            self._runs.append(run)


def _repeats(values: U64) -> np.ndarray:
    """Which of the sorted values equal the one before."""
    return np.concatenate([[False], values[1:] == values[:-1]]) if len(values) else np.zeros(0, bool)


def hashed(keys: pa.StringArray) -> U64:
    """A 64-bit hash of each key: the sum of its 8-byte words, each mixed with its position."""
    padded = pc.ascii_rpad(keys, 8 * _WORDS, padding="\0")
    words = np.frombuffer(padded.buffers()[2], np.uint64, _WORDS * len(keys)).reshape(-1, _WORDS)
    total = np.zeros(len(keys), np.uint64)
    for place in range(_WORDS):
        word = words[:, place]
        if not word.any():  # no key is longer
            break
        total += np.where(word != 0, mix64(place + 1, word), np.uint64(0))
    return total
