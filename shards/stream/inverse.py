"""Sample -> where a stream shows it: the inverse of the order, and the sample's place in its batch.

The order is a pure function (`order.py`), so which step saw a sample needs no log: each epoch has every sample once, at
a place that follows from the keys of its chunk and of its window. Nothing is enumerated: an epoch costs a sort of its
chunks, however few samples are requested, and the memory of one epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.stream.mixture import MixedSequence
from shards.stream.order import I64, Sequence


@dataclass(frozen=True)
class Sightings:
    """Where a stream shows some samples, as parallel arrays [n]."""

    asked: I64  # index of the requested sample
    position: I64  # in the endless stream, from 0
    epoch: I64  # of the sample's own dataset, from 0
    lane: I64  # as in `order.Place`
    item: I64

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: I64 | slice) -> Sightings:
        return Sightings(self.asked[index], self.position[index], self.epoch[index], self.lane[index], self.item[index])


def sightings(sequence: Sequence | MixedSequence, sample_K: I64, start: int, stop: int) -> Iterator[Sightings]:
    """Where positions start .. stop-1 show these samples (numbers in manifest order), an epoch of a dataset at a time,
    epochs rising. Each epoch's part is sorted by position."""
    if isinstance(sequence, Sequence):
        yield from _of_one(sequence, sample_K, start, stop)
        return
    begin, end = sequence.before(start), sequence.before(stop)
    for d, own in enumerate(sequence.sequences):
        mine = np.flatnonzero((sample_K >= sequence.first[d]) & (sample_K < sequence.first[d] + own.samples))
        for found in _of_one(own, sample_K[mine] - sequence.first[d], int(begin[d]), int(end[d])) if len(mine) else ():
            position = sequence.global_positions(d, found.position)
            lane = found.lane + d * sequence.order.lanes
            yield Sightings(mine[found.asked], position, found.epoch, lane, found.item)


def _of_one(sequence: Sequence, sample_K: I64, start: int, stop: int) -> Iterator[Sightings]:
    for epoch in range(start // sequence.samples, -(-stop // sequence.samples)):
        lane, item = sequence.find(epoch, sample_K)
        position = epoch * sequence.samples + item * sequence.order.lanes + lane
        order = np.argsort(position, kind="stable")
        order = order[(position[order] >= start) & (position[order] < stop)]
        yield Sightings(order, position[order], np.full(len(order), epoch), lane[order], item[order])


def places_in_batches(sequence: Sequence | MixedSequence, seen: Sightings, start_n: I64, stop_n: I64) -> I64:
    """Each sighting's index in its global batch, which is positions start .. stop-1 sorted by (epoch, lane, item): the
    order in which ranks cut it. Counted in closed form: no batch is made."""
    mixed = isinstance(sequence, MixedSequence)
    lanes, index_n = sequence.order.lanes, np.zeros(len(seen), np.int64)
    begin_nD, end_nD = (_before(sequence, edge_n) for edge_n in (start_n, stop_n))
    for d, own in enumerate(sequence.sequences if mixed else [sequence]):
        begin_n, end_n, epoch_n = begin_nD[:, d], end_nD[:, d], seen.epoch * own.samples
        first_n = np.clip(epoch_n, begin_n, end_n)
        index_n += first_n - begin_n  # those of earlier epochs
        first_n, last_n = first_n - epoch_n, np.clip(epoch_n + own.samples, begin_n, end_n) - epoch_n
        lane_n = seen.lane - d * lanes
        index_n += _in_lanes_below(last_n, lane_n, lanes) - _in_lanes_below(first_n, lane_n, lanes)
        same_n = (lane_n >= 0) & (lane_n < lanes)
        index_n += np.where(same_n, seen.item + (lane_n - first_n) // lanes, 0)  # items before it in its own lane
    return index_n


def _before(sequence: Sequence | MixedSequence, position_n: I64) -> I64:
    """int64 [n, datasets]: for each position, how many of those below it each dataset has."""
    if isinstance(sequence, Sequence):
        return position_n[:, None]
    edges, which = np.unique(position_n, return_inverse=True)
    return np.stack([sequence.before(int(edge)) for edge in edges])[which] if len(edges) else position_n[:, None]


def _in_lanes_below(stop_n: I64, lane_n: I64, lanes: int) -> I64:
    """How many of an epoch's positions below `stop` are in the lanes below this one."""
    lane_n = np.clip(lane_n, 0, lanes)
    return stop_n // lanes * lane_n + np.minimum(stop_n % lanes, lane_n)


def ranks(index_n: I64, size_n: I64, world: int) -> tuple[I64, I64]:
    """(rank, index in the rank's part) of each index in a batch of that size: the inverse of `order.cut`."""
    share_n, extra_n = np.divmod(size_n, world)
    larger_n = extra_n * (share_n + 1)
    in_larger = index_n < larger_n
    rank_n = np.where(in_larger, index_n // (share_n + 1), extra_n + (index_n - larger_n) // np.maximum(share_n, 1))
    return rank_n, index_n - rank_n * share_n - np.minimum(rank_n, extra_n)
