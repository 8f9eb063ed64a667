"""The log of a run, for people to read: `events/<attempt>-<segment>.jsonl` in the dataset's folder.

Buckets cannot append, so a log is a series of immutable segments, written every half minute and at the end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from ingest.record import Event
from shards import store, typed_json
from shards.parallel import READERS, map_in_order

EVERY = 30.0  # seconds between segments
PENDING = 10_000  # events that are held while the store does not answer; later ones are only counted


def attempt_name() -> str:
    """A unique name for one run of one process, which sorts by time."""
    host = socket.gethostname()[:20].replace("/", "_")  # not unique: pods share prefixes, and each is process 1
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{host}-{os.getpid()}-{secrets.token_hex(3)}"


class EventLog:
    """Takes events from any thread. An ingest never fails because of its log: failed writes are tried again."""

    def __init__(self, dataset: str, attempt: str | None = None, every: float = EVERY) -> None:
        self.attempt = attempt or attempt_name()
        self._base = store.join(dataset, "events", self.attempt)
        self._every = every
        self._segment = 0
        self._pending: list[Event] = []
        self._last = 0.0  # time of the last written event
        self._lost = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, event: Event) -> None:
        with self._lock:
            if len(self._pending) >= PENDING:
                self._lost += 1
                return
            self._pending.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._flush_often, name="events", daemon=True)
                self._thread.start()

    def record_now(self, kind: str, about: str, detail: str = "") -> None:
        """Record an event with the current time."""
        self.record(Event(time.time(), kind, about, detail))

    def flush(self) -> None:
        """Write the pending events as one segment."""
        with self._writing:
            with self._lock:
                events, self._pending = self._pending, []
                if self._lost:
                    events.append(Event(time.time(), "lost", "events", f"{self._lost} more than could be held"))
                    self._lost = 0
            if not events:
                return
            # Workers have their own clocks and send events in batches; times in the log must not go backwards.
            for at, event in enumerate(sorted(events, key=lambda event: event.at)):
                self._last = max(self._last, event.at)
                events[at] = dataclasses.replace(event, at=self._last)
            lines = "".join(json.dumps(dataclasses.asdict(event)) + "\n" for event in events)
            try:
                store.put(f"{self._base}-{self._segment:06d}.jsonl", lines.encode())
                self._segment += 1
            except store.StoreError:
                with self._lock:
                    self._pending = [*events, *self._pending][:PENDING]

    def close(self) -> None:
        self._closed.set()
        self.flush()

    def _flush_often(self) -> None:
        while not self._closed.wait(self._every):
            self.flush()


def segments(dataset: str) -> list[str]:
    """The names of all log segments, run by run in order of their beginning. Other files are ignored."""
    return [name for name in store.names(store.join(dataset, "events")) if _SEGMENT.fullmatch(name)]


_SEGMENT = re.compile(r"[^._].*-\d{6}\.jsonl")


def read_events(dataset: str) -> Iterator[Event]:
    """Every event of every run, run by run in order of their beginning. Damage is returned as an event of the kind
    "damaged", so that reading a log never fails."""
    names = segments(dataset)  # thousands after some days
    for found in map_in_order(lambda name: read_segment(dataset, name), names, ahead=READERS):
        yield from found


def read_segment(dataset: str, name: str) -> list[Event]:
    """The events of one segment, and one event of the kind "damaged" for all that cannot be read in it."""
    url, found, bad = store.join(dataset, "events", name), list[Event](), list[str]()
    try:
        body = store.read(url)
    except store.StoreError as error:
        return [Event(0.0, "damaged", f"events/{name}", str(error))]
    for number, line in enumerate(body.splitlines(), 1):
        try:
            found.append(typed_json.decode(Event, line, f"line {number}"))
        except store.StoreError as error:
            bad.append(str(error))
    if bad:
        more = f" (and {len(bad) - 1} more lines)" if len(bad) > 1 else ""
        found.append(Event(found[-1].at if found else 0.0, "damaged", f"events/{name}", f"{bad[0]}{more}"))
    return found
