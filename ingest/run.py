"""One ingest: a URL list to a dataset version, a unit at a time: links -> bytes -> verdicts -> tar -> commit.

A unit without a commit never happened: a rerun of the same words does exactly the units that are missing, whether the
last run was stopped, killed or finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest.fetch import FetchConfig, fetch
from ingest.filter import FilterConfig, judge
from ingest.record import BadLine, Link, from_plan, to_plan
from ingest.source import list_name, list_sha256, read_links
from ingest.unit import UnitWriter
from shards import manifest, store
from shards.image import IMAGE_BUILD

CONTACT_FROM = 1000  # links; whoever asks for more must say who asks
TICK = 0.25  # seconds between progress reports
SCRATCH = "xtra-ingest-"


@dataclass(frozen=True)
class Config:
    """What to ingest, and how."""

    urls: str = ""  # the list: text, CSV, TSV or Parquet, plain or .gz, anywhere fsspec reads; a retry needs none
    out: str = ""  # the dataset's folder
    unit: int = 10_240  # links a tar
    format: str = "auto"  # of the list: auto (by its name), text, csv, tsv, parquet
    url_column: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    scratch: str | None = None  # a local folder for the bodies of a few units at a time; the system's own if None
    scratch_bytes: int | None = None  # of it, that a worker may fill; what is free, less a reserve, if None
    retry: bool = (
        False  # ask again for the links whose reason may pass: dns, connect, timeout, tls, 429, 5xx, cut bodies
    )
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
        """sha256 of the fields that decide what a unit holds; the others may change between reruns."""
        value = {
            "list": [self.format, self.url_column, self.id_column, self.label_column],
            "filter": dataclasses.asdict(self.filter),
            "max_bytes": self.fetch.max_bytes,
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Progress:
    """Counts so far; links of earlier runs included."""

    links: int
    units: int
    done: int
    units_done: int
    kept: int
    reasons: dict[str, int]
    fetched_bytes: int  # of this run
    seconds: float = 0.0  # since this run began
    done_now: int = 0  # links that this run has finished
    hosts: tuple[Any, ...] = ()  # HostLoad: those with links in hand
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

    @property
    def stopped(self) -> bool:
        return self.version is None


def run(
    config: Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestResult:
    """Do the units that have no commit, then make a version. `stop` returning True ends it soon and cleanly: what is
    not committed is dropped, a rerun does it. Raises ValueError for a list, a store or a setting that cannot work."""
    begun = time.monotonic()
    info, links = plan(config)
    committed = set(manifest.committed_units(config.out))
    tally = _Tally(links, info.units, progress)
    for unit in sorted(committed):
        tally.commit(manifest.read_commit(config.out, unit))
    todo = [unit for unit in range(info.units) if unit not in committed]
    with scratch_folder(config.scratch) as scratch:
        for commit in _in_this_process(config, todo, scratch, tally, stop):
            tally.commit(commit)
    version, samples, deselected = None, 0, {}
    if tally.units_done == info.units:
        made = manifest.make_version(config.out, "ingest")
        assert made.links == links, f"{made.links} links in the version, {links} in the plan"
        version, samples, deselected = made.digest, made.samples, made.deselected
        assert tally.kept + sum(tally.reasons.values()) == links
    tally.report(force=True)
    return IngestResult(
        dataset=config.out,
        links=links,
        kept=tally.kept,
        reasons=dict(sorted(tally.reasons.items())),
        units=info.units,
        units_done=tally.units_done,
        version=version,
        seconds=time.monotonic() - begun,
        samples=samples,
        deselected=dict(deselected),
    )


# --- the plan ------------------------------------------------------------------------------------------------------


def plan(config: Config) -> tuple[manifest.DatasetInfo, int]:
    """Cut the list into units, once, in constant memory; returns dataset.json and the number of links.

    Raises ValueError when the list is missing or empty, when the out folder cannot be written or holds a dataset of
    another list or other settings, and when more than 1,000 links would be asked for without a contact.
    """
    for name in ("urls", "out"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is missing: xtra ingest --urls LIST --out FOLDER")
    found = manifest.DatasetInfo(
        list_name=list_name(config.urls),
        list_sha256=list_sha256(config.urls),
        units=0,
        unit=config.unit,
        config_digest=config.digest,
        image_build=IMAGE_BUILD,
    )
    store.check_writable(config.out)
    if store.exists(store.join(config.out, "dataset.json")):
        old = manifest.read_info(config.out)
        manifest.write_info(config.out, replace(found, units=old.units))
        links = (old.units - 1) * old.unit + len(manifest.read_plan(config.out, old.units - 1))
        _need_contact(config, links)
        return old, links
    units = links = 0
    entries = read_links(config.urls, config.format, config.url_column, config.id_column, config.label_column)
    while batch := list(islice(entries, config.unit)):
        links += len(batch)
        _need_contact(config, links)
        manifest.write_plan(config.out, units, _plan_table(batch))
        units += 1
    if not links:
        raise ValueError(f"{config.urls}: holds no links: check --urls")
    for stale in manifest.planned_units(config.out):
        if stale >= units:  # of a longer list, whose planning was cut short
            store.delete(store.join(config.out, "links", manifest.unit_name(stale) + ".parquet"))
    info = replace(found, units=units)
    manifest.write_info(config.out, info)
    return info, links


def _need_contact(config: Config, links: int) -> None:
    if links > CONTACT_FROM and not config.fetch.contact and not config.fetch.allow_private:
        raise ValueError(
            f"{config.urls}: asks for more than {CONTACT_FROM} links without saying who asks: "
            "set --fetch.contact to an address or page of yours"
        )


def _plan_table(batch: list[Link | BadLine]) -> pa.Table:
    return pa.Table.from_pylist([to_plan(link) for link in batch], manifest.PLAN_SCHEMA)


# --- units ---------------------------------------------------------------------------------------------------------


class _Tally:
    """Counts of committed units plus those of the units under way, and when to report them."""

    def __init__(self, links: int, units: int, progress: Callable[[Progress], None] | None) -> None:
        self.links, self.units, self.units_done = links, units, 0
        self.kept = self.fetched_bytes = 0
        self.reasons: Counter[str] = Counter()
        self._progress = progress
        self._next = 0.0

    def commit(self, commit: manifest.Commit) -> None:
        self.units_done += 1
        self.kept += commit.kept
        self.reasons.update(commit.reasons)
        self.report()

    def report(self, writer: UnitWriter | None = None, force: bool = False) -> None:
        """Tell the counts if it is time; those of a unit under way come from its writer."""
        if self._progress is None or (time.monotonic() < self._next and not force):
            return
        self._next = time.monotonic() + TICK
        reasons = self.reasons + Counter({str(r): n for r, n in writer.reasons.items()}) if writer else self.reasons
        kept = self.kept + (writer.kept if writer else 0)
        self._progress(
            Progress(
                links=self.links,
                units=self.units,
                done=kept + reasons.total(),
                units_done=self.units_done,
                kept=kept,
                reasons=dict(sorted(reasons.items())),
                fetched_bytes=self.fetched_bytes,
            )
        )


def ingest_unit(
    config: Config, unit: int, scratch: Path, stop: Callable[[], bool], tally: _Tally | None = None
) -> manifest.Commit | None:
    """One unit from its plan to its commit; None when stopped on the way, and then nothing of it is left on scratch."""
    links = [from_plan(**row) for row in manifest.read_plan(config.out, unit).to_pylist()]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="unit-", dir=scratch) as folder,
            contextlib.closing(UnitWriter(config.out, unit, links, Path(folder))) as writer,
        ):
            good = (link for link in links if isinstance(link, Link))
            for fetched in fetch(good, config.fetch, Path(folder), stop):
                verdict = judge(fetched, config.filter)
                writer.add(verdict)
                if tally is not None:
                    tally.fetched_bytes += verdict.fetched_bytes or 0
                    tally.report(writer)
            return writer.seal() if writer.done == len(links) else None
    except OSError as error:  # storage and network have errors of their own: this is scratch
        raise ValueError(f"{scratch}: cannot hold a unit ({error.strerror}): free space or set --scratch") from error


def _in_this_process(
    config: Config, units: list[int], scratch: Path, tally: _Tally, stop: Callable[[], bool]
) -> Iterator[manifest.Commit]:
    for unit in units:
        commit = None if stop() else ingest_unit(config, unit, scratch, stop, tally)
        if commit is None:
            return
        yield commit


# --- scratch -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(base: str | None) -> Iterator[Path]:
    """A folder of our own, gone afterwards; also removes those of runs that were killed.

    Each is locked while its run lives (flock ends with the process, whatever ends it).
    """
    root = Path(base or tempfile.gettempdir())
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root))
    except OSError as error:
        raise ValueError(f"{root}: cannot hold scratch files ({error.strerror}): set --scratch to a folder") from None
    for lock in root.glob(f"{SCRATCH}*/lock"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    try:
        with (folder / "lock.new").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (folder / "lock.new").rename(folder / "lock")  # only now can others see that it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
