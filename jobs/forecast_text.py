"""A dry run's forecast as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ingest.dry_run import KNOWN
from ingest.lists import carry
from jobs.ingest_display import clean
from shards.figures import percent, size, span

if TYPE_CHECKING:
    from ingest.dry_run import Forecast


def lines(forecast: Forecast) -> list[str]:
    """The forecast as a table of at most 80 columns."""
    return [
        *_title(forecast),
        "",
        *_shares(forecast),
        "",
        *_costs(forecast),
        "",
        *_times(forecast),
        "",
        *_slow(forecast),
    ]


def _title(f: Forecast) -> Iterator[str]:
    name = f.urls.rstrip("/").rsplit("/", 1)[-1]
    yield f"a dry run of {clean(name, 66)}"
    yield f"{f.sampled:,} of {f.links:,} links tried in {span(f.took)}; nothing was written"
    for rule, n in f.not_chosen_by.items():
        what = "belong to other classes" if rule == carry.CLASSES else f"are not {clean(rule, 40)}"
        yield f"{n:,} more lines {what}"
    if f.stopped:
        yield f"stopped at {f.sampled:,} of {f.wanted:,}: slow links are missing, so it is too optimistic"


def _shares(f: Forecast) -> Iterator[str]:
    yield f"{'':20}{'share':>9}   {'95 % interval':<21}{'links of the list':>20}"
    rows = {"kept": f.kept, **dict(sorted(f.reasons.items(), key=lambda entry: -entry[1].value))}
    for name, e in rows.items():
        share, low, high = (percent(part, f.links) for part in (e.value, e.low, e.high))
        yield f"{name:20}{share:>9}   {f'{low} to {high}':<21}{e.value:>20,.0f}"
    yield "(minus duplicates and placeholders, which only the whole list shows)"


def _costs(f: Forecast) -> Iterator[str]:
    for name, e in (("fetched", f.fetched_bytes), ("stored", f.stored_bytes)):
        yield f"{name:20}{size(e.value):>9}   {size(e.low)} to {size(e.high)}"
    if f.columns:
        yield f"{'kept columns':20}{size(f.column_bytes):>9}   {clean(', '.join(f.columns), 48)}"
    robots = ", robots.txt included" if f.pace.robots else ""
    yield f"{'requests':20}{f.requests:>9,}   to {f.host_count:,} host{'s' * (f.host_count != 1)}{robots}"


def _times(f: Forecast) -> Iterator[str]:
    bounds = {
        "connections": (f.connection_seconds, f"{_each(f.seconds_each)} a link, {f.pace.connections} at once"),
        "CPU": (f.cpu_seconds, f"{_each(f.cpu_seconds / max(f.links - f.bad, 1))} a link on one core"),
        "one host": (f.host_seconds, clean(f.hosts[0].name, 40) if f.hosts else ""),
    }
    bound = max(bounds, key=lambda name: bounds[name][0])
    yield f"{'time, 1 worker':20}{span(f.seconds):>9}   bounded by {bound}:"
    for name, (seconds, why) in bounds.items():
        yield f"  {name:18}{span(seconds):>9}   {why}"
    workers = math.ceil(max(f.connection_seconds, f.cpu_seconds) / f.host_seconds) if f.host_seconds else 1
    if workers > 1:
        yield f"more workers help, up to {workers:,}: then {clean(f.hosts[0].name, 30)} is the limit"
    elif bound == "one host":
        yield "more workers do not help: no host is asked faster than --fetch.per-host says"


def _slow(f: Forecast) -> Iterator[str]:
    yield f"{'hosts that take longest':36}{'links':>12}{'kept':>8}{'s/link':>9}{'time':>12}"
    for host in f.hosts:
        kept = f"{100 * host.kept / host.sampled:.0f} %" if host.sampled else "?"
        each = f"{host.seconds_each:.2f}" if host.sampled >= KNOWN else "?"
        yield f"{clean(host.name, 34):36}{host.links:>12,}{kept:>8}{each:>9}{span(host.seconds):>12}"


def _each(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
