"""The map over units: Ray actors crawl; the driver assigns units and holds no state that a rerun would need.

Every worker is an actor with a crawl in a thread; the driver polls each in turns of at most a quarter of a second,
which return commits, counts and events. A dead worker is replaced and its units are assigned again: we do the retry,
not Ray. After two deaths at a unit its links are checked one by one in a child process, so that a link that kills a
worker is found, named and skipped.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from ingest.config import Config
from ingest.crawl import IN_FLIGHT, MOST_IN_FLIGHT, Assignment, Crawl, Underway
from ingest.http import Fetcher
from ingest.record import Event
from ingest.run import Work
from ingest.scratch import scratch_folder
from ingest.sealing import SEALING
from jobs.cluster.rate_limiter import Leases, RateLimiter
from jobs.cluster.wanted import TryLater, Workers, closed_by
from shards.dataset import Commit
from shards.pixels import leave_no_core

POLL = 0.25  # seconds that a turn lasts when nothing happens
CAREFUL_FROM = 2  # deaths at a unit
DEATHS = 6  # at a unit, before the run is given up
STILLBORN = 3  # workers in a row that died before their first answer
WORKER_BYTES = 500_000_000  # most memory that a worker was seen to use; its node must have it free
LOOK_SECONDS = 1.0  # between looks for nodes that are about to go
LAST_WORDS = 8.0  # seconds for workers to end when the run is stopped


@dataclass(frozen=True)
class News:
    """A worker's report in a turn. `wants`: number of units that it could begin now."""

    commits: tuple[Commit, ...]
    underway: Underway
    events: tuple[Event, ...]
    wants: int
    node: str = ""  # the worker's node
    returned: tuple[int, ...] = ()  # units that it had not begun
    ended: bool = False
    mistake: str | None = None  # for the user to correct
    bug: str | None = None  # a bug of ours: its traceback


# --- in the worker -------------------------------------------------------------------------------------------------


class Ingester:
    """The actor. The class has this name because processes of actors are listed by it."""

    def __init__(self, config: Config, largest: int, name: str, limiter: Any) -> None:
        import ray

        leave_no_core()
        self._node = ray.get_runtime_context().get_node_id()
        self._todo: deque[Assignment] = deque()
        self._commits: list[Commit] = []
        self._events: list[Event] = []
        self._underway = Underway(wants=IN_FLIGHT)
        self._ended = False
        self._mistake: str | None = None
        self._bug: str | None = None
        self._stop = threading.Event()
        self._news = threading.Condition()
        leases = Leases(limiter, name)
        threading.Thread(target=self._live, args=(config, largest, leases), name="crawl", daemon=True).start()

    def talk(self, units: Sequence[Assignment], stop: bool, leave: bool = False) -> News:
        """Accept units, and report what has happened since the last turn; waits up to POLL for something to report.

        `leave` returns units that were not begun.
        """
        self._todo.extend(units)
        returned: list[int] = []
        while leave and self._todo:
            with suppress(IndexError):  # the crawl has just taken the last one
                returned.append(self._todo.pop().unit)
        if stop:
            self._stop.set()
        with self._news:
            self._news.wait_for(lambda: self._commits or self._ended, POLL)
            commits, self._commits = self._commits, []
            events, self._events = self._events, []
            return News(
                tuple(commits),
                self._underway,
                tuple(events),
                wants=self._underway.wants - len(self._todo),
                node=self._node,
                returned=tuple(returned),
                ended=self._ended,
                mistake=self._mistake,
                bug=self._bug,
            )

    def _live(self, config: Config, largest: int, leases: Leases) -> None:
        try:
            self._crawl(config, largest, leases)
        except ValueError as error:
            self._mistake = str(error)
        except BaseException:
            self._bug = traceback.format_exc()
        finally:
            with self._news:
                self._ended = True
                self._news.notify()

    def _crawl(self, config: Config, largest: int, leases: Leases) -> None:
        with scratch_folder(config.scratch, config.out, config.scratch_bytes) as scratch:
            scratch.check(largest)
            with (
                closing(Fetcher(config.fetch, scratch.folder, leases, self._record)) as fetcher,
                closing(Crawl(config.out, config.filter, scratch, fetcher, self._record)) as crawl,
            ):
                for commit in crawl.run(self._tasks(), self._stop.is_set):
                    with self._news:  # both together, so that no unit counts as committed and as under way
                        self._underway = crawl.underway()
                        if commit is not None:
                            self._commits.append(commit)
                            self._news.notify()

    def _tasks(self) -> Iterator[Assignment | None]:
        while True:
            yield self._todo.popleft() if self._todo else None

    def _record(self, event: Event) -> None:
        with self._news:
            self._events.append(event)


# --- in the driver -------------------------------------------------------------------------------------------------


def crawl_on_actors(work: Work, workers: Workers | int) -> Iterator[Commit]:
    """Crawl the units with so many Ray actors, as far as there is room. Raises ValueError for an error that retries
    cannot fix, and TryLater when there was no room for any of them for too long."""
    driver = _Driver(work, Workers(workers, workers) if isinstance(workers, int) else workers)
    with closed_by(driver.close):
        while driver.left and not work.stop():
            yield from driver.turn()
        yield from driver.dismiss()


@dataclass
class _Seat:
    """The driver's view of a worker."""

    actor: Any
    name: str
    units: set[int] = field(default_factory=set)  # assigned and not committed
    underway: Underway = field(default_factory=Underway)
    wants: int = IN_FLIGHT
    spoke: bool = False  # has answered; until then it has no place, perhaps for ever
    node: str = ""
    leaving: bool = False  # its node is about to go


class _Driver:
    def __init__(self, work: Work, workers: Workers) -> None:
        import ray

        from jobs.cluster.capacity import Head

        self._ray, self._patience, self._head = ray, workers.patience, Head()
        self._placed_at = self._looked_at = time.monotonic()  # when a worker last had its place
        self._work = work
        self.left = set(work.units)  # not committed
        self._todo = deque(work.units)  # not assigned
        self._deaths: Counter[int] = Counter()
        self._stillborn = self._born = 0
        self._gone = Underway()  # counts of workers that have ended
        fetch = work.config.fetch
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        limiter = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(RateLimiter)
        self._limiter = limiter.remote(fetch.per_host, fetch.rate)
        self._seats: dict[Any, _Seat] = {}  # by the reference of the current turn
        self._hired: dict[str, Any] = {}  # actors by name, to be killed: a reference that is still held keeps their CPU
        for _ in range(workers.most):
            self._hire()

    def turn(self, stop: bool = False) -> Iterator[Commit]:
        """Receive the reports of workers that have one, and assign units."""
        self._look()
        ready, _ = self._ray.wait(list(self._seats), num_returns=1, timeout=2 * POLL)
        for reference in ready:
            seat = self._seats.pop(reference)
            try:
                news: News = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                self._lose(seat, error, replace=not stop)
                continue
            yield from self._hear(seat, news)
            if seat.leaving and not seat.units:
                self._part(seat)
                if not stop:
                    self._hire()
            elif not news.ended:
                self._talk(seat, stop)
        seats = list(self._seats.values())
        self._work.tally.underway([self._gone, *(seat.underway for seat in seats), Underway(note=self._waiting(seats))])

    def _waiting(self, seats: Sequence[_Seat]) -> str:
        placed = sum(seat.spoke for seat in seats)
        return "" if placed == len(seats) else f"{len(seats)} workers, {placed} placed: the others wait for room"

    def _look(self) -> None:
        """Once a second: give no new units to nodes that are about to go; give up if no worker ever gets a place."""
        from jobs.cluster import capacity

        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if not self._head.answers():
            return
        going = capacity.going()
        for seat in self._seats.values():
            if seat.node in going and not seat.leaving:
                seat.leaving = True
                self._work.record(Event(time.time(), "worker leaves", seat.name, "its node is about to go"))
        if any(seat.spoke for seat in self._seats.values()):
            self._placed_at = now
        elif now - self._placed_at > self._patience:
            room = capacity.look("CPU", len(self._seats))
            raise TryLater(
                f"no place for any of {len(self._seats)} workers after {now - self._placed_at:.0f} s "
                f"({room.waiting(str(len(self._seats)))}): the same command goes on"
            )

    def dismiss(self) -> Iterator[Commit]:
        """Stop all workers, and wait a little for their last reports."""
        deadline = time.monotonic() + LAST_WORDS
        while self._seats and time.monotonic() < deadline:
            yield from self.turn(stop=True)

    def close(self) -> None:
        for actor in [*self._hired.values(), self._limiter]:
            self._ray.kill(actor)

    def _hire(self) -> None:
        self._born += 1
        name = f"{socket.gethostname()}-{os.getpid()}-{self._born}"
        actor = self._ray.remote(
            num_cpus=1, memory=WORKER_BYTES, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )(Ingester)
        self._hired[name] = actor.remote(self._work.config, self._work.largest, name, self._limiter)
        self._talk(_Seat(self._hired[name], name))

    def _talk(self, seat: _Seat, stop: bool = False) -> None:
        units = []
        # A worker with slow hosts may begin more than its two units while there are enough for all.
        most = MOST_IN_FLIGHT if len(self._todo) > 2 * IN_FLIGHT * len(self._seats) else IN_FLIGHT
        ready = seat.spoke and not seat.leaving and not stop
        while self._todo and ready and len(units) < seat.wants and len(seat.units) < most + SEALING:
            unit = self._todo.popleft()
            units.append(Assignment(unit, careful=self._deaths[unit] >= CAREFUL_FROM))
            seat.units.add(unit)
        self._seats[seat.actor.talk.remote(units, stop, seat.leaving)] = seat

    def _hear(self, seat: _Seat, news: News) -> Iterator[Commit]:
        seat.underway, seat.wants, seat.spoke, seat.node = news.underway, news.wants, True, news.node
        for unit in news.returned:
            seat.units.discard(unit)
            self._todo.appendleft(unit)
        self._stillborn = 0
        for event in news.events:
            self._work.record(event)
        if news.mistake is not None:
            raise ValueError(news.mistake)
        if news.bug is not None:
            raise RuntimeError(f"worker {seat.name} failed:\n{news.bug}")
        for commit in news.commits:
            seat.units.discard(commit.unit)
            if commit.unit in self.left:
                self.left.remove(commit.unit)
                yield commit

    def _part(self, seat: _Seat) -> None:
        self._gone = Underway(fetched_bytes=self._gone.fetched_bytes + seat.underway.fetched_bytes)
        self._limiter.forget.remote(seat.name)
        self._ray.kill(self._hired.pop(seat.name))  # a lost worker may only have been unreachable

    def _lose(self, seat: _Seat, error: Exception, replace: bool) -> None:
        """A worker died: put its units first in the queue."""
        lost = seat.units & self.left
        self._deaths.update(lost)
        self._todo.extendleft(sorted(lost, reverse=True))
        self._part(seat)
        listed = ", ".join(map(str, sorted(lost))) or "none"
        self._work.record(
            Event(time.time(), "worker lost", seat.name, f"units {listed}: {' '.join(str(error).split())}"[:500])
        )
        self._stillborn += not seat.spoke
        if self._stillborn >= STILLBORN:
            raise ValueError(
                f"{STILLBORN} workers in a row died before they began: {' '.join(str(error).split())[:300]}"
            )
        for unit in lost:
            if self._deaths[unit] >= DEATHS:
                raise ValueError(
                    f"{self._work.config.out}: {DEATHS} workers died at unit {unit}: see its events, and give workers "
                    "more memory if they ran out of it"
                )
        if replace:
            self._hire()
