"""One ingest: a URL list to a dataset version: links -> bytes -> verdicts -> tars -> commits -> selected samples.

A unit without a commit counts as not done: a rerun of the same command does exactly the missing units, whether the last
run was stopped, killed or finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest import plan, readme
from ingest.config import Config
from ingest.crawl import Assignment, Crawl, Underway
from ingest.events import EventLog
from ingest.http import Fetcher, HostLoad
from ingest.record import Event
from ingest.scratch import forget, scratch_folder, waiting
from ingest.select import select
from ingest.underway import Beats, here
from shards import manifest
from shards.dataset import Commit, committed_units, read_commits

TICK = 0.25  # seconds between progress reports


@dataclass(frozen=True)
class Progress:
    """Counts so far; links of earlier runs included, but not those that a retry has yet to fetch again."""

    links: int
    units: int
    done: int
    units_done: int
    kept: int
    reasons: dict[str, int]
    fetched_bytes: int  # of this run
    seconds: float = 0.0  # since this run began
    done_now: int = 0  # links that this run has finished
    hosts: tuple[HostLoad, ...] = ()  # those with links in progress
    note: str = ""  # a remark for people, such as that the network is down; one line


@dataclass(frozen=True)
class IngestResult:
    """links = kept + sum(reasons) and samples = kept - sum(deselected) when the ingest is complete."""

    dataset: str
    links: int
    kept: int
    reasons: dict[str, int]
    units: int
    units_done: int
    version: str | None  # the manifest's digest; None when stopped before the last unit
    seconds: float
    samples: int = 0  # of that version
    deselected: dict[str, int] = field(default_factory=dict)  # kept links that it leaves out, by reason
    not_chosen: int = 0  # lines of the list that its rules (classes, --where) left out; no links of the dataset
    not_chosen_by: dict[str, int] = field(default_factory=dict)  # the same by rule
    note: str = ""  # a remark for people; one line

    @property
    def stopped(self) -> bool:
        return self.version is None


@dataclass(frozen=True)
class Work:
    """The input of a `crawl`: the units to do, and where to report progress."""

    config: Config
    units: Sequence[int]
    largest: int  # links a unit, at most
    tally: Tally
    record: Callable[[Event], None]
    stop: Callable[[], bool]


def run(
    config: Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    crawl: Callable[[Work], Iterator[Commit]] | None = None,
) -> IngestResult:
    """Do the units that have no commit, then make a version. `stop` returning True ends it soon and cleanly: what open
    units have fetched waits on scratch, and a rerun goes on with it. `crawl` does the units; by default
    this process does.

    Raises ValueError for a list, a store or a setting that cannot work.
    """
    begun = time.monotonic()
    planned = plan.make(config)
    committed = set(committed_units(config.out))
    todo = [unit for unit in range(planned.units) if unit not in committed]
    largest = min(planned.info.unit, planned.links)
    with Beats(config.out) as beats:
        tally = Tally(planned.links, planned.units, lambda p: _report(p, beats, progress))
        tally.begin(config.out, sorted(committed), [unit for unit in todo if unit >= planned.info.units])
        if todo:
            with _log(config.out, todo) as log:
                for commit in (crawl or crawl_here)(Work(config, todo, largest, tally, log.record, stop)):
                    tally.commit(commit)
                log.record_now("finished" if tally.units_done == planned.units else "stopped", config.out)
        tally.underway(())
        made = _version(config, planned, tally) if tally.units_done == planned.units else None
        remark = ""
        if made:
            forget(config.scratch, config.out)
            remark = readme.write(made)
        tally.report(force=True)
    return IngestResult(
        dataset=config.out,
        links=planned.links,
        kept=made.kept if made else tally.kept,
        reasons=made.reasons if made else tally.by_name(),
        units=planned.units,
        units_done=tally.units_done,
        version=made.digest if made else None,
        seconds=time.monotonic() - begun,
        samples=made.samples if made else 0,
        deselected=dict(made.deselected) if made else {},
        not_chosen=planned.info.not_chosen,
        not_chosen_by=planned.info.left_out,
        note=planned.note or (_other_rules(config, made) if made else _kept(config)) or remark,
    )


def _report(p: Progress, beats: Beats, progress: Callable[[Progress], None] | None) -> None:
    """Show the progress to the caller and to `xtra status`."""
    beats.update(
        here(
            links=p.links,
            done=p.done,
            kept=p.kept,
            reasons=p.reasons,
            units=p.units,
            units_done=p.units_done,
            fetched_bytes=p.fetched_bytes,
            links_per_s=p.done_now / p.seconds if p.done_now > 0 and p.seconds > 0 else None,
            note=p.note,
        )
    )
    if progress is not None:
        progress(p)


def _kept(config: Config) -> str:
    """A remark on what the open units have fetched."""
    folder, size = waiting(config.scratch, config.out)
    return (
        f"{size / 1e6:,.1f} MB of open units are kept in {folder} for a week: the same command resumes them"
        if size
        else ""
    )


def _other_rules(config: Config, made: manifest.Manifest) -> str:
    """A remark if other rules are given than those of a version that was selected already."""
    if made.rules is None:
        return ""
    asked = json.loads(json.dumps(dataclasses.asdict(config.select)))
    if all(made.rules.how.get(name) == value for name, value in asked.items()):
        return ""
    return f"{made.address}: was selected by other rules and stays: xtra select {config.out} makes another version"


def _version(config: Config, planned: plan.Plan, tally: Tally) -> manifest.Manifest:
    """The selected version of all units. One that has been selected already stays as it is, whatever its rules."""
    made = manifest.make_version(config.out, "ingest" if planned.units == planned.info.units else "retry")
    if made.rules is None and made.kept:
        scratch = Path(config.scratch) if config.scratch else None
        made = select(
            made, config.select, scratch, lambda what, n, of: tally.remark(f"selecting: {n:,} of {of:,} {what}")
        )
    assert made.links == planned.links, f"{made.links} links in the version, {planned.links} in the plan"
    assert tally.kept + tally.reasons.total() == planned.links
    if len(made.shards) == planned.units:  # else it also has units of a retry that another driver has begun since
        assert made.kept == tally.kept, f"{made.kept} kept in the version, {tally.kept} in the commits"
    return made


@contextlib.contextmanager
def _log(dataset: str, todo: Sequence[int]) -> Iterator[EventLog]:
    log = EventLog(dataset)
    log.record_now("started", dataset, f"{len(todo)} units to do, on {socket.gethostname()}, process {os.getpid()}")
    try:
        yield log
    except BaseException as error:
        log.record_now("failed", dataset, f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        log.close()


class Tally:
    """Counts of committed units plus those of the units under way, and when to report them."""

    def __init__(self, links: int, units: int, progress: Callable[[Progress], None]) -> None:
        self.links, self.units, self.units_done = links, units, 0
        self.kept = self.fetched_bytes = 0
        self.reasons: Counter[str] = Counter()
        self._progress = progress
        self._begun = time.monotonic()
        self._next = 0.0
        self._done_before = 0
        self._under: Iterable[Underway] = ()
        self._note = ""
        self._shown: Progress | None = None  # what was last reported: a log must not run backwards

    def begin(self, dataset: str, committed: Sequence[int], again: Sequence[int]) -> None:
        """Add what earlier runs have done; links that a retry has yet to fetch again do not count as done."""
        for commit in read_commits(dataset, committed):
            self._add(commit)
        self.reasons.subtract(plan.asked_again(dataset, again))
        self._again = set(again)
        self._done_before = self.kept + self.reasons.total()
        self.report(force=True)

    def commit(self, commit: Commit) -> None:
        self._add(commit)
        if commit.unit in self._again:
            self.reasons.update(commit.supersedes)  # which `begin` has subtracted already

    def _add(self, commit: Commit) -> None:
        self.units_done += 1
        self.kept += commit.kept
        self.reasons.update(commit.reasons)
        self.reasons.subtract(commit.supersedes)

    def by_name(self) -> dict[str, int]:
        return {reason: n for reason, n in sorted(self.reasons.items()) if n}

    def underway(self, workers: Iterable[Underway]) -> None:
        """The workers' work in progress; reported if it is time."""
        self._under = tuple(workers)
        self.fetched_bytes = max(self.fetched_bytes, sum(worker.fetched_bytes for worker in self._under))
        self.report()

    def remark(self, note: str) -> None:
        """A remark on the work after the last unit."""
        self._note = note
        self.report()

    def report(self, force: bool = False) -> None:
        if time.monotonic() < self._next and not force:
            return
        self._next = time.monotonic() + TICK
        reasons = Counter(self.by_name())
        for worker in self._under:
            reasons.update(worker.reasons)
        kept = self.kept + sum(worker.kept for worker in self._under)
        done, again = kept + reasons.total(), ""
        if self._shown is not None and done < self._shown.done:  # a worker died with open units
            again = f"{self._shown.done - done:,} links are being done again"
            done, kept, reasons = self._shown.done, self._shown.kept, Counter(self._shown.reasons)
        self._shown = Progress(
            links=self.links,
            units=self.units,
            done=done,
            units_done=self.units_done,
            kept=kept,
            reasons=dict(sorted(reasons.items())),
            fetched_bytes=self.fetched_bytes,
            seconds=time.monotonic() - self._begun,
            done_now=done - self._done_before,
            hosts=_together(self._under),
            note=self._note or next((worker.note for worker in self._under if worker.note), again),
        )
        self._progress(self._shown)


def _together(workers: Iterable[Underway]) -> tuple[HostLoad, ...]:
    """The loads of each host, over all workers."""
    loads: dict[str, HostLoad] = {}
    for load in (load for worker in workers for load in worker.hosts):
        seen = loads.get(load.name)
        loads[load.name] = load if seen is None else _sum(seen, load)
    return tuple(loads.values())


def _sum(a: HostLoad, b: HostLoad) -> HostLoad:
    return HostLoad(
        name=a.name,
        active=a.active + b.active,
        waiting=a.waiting + b.waiting,
        done=a.done + b.done,
        failed=a.failed + b.failed,
        bytes=a.bytes + b.bytes,
        seconds=a.seconds + b.seconds,
        paused_until=max(a.paused_until, b.paused_until),
    )


def crawl_here(work: Work) -> Iterator[Commit]:
    """The units in this process."""
    config = work.config
    with scratch_folder(config.scratch, config.out, config.scratch_bytes) as scratch:
        scratch.check(work.largest)
        with (
            contextlib.closing(Fetcher(config.fetch, scratch.folder, record=work.record)) as fetcher,
            contextlib.closing(Crawl(config.out, config.filter, scratch, fetcher, work.record)) as crawl,
        ):
            for commit in crawl.run(map(Assignment, work.units), work.stop):
                if commit is not None:
                    yield commit
                work.tally.underway([crawl.underway()])
