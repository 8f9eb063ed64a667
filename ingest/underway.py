"""The progress of a running ingest, in its dataset's folder: `underway/ATTEMPT.json`, from its beginning to its end.

Commits come once a unit, perhaps an hour apart. This file is rewritten every few seconds, so that `xtra status` sees
progress inside a unit from anywhere. Nothing depends on it: a rerun does not read it, and removes what a killed run
left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from ingest.events import attempt_name
from shards import store

FOLDER = "underway"
EVERY = 2.0  # seconds between writes to a folder
EVERY_REMOTE = 15.0  # to a bucket, where each is paid for
STALE = 600.0  # seconds without an update after which a run counts as dead


@dataclass(frozen=True)
class Beat:
    """The last progress of a running ingest; counts are over the whole dataset, including links of earlier runs."""

    at: float  # seconds since 1970
    host: str
    process: int
    links: int = 0
    done: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    units: int = 0
    units_done: int = 0
    fetched_bytes: int = 0  # of this run
    links_per_s: float | None = None  # of this run so far
    note: str = ""


class Beats:
    """Writes the newest beat from its own thread; a context manager that removes the file at the end. An ingest never
    fails because of it: a failed write is followed by the next."""

    def __init__(self, dataset: str) -> None:
        self._folder = store.join(dataset, FOLDER)
        self._url = store.join(self._folder, attempt_name() + ".json")
        self._every = EVERY if store.is_local(dataset) else EVERY_REMOTE
        self._newest: Beat | None = None
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="underway", daemon=True)

    def update(self, beat: Beat) -> None:
        self._newest = beat
        self._changed.set()

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._changed.set()
        self._thread.join(self._every)
        with contextlib.suppress(store.StoreError):
            store.delete(self._url)
        if store.is_local(self._folder):
            with contextlib.suppress(OSError):
                store.local_path(self._folder).rmdir()

    def _run(self) -> None:
        with contextlib.suppress(store.StoreError):
            _remove_stale(self._folder)
        while not self._ended.is_set():
            self._changed.wait()
            self._changed.clear()
            if self._newest is not None and not self._ended.is_set():
                with contextlib.suppress(store.StoreError):
                    store.put_json(self._url, dataclasses.asdict(self._newest))
                self._ended.wait(self._every)


def here(**counts: object) -> Beat:
    """A beat of this process with the current time."""
    return Beat(time.time(), socket.gethostname(), os.getpid(), **counts)  # type: ignore[arg-type]


def read_beats(dataset: str) -> list[Beat]:
    """The last beats of running and of dead ingests, newest first."""
    folder, found = store.join(dataset, FOLDER), []
    known = {field.name for field in dataclasses.fields(Beat)}
    for name in store.names(folder):
        if name.endswith(".json"):
            with contextlib.suppress(store.Missing, ValueError, TypeError):
                values = store.read_json(store.join(folder, name))
                found.append(Beat(**{key: value for key, value in values.items() if key in known}))
    return sorted(found, key=lambda beat: -beat.at)


def _remove_stale(folder: str) -> None:
    left = store.entries(folder)
    before = store.clock(folder) - STALE if left else 0.0
    for entry in left:
        if entry.modified < before:
            store.delete(store.join(folder, entry.name))
