"""What happened during a run, for people to read afterwards: `events/<attempt>-<part>.jsonl` in the dataset's folder.

A bucket cannot append, so a log is a series of immutable parts, written every half minute and at the end.
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
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from ingest.record import Event
from shards import store, typed_json
from shards.parallel import READERS, in_order

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


def parts(dataset: str) -> list[str]:
    """Names of the parts of all runs, run by run in the order in which they began. Other files do not matter."""
    return [name for name in store.names(store.join(dataset, "events")) if _PART.fullmatch(name)]


_PART = re.compile(r"[^._].*-\d{6}\.jsonl")


def read_events(dataset: str) -> Iterator[Event]:
    """Every event of every run, run by run in the order in which they began. What is damaged is an event too, of the
    kind "damaged": nobody who reads a log may fail for it."""
    names = parts(dataset)  # thousands after some days
    for found in in_order(lambda name: part_of(dataset, name), names, ahead=READERS):
        yield from found


def part_of(dataset: str, name: str) -> list[Event]:
    """The events of one part; one of the kind "damaged" for all that cannot be read in it."""
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
