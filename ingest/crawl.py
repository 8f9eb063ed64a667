"""The one loop of a worker: units -> links -> bytes -> verdicts -> units sealed and committed.

The links of two units are in flight at a time, so that the last slow links of one do not idle the fetcher; a full unit
is sealed and uploaded while fetching goes on. A unit without a commit never happened; what was fetched for it stays on
scratch for the next run (ingest/journal.py).
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ingest import journal
from ingest.filter import FilterConfig
from ingest.http import Fetcher, HostLoad
from ingest.judging import Judging
from ingest.lists import links_of
from ingest.open_unit import OpenUnit, with_all
from ingest.plan import asked_before
from ingest.record import Event, Fetched, Link, Verdict
from ingest.scratch import BYTES_A_LINK, COPIES, JUDGING, TAKEN, Scratch, holding_a_unit
from ingest.sealing import Sealing
from ingest.unit import UnitWriter
from shards import store
from shards.dataset import Commit, DatasetInfo, read_columns, read_commit, read_info, read_plan, unit_name
from shards.pixels import InFlight

IN_FLIGHT = 2  # units whose links are being fetched
MOST_IN_FLIGHT = 12  # the same while all links left in them wait for slow hosts; a unit's index takes about 10 MB
IDLE_SECONDS = 2.0  # before one more unit is begun
TICK = 0.25  # seconds
JOURNAL_SECONDS = 1.0  # between flushes of the journal: what a kill costs at most
LAST_WORDS = 5.0  # seconds that a seal may still take when the run is stopped
ROOM_SECONDS = 30.0  # to wait for other users of the disk to make room
SHOWN_HOSTS = 64


@dataclass(frozen=True)
class Assignment:
    """A unit to do. If workers have died repeatedly at it, it is judged link by link in a child process."""

    unit: int
    careful: bool = False


@dataclass(frozen=True)
class Underway:
    """A worker's work in progress: counts over the units that it has not committed; bytes over its whole life."""

    kept: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    fetched_bytes: int = 0
    hosts: tuple[HostLoad, ...] = ()
    note: str = ""  # why nothing new is fetched, if so
    wants: int = 0  # units that it could begin now


class Crawl:
    """A worker's state. `run` is the loop; `underway` may be called between its steps."""

    def __init__(
        self,
        dataset: str,
        rules: FilterConfig,
        scratch: Scratch,
        fetcher: Fetcher,
        record: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._dataset, self._rules, self._scratch, self._fetcher, self._log = dataset, rules, scratch, fetcher, record
        self._judging = Judging(rules, scratch, record)
        self._drawing = InFlight(scratch.folder / f"{JUDGING}-thumbs")  # by the threads that seal
        self._open: dict[int, OpenUnit] = {}
        self._sealing = Sealing()
        self._commits: list[Commit] = []  # to be yielded
        self._by_row: dict[int, OpenUnit] = {}
        self._crowded_since: float | None = None  # no room on scratch for more links
        self._idle_since: float | None = None  # links wait, and yet transfers could start
        self._may_be_open = IN_FLIGHT
        self._next_flush = 0.0
        self._fetched_bytes = self._seen_bytes = self._seen_links = 0

    def run(self, tasks: Iterable[Assignment | None], stop: Callable[[], bool]) -> Iterator[Commit | None]:
        """The commits of the units, as they are made; a None about every TICK. A None task means that none is
        available yet. Ends when the tasks do, or soon after `stop` returns True; open units then count as not done.

        Raises ValueError for a store or a scratch folder that fails.
        """
        next_look = 0.0
        with holding_a_unit(self._scratch.folder):
            for fetched in self._fetcher.run(self._links(iter(tasks)), stop):
                if fetched is not None:
                    self._take(fetched)
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + TICK
                    self._look()
                    yield None
                while self._commits:
                    yield self._commits.pop(0)
            stopped = now = time.monotonic()
            while self._sealing.units or self._judging.left:
                if stop():
                    self._sealing.full.clear()
                    if time.monotonic() > stopped + LAST_WORDS:
                        return
                else:
                    stopped = time.monotonic()
                self._look(TICK)
                yield None
                while self._commits:
                    yield self._commits.pop(0)

    def underway(self) -> Underway:
        units = [*self._open.values(), *self._sealing.units]
        reasons: Counter[str] = Counter()
        for unit in units:
            reasons.update({str(reason): n for reason, n in list(unit.writer.reasons.items())})
        hosts = sorted(self._fetcher.hosts(), key=lambda host: -(host.active + host.waiting + bool(host.paused_until)))
        return Underway(
            kept=sum(unit.writer.kept for unit in units),
            reasons=dict(reasons),
            fetched_bytes=self._fetched_bytes,
            hosts=tuple(hosts[:SHOWN_HOSTS]),
            note=self._fetcher.paused(),
            wants=max(0, self._may_be_open - len(self._open)) if self._sealing.room else 0,
        )

    @functools.cached_property
    def _info(self) -> DatasetInfo:
        return read_info(self._dataset)

    def close(self) -> None:
        """Ends the worker; what its open units have fetched is kept for the next run."""
        for unit in [*self._open.values(), *self._sealing.full]:
            self._put_by(unit)
        for path in self._scratch.folder.glob(f"{TAKEN}*"):  # not all of it was taken up
            self._scratch.keep(path)
        self._judging.close()
        if not self._sealing.sealing:  # else a thread that was left behind still writes there
            self._drawing.close()

    # --- links ---

    def _links(self, tasks: Iterator[Assignment | None]) -> Iterator[Link | None]:
        """The links of one unit after the other; None while no unit may be begun."""
        while True:
            while not self._room():
                yield None
            try:
                task = next(tasks)
            except StopIteration:
                return
            if task is None:
                yield None
                continue
            unit = self._begin(task)
            if unit is None:
                continue
            yield from self._take_up(unit)
            for same in unit.links:
                if same[0].row not in self._by_row:
                    continue  # answered in an earlier run
                while self._crowded_since is not None:
                    yield None
                yield same[0]

    def _room(self) -> bool:
        """Whether another unit may be begun."""
        if len(self._open) >= self._may_be_open or not self._sealing.room:
            return False
        units = [*self._open.values(), *self._sealing.units]
        if not units:
            return True  # at least one must be open
        mean = self._seen_bytes / self._seen_links if self._seen_links > 1000 else BYTES_A_LINK
        last = max(unit.writer.done for unit in units)
        return self._scratch.room() >= COPIES * mean * last

    def _begin(self, task: Assignment) -> OpenUnit | None:
        """Open a unit; None when it has nothing to fetch."""
        name = unit_name(task.unit)
        if store.exists(store.join(self._dataset, "commits", name + ".json")):  # by another run, since we looked
            self._commits.append(read_commit(self._dataset, task.unit))
            return None
        plan = read_plan(self._dataset, task.unit)
        columns = read_columns(self._dataset, task.unit) if self._info.columns else None
        entries = with_all(list(links_of(plan, columns, self._info.hash_column)))
        folder = self._scratch.folder / f"unit-{name}"
        folder.mkdir()
        writer = UnitWriter(
            self._dataset,
            task.unit,
            entries,
            folder,
            supersedes=asked_before(plan),
            judging=self._drawing.decoding,
            max_pixels=self._rules.max_pixels,
            others=len(self._open),
            format_=self._info.format,
        )
        links = [entry for entry in entries if isinstance(entry, Link)]
        binding = journal.binding(self._dataset, task.unit, entries, self._fetcher.config)
        unit = OpenUnit(task.unit, task.careful, links, writer, folder, binding)
        if not unit.links:
            self._sealing.add(unit)
            return None
        self._open[task.unit] = unit
        self._by_row.update((same[0].row, unit) for same in unit.links)
        return unit

    # --- what an earlier run had fetched ---

    def _take_up(self, unit: OpenUnit) -> Iterator[None]:
        """Judge the answers of earlier runs for a unit; a None now and then, so that the fetcher gets its turn."""
        links, until = {same[0].row: same[0] for same in unit.links}, time.monotonic() + TICK
        for left in self._scratch.take(f"unit-{unit_name(unit.number)}"):
            for fetched in journal.replay(left, unit.binding, links, self._planned_at()):
                if self._by_row.get(fetched.link.row) is unit:
                    unit.had.add(fetched.link.row)
                    self._take(fetched)
                if time.monotonic() > until:
                    yield None
                    until = time.monotonic() + TICK
            shutil.rmtree(left, ignore_errors=True)
        if unit.had:
            self._log(Event(time.time(), "taken up", str(unit.number), f"{len(unit.had)} links of an earlier run"))

    def _planned_at(self) -> float:
        """When the dataset was begun, by this machine's clock; 0 if the dataset is not on this machine."""
        info = store.join(self._dataset, "dataset.json")
        return store.local_path(info).stat().st_mtime if store.is_local(info) else 0.0

    def _put_by(self, unit: OpenUnit) -> None:
        with contextlib.suppress(OSError):  # a full disk: what was written may still be of use
            unit.writer.spill()
            unit.journal.flush(unit.writer.place)
        unit.close()
        self._scratch.keep(unit.folder)

    # --- verdicts ---

    def _take(self, fetched: Fetched) -> None:
        unit = self._by_row.pop(fetched.link.row)
        judged = self._judging.judge(unit, fetched)
        if judged is not None:
            self._add(unit, fetched, *judged)

    def _add(self, unit: OpenUnit, fetched: Fetched, verdict: Verdict, show: bool) -> None:
        row = fetched.link.row
        unit.writer.add(verdict, show)
        for link in unit.same.pop(row, ()):
            same = replace(verdict.fetched, link=link, attempts=0)  # it was not fetched again
            unit.writer.add(replace(verdict, fetched=same), show)
        unit.journal.note(fetched, verdict)
        if verdict.fetched_bytes:
            self._fetched_bytes += 0 if row in unit.had else verdict.fetched_bytes
            self._seen_bytes += verdict.fetched_bytes
        self._seen_links += 1
        if unit.writer.done == len(unit.writer.links):
            del self._open[unit.number]
            self._sealing.add(unit)

    def _look(self, wait: float = 0.0) -> None:
        """Collect the results of the threads, write the journals, and check how full scratch is."""
        if (sealed := self._sealing.done(wait)) is not None:
            unit, result = sealed
            unit.close()
            shutil.rmtree(unit.folder, ignore_errors=True)
            if isinstance(result, BaseException):
                raise result
            self._commits.append(result)
            self._log(Event(time.time(), "unit", str(unit.number), f"{result.kept} kept of {result.links}"))
        for unit, fetched, verdict in self._judging.done():
            self._add(unit, fetched, verdict, show=False)
        self._sealing.start()
        for unit in self._open.values():
            unit.writer.flush()
        self._measure()
        self._notice_idleness()
        if (now := time.monotonic()) >= self._next_flush:
            self._next_flush = now + JOURNAL_SECONDS
            for unit in self._open.values():
                unit.journal.flush(unit.writer.place)

    def _notice_idleness(self) -> None:
        """Slow and paused hosts must not delay the others: while transfers could start although links wait, more and
        more units are begun."""
        active, waiting = self._fetcher.active, self._fetcher.waiting
        now = time.monotonic()
        if not waiting or 2 * active > self._fetcher.config.connections:
            self._idle_since, self._may_be_open = None, IN_FLIGHT
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > IDLE_SECONDS:
            self._idle_since = now
            self._may_be_open = min(MOST_IN_FLIGHT, max(self._may_be_open, len(self._open)) + 1)

    def _measure(self) -> None:
        """Check how full scratch is. Raises ValueError when it is full and no work of ours will free any."""
        if self._scratch.room() > 0:
            self._crowded_since = None
            return
        now = time.monotonic()
        self._crowded_since = self._crowded_since or now
        if len(self._open) == 1 and not self._sealing.units and now - self._crowded_since > ROOM_SECONDS:
            raise ValueError(
                f"{self._scratch.folder.parent}: is full with one unit alone: free space, set --scratch to another "
                "disk or allow more with --scratch-bytes, or start a dataset with a smaller --unit"
            )
