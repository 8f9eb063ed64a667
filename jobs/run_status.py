"""The state of a run, and the results in a probe's folder, read from the folder alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.report import Run, read_run
from jobs.status_words import ago, moment, sparkline, tail, thinned
from jobs.terminal import clean
from shards import store, typed_json
from shards.figures import percent, span
from xtra.run import records

READERS = 16
LIVE_SECONDS = 180.0  # a run writes every 30 s
LOSSES = 40  # bars
RECENT = 50  # steps over which the wait for data is measured
PARTS = 8  # an attempt's last event segments, searched for its end
# First segment number of drivers and stalled ranks (xtra/run/folder.py, which needs torch).
ENDED = 800_000
SHOWN = 5  # attempts before the newest one
_ENDS = {"done": "done", "stop": "stopped", "superseded": "superseded", "stalled": "stalled", "failed": "failed"}


@dataclass(frozen=True)
class AttemptStatus:
    """`ended` is empty while no event records an end; `why` is the driver's reason, if it gave one."""

    number: int
    host: str | None
    world: int
    since: str | None
    until: str | None  # time of its last event
    ended: str
    why: str = ""

    @property
    def device_hours(self) -> float:
        if not (self.since and self.until):
            return 0.0
        seconds = (datetime.fromisoformat(self.until) - datetime.fromisoformat(self.since)).total_seconds()
        return max(0.0, seconds) * self.world / 3600


@dataclass(frozen=True)
class RunStatus:
    """None means "not known yet": a run writes its log and events every 30 s."""

    run: str
    recipe: str = ""
    samples_seen: int = 0  # at the last logged step
    samples: int | None = None  # in total
    loss: float | None = None
    samples_per_s: float | None = None
    seconds_left: float | None = None  # if the run is training
    checkpoint: int | None = None  # samples seen of the newest committed one
    attempt: int | None = None
    host: str | None = None
    since: str | None = None
    last_event: str | None = None
    last_event_at: str | None = None
    probes: int = 0
    problems: tuple[str, ...] = ()
    stage: str = ""  # training; done; or how the newest attempt ended
    losses: tuple[float, ...] = ()  # thinned, from the first step to the last
    data_wait: float | None = None  # share of the last steps' time
    mfu: float | None = None
    checkpoint_at: str | None = None  # by the store's clock
    attempts: tuple[AttemptStatus, ...] = ()
    device_hours: float = 0.0  # of all attempts


@dataclass(frozen=True)
class ProbesStatus:
    """The results in a folder of probes."""

    probes: str
    results: tuple[dict[str, Any], ...]
    problems: tuple[str, ...] = ()


def run_status(url: str) -> RunStatus:
    problems: list[str] = []
    found = read_run(url, problems)
    if found is None:  # `problems` has the reason
        return RunStatus(run=url, problems=tuple(problems))
    attempts, event = _attempts(found, problems)
    last = found.metrics[-1] if found.metrics else None
    total = int(found.config["samples"]) if "samples" in found.config else None
    rate = last.samples_per_s if last else None
    seen = last.samples_seen if last else max(found.checkpoints, default=0)
    newest = max(found.checkpoints, default=None)
    attempt = found.attempts[-1] if found.attempts else {}
    stage = _stage(url, attempts, done=total is not None and (newest or 0) >= total)
    left = (total - seen) / rate if rate and total is not None and stage == "training" else None
    return RunStatus(
        run=url,
        recipe=str(found.info.get("recipe", "")),
        samples_seen=seen,
        samples=total,
        loss=last.loss if last else None,
        samples_per_s=rate,
        seconds_left=left,
        checkpoint=newest,
        attempt=attempt.get("attempt"),
        host=attempt.get("host"),
        since=attempt.get("since"),
        last_event=event.get("event"),
        last_event_at=event.get("at"),
        probes=len(found.probes),
        problems=tuple(problems),
        stage=stage,
        losses=thinned([metric.loss for metric in found.metrics], LOSSES),
        data_wait=_data_wait(found),
        mfu=last.mfu if last else None,
        checkpoint_at=None if newest is None else _written(store.join(url, "checkpoints", f"{newest:012d}")),
        attempts=attempts,
        device_hours=sum(attempt.device_hours for attempt in attempts),
    )


def _data_wait(run: Run) -> float | None:
    """The share of the newest attempt's last steps in which they waited for their batch."""
    rows = [metric for metric in run.metrics[-RECENT:] if metric.attempt == run.metrics[-1].attempt]
    if len(rows) < 2 or any(row.data_wait is None for row in rows):
        return None
    seconds = rows[-1].seconds - rows[0].seconds
    return min(1.0, sum(row.data_wait or 0.0 for row in rows[1:]) / seconds) if seconds > 0 else None


def _written(folder: str) -> str | None:
    """When the checkpoint's COMMIT was written, by the store's clock."""
    times = [entry.modified for entry in store.entries(folder) if entry.name == "COMMIT.json"]
    known = [at for at in times if at < float("inf")]
    return datetime.fromtimestamp(known[0], UTC).isoformat(timespec="seconds") if known else None


def _stage(url: str, attempts: Sequence[AttemptStatus], done: bool) -> str:
    if done:
        return "done"
    if not attempts:
        return "not begun"
    if attempts[-1].ended:
        return attempts[-1].ended
    signs = [entry.modified for folder in ("attempts", "metrics", "events") for entry in _entries(url, folder)]
    silent = time.time() - max((at for at in signs if at < float("inf")), default=time.time())
    return "training" if silent < LIVE_SECONDS else "silent"


def _entries(url: str, folder: str) -> list[store.Entry]:
    return store.entries(store.join(url, folder))


# ---- attempts ----


def _attempts(run: Run, problems: list[str]) -> tuple[tuple[AttemptStatus, ...], Mapping[str, Any]]:
    """Every attempt with how it ended, and the newest event of the run."""
    parts: dict[int, list[str]] = {}
    for name in records.ours(store.names(store.join(run.url, "events")), records.PART):
        parts.setdefault(int(name.partition("-")[0]), []).append(name)
    wanted = {number: of_ranks(names)[-PARTS:] + of_drivers(names) for number, names in parts.items()}
    urls = [store.join(run.url, "events", name) for names in wanted.values() for name in names]
    with ThreadPoolExecutor(READERS) as pool:
        read = dict(zip(urls, pool.map(lambda url: _events(url, problems), urls)))
    found, newest = [], {}
    for number, facts in enumerate(run.attempts, 1):
        number = facts.get("attempt") or number
        events = [event for name in wanted.get(number, []) for event in read[store.join(run.url, "events", name)]]
        found.append(_attempt(number, facts, events, last=number >= len(run.attempts)))
        newest = max([newest, *events], key=lambda event: str(event.get("at", "")))
    return tuple(found), newest


def of_ranks(names: Sequence[str]) -> list[str]:
    return [name for name in names if int(name[7:13]) < ENDED]


def of_drivers(names: Sequence[str]) -> list[str]:
    """Segments of drivers and of stalled ranks."""
    return [name for name in names if int(name[7:13]) >= ENDED]


def _events(url: str, problems: list[str]) -> list[dict[str, Any]]:
    events = []
    try:
        lines = store.read(url).splitlines()
        for number, line in enumerate(lines, 1):
            where = "last line" if number == len(lines) else f"line {number}"
            typed_json.decode(records.Happened, line, f"{url} {where}")
            events.append(json.loads(line))
    except store.StoreError as error:
        problems.append(str(error))
    return events


def _attempt(number: int, facts: Mapping[str, Any], events: Sequence[Mapping[str, Any]], last: bool) -> AttemptStatus:
    ends = [event for event in events if event.get("event") in _ENDS or "why" in event]
    driver = [event for event in ends if "why" in event]
    ended, why = "", ""
    if driver:  # it knows why, while its ranks only stopped
        ended, why = str(driver[-1]["event"]), str(driver[-1]["why"])
    elif ends:
        ended = _ENDS[ends[-1]["event"]]
    elif not last:
        ended = "lost"
    return AttemptStatus(
        number=number,
        host=facts.get("host"),
        world=int(facts.get("world") or 1),
        since=facts.get("since"),
        until=max((str(event["at"]) for event in events if event.get("at")), default=None),
        ended=ended,
        why=why,
    )


# ---- words ----


def run_lines(s: RunStatus, now: datetime, price: float | None = None) -> list[str]:
    lines = [f"run      {tail(s.run)}" + (f" ({s.recipe})" if s.recipe else "")]
    if s.stage:
        lines.append(f"stage    {s.stage}")
    if s.samples is not None:
        lines.append(f"seen     {s.samples_seen:,} of {s.samples:,} samples ({percent(s.samples_seen, s.samples)})")
    if s.loss is not None and s.samples_per_s is not None:
        left = f", {span(s.seconds_left)} left" if s.seconds_left else ""
        lines.append(f"loss     {s.loss:.4f} at {s.samples_per_s:,.1f} images/s{left}")
    if len(s.losses) > 1:
        lines.append(f"         {sparkline(s.losses)} {max(s.losses):.4f} to {min(s.losses):.4f}")
    shares = [f"{100 * s.data_wait:.1f} % of the time for data"] if s.data_wait is not None else []
    shares += [f"MFU {100 * s.mfu:.1f} %"] if s.mfu is not None else []
    lines += [f"waits    {', '.join(shares)}"] if shares else []
    saved = "none yet" if s.checkpoint is None else f"at {s.checkpoint:,} samples"
    saved += f" {ago(s.checkpoint_at, now)}" if s.checkpoint_at else ""
    lines.append(f"saved    {saved}" + (f", {s.probes} probes" if s.probes else ""))
    lines += _attempt_lines(s)
    if s.device_hours:
        cost = f", {s.device_hours * price:,.2f} at {price:g} an hour" if price is not None else ""
        lines.append(f"used     {s.device_hours:,.2f} device-hours{cost}")
    if s.last_event_at:
        lines.append(f"event    {clean(str(s.last_event))} {ago(s.last_event_at, now)}")
    return lines + [f"problem  {problem}" for problem in s.problems]


def _attempt_lines(s: RunStatus) -> list[str]:
    if s.attempt is None:
        return []
    world = s.attempts[-1].world if s.attempts else 1
    workers = f", {world} workers" if world > 1 else ""
    lines = [f"attempt  {s.attempt} on {s.host} since {moment(s.since)}{workers}"]
    for attempt in s.attempts[-SHOWN - 1 :]:
        if attempt.ended and (attempt.why or attempt.number != s.attempt):
            why = f": {clean(attempt.why)[:300]}" if attempt.why else ""
            lines.append(f"         {attempt.number} {attempt.ended}{why}")
    if len(s.attempts) > SHOWN + 1:
        lines.append(f"         {len(s.attempts) - SHOWN - 1} earlier ones")
    return lines


# ---- probes ----


def probes_status(url: str) -> ProbesStatus:
    """The results in a folder that `xtra probe --out` wrote."""
    problems: list[str] = []
    results = []
    for name in store.names(store.join(url, "probes")):
        if not name.endswith(".json"):
            continue
        try:
            results.append(store.read_json(store.join(url, "probes", name)))
        except ValueError as error:
            problems.append(str(error))
    keys = ("set", "head", "encoder", "accuracy", "low", "high", "total", "samples_seen", "checkpoint")
    kept = tuple({key: result.get(key) for key in keys} for result in results if isinstance(result, dict))
    return ProbesStatus(url, kept, tuple(problems))


def probe_lines(s: ProbesStatus) -> list[str]:
    lines = [f"probes   {tail(s.probes)}: {len(s.results)}"]
    for result in s.results:
        accuracy = result["accuracy"]
        shown = f"{100 * accuracy:5.1f} %" if isinstance(accuracy, float | int) else "    ? "
        of = f" at {result['samples_seen']:,} samples" if result.get("samples_seen") else ""
        lines.append(f"         {shown}  {clean(str(result['set']))} {result['head']} {result['encoder']}{of}")
    return lines + [f"problem  {problem}" for problem in s.problems]
