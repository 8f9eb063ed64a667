"""`--dry-run N`: fetch and judge N links of a list, for real and as politely as ever, and predict the whole list.

One pass over the list plans it in memory and draws a uniform random sample of its links; nothing is written except
bodies on scratch, until they are judged.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest import wordnet
from ingest.config import Config
from ingest.dry_run.forecast import Forecast, Outcome, Pace, Survey, forecast
from ingest.http import Fetcher, is_named_host
from ingest.isolate import Judge
from ingest.lists import ACCEPTED, carry, label_counts, links_of, plan_batches
from ingest.plan import host_names, need_contact, no_links, strangers
from ingest.record import Link, Verdict
from ingest.run import TICK, Progress
from ingest.unit import about
from shards.dataset import table_bytes
from shards.stream import mix64
from shards.tar import BLOCK

MOST_HOSTS = 200_000  # counted exactly


def run(
    config: Config,
    links: int,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    seed: int = 0,
) -> Forecast:
    """Try `links` links of the list, the same for the same seed, and predict the whole. Nothing is written to
    config.out. `stop` returning True ends it soon, with what is known so far.

    Raises ValueError for a list or a setting that cannot work, and for many links without a contact.
    """
    if not config.urls:
        raise ValueError("--urls is missing: xtra ingest --urls LIST --dry-run N")
    if links < 1:
        raise ValueError(f"dry_run is {links}: it must be at least 1 link")
    if not config.fetch.allow_private:
        need_contact(config, links)
    begun = time.monotonic()
    reporter = _Reporter(links, progress)
    survey, sample = _survey(config, links, seed, reporter, stop)
    need_contact(config, strangers(config, pa.array([link.url for link in sample], pa.string())))
    if not survey.lines - survey.not_chosen and not stop():
        raise ValueError(no_links(config.urls, Counter(survey.left_out)))
    if survey.bad and not survey.good and not stop():
        raise ValueError(f"{config.urls}: none of its {survey.bad:,} lines can be used: give {ACCEPTED}")
    cpu, free = time.process_time(), config.fetch.unlimited
    outcomes = list(_try(config, sample, reporter, stop))
    pace = Pace(
        connections=config.fetch.connections,
        per_host=config.fetch.per_host,
        rate=config.fetch.rate if any(not is_named_host(name, free) for name in survey.hosts) else 0.0,
        cpu_seconds=time.process_time() - cpu,
        robots=config.fetch.robots,
    )
    stopped = len(outcomes) < len(sample) or stop()
    return forecast(config.urls, survey, len(sample), outcomes, pace, time.monotonic() - begun, stopped)


# --- the list ------------------------------------------------------------------------------------------------------


def _survey(
    config: Config, links: int, seed: int, reporter: _Reporter, stop: Callable[[], bool]
) -> tuple[Survey, list[Link]]:
    """One pass over the list in constant memory: its contents, and a uniform sample of its good links by row."""
    columns = config.columns
    classes = wordnet.chosen(config.classes, lambda: label_counts(config.urls, config.format, columns.plain))
    hosts, sample = HostCounts(), _Sample(links, seed, config.hash_column)
    lines = bad = 0
    left_out: Counter[str] = Counter()
    kept: dict[str, None] = {}  # names of other columns
    some: list[pa.Table] = []  # the first of these, a unit of them
    for planned in plan_batches(config.urls, config.format, columns, classes, config.rules):
        lines += planned.not_chosen + len(planned.links)
        left_out.update(planned.left_out)
        names = carry.names(planned.links)
        kept.update(dict.fromkeys(names))
        if names and not some:
            carry.check_hashes(config.urls, planned.links, config.hash_column)
        if names and sum(map(len, some)) < config.unit:
            some.append(planned.links)
        good = planned.links.filter(pc.is_null(planned.links["why"]))
        bad += len(planned.links) - len(good)
        hosts.add(host_names(good["url"]))
        sample.add(good)
        reporter.report(f"reading the list: {lines:,} lines")
        if stop():
            break
    size = 0.0
    if some:
        table = carry.joined(some).slice(0, config.unit)
        size = len(table_bytes(carry.split(table)[1])) / len(table)
    return Survey(lines, dict(left_out), bad, hosts.counts, hosts.distinct, tuple(kept), size), sample.links()


class HostCounts:
    """Links by host: exact up to MOST_HOSTS hosts; beyond, hosts with the fewest links are dropped repeatedly, so that
    the counts of the largest hosts are off by a few."""

    def __init__(self, most: int = MOST_HOSTS) -> None:
        self.counts: Counter[str] = Counter()
        self._most, self._forgotten = most, 0

    def add(self, names: pa.Array) -> None:
        for entry in pc.value_counts(names).to_pylist():
            self.counts[entry["values"]] += entry["counts"]
        if len(self.counts) > 2 * self._most:
            self._forgotten += len(self.counts) - self._most
            self.counts = Counter(dict(self.counts.most_common(self._most)))

    @property
    def distinct(self) -> int:
        """How many hosts; an upper bound once some were dropped, for they may have come again."""
        return len(self.counts) + self._forgotten


class _Sample:
    """A uniform random sample without replacement: the links whose rows hash lowest, whatever the batches are."""

    def __init__(self, size: int, seed: int, hashed: str | None = None) -> None:
        self._size, self._seed, self._hashed = size, seed, hashed
        self._held: list[pa.Table] = []
        self._draws = np.empty(0, np.uint64)
        self._limit: np.uint64 | None = None  # nothing above it can be among the lowest

    def add(self, good: pa.Table) -> None:
        draws = mix64(self._seed, good["row"].to_numpy())
        if self._limit is not None:
            low = draws < self._limit
            good, draws = good.filter(pa.array(low)), draws[low]
        self._held.append(good)
        self._draws = np.concatenate([self._draws, draws])
        if len(self._draws) > 2 * self._size:
            self._cut()

    def _cut(self) -> None:
        table = carry.joined(self._held) if self._held else None
        if table is None or not self._draws.size:
            return
        lowest = np.argsort(self._draws, kind="stable")[: self._size]
        self._held = [table.take(pa.array(lowest))]
        self._draws = self._draws[lowest]
        if len(lowest) == self._size:
            self._limit = self._draws[-1]

    def links(self) -> list[Link]:
        """The links in random order, so that hosts are mixed."""
        self._cut()
        found = (links_of(*carry.split(table), self._hashed) for table in self._held)
        return [link for links in found for link in links if isinstance(link, Link)]


# --- the links -----------------------------------------------------------------------------------------------------


def _try(config: Config, sample: list[Link], reporter: _Reporter, stop: Callable[[], bool]) -> Iterator[Outcome]:
    """Fetch and judge the sample."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="xtra-dry-run-", dir=config.scratch, ignore_cleanup_errors=True)
    except OSError as error:
        where = config.scratch or tempfile.gettempdir()
        raise ValueError(f"{where}: cannot hold scratch files ({error.strerror}): set --scratch to a folder") from None
    with folder as scratch, closing(Judge()) as judge:
        fetcher = Fetcher(config.fetch, Path(scratch))
        try:
            for fetched in fetcher.run(iter(sample), stop):
                if fetched is not None:
                    verdict = judge(fetched, config.filter)
                    reporter.count(verdict)
                    yield _outcome(verdict)
                reporter.report(fetcher.paused(), fetcher)
        finally:
            fetcher.close()


def _outcome(verdict: Verdict) -> Outcome:
    fetched, picture = verdict.fetched, verdict.picture
    members: tuple[int, ...] = ()
    if picture is not None:
        members = len(picture.body), len(about(fetched.link, picture.sha256, picture.width, picture.height))
    return Outcome(
        host=host_names(pa.array([fetched.link.url]))[0].as_py(),
        reason=verdict.reason,
        fetched_bytes=verdict.fetched_bytes or 0,
        stored_bytes=sum(BLOCK + BLOCK * math.ceil(length / BLOCK) for length in members),
        requests=fetched.attempts + (fetched.attempts > 0 and fetched.final_url != fetched.link.url),
        seconds=fetched.transfer_ms / 1000,
    )


class _Reporter:
    """Counts the dry run's progress, and reports it every TICK."""

    def __init__(self, links: int, progress: Callable[[Progress], None] | None) -> None:
        self._links, self._progress = links, progress
        self._begun = time.monotonic()
        self._next = 0.0
        self._kept = self._bytes = 0
        self._reasons: Counter[str] = Counter()

    def count(self, verdict: Verdict) -> None:
        self._bytes += verdict.fetched_bytes or 0
        if verdict.reason is None:
            self._kept += 1
        else:
            self._reasons[str(verdict.reason)] += 1

    def report(self, note: str, fetcher: Fetcher | None = None) -> None:
        now = time.monotonic()
        if self._progress is None or now < self._next:
            return
        self._next = now + TICK
        done = self._kept + self._reasons.total()
        self._progress(
            Progress(
                links=self._links,
                units=0,
                done=done,
                units_done=0,
                kept=self._kept,
                reasons=dict(self._reasons),
                fetched_bytes=self._bytes,
                seconds=now - self._begun,
                done_now=done,
                hosts=tuple(fetcher.hosts()) if fetcher is not None else (),
                note=note,
            )
        )
