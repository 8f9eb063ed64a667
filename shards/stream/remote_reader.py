"""Batches of samples from a remote store, fetched ahead of need: what this rank uses, and each sample once.

The stream announces a window of batches. A sample is fetched together with its neighbours in the tar that the window
uses too, `connections` ranged reads at once, into a slab, where it waits for its turn and frees its blocks when it is
used. Neighbours that would wait too long for what a request costs are left to a read of their own, and the first batch
waits for its own samples alone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
# Bytes that may wait for a window so that there is a request less. With chunks of 16 pictures of 110 KB: 1.9 reads a
# chunk, and at most half of a window waits at once, where whole chunks would have 0.78 of it wait.
_PATIENCE = 100 << 10
# The largest share of a window that waits at once, by samples of mean size that may wait: simulated, chunks of 16.
_WAITING = ((0.0, 0.1, 0.25, 0.5, 1.0, 1.4, 2.0, 3.0, 4.0), (0.02, 0.2, 0.28, 0.37, 0.48, 0.55, 0.65, 0.75, 0.8))

_Chunk = tuple[int, int, int]  # epoch (each fetches it again), shard, number in the shard


@dataclass(slots=True)
class _Waiting:
    """A sample in the slab, or on its way there."""

    blocks: np.ndarray
    fetched: Future[None]


class RemoteReader(Reader):
    """At least some tars are in a remote store; a mixture's local tars are read from disk.

    `window`: samples within which the neighbours of a chunk are used; `batch`: samples of one batch.
    """

    def __init__(self, manifests: Sequence[Manifest], config: ReadConfig, chunk: int, window: int, batch: int):
        super().__init__(manifests, config.ahead, DiskCache(config.cache, config.cache_bytes) if config.cache else None)
        self._local = [store.is_local(self.tar_url(shard)) for shard in range(len(self._shards))]
        self._tars = LocalTars(self, chunk)
        self._chunk, self._window = chunk, window
        self._connections = config.connections
        self._pool = ThreadPoolExecutor(config.connections, thread_name_prefix="read")
        self._scratch = threading.local()
        self._outstanding = 0
        self._announced = self._used = 0  # samples of the stream so far
        self._coming: deque[tuple[_Chunk, int, int]] = deque()  # chunk, number, position: announced, not looked at
        self._wanted: dict[_Chunk, dict[int, int]] = {}  # number -> position: announced, not fetched
        self._waiting: dict[_Chunk, dict[int, _Waiting]] = {}
        self.horizon = 2 + (window + window // 2) // max(batch, 1)  # half a window may be fetched ahead
        if self._cache:  # it keeps whole chunks, the same for every rank and run
            self.at_first = self.horizon
        samples = sum(manifest.samples for manifest in self.manifests)
        mean = sum(_mean_bytes(manifest) * manifest.samples for manifest in self.manifests) / max(samples, 1)
        block = int(np.clip(1 << int(mean / 16).bit_length(), 512, 16 << 10))
        waiting = 1.0 if self._cache else float(np.interp(_PATIENCE / max(mean, 1.0), *_WAITING))
        under_way = config.connections * chunk + batch
        everything = int(samples * (mean + block)) + (16 << 20)
        wanted = int((waiting * window + under_way) * (mean + block / 2)) + (16 << 20)
        memory = config.memory or min(wanted, everything, _machine_memory() // 2)
        self._keep = memory >= everything and config.memory is not None  # a set that fits is fetched once
        self.memory = min(memory, everything)
        self._slab = Slab(self.memory // block, block)

    # --- planning --------------------------------------------------------------------------------------------------

    def announce(self, place: Place) -> None:
        """The samples of the next batch; their indexes are read."""
        shard_B, index_B = (array.tolist() for array in self.locate(place.sample))
        self._begin_indexes(shard_B)
        for at, (epoch, shard, number) in enumerate(zip(place.epoch.tolist(), shard_B, index_B), self._announced):
            chunk = (0 if self._keep else epoch, shard, number // self._chunk)
            if not self._local[shard]:
                if self._keep and number in self._waiting.get(chunk, ()):
                    continue
                self._wanted.setdefault(chunk, {}).setdefault(number, at)
            self._coming.append((chunk, number, at))
        self._announced += len(shard_B)

    def _fetch(self, due: int) -> None:
        """Start what comes next: everything below position `due`, then as much as keeps all connections busy, of
        samples whose neighbours have been announced, too; in both cases as far as memory reaches."""
        known = self._announced if self.ended else self._announced - self._window
        while self._coming:
            chunk, number, at = self._coming[0]
            if at >= due and (
                at >= known or self._outstanding >= 2 * self._connections or chunk[1] not in self._indexes
            ):
                return
            if self._local[chunk[1]]:
                self._tars.advise(chunk[0], chunk[1], number)
            elif number in self._wanted.get(chunk, ()) and not self._begin(chunk, number, at, due):
                return
            self._coming.popleft()

    def _begin(self, chunk: _Chunk, number: int, at: int, due: int) -> bool:
        """Fetch a sample, with those of its neighbours that are used soon enough. False if there is no room."""
        wanted, index = self._wanted[chunk], self.index(chunk[1])
        first = chunk[2] * self._chunk
        whole = range(first, min(first + self._chunk, len(index)))
        near = whole if self._cache else sorted(wanted)
        begin, end, covered = next(piece for piece in _pieces(index, near) if number in piece[2])
        if self._cache:
            numbers = [n for n in covered if n in wanted]
        else:
            numbers = covered if self._keep else self._together(index, wanted, covered, number, at < due)
            begin, end = _span(index, numbers)
        block = self._slab.block
        counts = [-(-index.length[n] // block) for n in numbers]
        if sum(counts) > self._slab.free:
            if at >= due:
                return False
            numbers, counts = [number], [-(-index.length[number] // block)]
            if not self._cache:
                begin, end = _span(index, numbers)
            if counts[0] > self._slab.free:
                return False
        blocks = [self._slab.take(count) for count in counts]
        with self._lock:
            self._outstanding += 1
        fetched = self._pool.submit(self._receive, chunk[1], begin, end, numbers, blocks)
        fetched.add_done_callback(self._done)
        waiting = self._waiting.setdefault(chunk, {})
        for n, own in zip(numbers, blocks):
            waiting[n] = _Waiting(own, fetched)
            del wanted[n]
        if not wanted:
            del self._wanted[chunk]
        return True

    def _together(
        self, index: Index, wanted: dict[int, int], numbers: Sequence[int], number: int, now: bool
    ) -> Sequence[int]:
        """Of neighbours, those to read with this one. The ones beyond some neighbour begin at their own first use
        instead where they would wait too many bytes times samples of the stream until then: for more than
        `_PATIENCE`. Of that there is less where a sample is due `now` and memory is scarce."""
        scarce = min(1.0, 8 * self._slab.free / len(self._slab.memory_NK)) if now else 1.0
        patience = _PATIENCE * self._window * scarce
        at, due = numbers.index(number), wanted[number]
        begin = at - _soon(index, wanted, numbers[:at][::-1], due, patience)
        return numbers[begin : at + 1 + _soon(index, wanted, numbers[at + 1 :], due, patience)]

    def _done(self, _: Future[None]) -> None:
        with self._lock:
            self._outstanding -= 1

    # --- fetching (in the pool's threads) --------------------------------------------------------------------------

    def _receive(self, shard: int, begin: int, end: int, numbers: Sequence[int], blocks: list[np.ndarray]) -> None:
        index = self.index(shard)
        buffer = self._read_piece(shard, begin, end, numbers)
        for number, own in zip(numbers, blocks):
            at = index.offset[number] - begin
            self.check_header(buffer[at - BLOCK : at].data, shard, number)
            self._slab.fill(own, buffer[at : at + len(own) * self._slab.block])

    def _read_piece(self, shard: int, begin: int, end: int, numbers: Sequence[int]) -> np.ndarray:
        """Bytes begin .. end of a tar in this thread's buffer, which is a block longer at least."""
        length = end - begin
        buffer = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < length + self._slab.block:
            # Mapped, so that a smaller one is given back, and only the pages that were written count.
            fresh = mmap.mmap(-1, length + length // 4 + self._slab.block)
            buffer = self._scratch.buffer = np.frombuffer(fresh, np.uint8)
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
        due = self._used + len(place)
        self._fetch(due)
        grain = self._slab.block
        batch, buffer = self._lend(place, start, stop, grain)
        memory, at = np.frombuffer(buffer, np.uint8), 0
        missing: list[tuple[int, int, memoryview]] = []
        for epoch, shard, number, body in zip(
            place.epoch.tolist(), batch.shard_B.tolist(), batch.index_B.tolist(), batch.bodies
        ):
            chunk = (0 if self._keep else epoch, shard, number // self._chunk)
            if self._local[shard]:
                self._tars.read(shard, number, body)
            elif not self._take(chunk, number, memory, at):
                missing.append((shard, number, body))
            at += -(-len(body) // grain) * grain
        if missing:  # there was no room for them
            list(self._pool.map(lambda one: self._read_alone(*one), missing))
        self._used = due
        return batch

    def _take(self, chunk: _Chunk, number: int, buffer: np.ndarray, at: int) -> bool:
        """Copy a sample out of the slab; False if it is not there."""
        held = self._waiting.get(chunk)
        sample = held.get(number) if held else None
        if held is None or sample is None:
            wanted = self._wanted.get(chunk)
            if wanted:
                wanted.pop(number, None)
            return False
        if not sample.fetched.done():
            self._fetch(self._used)  # while this one comes
        if not self._keep:
            del held[number]
            if not held:
                del self._waiting[chunk]
        sample.fetched.result()
        self._slab.copy(sample.blocks, buffer[at : at + len(sample.blocks) * self._slab.block])
        if not self._keep:
            self._slab.give(sample.blocks)
        return True

    def close(self) -> None:
        super().close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()
        self._tars.close()


def _soon(index: Index, wanted: dict[int, int], numbers: Sequence[int], due: int, patience: float) -> int:
    """How many of these neighbours, from the first on, to read at `due`: the others are left where that saves the most
    bytes times samples, if it saves more than `patience`."""
    found, most = len(numbers), patience
    first, size = 1 << 62, 0
    for at in range(len(numbers) - 1, -1, -1):
        first = min(first, wanted[numbers[at]])
        size += index.length[numbers[at]]
        if (first - due) * size > most:
            found, most = at, (first - due) * size
    return found


def _span(index: Index, numbers: Sequence[int]) -> tuple[int, int]:
    """The bytes from the first one's header to the end of the last."""
    return index.offset[numbers[0]] - BLOCK, index.offset[numbers[-1]] + index.length[numbers[-1]]


def _machine_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    bytes_ = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup 2 here, or "max"
        bytes_ = min(bytes_, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return bytes_


def _mean_bytes(manifest: Manifest) -> float:
    return sum(shard.tar_bytes for shard in manifest.shards) / max(manifest.kept, 1)


def _pieces(index: Index, numbers: Sequence[int]) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Ranged reads for samples of a tar: (begin, end, numbers), headers included. Gaps up to NEAR are read over; then
    the smallest, as long as they are under GAP and all together cost no more than WASTE."""
    begins = [index.offset[number] - BLOCK for number in numbers]
    ends = [begin + BLOCK + index.length[number] for begin, number in zip(begins, numbers)]
    gaps = [begin - end for begin, end in zip(begins[1:], ends)]
    budget, over = WASTE * sum(end - begin for begin, end in zip(begins, ends)), set()
    for i in sorted(range(len(gaps)), key=gaps.__getitem__):
        if gaps[i] > NEAR:
            budget -= gaps[i]
            if budget < 0 or gaps[i] > GAP:
                break
        over.add(i)
    start = 0
    for i in range(len(begins)):
        if i not in over:
            yield begins[start], ends[i], numbers[start : i + 1]
            start = i + 1
