"""Random access to the selected samples of one or more manifests, for streaming them.

Local tars are read where they lie, one `preadv` a sample straight into the batch's buffer. Remote ones come by chunk
(`order.chunk` neighbours, about one ranged read), `connections` at once, into a slab, in which a sample waits for its
turn and from which its blocks are free again at once: memory is that of one window of the order, and stays so.

A `Reader` is planned and read by one thread; `locate`, `tar_url`, `key` and `read_apart` are open to all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
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
from shards.stream.index import Index, read_index
from shards.stream.order import Place
from shards.stream.sample import Encoded, Sample
from shards.stream.slab import Buffers, Slab
from shards.tar import BLOCK

NEAR = 16 << 10  # bytes between two samples up to which they are read together: no request is as cheap
GAP = 256 << 10  # ... and up to which they are,
WASTE = 0.1  # ... as long as what is read in vain so is no more than this share of what is used
_INDEX_READERS = 16
_MOST_FILES = 4096


_Name = tuple[int, int, int]  # of a chunk: epoch (each fetches it anew), shard, which of the shard's


@dataclass(slots=True)
class _Chunk:
    """Neighbours in a tar that are fetched together."""

    first: int  # number in the shard of the first
    blocks: list[np.ndarray | None]  # where each one waits; None: it has been used
    left: int  # how many are not None
    planned: int = 0  # how many of them are wanted by batches to come
    touched: int = 0  # the clock when one was last planned or used
    fetched: Future[None] = field(default_factory=Future)


class Reader:
    """`window`: how many samples wait at once, at most; `passed`: samples of the stream after which a chunk that nobody
    has wanted since will not be wanted again in its window."""

    def __init__(
        self, manifests: Sequence[Manifest], config: ReadConfig, chunk: int, window: int, passed: int, batch: int
    ):
        self.manifests = tuple(manifests)
        self._shards = [(manifest, n) for manifest in self.manifests for n in range(len(manifest.shards))]
        counts = np.concatenate([manifest.counts for manifest in self.manifests])
        self._start = np.cumsum(counts) - counts
        self._foreign = [manifest.shards[n].foreign for manifest, n in self._shards]
        self._local = [store.is_local(self.tar_url(shard)) for shard in range(len(self._shards))]
        self._config, self._chunk, self._passed, self._clock = config, chunk, passed, 0
        self._indexes: dict[int, Index] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()  # of what the pools' threads write
        self._index_pool = ThreadPoolExecutor(_INDEX_READERS, thread_name_prefix="index")
        self._files: OrderedDict[int, int] = OrderedDict()
        self._most_files = min(_MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._advised: set[_Name] = set()
        self._buffers = Buffers(config.ahead + 2)
        self._header = memoryview(bytearray(BLOCK))
        self._cache: DiskCache | None = None
        self.memory = 0  # bytes in which remote samples wait
        self.bytes_read = self.bytes_used = 0
        if not all(self._local):
            self._open_remote(window, batch)

    def _open_remote(self, window: int, batch: int) -> None:
        config = self._config
        if config.cache:
            self._cache = DiskCache(config.cache, config.cache_bytes)
        self._pool = ThreadPoolExecutor(config.connections, thread_name_prefix="read")
        self._scratch = threading.local()
        self._chunks: OrderedDict[_Name, _Chunk] = OrderedDict()
        self._outstanding = 0
        samples = sum(manifest.samples for manifest in self.manifests)
        mean = sum(_mean_bytes(manifest) * manifest.samples for manifest in self.manifests) / max(samples, 1)
        block = int(np.clip(1 << int(mean / 8).bit_length(), 512, 16 << 10))
        self._horizon = 4 + window // batch
        under_way = 2 * config.connections * self._chunk + config.ahead * batch
        everything = int(samples * (mean + block)) + (16 << 20)
        wanted = min(int((window + under_way) * 1.05 * (mean + block / 2)) + (16 << 20), everything)
        memory = config.memory or min(wanted, _machine_memory() // 2)
        self._keep = memory >= everything and config.memory is not None  # a set that fits is fetched once
        self.memory = min(memory, everything)
        self._slab = Slab(self.memory // block, block)

    # --- where samples lie -----------------------------------------------------------------------------------------

    def locate(self, sample_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers -> (shard, index within the shard's selected samples)."""
        shard = np.searchsorted(self._start, sample_B, side="right") - 1
        # Shards without selected samples share their start with the next one; `right` already skips past them.
        return shard, sample_B - self._start[shard]

    def tar_url(self, shard: int) -> str:
        manifest, number = self._shards[shard]
        return manifest.tar_url(number)

    def key(self, sample: int) -> str:
        """Of one sample number, from any thread."""
        shard, number = self.locate(np.array([sample]))
        return self._index(int(shard[0])).key(int(number[0]))

    def _index(self, shard: int) -> Index:
        index = self._indexes.get(shard)
        if index is None:
            index = read_index(*self._shards[shard], self._cache)
            with self._lock:
                index = self._indexes.setdefault(shard, index)
        return index

    def _read_indexes(self, shards: Sequence[int]) -> None:
        missing = [shard for shard in dict.fromkeys(shards) if shard not in self._indexes]
        if missing:
            list(self._index_pool.map(self._index, missing))

    # --- planning --------------------------------------------------------------------------------------------------

    def busy(self, batches: int) -> bool:
        """Whether as much is planned as is of use, `batches` of them: on local disk, a few; remote, what keeps all
        connections at work while the consumer has the next one, or a whole window."""
        if all(self._local):
            return batches >= 4
        return self._outstanding >= 4 * self._config.connections or batches > self._horizon

    def plan(self, place: Place, at: int = 0, hard: bool = False) -> int:
        """Start fetching what these samples need, from the at-th on; returns how far memory reached.

        `hard`: nothing else can be done before this, so what is merely kept makes room, and what has no place is left
        for `read` to fetch alone.
        """
        shard_B, index_B = (array[at:].tolist() for array in self.locate(place.sample))
        self._read_indexes(shard_B)
        for step, (epoch, shard, number) in enumerate(zip(place.epoch[at:].tolist(), shard_B, index_B)):
            if self._local[shard]:
                self._advise((epoch, shard, number // self._chunk))
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

    def _advise(self, name: _Name) -> None:
        """Tell the kernel, once an epoch, which part of a tar will be read soon: a cold disk then works ahead of us."""
        if name not in self._advised:
            if len(self._advised) > 1 << 16:
                self._advised.clear()
            self._advised.add(name)
            index, first = self._index(name[1]), name[2] * self._chunk
            last = min(first + self._chunk, len(index)) - 1
            begin, end = index.offset[first] - BLOCK, index.offset[last] + index.length[last]
            with contextlib.suppress(OSError):  # file systems may not care for advice
                os.posix_fadvise(self._file(name[1]), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def _start_chunk(self, name: _Name, hard: bool) -> _Chunk | None:
        """A new chunk whose fetching has started; None if there is no room."""
        _, shard, number = name
        index, first = self._index(shard), number * self._chunk
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
        """Drop what no planned batch wants and what was last wanted `passed` samples ago: of lanes that are shared with
        other ranks, which use the rest. Until `need` blocks are free."""
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
        index = self._index(shard)
        for begin, end, numbers in _pieces(index, first, len(blocks)):
            buffer = self._read_piece(shard, begin, end, numbers)
            for number in numbers:
                at, wide = index.offset[number] - begin, len(blocks[number - first]) * self._slab.block
                self._check_header(buffer[at - BLOCK : at].data, shard, number)
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
                keys = " to ".join(dict.fromkeys(self._index(shard).key(n) for n in (numbers[0], numbers[-1])))
                raise type(error)(f"{error} ({keys})") from None
            with self._lock:
                self.bytes_read += length
            if self._cache is not None:
                self._cache.write(name, view)
        return buffer

    def _check_header(self, header: memoryview, shard: int, number: int) -> None:
        """The tar must have this sample's member there: a swapped tar is found before its pictures pass for others."""
        key = self._index(shard).key(number).encode()
        if self._foreign[shard]:  # its names are its own, but it says how long the member is
            length = self._index(shard).length[number]
            sound = bytes(header[124:136]).strip(b" \0").lstrip(b"0") == b"%o" % length
        else:
            sound = header[: len(key) + 1] == key + b"." and header[257:262] == b"ustar"
        if not sound:
            found = bytes(header[:100]).split(b"\0")[0][:40]
            raise store.StoreError(
                f"{self.tar_url(shard)}: {key.decode()} should begin at byte {self._index(shard).offset[number]}, "
                f"the tar has {found!r} there: it is not what its index describes: run xtra check"
            )

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, place: Place, start: int = 0, stop: int = 0) -> Encoded:
        """The samples at these places in one lent buffer; `start` and `stop` name the whole batch's global positions.

        Raises StoreError naming the tar that cannot be read.
        """
        shard_B, index_B = self.locate(place.sample)
        shards, numbers = shard_B.tolist(), index_B.tolist()
        self._read_indexes(shards)
        indexes = [self._indexes[shard] for shard in shards]
        lengths = [index.length[number] for index, number in zip(indexes, numbers)]
        grain = 64 if all(self._local) else self._slab.block
        buffer = self._buffers.take(sum(lengths) + len(lengths) * grain)
        view, memory, at = memoryview(buffer), np.frombuffer(buffer, np.uint8), 0
        bodies: list[memoryview] = []
        missing: list[tuple[int, int, memoryview]] = []
        for epoch, shard, number, length in zip(place.epoch.tolist(), shards, numbers, lengths):
            body = view[at : at + length]
            if self._local[shard]:
                self._read_local(shard, number, body)
            elif not self._take(self._name(epoch, shard, number), number, memory, at):
                missing.append((shard, number, body))
            bodies.append(body)
            at += -(-length // grain) * grain
        if missing:  # there was no room for them
            list(self._pool.map(lambda one: self._read_alone(*one), missing))
        self._clock = stop or self._clock + len(place)
        if not all(self._local) and not self._keep:
            self._evict(len(self._slab.memory_NK), self._passed)  # so that memory is what is of use, not what there is
        self.bytes_used += sum(lengths)
        return Encoded(start, stop, place, shard_B, index_B, indexes, bodies, buffer, self._buffers)

    def _read_local(self, shard: int, number: int, body: memoryview) -> None:
        index = self._indexes[shard]
        offset = index.offset[number]
        try:
            got = store.fill(self._file(shard), [self._header, body], offset - BLOCK)
        except OSError as error:
            place = f"{self.tar_url(shard)}: cannot be read at byte {offset}, {index.key(number)}"
            raise store.StoreError(f"{place}: {error.strerror}") from None
        if got != BLOCK + index.length[number]:
            raise store.StoreError(
                f"{self.tar_url(shard)}: is cut short at byte {offset - BLOCK + got}, in {index.key(number)}: "
                "run xtra check"
            )
        self._check_header(self._header, shard, number)

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

    def _read_alone(self, shard: int, number: int, body: memoryview) -> None:
        index = self._index(shard)
        with_header = memoryview(bytearray(BLOCK + len(body)))
        store.read_into(self.tar_url(shard), index.offset[number] - BLOCK, with_header, self._stop)
        with self._lock:
            self.bytes_read += len(with_header)
        self._check_header(with_header[:BLOCK], shard, number)
        body[:] = with_header[BLOCK:]

    def read_apart(self, place: Place) -> list[Sample]:
        """Samples outside of the plan, in memory of their own, from any thread: stand-ins for bad ones."""
        shard_B, index_B = self.locate(place.sample)
        samples = []
        for i, (shard, number) in enumerate(zip(shard_B.tolist(), index_B.tolist())):
            body = bytearray(self._index(shard).length[number])
            self._read_alone(shard, number, memoryview(body))
            samples.append(Sample.at(place, i, shard, number, self._index(shard), memoryview(body)))
        return samples

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= self._most_files:
                os.close(self._files.popitem(last=False)[1])
            url = self.tar_url(shard)
            try:
                file = os.open(store.local_path(url), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise store.Missing(f"{url}: the shard is gone: run xtra check on the dataset") from None
            except OSError as error:
                raise store.StoreError(f"{url}: cannot be opened: {error.strerror}") from None
            self._files[shard] = file
        return file

    def stop(self) -> None:
        """What waits for a silent store gives up."""
        self._stop.set()

    def close(self) -> None:
        """Idempotent, and for several threads at once; only when nobody plans or reads any more. Batches that were
        handed out stay valid."""
        self._stop.set()
        self._index_pool.shutdown(wait=False, cancel_futures=True)
        if not all(self._local):
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._chunks.clear()
        with self._lock:  # a file that is closed twice may be another's by then
            files, self._files = self._files, OrderedDict()
        for file in files.values():
            os.close(file)


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
