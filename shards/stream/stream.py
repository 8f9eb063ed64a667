"""Manifest + cursor -> encoded samples, in the order that `order.py` defines, for any rank of any world size.

The stream's only state is `samples_seen`, a position in the order of a manifest, so resuming is starting there, on any
number of ranks. One thread plans, waits and copies ahead of the consumer; `local_reader.py` and `remote_reader.py`
decide what is fetched and where it waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import store
from shards.config import ReadConfig
from shards.manifest import Manifest
from shards.stream.local_reader import LocalReader
from shards.stream.mixture import MixedSequence, Mixture
from shards.stream.order import Order, Place, Positions, Sequence, batch, cut
from shards.stream.remote_reader import RemoteReader
from shards.stream.sample import Encoded, Sample

_PATIENCE = 2.0  # seconds
_ONCE_CHUNK = 64  # neighbours that are read together where samples come in row order


@dataclass(frozen=True)
class Cursor:
    """Where a run is in its data; lives in every checkpoint."""

    manifest: str  # digest
    order: Order
    samples_seen: int


@dataclass(frozen=True)
class GlobalBatch:
    """One global batch to come: positions start .. stop-1, and this rank's part of it."""

    start: int
    stop: int
    place: Place


def state_of(manifest: Manifest | Mixture, order: Order, samples_seen: int) -> dict[str, Any]:
    """A cursor as plain JSON: all that resuming needs, on any number of ranks."""
    return dataclasses.asdict(Cursor(manifest.digest, order, samples_seen))


def seen_in(state: dict[str, Any], manifest: Manifest | Mixture, order: Order) -> int:
    """The samples seen in a state. Raises ValueError for the state of another manifest or order."""
    ours = state_of(manifest, order, 0)
    for name in ("manifest", "order"):
        if state.get(name) != ours[name]:
            raise ValueError(f"the state was saved for {name} {state.get(name)}, but this stream reads {ours[name]}")
    seen = state.get("samples_seen")
    if not isinstance(seen, int) or isinstance(seen, bool) or seen < 0:
        raise ValueError(f"the state has samples_seen {seen!r}: it must be 0 or more")
    return seen


Reader = LocalReader | RemoteReader


def open_reader(manifests: tuple[Manifest, ...], config: ReadConfig, chunk: int, window: int, batch: int) -> Reader:
    """A reader of these manifests in batches of `batch`; the other arguments as for RemoteReader."""
    if all(store.is_local(manifest.tar_url(n)) for manifest in manifests for n in range(len(manifest.shards))):
        return LocalReader(manifests, config, chunk)
    return RemoteReader(manifests, config, chunk, window, batch)


class Stream:
    """This rank's cut of every global batch from `samples_seen` on, endlessly: iterate for `Encoded` batches.

    The batches of all ranks together are the same sets at any world size. `stop_at` shortens the last batch so that
    the stream ends at exactly that many samples. Iterate it once; `close` it, or exhaust it.
    """

    def __init__(
        self,
        manifest: Manifest | Mixture,
        order: Order,
        batch_size: int,
        samples_seen: int = 0,
        stop_at: int | None = None,
        rank: int = 0,
        world: int = 1,
        config: ReadConfig | None = None,
    ):
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch {batch_size}, rank {rank} of {world}: batch must be at least 1 and 0 <= rank < world"
            )
        self.manifest, self.order = manifest, order
        mixed = isinstance(manifest, Mixture)
        manifests = manifest.manifests if mixed else (manifest,)
        self.sequence: Positions = MixedSequence(manifest, order) if mixed else Sequence(manifest.counts, order)
        self.samples_seen = samples_seen  # of the batches that were handed out, and those before
        self._batch, self._stop_at, self._rank, self._world = batch_size, stop_at, rank, world
        self._config = config or ReadConfig()
        lanes = order.lanes * len(manifests)
        share = -(-lanes // world) + (world > 1)  # a rank's cut may begin and end inside a lane
        run = min(order.window * order.chunk, -(-self.sequence.samples // lanes))
        self.reader = open_reader(
            manifests,
            self._config,
            order.chunk,
            window=min(share, lanes) * run,
            batch=-(-batch_size // world),
        )
        self._feed: _Feed | None = None

    def batches(self) -> Iterator[GlobalBatch]:
        """The places of this rank's samples in each global batch, without reading them."""
        start = self.samples_seen
        while self._stop_at is None or start < self._stop_at:
            stop = start + self._batch if self._stop_at is None else min(start + self._batch, self._stop_at)
            yield GlobalBatch(start, stop, batch(self.sequence, start, stop, self._rank, self._world))
            start = stop

    def __iter__(self) -> Iterator[Encoded]:
        assert self._feed is None, "a stream is iterated once: make another from its state"
        self._feed = _Feed(self.reader, self.batches(), self._config.ahead)
        for encoded in self._feed:
            self.samples_seen = encoded.stop
            yield encoded

    def substitutes(self, bad: Sample) -> Iterator[Sample]:
        """What may replace a sample that does not decode: the rest of its lane window, in order (docs/design.md, "Bad
        samples")."""
        for place in self.sequence.substitutes(bad.epoch, bad.lane, bad.item):
            yield self.reader.read_apart(place)[0]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain JSON: all that resuming needs, on any number of ranks."""
        return state_of(self.manifest, self.order, self.samples_seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; before iterating. Raises ValueError for another manifest or order."""
        assert self._feed is None, "a state is loaded before iterating"
        self.samples_seen = seen_in(state, self.manifest, self.order)

    def close(self) -> None:
        """Idempotent, and from any thread: iteration then ends. Batches handed out stay valid."""
        _close(self.reader, self._feed)


class Once:
    """Every sample once, in row order, with a short last batch. Iterate it once; `close` it, or exhaust it."""

    def __init__(self, reader: Reader, batches: Iterator[GlobalBatch], ahead: int) -> None:
        self._reader, self._batches, self._ahead = reader, batches, ahead
        self._feed: _Feed | None = None

    def __iter__(self) -> Iterator[Encoded]:
        self._feed = _Feed(self._reader, self._batches, self._ahead)
        try:
            yield from self._feed
        finally:
            self.close()

    def close(self) -> None:
        """Idempotent, and from any thread."""
        _close(self._reader, self._feed)


def once(
    manifest: Manifest,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    every: tuple[int, int] = (0, 1),
    config: ReadConfig | None = None,
    only: np.ndarray | None = None,
) -> Once:
    """Every sample once, in row order, with a short last batch: what all evaluation uses.

    `only`: these samples alone, as rising numbers in row order. `every` = (r, w): only each w-th batch, from the r-th
    on. Samples left out are not read.
    """
    config = config or ReadConfig()
    total = manifest.samples if only is None else len(only)

    def batches() -> Iterator[GlobalBatch]:
        for start in range(every[0] * batch_size, total, every[1] * batch_size):
            stop = min(start + batch_size, total)
            numbers = np.arange(start, stop, dtype=np.int64) if only is None else only[start:stop]
            zeros = np.zeros_like(numbers)
            place = Place(zeros, zeros, numbers, numbers).take(cut(stop - start, rank, world))
            yield GlobalBatch(start, stop, place)

    reader = open_reader((manifest,), config, _ONCE_CHUNK, window=4 * batch_size, batch=batch_size)
    return Once(reader, batches(), config.ahead)


def _close(reader: Reader, feed: _Feed | None) -> None:
    if feed is None or feed.stop():
        reader.close()  # else a read of a local disk hangs: its files stay open until it ends


class _Feed:
    """A thread that keeps `ahead` batches ready, and fetching as far ahead of them as memory reaches."""

    def __init__(self, reader: Reader, batches: Iterator[GlobalBatch], ahead: int) -> None:
        self._reader, self._batches = reader, batches
        self._ready: queue.Queue[Encoded | BaseException | None] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Encoded]:
        while (encoded := self._ready.get()) is not None:
            if isinstance(encoded, BaseException):
                raise encoded
            yield encoded

    def stop(self) -> bool:
        """End the thread, and any wait for a batch. False if the thread hangs; it is then abandoned."""
        self._stopped.set()
        self._reader.stop()
        until = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._ready.get(timeout=0.05)  # a thread that waits for room sees that it may go
            except queue.Empty:
                continue
        with contextlib.suppress(queue.Full):
            self._ready.put_nowait(None)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for encoded in self._encoded():
                self._ready.put(encoded)
                if self._stopped.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # raised to the consumer, at its place in the stream
            self._ready.put(None if self._stopped.is_set() else error)

    def _encoded(self) -> Iterator[Encoded]:
        coming: deque[GlobalBatch] = deque()
        for done in itertools.count():
            while len(coming) < (self._reader.horizon if done else self._reader.at_first):
                following = next(self._batches, None)
                if following is None:
                    self._reader.ended = True
                    break
                with _placed(following):
                    self._reader.announce(following.place)
                coming.append(following)
            if not coming:
                return
            now = coming.popleft()
            with _placed(now):
                encoded = self._reader.read(now.place, now.start, now.stop)
            yield encoded


@contextlib.contextmanager
def _placed(batch: GlobalBatch) -> Iterator[None]:
    """Add the place in the stream to errors."""
    try:
        yield
    except store.StoreError as error:
        raise type(error)(f"{error} (samples {batch.start} to {batch.stop} of the stream)") from None
