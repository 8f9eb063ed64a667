"""A trace as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.ingest_display import clean
from jobs.trace.lives import Answer, Life
from jobs.trace.seen import RunSaw, SeenBy, Sighting
from jobs.trace.trace import Trace

IN_FULL = 8  # up to this many lives are shown in full; beyond it, one line each
STEPS = 6  # most steps shown for a sample in a run
LINES = 200  # most lines of the short form


def text(trace: Trace) -> str:
    """Each life in full, or in one line if there are many; then what each run and checkpoint saw."""
    few = len(trace.lives) <= IN_FULL
    lines: list[str] = []
    for at, life in enumerate(trace.lives):
        if few:
            lines += [*_life(life), *(line for run in trace.runs for line in _seen(run, run.seen[at])), ""]
        elif at < LINES:
            lines.append(_short(life, [run.seen[at] for run in trace.runs]))
    if len(trace.lives) > LINES:
        lines.append(f"and {len(trace.lives) - LINES:,} more: --json has them all")
    for run in trace.runs:
        lines += _of_run(run, len(trace.lives))
    lines += [f"unknown  {clean(word, 200)} names no link" for word in trace.unknown[:LINES]]
    if len(trace.unknown) > LINES:
        lines.append(f"and {len(trace.unknown) - LINES:,} more that name no link")
    return "\n".join(lines).strip("\n")


def _life(life: Life) -> Iterator[str]:
    labels = f", labels {' '.join(life.labels)}" if life.labels else ""
    yield f"{life.key}  in {life.dataset}"
    yield f"  link     row {life.row:,}{f', {life.line}' if life.line else ''}{labels}"
    yield f"           {clean(life.url, 300)}"
    for answer in life.answers:
        yield f"  asked    {_answer(answer)}"
        if answer.final_url and answer.final_url != life.url:
            yield f"           redirected to {clean(answer.final_url, 300)}"
    if life.waiting is not None:
        yield f"  asked    unit {life.waiting}, which is not done yet"
    if kept := life.kept:
        yield f"  sha256   {kept.sha256}" + (
            f", as fetched {kept.fetched_sha256}" if kept.fetched_sha256 not in (None, kept.sha256) else ""
        )
        yield f"  stored   {kept.tar}, {kept.member} at {kept.offset:,}, {kept.length:,} bytes"
    for version in life.versions:
        yield f"  version  {version.number} ({version.digest[:16]}): {version.state}"


def _answer(answer: Answer) -> str:
    when = f", {answer.fetched_at[:19].replace('T', ' ')}" if answer.fetched_at else ""
    said = f": {clean(answer.detail, 200)}" if answer.detail else ""
    status = f", HTTP {answer.http_status}" if answer.http_status else ""
    tries = f", {answer.attempts} requests" if answer.attempts and answer.attempts > 1 else ""
    size = f", {answer.source_format or 'picture'} {answer.width} x {answer.height}" if answer.width else ""
    return f"unit {answer.unit}{when}: {answer.reason}{status}{tries}{size}{said}"


def _seen(run: RunSaw, one: SeenBy) -> Iterator[str]:
    if not one.sightings:
        why = "not in its steps so far" if one.selected else "the version that it reads does not select it"
        yield f"  run      {run.run}: never: {why}"
        return
    more = ", at least" if run.firsts_only else ""
    saved = f"; in checkpoints {_numbers(one.checkpoints)}" if one.checkpoints else "; in no checkpoint"
    yield f"  run      {run.run}: {one.times:,} times{more}{saved}"
    yield from (f"           {_sighting(run, sighting)}" for sighting in one.sightings[:STEPS])
    if len(one.sightings) > STEPS:
        last = one.sightings[-1]
        yield f"           … {len(one.sightings) - STEPS:,} more, the last at step {last.step:,}: --json has them all"


def _sighting(run: RunSaw, one: Sighting) -> str:
    of = f" of {one.run}" if one.run != run.run else ""
    place = f", image {one.index:,} of {one.batch:,}" if one.index is not None else ""
    rank = f" (rank {one.rank}, its image {one.rank_index:,})" if one.rank is not None else ""
    epoch = f"epoch {one.epoch:,}, " if one.epoch is not None else ""
    attempt = f", attempt {one.attempt}" if one.attempt is not None else ""
    after = f", samples seen {one.samples_seen:,}"
    note = "; undone: a later attempt restarted before it" if one.undone else ""
    note += f"; it did not decode, {one.instead} was shown" if one.instead else ""
    note += f"; in place of {one.in_place_of}, which did not decode" if one.in_place_of else ""
    return f"{epoch}step {one.step:,}{of}{place}{rank}{after}{attempt}{note}"


def _short(life: Life, seen: Sequence[SeenBy]) -> str:
    state = life.answers[-1].reason if life.answers else "not asked for yet"
    newest = f", newest version: {life.versions[-1].state}" if life.versions else ""
    times = sum(one.times for one in seen)
    runs = f", seen {times:,} times by {sum(one.times > 0 for one in seen)} of {len(seen)} runs" if seen else ""
    return f"{life.key}  row {life.row:,}: {state}{newest}{runs}  {clean(life.url, 120)}"


def _of_run(run: RunSaw, asked: int) -> Iterator[str]:
    saw = sum(one.times > 0 for one in run.seen)
    yield f"{run.run}: {saw:,} of {asked:,} seen in {run.samples_seen:,} samples, {run.steps:,} steps"
    for at, count in run.checkpoints.items():
        yield f"  checkpoint {at:,}: {count:,} of {asked:,}"
    if run.firsts_only:
        yield "  only each sample's first sighting is shown: name fewer samples to see every step"
    yield from (f"  {remark}" for remark in run.remarks)


def _numbers(values: Sequence[int]) -> str:
    shown = ", ".join(f"{value:,}" for value in values[:STEPS])
    return shown + (f" and {len(values) - STEPS} more" if len(values) > STEPS else "")
