"""What happened during a run, for people to read afterwards: `events/<attempt>-<part>.jsonl` in the dataset's folder.

A bucket cannot append, so a log is a series of immutable parts, written every half minute and at the end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from ingest.record import Event
from shards import store
from shards.dataset import READERS

EVERY = 30.0  # seconds between parts
PENDING = 10_000  # events that wait for a store that does not answer; later ones are only counted


def attempt_name() -> str:
    """Of one run of one process: begins with the time, so that names sort by it, and is nobody else's."""
    host = socket.gethostname()[:20].replace("/", "_")  # pods share their names' beginnings, and are process 1 each
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{host}-{os.getpid()}-{secrets.token_hex(3)}"


class EventLog:
    """Takes events from any thread. An ingest never fails for its log: what cannot be written now is tried again."""

    def __init__(self, dataset: str, attempt: str | None = None, every: float = EVERY) -> None:
        self.attempt = attempt or attempt_name()
        self._base = store.join(dataset, "events", self.attempt)
        self._every = every
        self._part = 0
        self._pending: list[Event] = []
        self._last = 0.0  # time of the last event that was written
        self._lost = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, event: Event) -> None:
        with self._lock:
            if len(self._pending) >= PENDING:
                self._lost += 1
                return
            self._pending.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._flush_often, name="events", daemon=True)
                self._thread.start()

    def say(self, kind: str, about: str, detail: str = "") -> None:
        """An event of now."""
        self.tell(Event(time.time(), kind, about, detail))

    def flush(self) -> None:
        """Write what is pending as one part."""
        with self._writing:
            with self._lock:
                events, self._pending = self._pending, []
                if self._lost:
                    events.append(Event(time.time(), "lost", "events", f"{self._lost} more than could be held"))
                    self._lost = 0
            if not events:
                return
            # Workers have their own clocks, and their events come in bundles: a log must not run backwards.
            for at, event in enumerate(sorted(events, key=lambda event: event.at)):
                self._last = max(self._last, event.at)
                events[at] = dataclasses.replace(event, at=self._last)
            lines = "".join(json.dumps(dataclasses.asdict(event)) + "\n" for event in events)
            try:
                store.put(f"{self._base}-{self._part:06d}.jsonl", lines.encode())
                self._part += 1
            except store.StoreError:
                with self._lock:
                    self._pending = [*events, *self._pending][:PENDING]

    def close(self) -> None:
        self._closed.set()
        self.flush()

    def _flush_often(self) -> None:
        while not self._closed.wait(self._every):
            self.flush()


Tell = Callable[[Event], None]


def read_events(dataset: str) -> Iterator[Event]:
    """Every event of every run, run by run in the order in which they began."""
    names = store.names(store.join(dataset, "events"))  # thousands after some days
    with ThreadPoolExecutor(READERS, thread_name_prefix="events") as pool:
        for first in range(0, len(names), READERS):
            urls = [store.join(dataset, "events", name) for name in names[first : first + READERS]]
            for part in pool.map(store.read, urls):
                for line in part.decode().splitlines():
                    yield Event(**json.loads(line))
