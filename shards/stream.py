"""Manifest + cursor -> encoded samples, in the order that `order.py` defines, for any rank of any world size.

The stream keeps no state that matters: position `samples_seen` of a manifest and an order says everything, so resuming
is starting there, on any number of ranks. One thread plans, waits and copies ahead of the consumer; what is fetched,
and where it waits, is `reader.py`'s business.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import store
from shards.encoded import Encoded, Sample
from shards.manifest import Manifest
from shards.mixture import MixedSequence, Mixture
from shards.order import Order, Place, Positions, Sequence, batch, cut
from shards.reader import ReadConfig, Reader

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
        self.reader = Reader(
            manifests,
            self._config,
            order.chunk,
            window=min(share, lanes) * run,
            passed=lanes * order.window * order.chunk,
            batch=-(-batch_size // world),
        )
        self._feed: _Feed | None = None

    def batches(self) -> Iterator[GlobalBatch]:
        """Where this rank's samples of each global batch lie, without reading them."""
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
        """Stand-ins for a sample that does not decode: the rest of its lane window, in order (design section 3)."""
        for place in self.sequence.substitutes(bad.epoch, bad.lane, bad.item):
            yield self.reader.read_apart(place)[0]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain JSON: all that resuming needs, on any number of ranks."""
        order = dataclasses.asdict(self.order)
        return {"manifest": self.manifest.digest, "order": order, "samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; before iterating. Raises ValueError for another manifest or order."""
        ours = self.state_dict()
        for name in ("manifest", "order"):
            if state[name] != ours[name]:
                raise ValueError(f"the state is of {name} {state[name]}, this stream is of {ours[name]}: open that one")
        assert self._feed is None, "a state is loaded before iterating"
        self.samples_seen = int(state["samples_seen"])

    def close(self) -> None:
        """Idempotent. Batches that were handed out stay valid."""
        if self._feed is not None:
            self._feed.stop()
        self.reader.close()


def once(
    manifest: Manifest,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    every: tuple[int, int] = (0, 1),
    config: ReadConfig | None = None,
) -> Iterator[Encoded]:
    """Every sample once, in row order, with a short last batch: what all evaluation uses.

    `every` = (r, w): only each w-th batch, from the r-th on; the others are not read.
    """
    config = config or ReadConfig()

    def batches() -> Iterator[GlobalBatch]:
        for start in range(every[0] * batch_size, manifest.samples, every[1] * batch_size):
            stop = min(start + batch_size, manifest.samples)
            numbers = np.arange(start, stop, dtype=np.int64)
            zeros = np.zeros_like(numbers)
            place = Place(zeros, zeros, numbers, numbers).take(cut(stop - start, rank, world))
            yield GlobalBatch(start, stop, place)

    reader = Reader((manifest,), config, _ONCE_CHUNK, window=4 * batch_size, passed=2 * batch_size, batch=batch_size)
    feed = _Feed(reader, batches(), config.ahead)
    try:
        yield from feed
    finally:
        feed.stop()
        reader.close()


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

    def stop(self) -> None:
        """Ends the thread; one that waits for a store which does not answer is left to itself."""
        self._stopped.set()
        until = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._ready.get(timeout=0.05)  # a thread that waits for room sees that it may go
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            for encoded in self._encoded():
                self._ready.put(encoded)
                if self._stopped.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # it is the consumer's, who is told at the place in the stream where it belongs
            self._ready.put(error)

    def _encoded(self) -> Iterator[Encoded]:
        coming: deque[GlobalBatch] = deque()
        following, planned = next(self._batches, None), 0
        while coming or following:
            # One more batch is always planned; then as many as fetching can be kept busy with and memory has room for.
            while following is not None and not (coming and self._reader.busy(len(coming))):
                planned = self._reader.plan(following.place, planned, hard=not coming)
                if planned < len(following.place):
                    break
                coming.append(following)
                following, planned = next(self._batches, None), 0
            now = coming.popleft()
            try:
                yield self._reader.read(now.place, now.start, now.stop)
            except store.StoreError as error:
                raise type(error)(f"{error} (samples {now.start} to {now.stop} of the stream)") from None
