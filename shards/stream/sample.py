"""What a stream hands out: encoded samples, by columns, in a buffer that is lent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

from shards.stream.index import Index
from shards.stream.order import Place
from shards.stream.slab import Buffers


class Sample(NamedTuple):
    """One encoded sample and where it came from. `sample` is its number in manifest order, the name all draws use."""

    key: str
    shard: int
    index: int  # among the selected samples of its shard
    row: int
    sample: int
    epoch: int
    lane: int
    item: int
    labels: tuple[str, ...]
    body: memoryview

    @classmethod
    def at(cls, place: Place, i: int, shard: int, number: int, index: Index, body: memoryview) -> Sample:
        """The i-th of `place`, which is sample `number` of that shard."""
        sample, epoch, lane, item = (int(column[i]) for column in (place.sample, place.epoch, place.lane, place.item))
        key, row, labels = index.key(number), index.row[number], index.labels(number)
        return cls(key, shard, number, row, sample, epoch, lane, item, labels, body)


class Encoded(Sequence[Sample]):
    """This rank's part of one global batch, of positions `start` to `stop` - 1 of the endless stream.

    The bodies share one lent buffer: `release` gives it back, and reading a body afterwards raises ValueError. A
    batch that is never released stays valid for ever; its buffer is then not used again.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        place: Place,
        shard_B: np.ndarray,
        index_B: np.ndarray,
        indexes: list[Index],
        bodies: list[memoryview],
        buffer: bytearray,
        buffers: Buffers,
    ):
        self.start, self.stop = start, stop
        self.place = place  # epoch, lane, item and sample of each
        self.shard_B, self.index_B = shard_B, index_B
        self.bodies = bodies
        self._indexes = indexes
        self._lent: tuple[Buffers, bytearray] | None = (buffers, buffer)

    @cached_property
    def keys(self) -> list[str]:
        return [index.key(number) for index, number in zip(self._indexes, self.index_B.tolist())]

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        return [index.labels(number) for index, number in zip(self._indexes, self.index_B.tolist())]

    def __len__(self) -> int:
        return len(self.bodies)

    @overload
    def __getitem__(self, i: int) -> Sample: ...
    @overload
    def __getitem__(self, i: slice) -> list[Sample]: ...
    def __getitem__(self, i: int | slice) -> Sample | list[Sample]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        number, shard = int(self.index_B[i]), int(self.shard_B[i])
        return Sample.at(self.place, i, shard, number, self._indexes[i], self.bodies[i])

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def release(self) -> None:
        """Give the buffer back. Raises BufferError when something still holds memory of a body (an array made of it,
        say): that stays valid, and the buffer is not used again."""
        if self._lent is None:
            return
        for body in self.bodies:
            body.release()
        (buffers, buffer), self._lent = self._lent, None
        buffers.give(buffer)
