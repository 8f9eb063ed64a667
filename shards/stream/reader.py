"""Where the selected samples of one or more manifests are, and how one of them is read alone.

Streams read them in batches: `local_reader.py` from this machine's disks, `remote_reader.py` ahead of need
from a remote store.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from shards import store
from shards.manifest import Manifest
from shards.stream.cache import DiskCache
from shards.stream.index import Index, read_index
from shards.stream.order import Place
from shards.stream.sample import Encoded, Sample
from shards.stream.slab import Buffers
from shards.tar import BLOCK

_INDEX_READERS = 32


class Reader:
    """The samples by number, their tars and their indexes. Any thread may use it, but only one announces and
    reads batches."""

    memory = 0  # bytes in which samples wait for their turn
    at_first = 1  # batches that are announced before the first is read
    horizon = 1  # ... and before any other
    ended = False  # whether all batches have been announced

    def __init__(self, manifests: Sequence[Manifest], ahead: int = 1, cache: DiskCache | None = None):
        self.manifests = tuple(manifests)
        self.bytes_read = 0  # from remote stores
        self.bytes_used = 0
        self._shards = [(manifest, n) for manifest in self.manifests for n in range(len(manifest.shards))]
        counts = np.concatenate([manifest.counts for manifest in self.manifests])
        self._start = np.cumsum(counts) - counts
        self._foreign = [manifest.shards[n].foreign for manifest, n in self._shards]
        self._cache = cache
        self._indexes: dict[int, Index] = {}
        self._coming_indexes: dict[int, Future[Index]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()  # of what the pools' threads write
        self._index_pool = ThreadPoolExecutor(_INDEX_READERS, thread_name_prefix="index")
        self._buffers = Buffers(ahead + 2)

    def locate(self, sample_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers -> (shard, index within the shard's selected samples)."""
        shard = np.searchsorted(self._start, sample_B, side="right") - 1
        # Shards without selected samples share their start with the next one; `right` already skips past them.
        return shard, sample_B - self._start[shard]

    def tar_url(self, shard: int) -> str:
        manifest, number = self._shards[shard]
        return manifest.tar_url(number)

    def key(self, sample: int) -> str:
        """The key of one sample number, from any thread."""
        shard, number = self.locate(np.array([sample]))
        return self.index(int(shard[0])).key(int(number[0]))

    def index(self, shard: int) -> Index:
        """The index of a shard, read on first use."""
        index = self._indexes.get(shard)
        if index is None:
            coming = self._coming_indexes.get(shard)
            index = self._read_index(shard) if coming is None or coming.cancelled() else coming.result()
        return index

    def _read_index(self, shard: int) -> Index:
        index = self._indexes[shard] = read_index(*self._shards[shard], self._cache)
        return index

    def _begin_indexes(self, shards: Sequence[int]) -> None:
        """Read the indexes of these shards, as many at once as there are threads for them."""
        for shard in dict.fromkeys(shards):
            if shard not in self._indexes and shard not in self._coming_indexes:
                self._coming_indexes[shard] = self._index_pool.submit(self._read_index, shard)

    def check_header(self, header: memoryview, shard: int, number: int) -> None:
        """The tar must have this sample's member there: pictures of a swapped tar must not pass for others."""
        key = self.index(shard).key(number).encode()
        if self._foreign[shard]:  # its member names are its own, but the header has the length
            length = self.index(shard).length[number]
            sound = bytes(header[124:136]).strip(b" \0").lstrip(b"0") == b"%o" % length
        else:
            sound = header[: len(key) + 1] == key + b"." and header[257:262] == b"ustar"
        if not sound:
            found = bytes(header[:100]).split(b"\0")[0][:40]
            raise store.StoreError(
                f"{self.tar_url(shard)}: {key.decode()} should begin at byte {self.index(shard).offset[number]}, "
                f"the tar has {found!r} there: it is not what its index describes: run xtra check"
            )

    def read_apart(self, place: Place) -> list[Sample]:
        """Samples outside of the plan, in memory of their own, from any thread: substitutes for bad ones."""
        shard_B, index_B = self.locate(place.sample)
        samples = []
        for i, (shard, number) in enumerate(zip(shard_B.tolist(), index_B.tolist())):
            body = bytearray(self.index(shard).length[number])
            self._read_alone(shard, number, memoryview(body))
            samples.append(Sample.at(place, i, shard, number, self.index(shard), memoryview(body)))
        return samples

    def _read_alone(self, shard: int, number: int, body: memoryview) -> None:
        index = self.index(shard)
        with_header = memoryview(bytearray(BLOCK + len(body)))
        store.read_into(self.tar_url(shard), index.offset[number] - BLOCK, with_header, self._stop)
        with self._lock:
            self.bytes_read += len(with_header)
        self.check_header(with_header[:BLOCK], shard, number)
        body[:] = with_header[BLOCK:]

    def _lend(self, place: Place, start: int, stop: int, grain: int) -> tuple[Encoded, bytearray]:
        """The samples at these places, not read yet, and their lent buffer, where each takes whole grains of bytes."""
        shard_B, index_B = self.locate(place.sample)
        shards, numbers = shard_B.tolist(), index_B.tolist()
        self._begin_indexes(shards)
        indexes = [self.index(shard) for shard in shards]
        lengths = [index.length[number] for index, number in zip(indexes, numbers)]
        buffer = self._buffers.take(sum(lengths) + len(lengths) * grain)
        view, at = memoryview(buffer), 0
        bodies: list[memoryview] = []
        for length in lengths:
            bodies.append(view[at : at + length])
            at += -(-length // grain) * grain
        self.bytes_used += sum(lengths)
        return Encoded(start, stop, place, shard_B, index_B, indexes, bodies, buffer, self._buffers), buffer

    def stop(self) -> None:
        """End all waiting for a silent store."""
        self._stop.set()

    def close(self) -> None:
        """Idempotent and thread-safe; only after the last batch was read. Batches that were handed out stay valid."""
        self._stop.set()
        self._index_pool.shutdown(wait=False, cancel_futures=True)
