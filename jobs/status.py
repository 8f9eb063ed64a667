"""The state of a dataset, a run or a probe, read from its folder alone, without asking any process.

`--watch` reads the folder again every few seconds, and ends when everything in it is done.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest.events import read_segment, segments
from ingest.record import RETRYABLE, Event
from ingest.underway import STALE, Beat, read_beats
from jobs.config import StatusConfig as Config
from jobs.ingest_display import clean
from jobs.run_status import ProbesStatus, RunStatus, probe_lines, probes_status, run_lines, run_status
from jobs.status_words import WIDTH, ago, tail
from jobs.terminal import say
from shards import manifest, store
from shards.dataset import (
    committed_units,
    numbers,
    planned_units,
    read_commit,
    read_commits,
    read_generations,
    read_info,
    read_table,
)
from shards.figures import percent, span

READERS = 16
NEWEST = 8  # newest units, whose indexes give the rate
PAUSE = 600.0  # a longer gap in seconds between two units separates two ingests
_WRAP = {"drop_whitespace": False, "break_on_hyphens": False}  # keep columns; break a URL only where it must


@dataclass(frozen=True)
class DatasetStatus:
    """Links, kept and reasons count committed units; `versions` counts the dataset's manifests."""

    dataset: str
    list_name: str
    units: int  # in the list, including later retries
    planned: int
    committed: int
    links: int
    kept: int
    reasons: dict[str, int]
    tar_bytes: int
    versions: int
    newest: str | None  # digest
    why: str | None
    samples: int | None  # of the newest version
    not_chosen: int  # lines of the list left out by its rules (classes, --where)
    retryable: int  # links that `xtra ingest --retry` would fetch
    retries: int  # planned so far
    asked_at: str | None  # when the newest committed links were fetched
    links_per_s: float | None  # during that time: about the current rate of a running ingest
    seconds_left: float | None  # at that rate
    last_event: str | None
    last_event_at: str | None
    underway: tuple[Beat, ...] = ()  # the last heartbeats of ingests that are running or died; the newest first


Status = DatasetStatus | RunStatus | ProbesStatus


def read_status(url: str) -> list[Status]:
    """The status of a dataset, a run or a probe's folder, or of all of these directly in the folder.

    Raises ValueError if there is none.
    """
    url = url.rstrip("/")
    if (found := _one(url)) is not None:
        return [found]
    inside = [_one(store.join(url, name)) for name in store.names(url)]
    statuses = [status for status in inside if status is not None]
    if not statuses:
        raise ValueError(
            f"{url}: is neither a dataset nor a run, and contains none: give an --out of xtra ingest, train or probe"
        )
    return statuses


def run(config: Config, stopped: Callable[[float], bool] = lambda seconds: True) -> list[Status]:
    """Read and print; with --watch, repeat until all is done or `stopped(seconds)`, which waits, returns true."""
    store.require(url=config.url)
    while True:
        statuses = read_status(config.url)
        said = "\n\n".join(text(status, price=config.price) for status in statuses)
        if config.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        say(said, flush=True)
        if not config.watch or all(map(finished, statuses)) or stopped(config.every):
            return statuses
        if not sys.stdout.isatty():
            say()


def as_dict(status: Status) -> dict[str, Any]:
    kinds = {DatasetStatus: "dataset", RunStatus: "run", ProbesStatus: "probes"}
    return {"kind": kinds[type(status)], **asdict(status)}


def text(status: Status, now: datetime | None = None, price: float | None = None) -> str:
    """A few lines of at most 80 columns."""
    now = now or datetime.now(UTC)
    if isinstance(status, DatasetStatus):
        lines = _dataset_lines(status, now, price)
    elif isinstance(status, RunStatus):
        lines = run_lines(status, now, price)
    else:
        lines = probe_lines(status)
    return "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 9, **_WRAP))


def finished(status: Status) -> bool:
    """Whether nothing is left to do: a run has its last checkpoint, a dataset all its units and a version."""
    if isinstance(status, DatasetStatus):
        return status.newest is not None and status.committed >= status.units
    if isinstance(status, ProbesStatus):
        return True
    return status.samples is not None and (status.checkpoint or 0) >= status.samples


def _one(url: str) -> Status | None:
    if store.exists(store.join(url, "dataset.json")):
        return dataset_status(url)
    if store.exists(store.join(url, "run.json")) or store.exists(store.join(url, "config.json")):
        return run_status(url)
    return probes_status(url) if store.names(store.join(url, "probes")) else None


# ---- a dataset ----


def dataset_status(url: str) -> DatasetStatus:
    """Counts from the newest version plus later commits, so that a large dataset is read once."""
    info = read_info(url)
    versions = numbers(url, "versions", ".json")
    version = manifest.read_version(url, versions[-1]) if versions else None
    base = manifest.read_manifest(f"{url}@{version.digest}") if version else None
    known = {shard.unit for shard in base.shards} if base else set()
    committed = committed_units(url)
    with ThreadPoolExecutor(READERS) as pool:
        fresh = list(pool.map(lambda unit: read_commit(url, unit), set(committed) - known))
    reasons = dict(base.reasons) if base else {}
    for done in fresh:
        for reason, n in done.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + n
        for reason, n in done.supersedes.items():
            reasons[reason] = reasons.get(reason, 0) - n
    kept = (base.kept if base else 0) + sum(done.kept for done in fresh)
    planned = planned_units(url)
    asked_at, rate = _pace(url, committed[-NEWEST:])
    units = max(info.units, len(planned))
    links = kept + sum(reasons.values())
    event = _newest_event(url)
    return DatasetStatus(
        dataset=url,
        list_name=info.list_name,
        units=units,
        planned=len(planned),
        committed=len(committed),
        links=links,
        kept=kept,
        reasons={reason: n for reason, n in sorted(reasons.items(), key=lambda r: (-r[1], r[0])) if n},
        tar_bytes=sum(done.tar_bytes for done in [*(base.shards if base else ()), *fresh]),
        versions=len(versions),
        newest=version.digest if version else None,
        why=version.why if version else None,
        samples=base.samples if base else None,
        not_chosen=info.not_chosen,
        retryable=sum(n for reason, n in reasons.items() if reason in RETRYABLE),
        retries=len(read_generations(url)),
        asked_at=asked_at.isoformat(timespec="seconds") if asked_at else None,
        links_per_s=rate,
        seconds_left=(units - len(committed)) * info.unit / rate if rate and len(committed) < units else None,
        last_event=f"{event.kind} {event.about} {event.detail}".strip() if event else None,
        last_event_at=datetime.fromtimestamp(event.at, UTC).isoformat(timespec="seconds") if event else None,
        underway=tuple(read_beats(url)),
    )


def _pace(url: str, units: list[int]) -> tuple[datetime | None, float | None]:
    """When the links of these units were last fetched, and the rate in links/s during that time."""
    names = [commit.index for commit in read_commits(url, units)]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda name: _asked(store.join(url, "shards", name)), names))
    spans = [(pc.min(t).as_py(), pc.max(t).as_py(), len(t)) for t in tables if len(t)]
    if not spans:
        return None, None
    last = max(end for _, end, _ in spans)
    # Units overlap, and an ingest may have stopped between two: count the newest contiguous ones.
    first, links = last, 0
    for begin, end, n in sorted(spans, key=lambda s: s[1], reverse=True):
        if (first - end).total_seconds() > PAUSE:
            break
        first, links = min(first, begin), links + n
    seconds = (last - first).total_seconds()
    return last, links / seconds if seconds > 0 else None


def _newest_event(url: str) -> Event | None:
    names = segments(url)
    return next(iter(read_segment(url, names[-1])[-1:]), None) if names else None


def _asked(index: str) -> pa.ChunkedArray:
    return read_table(index, ["fetched_at"])["fetched_at"].drop_null()


def _dataset_lines(s: DatasetStatus, now: datetime, price: float | None) -> list[str]:
    lines = [
        f"dataset  {tail(s.dataset)}",
        f"list     {s.list_name}" + (f", {s.not_chosen:,} lines not chosen" if s.not_chosen else ""),
        f"units    {s.committed:,} of {s.units:,} committed ({percent(s.committed, s.units)})"
        + ("" if s.planned >= s.units else f", {s.planned:,} planned"),
        f"kept     {s.kept:,} of {s.links:,} links ({percent(s.kept, s.links)})",
    ]
    lines += [f"         {reason:<18} {n:>12,}  {percent(n, s.links)}" for reason, n in s.reasons.items()]
    alive = [beat for beat in s.underway if (now.timestamp() - beat.at) < STALE]
    lines += [_beat_line(beat, now) for beat in s.underway]
    if s.asked_at:
        rate = f", at about {s.links_per_s:,.0f} links/s" if s.links_per_s else ""
        left = f", {span(s.seconds_left)} left at that" if s.seconds_left else ""
        lines.append(f"asked    {ago(s.asked_at, now)}{rate}{left}")
    if price is not None and s.links_per_s:
        left = f", {s.seconds_left / 3600 * price:,.2f} to come" if s.seconds_left else ""
        lines.append(f"cost     about {s.links / s.links_per_s / 3600 * price:,.2f}{left}, at {price:g} an hour")
    if s.last_event and s.last_event_at:
        lines.append(f"event    {clean(s.last_event, 300)} {ago(s.last_event_at, now)}")
    if s.newest:
        lines.append(f"version  {s.versions} ({s.newest[:16]}, {s.why}): {s.samples:,} samples")
    else:
        lines.append("version  none yet")
    if s.committed < s.units and alive:
        lines.append(f"next     {s.units - s.committed:,} units to do, by the running ingest")
    elif s.committed < s.units:
        lines.append(f"next     {s.units - s.committed:,} units to do: if no ingest is running, rerun the same command")
    elif s.retryable:
        again = f" ({s.retries} retries so far)" if s.retries else ""
        words = f"xtra ingest --retry --out {shlex.quote(s.dataset)}"
        lines.append(f"next     {s.retryable:,} links may work later{again}: {words}")
    return lines


def _beat_line(beat: Beat, now: datetime) -> str:
    """A running ingest's progress inside uncommitted units, or the last progress of one that died."""
    rate = f", at about {beat.links_per_s:,.0f} links/s" if beat.links_per_s else ""
    counts = f"{beat.done:,} of {beat.links:,} links done ({percent(beat.done, beat.links)}), {beat.kept:,} kept{rate}"
    note = f": {clean(beat.note, 200)}" if beat.note else ""
    age = now.timestamp() - beat.at
    who = f"process {beat.process} on {clean(beat.host, 60)}, {span(max(age, 0.0))} ago"
    return f"running  {counts}; {who}{note}" if age < STALE else f"died     {counts}; no word from {who}"
