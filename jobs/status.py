"""What a run or a dataset is doing, read from its folder alone: no process is asked, so it works from anywhere."""

from __future__ import annotations

import dataclasses
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest.events import part_of, parts
from ingest.record import RETRYABLE, Event
from ingest.underway import STALE, Beat, read_beats
from jobs.ingest_display import clean
from jobs.report import read_run
from jobs.terminal import say
from shards import manifest, store, typed_json
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
from xtra.run import records

READERS = 16
NEWEST = 8  # units whose indexes tell the rate
PAUSE = 600.0  # seconds between two units that are not of one stretch of work
WIDTH = 80
_WRAP = {"drop_whitespace": False, "break_on_hyphens": False}  # keep columns; break a URL only where it must


@dataclass(frozen=True)
class Config:
    url: str  # a dataset, a run, or a folder of runs


@dataclass(frozen=True)
class DatasetStatus:
    """Links, kept and reasons are of the committed units; `versions` counts the dataset's manifests."""

    dataset: str
    list_name: str
    units: int  # that the list has; units of later retries included
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
    not_chosen: int  # lines of the list that are no links, as its rules (classes, --where) left them out
    retryable: int  # links that `xtra ingest --retry` would take
    retries: int  # planned so far
    asked_at: str | None  # when the newest committed links were asked for
    links_per_s: float | None  # while those were: about the rate of an ingest that is under way
    seconds_left: float | None  # at that rate
    last_event: str | None
    last_event_at: str | None
    underway: tuple[Beat, ...] = ()  # what ingests that run, or died, last said of themselves; the newest first


@dataclass(frozen=True)
class RunStatus:
    """None is "not known yet": a run writes its log and events every 30 s."""

    run: str
    recipe: str = ""
    samples_seen: int = 0  # at the last logged step
    samples: int | None = None  # in total
    loss: float | None = None
    samples_per_s: float | None = None
    seconds_left: float | None = None
    checkpoint: int | None = None  # samples seen of the newest committed one
    attempt: int | None = None
    host: str | None = None
    since: str | None = None
    last_event: str | None = None
    last_event_at: str | None = None
    probes: int = 0
    problems: tuple[str, ...] = ()


Status = DatasetStatus | RunStatus


def read_status(url: str) -> list[Status]:
    """The status of a dataset or of a run, or of every run and dataset directly in the folder.

    Raises ValueError if there is neither.
    """
    url = url.rstrip("/")
    if (found := _one(url)) is not None:
        return [found]
    inside = [_one(store.join(url, name)) for name in store.names(url)]
    statuses = [status for status in inside if status is not None]
    if not statuses:
        raise ValueError(f"{url}: is no dataset and no run, and holds none: give an --out of xtra ingest or train")
    return statuses


def run(config: Config) -> list[Status]:
    """Read and print."""
    store.require(url=config.url)
    statuses = read_status(config.url)
    say("\n\n".join(map(text, statuses)))
    return statuses


def as_dict(status: Status) -> dict[str, Any]:
    kind = "dataset" if isinstance(status, DatasetStatus) else "run"
    return {"kind": kind, **asdict(status)}


def text(status: Status, now: datetime | None = None) -> str:
    """A few lines of at most 80 columns."""
    now = now or datetime.now(UTC)
    lines = _dataset_lines(status, now) if isinstance(status, DatasetStatus) else _run_lines(status, now)
    return "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 9, **_WRAP))


def _one(url: str) -> Status | None:
    if store.exists(store.join(url, "dataset.json")):
        return dataset_status(url)
    if store.exists(store.join(url, "run.json")) or store.exists(store.join(url, "config.json")):
        return run_status(url)
    return None


# ---- a dataset ----


def dataset_status(url: str) -> DatasetStatus:
    """Counts from the newest version plus the commits made since, so that a large dataset is read once."""
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
    """When the links of these units were last asked for, and how many a second while they were."""
    names = [commit.index for commit in read_commits(url, units)]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda name: _asked(store.join(url, "shards", name)), names))
    spans = [(pc.min(t).as_py(), pc.max(t).as_py(), len(t)) for t in tables if len(t)]
    if not spans:
        return None, None
    last = max(end for _, end, _ in spans)
    # Units overlap, and a run may have been stopped between two: the newest ones that touch each other count.
    first, links = last, 0
    for begin, end, n in sorted(spans, key=lambda s: s[1], reverse=True):
        if (first - end).total_seconds() > PAUSE:
            break
        first, links = min(first, begin), links + n
    seconds = (last - first).total_seconds()
    return last, links / seconds if seconds > 0 else None


def _newest_event(url: str) -> Event | None:
    names = parts(url)
    return next(iter(part_of(url, names[-1])[-1:]), None) if names else None


def _asked(index: str) -> pa.ChunkedArray:
    return read_table(index, ["fetched_at"])["fetched_at"].drop_null()


def _dataset_lines(s: DatasetStatus, now: datetime) -> list[str]:
    lines = [
        f"dataset  {_tail(s.dataset)}",
        f"list     {s.list_name}" + (f", {s.not_chosen:,} lines not chosen" if s.not_chosen else ""),
        f"units    {s.committed:,} of {s.units:,} committed ({_share(s.committed, s.units)})"
        + ("" if s.planned >= s.units else f", {s.planned:,} planned"),
        f"kept     {s.kept:,} of {s.links:,} links ({_share(s.kept, s.links)})",
    ]
    lines += [f"         {reason:<18} {n:>12,}  {_share(n, s.links)}" for reason, n in s.reasons.items()]
    alive = [beat for beat in s.underway if (now.timestamp() - beat.at) < STALE]
    lines += [_beat_line(beat, now) for beat in s.underway]
    if s.asked_at:
        rate = f", at about {s.links_per_s:,.0f} links/s" if s.links_per_s else ""
        left = f", {_span(s.seconds_left)} left at that" if s.seconds_left else ""
        lines.append(f"asked    {_ago(s.asked_at, now)}{rate}{left}")
    if s.last_event and s.last_event_at:
        lines.append(f"event    {clean(s.last_event, 300)} {_ago(s.last_event_at, now)}")
    if s.newest:
        lines.append(f"version  {s.versions} ({s.newest[:16]}, {s.why}): {s.samples:,} samples")
    else:
        lines.append("version  none yet")
    if s.committed < s.units and alive:
        lines.append(f"next     {s.units - s.committed:,} units to do, which that ingest is at")
    elif s.committed < s.units:
        lines.append(f"next     {s.units - s.committed:,} units to do: if no ingest is running, rerun the same words")
    elif s.retryable:
        again = f" ({s.retries} retries so far)" if s.retries else ""
        lines.append(f"next     xtra ingest --retry takes the {s.retryable:,} links that may work later{again}")
    return lines


def _beat_line(beat: Beat, now: datetime) -> str:
    """What is under way, inside units that are not committed; or what a run that died had done."""
    rate = f", at about {beat.links_per_s:,.0f} links/s" if beat.links_per_s else ""
    counts = f"{beat.done:,} of {beat.links:,} links done ({_share(beat.done, beat.links)}), {beat.kept:,} kept{rate}"
    note = f": {clean(beat.note, 200)}" if beat.note else ""
    age = now.timestamp() - beat.at
    who = f"process {beat.process} on {clean(beat.host, 60)}, {_span(max(age, 0.0))} ago"
    return f"running  {counts}; {who}{note}" if age < STALE else f"died     {counts}; no word from {who}"


# ---- a run ----


def run_status(url: str) -> RunStatus:
    problems: list[str] = []
    found = read_run(url, problems)
    if found is None:  # what is wrong is in problems
        return RunStatus(run=url, problems=tuple(problems))
    event = _last_event(url, problems)
    last = found.metrics[-1] if found.metrics else None
    total = found.config.get("samples")
    rate = last.samples_per_s if last else None
    seen = last.samples_seen if last else max(found.checkpoints, default=0)
    attempt = found.attempts[-1] if found.attempts else {}
    return RunStatus(
        run=url,
        recipe=str(found.info.get("recipe", "")),
        samples_seen=seen,
        samples=total,
        loss=last.loss if last else None,
        samples_per_s=rate,
        seconds_left=(total - seen) / rate if rate and total is not None else None,
        checkpoint=max(found.checkpoints, default=None),
        attempt=attempt.get("attempt"),
        host=attempt.get("host"),
        since=attempt.get("since"),
        last_event=event.get("event"),
        last_event_at=event.get("at"),
        probes=len(found.probes),
        problems=tuple(problems),
    )


def _last_event(run: str, problems: list[str]) -> dict[str, Any]:
    """The last line of the newest part of the highest attempt."""
    names = records.ours(store.names(store.join(run, "events")), records.PART)
    if not names:
        return {}
    url = store.join(run, "events", names[-1])
    try:
        lines = store.read(url).splitlines()
        return dataclasses.asdict(typed_json.decode(records.Happened, lines[-1] if lines else b"", f"{url} last line"))
    except store.StoreError as error:
        problems.append(str(error))
        return {}


def _run_lines(s: RunStatus, now: datetime) -> list[str]:
    lines = [f"run      {_tail(s.run)}" + (f" ({s.recipe})" if s.recipe else "")]
    if s.samples is not None:
        lines.append(f"seen     {s.samples_seen:,} of {s.samples:,} samples ({_share(s.samples_seen, s.samples)})")
    if s.loss is not None and s.samples_per_s is not None:
        left = f", {_span(s.seconds_left)} left" if s.seconds_left else ""
        lines.append(f"loss     {s.loss:.4f} at {s.samples_per_s:,.1f} images/s{left}")
    saved = "none yet" if s.checkpoint is None else f"at {s.checkpoint:,} samples"
    lines.append(f"saved    {saved}" + (f", {s.probes} probes" if s.probes else ""))
    if s.attempt is not None:
        lines.append(f"attempt  {s.attempt} on {s.host} since {_moment(s.since)}")
    if s.last_event_at:
        lines.append(f"event    {s.last_event} {_ago(s.last_event_at, now)}")
    return lines + [f"problem  {problem}" for problem in s.problems]


# ---- words ----


def _tail(url: str) -> str:
    """The end of a long URL says more than its start."""
    return url if len(url) <= WIDTH - 9 else "…" + url[-(WIDTH - 10) :]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _span(seconds: float | None) -> str:
    minutes = round((seconds or 0) / 60)
    if minutes < 2:
        return f"{round(seconds or 0)} s"
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} d"
    )


def _moment(iso: str | None) -> str:
    return (iso or "")[:19].replace("T", " ")


def _ago(iso: str, now: datetime) -> str:
    return f"{_span((now - datetime.fromisoformat(iso)).total_seconds())} ago ({_moment(iso)})"
