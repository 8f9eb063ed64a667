"""What a sample of links predicts for the whole list: kept, reasons, bytes, requests and time."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import NamedTuple

from ingest.record import Reason
from shards.figures import Z, wilson

KNOWN = 5  # answers of a host from which its own speed is used, not the mean of all
SLOWEST = 5


class Outcome(NamedTuple):
    """The result of one link of the sample."""

    host: str
    reason: Reason | None  # None: kept
    fetched_bytes: int
    stored_bytes: int  # in the tar
    requests: int
    seconds: float  # in transfers


@dataclass(frozen=True)
class Survey:
    """The result of one pass over the list."""

    lines: int
    left_out: Mapping[str, int]  # lines, by the rule that leaves them out
    bad: int  # lines without a usable link: known exactly
    hosts: Mapping[str, int]  # links by host; if there are very many, the largest
    host_count: int  # distinct; an upper bound if there are very many
    columns: tuple[str, ...] = ()  # other columns that are kept
    column_bytes: float = 0.0  # a link, in columns/

    @property
    def not_chosen(self) -> int:
        return sum(self.left_out.values())

    @property
    def good(self) -> int:
        """Links that would be fetched."""
        return self.lines - self.not_chosen - self.bad


@dataclass(frozen=True)
class Pace:
    """How fast we fetch, and at what cost."""

    connections: int
    per_host: int  # transfers at once
    rate: float  # requests/s to one host; 0: no limit
    cpu_seconds: float  # that the sample took
    robots: bool


@dataclass(frozen=True)
class Estimate:
    """A number about the whole list with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class HostForecast:
    """One host, all its links fetched at the limits."""

    name: str
    links: int
    sampled: int
    kept: int  # of the sampled
    seconds_each: float
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """Counts are links of the whole list, sizes are bytes, times are seconds of one worker."""

    urls: str
    lines: int
    not_chosen: int  # lines that the rules (classes, --where) leave out
    bad: int  # lines without a usable link
    host_count: int
    wanted: int  # links of the sample
    sampled: int  # those with an answer: fewer if it was stopped
    kept: Estimate
    reasons: dict[str, Estimate]
    fetched_bytes: Estimate
    stored_bytes: Estimate
    requests: int
    pace: Pace
    seconds_each: float  # of one link, in transfers
    connection_seconds: float  # if the connections are the limit
    cpu_seconds: float  # if one core is the limit
    host_seconds: float  # if the slowest host is the limit
    hosts: tuple[HostForecast, ...]  # those that take longest
    took: float  # the dry run itself
    stopped: bool
    not_chosen_by: dict[str, int] = field(default_factory=dict)  # by rule
    columns: tuple[str, ...] = ()  # of the list, that are kept
    column_bytes: int = 0  # of them in columns/; what they take in the tars is in stored_bytes

    @property
    def links(self) -> int:
        """Links of the dataset that would be made, bad lines included."""
        return self.lines - self.not_chosen

    @property
    def seconds(self) -> float:
        return max(self.connection_seconds, self.cpu_seconds, self.host_seconds)


def forecast(
    urls: str, survey: Survey, wanted: int, outcomes: Sequence[Outcome], pace: Pace, took: float, stopped: bool
) -> Forecast:
    """Extrapolate the outcomes of a uniform random sample of the good links to the whole list."""
    n, good = len(outcomes), survey.good
    counts = Counter(outcome.reason for outcome in outcomes)
    reasons = {str(reason): _count(hits, n, good) for reason, hits in counts.most_common() if reason is not None}
    if survey.bad:
        seen = reasons.get(Reason.BAD_URL, Estimate(0, 0, 0))
        bounds = (seen.value, seen.low, seen.high)
        reasons[str(Reason.BAD_URL)] = Estimate(*(survey.bad + bound for bound in bounds))
    asked = [outcome.requests for outcome in outcomes]
    each = _mean([outcome.seconds for outcome in outcomes])
    hosts = _hosts(survey, outcomes, pace, each)
    return Forecast(
        urls=urls,
        lines=survey.lines,
        not_chosen=survey.not_chosen,
        bad=survey.bad,
        host_count=survey.host_count,
        wanted=wanted,
        sampled=n,
        kept=_count(counts[None], n, good),
        reasons=reasons,
        fetched_bytes=_total([outcome.fetched_bytes for outcome in outcomes], good),
        stored_bytes=_total([outcome.stored_bytes for outcome in outcomes], good),
        requests=round(_mean(asked) * good) + (survey.host_count if pace.robots else 0),
        pace=pace,
        seconds_each=each,
        connection_seconds=each * good / pace.connections,
        cpu_seconds=pace.cpu_seconds * good / max(n, 1),
        host_seconds=hosts[0].seconds if hosts else 0.0,
        hosts=hosts,
        took=took,
        stopped=stopped,
        not_chosen_by=dict(survey.left_out),
        columns=survey.columns,
        column_bytes=round(survey.column_bytes * (survey.lines - survey.not_chosen)),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _count(hits: int, n: int, good: int) -> Estimate:
    low, high = wilson(hits, n)
    return Estimate(good * hits / max(n, 1), good * low, good * high)


def _total(values: Sequence[float], good: int) -> Estimate:
    """The sum over the list, with the normal interval of a mean."""
    mean = _mean(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
    half = Z * spread / math.sqrt(max(len(values), 1))
    return Estimate(good * mean, good * max(0.0, mean - half), good * (mean + half))


def _hosts(survey: Survey, outcomes: Sequence[Outcome], pace: Pace, each: float) -> tuple[HostForecast, ...]:
    """The hosts that take longest: we cannot make a host answer sooner, or sooner than is polite."""
    seen: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        seen[outcome.host].append(outcome)
    requests = _mean([outcome.requests for outcome in outcomes]) or 1.0

    def of(name: str, links: int) -> HostForecast:
        own = seen.get(name, [])
        mean = _mean([outcome.seconds for outcome in own]) if len(own) >= KNOWN else each
        slowest = max(links * mean / pace.per_host, links * requests / pace.rate if pace.rate else 0.0)
        return HostForecast(name, links, len(own), sum(outcome.reason is None for outcome in own), mean, slowest)

    return tuple(nlargest(SLOWEST, (of(*host) for host in survey.hosts.items()), key=lambda host: host.seconds))
