"""The sample order: pure functions of (counts, seed, position); no I/O, no state.

The contract is in docs/design.md, "Order". Everything random in the product comes from one generator, splitmix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), used as a counter-based hash:
library generators do not promise that their streams stay the same between versions, and a hash needs no state to save.

Names: N samples of a manifest, numbered 0..N-1 in manifest order (shard, then row); a global position g counts samples
of the endless stream; g = epoch * N + position; position p is item p // L of lane p % L.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.config import Order

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Words = int | np.ndarray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_FOUND_AT_ONCE = 4096  # samples, each with the keys of its window: 17 MB


def mix64(*words: Words) -> U64:
    """Hash integer words (scalars or arrays, broadcast together) to uint64 by chained splitmix64 steps."""
    state: Any = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        for word in words:
            z = np.uint64(word & _MASK) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
            z = (state ^ z) + _GAMMA
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
    return np.asarray(state, np.uint64)


def uniform(seed: int, purpose: str, *words: Words) -> NDArray[np.float64]:
    """Counter-based draws in [0, 1), one for each element of the broadcast words.

    `purpose` keeps the draws of different uses apart ("crop", "drop_path", ...); equal arguments give equal draws on
    every machine, world size and resume.
    """
    bits = mix64(seed, zlib.crc32(purpose.encode()), *words)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *words: int) -> I64:
    """A permutation of range(n) that is a pure function of the words: a stable argsort of hashed keys."""
    return np.argsort(mix64(*words, np.arange(n, dtype=np.uint64)), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Place:
    """Where the samples of some global positions are, as parallel arrays [n]."""

    epoch: I64
    lane: I64
    item: I64
    sample: I64  # number in manifest order, 0..N-1

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, index: Any) -> Place:
        return Place(self.epoch[index], self.lane[index], self.item[index], self.sample[index])


@dataclass(frozen=True)
class Epoch:
    """One epoch's sequence S: chunks in permuted order; chunk k is samples first[k] .. first[k] + size[k] - 1."""

    first: I64
    size: I64
    end: I64 = field(repr=False)  # cumulative sizes

    def at(self, s: I64) -> I64:
        """Sample numbers at positions s of the sequence S."""
        k = np.searchsorted(self.end, s, side="right")
        return self.first[k] + (s - (self.end[k] - self.size[k]))


def chunks(counts: I64, chunk: int) -> tuple[I64, I64]:
    """Cut each shard's selected samples, in row order, into runs of `chunk` (the last one shorter): (first, size)."""
    counts = np.asarray(counts, np.int64)
    per_shard = -(-counts // chunk)
    shard = np.repeat(np.arange(len(counts)), per_shard)
    within = np.arange(len(shard)) - np.repeat(np.cumsum(per_shard) - per_shard, per_shard)
    start = (np.cumsum(counts) - counts)[shard]
    return start + within * chunk, np.minimum(chunk, counts[shard] - within * chunk)


class Sequence:
    """The order over one manifest's counts: maps global positions to samples. Holds only caches of pure values."""

    def __init__(self, counts: I64, order: Order):
        self.order = order
        self.samples = int(np.sum(counts))
        if self.samples == 0:
            raise ValueError("the manifest selects 0 samples; there is nothing to stream: check its counts")
        self._first, self._size = chunks(counts, order.chunk)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self._run = lru_cache(maxsize=4 * order.lanes)(self._run_order)

    def _epoch(self, epoch: int) -> Epoch:
        shuffled = permutation(len(self._first), self.order.seed, epoch)
        size = self._size[shuffled]
        return Epoch(self._first[shuffled], size, np.cumsum(size))

    def lane(self, lane: Words) -> tuple[Any, Any]:
        """(start in S, length) of a lane: a contiguous run of S."""
        share, extra = divmod(self.samples, self.order.lanes)
        return lane * share + np.minimum(lane, extra), share + (lane < extra)

    def _run_order(self, epoch: int, lane: int, run: int) -> I64:
        """The permuted offsets of one run of window * chunk samples inside a lane."""
        length = self.order.window * self.order.chunk
        _, lane_length = self.lane(lane)
        return permutation(min(length, int(lane_length) - run * length), self.order.seed, epoch, lane, run)

    def at(self, start: int, stop: int) -> Place:
        """The samples at global positions start .. stop-1 of the endless stream."""
        where = self.positions(start, stop)
        return Place(*where, self.samples_at(*where))

    def positions(self, start: int, stop: int) -> tuple[I64, I64, I64]:
        """(epoch, lane, item) of global positions start .. stop-1."""
        g = np.arange(start, stop, dtype=np.int64)
        epoch, position = g // self.samples, g % self.samples
        return epoch, position % self.order.lanes, position // self.order.lanes

    def samples_at(self, epoch: I64, lane: I64, item: I64) -> I64:
        """The sample numbers there; all arrays [n]. Costs least if equal epochs and lanes are adjacent."""
        length = self.order.window * self.order.chunk
        run, offset = item // length, item % length
        start, _ = self.lane(lane)
        within = np.empty(len(item), np.int64)
        for here in alike(epoch, lane, run):
            i = here.start
            within[here] = self._run(int(epoch[i]), int(lane[i]), int(run[i]))[offset[here]]
        s = start + run * length + within
        out = np.empty(len(item), np.int64)
        for here in alike(epoch):
            out[here] = self.epoch(int(epoch[here.start])).at(s[here])
        return out

    def find(self, epoch: int, sample_K: I64) -> tuple[I64, I64]:
        """(lane, item) at which an epoch has these samples, int64 [K] each: the inverse of `samples_at`. An epoch has
        every sample once. Costs a sort of the epoch's chunks, and the keys of one window a sample."""
        s_K = self._find_in_epoch(epoch, sample_K)
        starts, lengths = self.lane(np.arange(self.order.lanes))
        lane_K = np.searchsorted(starts, s_K, side="right") - 1
        length = self.order.window * self.order.chunk
        run_K, offset_K = np.divmod(s_K - starts[lane_K], length)
        in_run_K = np.minimum(length, lengths[lane_K] - run_K * length)
        rank_K = np.empty(len(sample_K), np.int64)
        for at in range(0, len(sample_K), _FOUND_AT_ONCE):
            here = slice(at, at + _FOUND_AT_ONCE)
            rank_K[here] = self._ranks(epoch, lane_K[here], run_K[here], offset_K[here], in_run_K[here])
        return lane_K, run_K * length + rank_K

    def _ranks(self, epoch: int, lane_K: I64, run_K: I64, offset_K: I64, in_run_K: I64) -> I64:
        """Where each run's permutation puts an offset: how many of the run's keys come before its own."""
        number = np.arange(int(in_run_K.max(initial=0)))
        key_KR = mix64(self.order.seed, epoch, lane_K[:, None], run_K[:, None], number[None])
        own_K1 = np.take_along_axis(key_KR, offset_K[:, None], 1)
        before_KR = (key_KR < own_K1) | ((key_KR == own_K1) & (number < offset_K[:, None]))
        return (before_KR & (number < in_run_K[:, None])).sum(1)

    def _find_in_epoch(self, epoch: int, sample_K: I64) -> I64:
        """Where the sequence S of an epoch has these samples. All chunks are full except one a shard at most, so a
        chunk's start follows from its rank and from the short chunks before it: no permutation is made."""
        chunk_K = np.searchsorted(self._first, sample_K, side="right") - 1
        key_C = mix64(self.order.seed, epoch, np.arange(len(self._first), dtype=np.uint64))
        own_K, ordered = key_C[chunk_K], np.sort(key_C)
        rank_K = np.searchsorted(ordered, own_K)
        short = np.flatnonzero(self._size < self.order.chunk)
        short = short[np.argsort(key_C[short], kind="stable")]
        missing = np.concatenate([[0], np.cumsum(self.order.chunk - self._size[short])])
        start_K = rank_K * self.order.chunk - missing[np.searchsorted(key_C[short], own_K)]
        for k in np.flatnonzero(np.searchsorted(ordered, own_K, side="right") > rank_K + 1):  # of equal keys, by number
            equal = np.flatnonzero(key_C == own_K[k])
            start_K[k] += self._size[equal[equal < chunk_K[k]]].sum()
        return start_K + (sample_K - self._first[chunk_K])

    def substitutes(self, epoch: int, lane: int, item: int) -> Iterator[Place]:
        """Substitutes for a bad sample: the other items of the same lane window, the following ones first."""
        length = self.order.window * self.order.chunk
        run, offset = divmod(item, length)
        n = len(self._run(epoch, lane, run))
        for step in range(1, n):
            where = (np.array([epoch]), np.array([lane]), np.array([run * length + (offset + step) % n]))
            yield Place(*where, self.samples_at(*where))


def alike(*columns: I64) -> Iterator[slice]:
    """Runs of equal rows."""
    n = len(columns[0])
    changes = np.zeros(max(n - 1, 0), bool)
    for column in columns:
        changes |= column[1:] != column[:-1]
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), n]
    return (slice(a, b) for a, b in itertools.pairwise(edges) if a < b)


class Positions(Protocol):
    """An endless stream of places: one dataset's `Sequence`, or that of a mixture."""

    samples: int

    def positions(self, start: int, stop: int) -> tuple[I64, I64, I64]: ...

    def samples_at(self, epoch: I64, lane: I64, item: I64) -> I64: ...

    def substitutes(self, epoch: int, lane: int, item: int) -> Iterator[Place]: ...


def batch(sequence: Positions, start: int, stop: int, rank: int = 0, world: int = 1) -> Place:
    """A rank's cut of the global batch of positions start .. stop-1, sorted by (epoch, lane, item): all cuts together
    are the same set at any world size. Only the cut's samples are looked up: a rank pays for its own."""
    epoch, lane, item = sequence.positions(start, stop)
    mine = np.lexsort((item, lane, epoch))[cut(stop - start, rank, world)]
    where = epoch[mine], lane[mine], item[mine]
    return Place(*where, sequence.samples_at(*where))


def cut(n: int, rank: int, world: int) -> slice:
    """Rank r's of W near-equal cuts of n things; sizes differ by at most one."""
    share, extra = divmod(n, world)
    start = rank * share + min(rank, extra)
    return slice(start, start + share + (rank < extra))
