"""How far an ingest is inside its units, left in the dataset's folder for `xtra status`.

`underway.json` is a hint that is overwritten: nothing is decided by it, and a dataset is whole without it. A thread
writes it, so a slow store does not slow an ingest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.status_words import ago, share, span
from shards import store

if TYPE_CHECKING:
    from ingest.run import Progress

R = TypeVar("R")
NAME = "underway.json"
LIVE_SECONDS = 180.0  # after which an ingest that says nothing more is none
EVERY_SECONDS = 10.0


class Underway:
    """Call it with an ingest's progress."""

    def __init__(self, dataset: str, workers: int) -> None:
        self._url, self._workers = store.join(dataset, NAME), workers
        self._newest: Progress | None = None
        self._over = threading.Event()
        self._before = 0.0  # seconds of workers in earlier runs
        self._thread = threading.Thread(target=self._live, name="underway", daemon=True)

    def __call__(self, progress: Progress) -> None:
        self._newest = progress

    def _live(self) -> None:
        with contextlib.suppress(store.StoreError, ValueError, TypeError, AttributeError):
            self._before = float((read(self._url.rpartition("/")[0]) or {}).get("worker_seconds") or 0.0)
        while not self._over.wait(EVERY_SECONDS):
            self._write(False)

    def _write(self, over: bool) -> None:
        progress = self._newest
        if progress is None:
            return
        found = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "over": over,
            "workers": self._workers,
            "links": progress.links,
            "done": progress.done,
            "kept": progress.kept,
            "units": progress.units,
            "units_done": progress.units_done,
            "reasons": progress.reasons,
            "fetched_bytes": progress.fetched_bytes,
            "seconds": round(progress.seconds, 1),
            "links_per_s": progress.done_now / progress.seconds if progress.seconds else 0.0,
            "worker_seconds": round(self._before + progress.seconds * self._workers, 1),
            "note": progress.note,
        }
        with contextlib.suppress(store.StoreError):  # the next one may come through
            store.put_json(self._url, found)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(2 * EVERY_SECONDS)
        self._write(True)


def noting(run: Callable[..., R], workers: int) -> Callable[..., R]:
    """The same run(config, progress, stop), which also leaves word in the dataset's folder."""

    def noted(config: Any, progress: Callable[[Progress], None], stop: Callable[[], bool]) -> R:
        if not config.out:  # the run says so
            return run(config, progress, stop)
        note = Underway(config.out, workers)

        def both(now: Progress) -> None:
            progress(now)
            note(now)

        note.start()
        try:
            return run(config, both, stop)
        finally:
            note.close()

    return noted


def read(dataset: str) -> dict[str, Any] | None:
    """What the newest ingest said; None where none did."""
    try:
        found = store.read_json(store.join(dataset, NAME))
    except (store.Missing, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lines(found: Mapping[str, Any], now: datetime, price: float | None) -> list[str]:
    """Of an ingest that goes on: where it is; of every one: what it has used."""
    said = []
    silent = (now - datetime.fromisoformat(str(found["at"]))).total_seconds()
    if not found.get("over") and silent < LIVE_SECONDS:
        done, links, rate = int(found["done"]), int(found["links"]), float(found["links_per_s"])
        left = f", {span((links - done) / rate)} left" if rate and links > done else ""
        said.append(f"now      {done:,} of {links:,} links ({share(done, links)}), {rate:,.0f} links/s{left}")
        said.append(f"         by {found['workers']} workers, {ago(str(found['at']), now)}")
    hours = float(found["worker_seconds"]) / 3600
    cost = f", {hours * price:,.2f} at {price:g} an hour" if price is not None else ""
    return [*said, f"used     {hours:,.2f} worker-hours{cost}"]
