"""Batches of samples from a remote store, fetched ahead of need.

They come by chunk (`order.chunk` neighbours, about one ranged read), `connections` at once, into a slab, where a
sample waits for its turn and frees its blocks when it is used: memory is that of one window of the order, and stays so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards import store
from shards.config import ReadConfig
from shards.manifest import Manifest
from shards.stream.cache import DiskCache
from shards.stream.index import Index
from shards.stream.local_reader import LocalTars
from shards.stream.order import Place
from shards.stream.reader import Reader
from shards.stream.sample import Encoded
from shards.stream.slab import Slab
from shards.tar import BLOCK

NEAR = 16 << 10  # bytes between two samples up to which they are read together: cheaper than a request
GAP = 256 << 10  # ... and up to which they may be,
WASTE = 0.1  # ... if the bytes read in vain are at most this share of those used

_Name = tuple[int, int, int]  # of a chunk: epoch (each fetches it again), shard, number in the shard


@dataclass(slots=True)
class _Chunk:
    """Neighbours in a tar that are fetched together."""

    first: int  # number in the shard of the first
    blocks: list[np.ndarray | None]  # where each one waits; None: it has been used
    left: int  # how many are not None
    planned: int = 0  # how many of them planned batches use
    touched: int = 0  # the clock when one was last planned or used
    fetched: Future[None] = field(default_factory=Future)


class RemoteReader(Reader):
    """At least some tars are in a remote store; a mixture's local tars are read from disk.

    `window`: how many samples wait at once, at most; `passed`: samples of the stream after which an
    unused chunk will not be used again in its window; `batch`: samples of one batch.
    """

    def __init__(
        self, manifests: Sequence[Manifest], config: ReadConfig, chunk: int, window: int, passed: int, batch: int
    ):
        super().__init__(manifests, config.ahead, DiskCache(config.cache, config.cache_bytes) if config.cache else None)
        self._local = [store.is_local(self.tar_url(shard)) for shard in range(len(self._shards))]
        self._tars = LocalTars(self, chunk)
        self._chunk, self._passed, self._clock = chunk, passed, 0
        self._connections = config.connections
        self._pool = ThreadPoolExecutor(config.connections, thread_name_prefix="read")
        self._scratch = threading.local()
        self._chunks: OrderedDict[_Name, _Chunk] = OrderedDict()
        self._outstanding = 0
        samples = sum(manifest.samples for manifest in self.manifests)
        mean = sum(_mean_bytes(manifest) * manifest.samples for manifest in self.manifests) / max(samples, 1)
        block = int(np.clip(1 << int(mean / 8).bit_length(), 512, 16 << 10))
        self._horizon = 4 + window // batch
        under_way = 2 * config.connections * chunk + config.ahead * batch
        everything = int(samples * (mean + block)) + (16 << 20)
        wanted = min(int((window + under_way) * 1.05 * (mean + block / 2)) + (16 << 20), everything)
        memory = config.memory or min(wanted, _machine_memory() // 2)
        self._keep = memory >= everything and config.memory is not None  # a set that fits is fetched once
        self.memory = min(memory, everything)
        self._slab = Slab(self.memory // block, block)

    # --- planning --------------------------------------------------------------------------------------------------

    def busy(self, batches: int) -> bool:
        """Whether the planned `batches` are enough: to keep all connections busy while the consumer has the next one,
        or a whole window."""
        return self._outstanding >= 4 * self._connections or batches > self._horizon

    def plan(self, place: Place, at: int = 0, hard: bool = False) -> int:
        """Start fetching what these samples need, from the at-th on; returns how far memory reached.

        `hard`: these samples come next, so chunks that are merely kept make room, and samples that still have no room
        are left for `read` to fetch alone.
        """
        shard_B, index_B = (array[at:].tolist() for array in self.locate(place.sample))
        self._read_indexes(shard_B)
        for step, (epoch, shard, number) in enumerate(zip(place.epoch[at:].tolist(), shard_B, index_B)):
            if self._local[shard]:
                self._tars.advise(epoch, shard, number)
                continue
            name = self._name(epoch, shard, number)
            chunk = self._chunks.get(name)
            if chunk is None:
                chunk = self._start_chunk(name, hard)
                if chunk is None:
                    if hard:
                        continue
                    return at + step
            chunk.planned += 1
            chunk.touched = self._clock
            self._chunks.move_to_end(name)
        return at + len(shard_B)

    def _name(self, epoch: int, shard: int, number: int) -> _Name:
        return (0 if self._keep else epoch, shard, number // self._chunk)

    def _start_chunk(self, name: _Name, hard: bool) -> _Chunk | None:
        """A new chunk whose fetching has started; None if there is no room."""
        _, shard, number = name
        index, first = self.index(shard), number * self._chunk
        lengths = np.array(index.length[first : first + self._chunk])
        counts = self._slab.blocks_for(lengths)
        need = int(counts.sum())
        if self._slab.free < need:
            self._evict(need, 0 if hard else self._passed)
            if self._slab.free < need:
                return None
        ends = np.cumsum(counts)
        blocks = np.split(self._slab.take(need), ends[:-1])
        chunk = _Chunk(first, list(blocks), len(blocks), touched=self._clock)
        self._chunks[name] = chunk
        with self._lock:
            self._outstanding += 1
        chunk.fetched = self._pool.submit(self._fetch, shard, first, blocks)
        chunk.fetched.add_done_callback(self._done)
        return chunk

    def _done(self, _: Future[None]) -> None:
        with self._lock:
            self._outstanding -= 1

    def _evict(self, need: int, passed: int) -> None:
        """Drop chunks that no planned batch uses and that were last used `passed` samples ago (in lanes shared with
        other ranks, which use the rest), until `need` blocks are free."""
        for name, chunk in list(
            itertools.takewhile(lambda c: self._clock - c[1].touched >= passed, self._chunks.items())
        ):
            if self._slab.free >= need:
                return
            if chunk.planned == 0 and chunk.fetched.done():
                for blocks in chunk.blocks:
                    if blocks is not None:
                        self._slab.give(blocks)
                del self._chunks[name]

    # --- fetching (in the pool's threads) --------------------------------------------------------------------------

    def _fetch(self, shard: int, first: int, blocks: list[np.ndarray]) -> None:
        index = self.index(shard)
        for begin, end, numbers in _pieces(index, first, len(blocks)):
            buffer = self._read_piece(shard, begin, end, numbers)
            for number in numbers:
                at, wide = index.offset[number] - begin, len(blocks[number - first]) * self._slab.block
                self.check_header(buffer[at - BLOCK : at].data, shard, number)
                self._slab.fill(blocks[number - first], buffer[at : at + wide])

    def _read_piece(self, shard: int, begin: int, end: int, numbers: range) -> np.ndarray:
        """Bytes begin .. end of a tar in this thread's buffer, which is a block longer at least."""
        length = end - begin
        buffer = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < length + self._slab.block:
            buffer = self._scratch.buffer = np.empty(length + length // 4 + self._slab.block, np.uint8)
        view = buffer[:length].data
        manifest, number = self._shards[shard]
        name = f"{manifest.shards[number].tar_sha256}-{begin:x}-{length:x}"
        if self._cache is None or not self._cache.read_into(name, view):
            try:
                store.read_into(self.tar_url(shard), begin, view, self._stop)
            except store.StoreError as error:
                keys = " to ".join(dict.fromkeys(self.index(shard).key(n) for n in (numbers[0], numbers[-1])))
                raise type(error)(f"{error} ({keys})") from None
            with self._lock:
                self.bytes_read += length
            if self._cache is not None:
                self._cache.write(name, view)
        return buffer

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, place: Place, start: int = 0, stop: int = 0) -> Encoded:
        """The samples at these places in one lent buffer; `start` and `stop` name the whole batch's global positions.

        Raises StoreError naming the tar that cannot be read.
        """
        grain = self._slab.block
        batch, buffer = self._lend(place, start, stop, grain)
        memory, at = np.frombuffer(buffer, np.uint8), 0
        missing: list[tuple[int, int, memoryview]] = []
        for epoch, shard, number, body in zip(
            place.epoch.tolist(), batch.shard_B.tolist(), batch.index_B.tolist(), batch.bodies
        ):
            if self._local[shard]:
                self._tars.read(shard, number, body)
            elif not self._take(self._name(epoch, shard, number), number, memory, at):
                missing.append((shard, number, body))
            at += -(-len(body) // grain) * grain
        if missing:  # there was no room for them
            list(self._pool.map(lambda one: self._read_alone(*one), missing))
        self._clock = stop or self._clock + len(place)
        if not self._keep:
            self._evict(len(self._slab.memory_NK), self._passed)  # keep only what is still useful
        return batch

    def _take(self, name: _Name, number: int, buffer: np.ndarray, at: int) -> bool:
        """Copy a sample out of the slab; False if it is not there."""
        chunk = self._chunks.get(name)
        blocks = chunk.blocks[number - chunk.first] if chunk else None
        if chunk is None or blocks is None:
            return False
        try:
            chunk.fetched.result()
        except BaseException:
            del self._chunks[name]
            raise
        self._slab.copy(blocks, buffer[at : at + len(blocks) * self._slab.block])
        chunk.planned -= 1
        chunk.touched = self._clock
        if self._keep:
            return True
        self._slab.give(blocks)
        chunk.blocks[number - chunk.first] = None
        chunk.left -= 1
        if chunk.left == 0:
            del self._chunks[name]
        else:
            self._chunks.move_to_end(name)
        return True

    def close(self) -> None:
        super().close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._chunks.clear()
        self._tars.close()


def _machine_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    bytes_ = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup 2 here, or "max"
        bytes_ = min(bytes_, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return bytes_


def _mean_bytes(manifest: Manifest) -> float:
    return sum(shard.tar_bytes for shard in manifest.shards) / max(manifest.kept, 1)


def _pieces(index: Index, first: int, count: int) -> Iterator[tuple[int, int, range]]:
    """Ranged reads for neighbours: (begin, end, numbers), headers included. Gaps up to NEAR are read over; then the
    smallest, as long as they are under GAP and all together cost no more than WASTE."""
    begins = [index.offset[number] - BLOCK for number in range(first, first + count)]
    ends = [begin + BLOCK + index.length[number] for begin, number in zip(begins, range(first, first + count))]
    gaps = [begins[i + 1] - ends[i] for i in range(count - 1)]
    budget, over = WASTE * sum(end - begin for begin, end in zip(begins, ends)), set()
    for i in sorted(range(count - 1), key=gaps.__getitem__):
        if gaps[i] > NEAR:
            budget -= gaps[i]
            if budget < 0 or gaps[i] > GAP:
                break
        over.add(i)
    start = 0
    for i in range(count):
        if i not in over:
            yield begins[start], ends[i], range(first + start, first + i + 1)
            start = i + 1
