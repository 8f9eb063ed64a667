"""One ingest: a URL list to a dataset version: links -> bytes -> verdicts -> tars -> commits -> selected samples.

A unit without a commit never happened: a rerun of the same words does exactly the units that are missing, whether the
last run was stopped, killed or finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest import plan
from ingest.crawl import Assignment, Crawl, Underway
from ingest.events import EventLog
from ingest.fetch import FetchConfig, Fetcher
from ingest.filter import FilterConfig
from ingest.hosts import HostLoad
from ingest.lists import list_name
from ingest.record import Event
from ingest.scratch import scratch_folder
from ingest.select import SelectConfig, select
from ingest.wordnet import ClassConfig
from shards import manifest

TICK = 0.25  # seconds between progress reports


@dataclass(frozen=True)
class Config:
    """What to ingest, and how."""

    urls: str = ""  # the list: a file, a folder or a pattern such as s3://b/part-*.csv.gz; a retry needs none
    out: str = ""  # the dataset's folder
    unit: int = 10_240  # links a tar
    format: str = "auto"  # of the list: auto (by its name), text, csv, tsv, jsonl, parquet; .gz and .zst are unpacked
    url_column: str | None = None  # of a table: its name, or number from 0; guessed if None
    id_column: str | None = None  # whose values become the samples' keys
    label_column: str | None = None  # whose values become the samples' classes
    classes: ClassConfig = field(default_factory=ClassConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    scratch: str | None = None  # a local folder for the bodies of a few units at a time; the system's own if None
    scratch_bytes: int | None = None  # of it, that a worker may fill; what is free, less a reserve, if None
    retry: bool = False  # ask again for the links that failed in a way that may pass, as units of their own
    dry_run: int = 0  # write nothing: fetch and judge this many links and say what all of them would give

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise ValueError(f"unit is {self.unit}: it must be at least 1 link")
        if self.scratch_bytes is not None and self.scratch_bytes < 1:
            raise ValueError(f"scratch_bytes is {self.scratch_bytes}: it must be at least 1 byte")
        if self.dry_run < 0:
            raise ValueError(f"dry_run is {self.dry_run}: it must be a number of links, or 0 for a real run")

    @property
    def digest(self) -> str:
        """Of the fields that decide what a unit holds; the others may change between reruns. The first half is of those
        that read the list, which a retry does not need; the second of those that judge."""
        classes = dataclasses.asdict(self.classes)
        for name in ("is_a", "words", "file"):  # wherever the file lies today
            classes[name] = list_name(classes[name] or "")
        reads = [self.format, self.url_column, self.id_column, self.label_column, classes]
        judges = {"filter": dataclasses.asdict(self.filter), "max_bytes": self.fetch.max_bytes}
        return _digest(reads) + _digest(judges)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Progress:
    """Counts so far; links of earlier runs included, but not those that a retry has yet to ask for again."""

    links: int
    units: int
    done: int
    units_done: int
    kept: int
    reasons: dict[str, int]
    fetched_bytes: int  # of this run
    seconds: float = 0.0  # since this run began
    done_now: int = 0  # links that this run has finished
    hosts: tuple[HostLoad, ...] = ()  # those with links in hand
    note: str = ""  # what people must know now, such as that the network is gone; one line


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
    not_chosen: int = 0  # lines of the list whose classes were not asked for; no links of the dataset
    note: str = ""  # what people must know, one line

    @property
    def stopped(self) -> bool:
        return self.version is None


@dataclass(frozen=True)
class Work:
    """What whoever crawls needs to know: the units to do, and where to tell of it."""

    config: Config
    units: Sequence[int]
    largest: int  # links a unit, at most
    tally: Tally
    tell: Callable[[Event], None]
    stop: Callable[[], bool]


def run(
    config: Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    crawl: Callable[[Work], Iterator[manifest.Commit]] | None = None,
) -> IngestResult:
    """Do the units that have no commit, then make a version. `stop` returning True ends it soon and cleanly: what is
    not committed is dropped, a rerun does it. `crawl` does the units: this process, if nobody else does.

    Raises ValueError for a list, a store or a setting that cannot work.
    """
    begun = time.monotonic()
    planned = plan.make(config)
    committed = set(manifest.committed_units(config.out))
    todo = [unit for unit in range(planned.units) if unit not in committed]
    tally = Tally(planned.links, planned.units, progress)
    tally.begin(config.out, sorted(committed), [unit for unit in todo if unit >= planned.info.units])
    largest = min(planned.info.unit, planned.links)
    if todo:
        with _log(config.out, todo) as log:
            for commit in (crawl or crawl_here)(Work(config, todo, largest, tally, log.tell, stop)):
                tally.commit(commit)
            log.say("finished" if tally.units_done == planned.units else "stopped", config.out)
    tally.underway(())
    made = _version(config, planned, tally) if tally.units_done == planned.units else None
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
        note=planned.note or (_other_rules(config, made) if made else ""),
    )


def _other_rules(config: Config, made: manifest.Manifest) -> str:
    """What to tell who asks for other rules than those of a version that was selected already."""
    if made.rules is None:
        return ""
    asked = json.loads(json.dumps(dataclasses.asdict(config.select)))
    if all(made.rules.how.get(name) == value for name, value in asked.items()):
        return ""
    return f"{made.address}: was selected by other rules, and stays: xtra select {config.out} makes another version"


def _version(config: Config, planned: plan.Plan, tally: Tally) -> manifest.Manifest:
    """The selected version of all units. One that has been selected already stays as it is, by whatever rules."""
    made = manifest.make_version(config.out, "ingest" if planned.units == planned.info.units else "retry")
    if made.rules is None and made.kept:
        scratch = Path(config.scratch) if config.scratch else None
        made = select(made, config.select, scratch, lambda what, n, of: tally.say(f"selecting: {n:,} of {of:,} {what}"))
    assert made.links == planned.links, f"{made.links} links in the version, {planned.links} in the plan"
    assert tally.kept + tally.reasons.total() == planned.links
    if len(made.shards) == planned.units:  # else it has units of a retry, too, that another driver has begun since
        assert made.kept == tally.kept, f"{made.kept} kept in the version, {tally.kept} in the commits"
    return made


@contextlib.contextmanager
def _log(dataset: str, todo: Sequence[int]) -> Iterator[EventLog]:
    log = EventLog(dataset)
    log.say("started", dataset, f"{len(todo)} units to do, on {socket.gethostname()}, process {os.getpid()}")
    try:
        yield log
    except BaseException as error:
        log.say("failed", dataset, f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        log.close()


class Tally:
    """Counts of committed units plus those of the units under way, and when to report them."""

    def __init__(self, links: int, units: int, progress: Callable[[Progress], None] | None) -> None:
        self.links, self.units, self.units_done = links, units, 0
        self.kept = self.fetched_bytes = 0
        self.reasons: Counter[str] = Counter()
        self._progress = progress
        self._begun = time.monotonic()
        self._next = 0.0
        self._done_before = 0
        self._under: Iterable[Underway] = ()
        self._note = ""

    def begin(self, dataset: str, committed: Sequence[int], again: Sequence[int]) -> None:
        """Take in what earlier runs have done; links that a retry has yet to ask for again do not count as done."""
        for commit in manifest.read_commits(dataset, committed):
            self._add(commit)
        self.reasons.subtract(plan.asked_again(dataset, again))
        self._again = set(again)
        self._done_before = self.kept + self.reasons.total()
        self.report(force=True)

    def commit(self, commit: manifest.Commit) -> None:
        self._add(commit)
        if commit.unit in self._again:
            self.reasons.update(commit.supersedes)  # which `begin` has taken off already

    def _add(self, commit: manifest.Commit) -> None:
        self.units_done += 1
        self.kept += commit.kept
        self.reasons.update(commit.reasons)
        self.reasons.subtract(commit.supersedes)

    def by_name(self) -> dict[str, int]:
        return {reason: n for reason, n in sorted(self.reasons.items()) if n}

    def underway(self, workers: Iterable[Underway]) -> None:
        """What the workers have in hand now; told if it is time."""
        self._under = tuple(workers)
        self.fetched_bytes = max(self.fetched_bytes, sum(worker.fetched_bytes for worker in self._under))
        self.report()

    def say(self, note: str) -> None:
        """What is being done after the last unit."""
        self._note = note
        self.report()

    def report(self, force: bool = False) -> None:
        if self._progress is None or (time.monotonic() < self._next and not force):
            return
        self._next = time.monotonic() + TICK
        reasons = Counter(self.by_name())
        for worker in self._under:
            reasons.update(worker.reasons)
        kept = self.kept + sum(worker.kept for worker in self._under)
        done = kept + reasons.total()
        self._progress(
            Progress(
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
                note=self._note or next((worker.note for worker in self._under if worker.note), ""),
            )
        )


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


def crawl_here(work: Work) -> Iterator[manifest.Commit]:
    """The units in this process."""
    config = work.config
    with scratch_folder(config.scratch, config.out, config.scratch_bytes) as scratch:
        scratch.check(work.largest)
        with (
            contextlib.closing(Fetcher(config.fetch, scratch.folder, tell=work.tell)) as fetcher,
            contextlib.closing(Crawl(config.out, config.filter, scratch, fetcher, work.tell)) as crawl,
        ):
            for commit in crawl.run(map(Assignment, work.units), work.stop):
                if commit is not None:
                    yield commit
                work.tally.underway([crawl.underway()])
