"""Manifest + cursor -> encoded samples, in the order that `order.py` defines, for any rank of any world size.

The stream keeps no state that matters: position `samples_seen` of a manifest and an order says everything, so resuming
is starting there, on any number of ranks. Samples of local tars are read where they lie; remote ones come chunk by
chunk (one ranged read for about `order.chunk` neighbours), fetched ahead by a few threads into a bounded cache.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards import store
from shards.manifest import Manifest
from shards.order import Order, Place, Sequence, batch, cut
from shards.selection import selected_index

_GAP = 32 << 10  # bytes between two samples above which they are read apart
_COLUMNS = ["key", "row", "labels", "offset", "length"]


@dataclass(frozen=True, slots=True)
class Sample:
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
    body: bytes


@dataclass(frozen=True)
class Cursor:
    """Where a run is in its data; lives in every checkpoint."""

    manifest: str  # digest
    order: Order
    samples_seen: int


class Reader:
    """Random access to the selected samples of a manifest, by sample number. Thread-safe."""

    def __init__(self, manifest: Manifest, chunk: int = 16, threads: int = 8, cache_bytes: int = 4 << 30):
        self.manifest = manifest
        self._start = np.cumsum(manifest.counts) - manifest.counts
        self._tables: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._chunk, self._cache_bytes, self._cached = chunk, cache_bytes, 0
        self._chunks: OrderedDict[tuple[int, int], list[_Piece]] = OrderedDict()
        self._files: dict[int, int] = {}
        self._lock = threading.RLock()
        self._local = store.is_local(manifest.dataset)
        self._pool = None if self._local else ThreadPoolExecutor(threads, thread_name_prefix="read")

    def locate(self, sample_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers -> (shard, index within the shard's selected samples)."""
        shard = np.searchsorted(self._start, sample_B, side="right") - 1
        # Shards without selected samples share their start with the next one; `right` already skips past them.
        return shard, sample_B - self._start[shard]

    def prefetch(self, place: Place) -> None:
        """Start fetching what these samples need (remote datasets only)."""
        if self._pool is not None:
            for shard, index in zip(*map(np.ndarray.tolist, self.locate(place.sample))):
                self._remote_chunk(shard, index // self._chunk)

    def read(self, place: Place) -> list[Sample]:
        """The samples at these places. Raises StoreError naming the tar that cannot be read."""
        shard_B, index_B = self.locate(place.sample)
        out = []
        for i, (shard, index) in enumerate(zip(shard_B.tolist(), index_B.tolist())):
            table = self._table(shard)
            body = self._body(shard, index, int(table["offset"][index]), int(table["length"][index]))
            out.append(
                Sample(
                    key=table["key"][index],
                    shard=shard,
                    index=index,
                    row=int(table["row"][index]),
                    sample=int(place.sample[i]),
                    epoch=int(place.epoch[i]),
                    lane=int(place.lane[i]),
                    item=int(place.item[i]),
                    labels=tuple(table["labels"][index].as_py() or ()),
                    body=body,
                )
            )
        return out

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()
            self._chunks.clear()

    def tar_url(self, shard: int) -> str:
        return store.join(self.manifest.dataset, "shards", self.manifest.shards[shard].tar)

    def _table(self, shard: int) -> dict[str, Any]:
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        table = selected_index(self.manifest, shard, _COLUMNS)
        if len(table) != self.manifest.shards[shard].selected:
            name = self.manifest.shards[shard].index
            raise store.StoreError(
                f"{name}: selects {len(table)} samples, its manifest says {self.manifest.shards[shard].selected}: "
                f"run xtra check {self.manifest.dataset}"
            )
        columns: dict[str, Any] = {name: table[name].to_numpy() for name in ("row", "offset", "length")}
        columns |= {"key": table["key"].to_pylist(), "labels": _one_array(table["labels"])}
        with self._lock:
            self._tables[shard] = columns
            while len(self._tables) > 512:
                self._tables.popitem(last=False)
        return columns

    def _body(self, shard: int, index: int, offset: int, length: int) -> bytes:
        if not self._local:
            for piece in self._remote_chunk(shard, index // self._chunk):
                if piece.offset <= offset < piece.offset + piece.length:
                    return piece.body.result()[offset - piece.offset :][:length]
            raise AssertionError("every selected sample lies in a piece of its chunk")
        with self._lock:
            if shard not in self._files:
                if len(self._files) >= 256:
                    os.close(self._files.pop(next(iter(self._files))))
                self._files[shard] = _open(self.tar_url(shard))
            descriptor = self._files[shard]
            body = os.pread(descriptor, length, offset)
        if len(body) != length:
            raise store.StoreError(f"{self.tar_url(shard)}: is cut short at byte {offset + len(body)}: run xtra check")
        return body

    def _remote_chunk(self, shard: int, number: int) -> list[_Piece]:
        """The chunk's bytes to come; fetching starts if it is not cached. Neighbours share a read, and what lies
        between two samples that a subset or a verdict took apart is not read."""
        assert self._pool is not None
        with self._lock:
            if (shard, number) in self._chunks:
                self._chunks.move_to_end((shard, number))
                return self._chunks[shard, number]
        table = self._table(shard)
        these = slice(number * self._chunk, (number + 1) * self._chunk)
        begin = table["offset"][these]
        end = begin + table["length"][these]
        apart = np.flatnonzero(begin[1:] - end[:-1] > _GAP) + 1
        with self._lock:
            if (shard, number) not in self._chunks:
                pieces = []
                for run in np.split(np.arange(len(begin)), apart):
                    offset, length = int(begin[run[0]]), int(end[run[-1]] - begin[run[0]])
                    fetch = self._pool.submit(store.read_range, self.tar_url(shard), offset, length)
                    pieces.append(_Piece(offset, length, fetch))
                self._chunks[shard, number] = pieces
                self._cached += sum(piece.length for piece in pieces)
                while self._cached > self._cache_bytes and len(self._chunks) > 1:
                    _, old = self._chunks.popitem(last=False)
                    self._cached -= sum(piece.length for piece in old)
            return self._chunks[shard, number]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One ranged read of a tar, under way or done."""

    offset: int
    length: int
    body: Future[bytes]


def _open(url: str) -> int:
    try:
        return os.open(store.local_path(url), os.O_RDONLY)
    except FileNotFoundError:
        raise store.Missing(f"{url}: the shard is gone: run xtra check on the dataset") from None


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


class Stream:
    """This rank's cut of every global batch from `samples_seen` on, endlessly: iterate for lists of `Sample`.

    The batches of all ranks together are the same sets at any world size. `stop_at` shortens the last batch so that
    the stream ends at exactly that many samples.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        batch_size: int,
        samples_seen: int = 0,
        stop_at: int | None = None,
        rank: int = 0,
        world: int = 1,
        read_ahead: int = 4,
    ):
        self.sequence = Sequence(manifest.counts, order)
        self.reader = Reader(manifest, order.chunk)
        self._batch, self._seen, self._stop_at = batch_size, samples_seen, stop_at
        self._rank, self._world, self._read_ahead = rank, world, read_ahead

    def places(self) -> Iterator[Place]:
        """Where this rank's samples of each global batch lie, without reading them."""
        seen = self._seen
        while self._stop_at is None or seen < self._stop_at:
            end = seen + self._batch if self._stop_at is None else min(seen + self._batch, self._stop_at)
            yield batch(self.sequence, seen, end).take(cut(end - seen, self._rank, self._world))
            seen = end

    def __iter__(self) -> Iterator[list[Sample]]:
        coming: list[Place] = []
        for place in self.places():
            self.reader.prefetch(place)
            coming.append(place)
            if len(coming) > self._read_ahead:
                yield self.reader.read(coming.pop(0))
        for place in coming:
            yield self.reader.read(place)

    def substitutes(self, bad: Sample) -> Iterator[Sample]:
        """Stand-ins for a sample that does not decode: the rest of its lane window, in order (design section 3)."""
        for place in self.sequence.substitutes(bad.epoch, bad.lane, bad.item):
            yield self.reader.read(place)[0]

    def close(self) -> None:
        self.reader.close()


def once(manifest: Manifest, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[list[Sample]]:
    """Every sample once, in row order, with a short last batch: what all evaluation uses."""
    reader = Reader(manifest)
    try:
        for start in range(0, manifest.samples, batch_size):
            numbers = np.arange(start, min(start + batch_size, manifest.samples), dtype=np.int64)
            zeros = np.zeros_like(numbers)
            place = Place(zeros, zeros, numbers, numbers).take(cut(len(numbers), rank, world))
            reader.prefetch(place)
            yield reader.read(place)
    finally:
        reader.close()
