"""Verify a dataset version: one pass over every tar and index, each problem named by shard and key.

These must agree: the manifest with the commits and its rules; the commit with the bytes of tar and index (size,
sha256); the index with the plan (the same links), with the commit's counts, and with the tar's members (offset, length,
json; `check_tar` says when the sha256 of each is computed). A link that was fetched again counts once, with its newest
verdict.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import manifest, rules, selection, store
from shards.check_tar import check_tar, kept_rows
from shards.config import CheckConfig as Config
from shards.dataset import (
    DAMAGE,
    INDEX_SCHEMA,
    KEPT,
    Commit,
    in_one_line,
    read_columns,
    read_commit,
    read_generations,
    read_info,
    read_plan,
)
from shards.parallel import map_in_order


@dataclass(frozen=True)
class Problem:
    shard: str  # the tar's name; "manifest" for problems of the whole version
    key: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key + ': ' if self.key else ''}{self.what}"


@dataclass(frozen=True)
class CheckResult:
    dataset: str
    digest: str
    shards: int
    links: int
    kept: int
    samples: int
    bytes: int  # of tars that were read
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def absent(version: manifest.Manifest) -> list[str]:
    """Tars of a version that are missing or have another size, and missing indexes: one listing, no object is read."""
    there = {entry.name: entry.bytes for entry in store.entries(store.join(version.dataset, "shards"))}
    lost = [s.tar for s in version.shards if not s.foreign and there.get(s.tar) != s.tar_bytes]
    return sorted([*lost, *(s.index for s in version.shards if s.index not in there)])


def run(config: Config, progress: Callable[[int, int], None] | None = None) -> CheckResult:
    """Check every shard of the version; `progress(shards done, shards)`. Damage is reported as problems in the result.

    Raises ValueError if there is no such dataset or version, or if its manifest, which lists what to check, is damaged.
    """
    if config.jobs < 1:
        raise ValueError(f"jobs is {config.jobs}; it must be at least 1")
    try:
        version = manifest.read_manifest(config.dataset)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{config.dataset}: its manifest is damaged ({error!r}): check another version") from None
    problems: list[Problem] = []
    size, totals, superseded, ruled = 0, Counter[str](), Counter[str](), Counter[str]()
    verdicts = _Verdicts(version)
    columns = bool(read_info(version.dataset).columns)
    reports = map_in_order(
        lambda number: _check_shard(version, number, config.decode, columns), range(len(version.shards)), config.jobs
    )
    for done, report in enumerate(reports, start=1):
        verdicts.add(report)
        listed, more = (
            report.problems[: config.problems_per_shard],
            len(report.problems) - config.problems_per_shard,
        )
        problems += listed
        if more > 0:
            problems.append(Problem(report.shard, None, f"and {more} more problems"))
        size += report.bytes
        totals.update(report.counts)
        superseded.update(report.superseded)
        ruled.update(report.ruled)
        if progress:
            progress(done, len(version.shards))
    totals.subtract(superseded)
    problems += _check_counts(version, totals, ruled)
    return CheckResult(
        dataset=version.dataset,
        digest=version.digest,
        shards=len(version.shards),
        links=version.links,
        kept=version.kept,
        samples=version.samples,
        bytes=size,
        problems=tuple(problems),
    )


def _check_counts(version: manifest.Manifest, totals: Counter[str], ruled: Counter[str]) -> Iterator[Problem]:
    """links = kept + sum(reasons) and samples = kept - deselected, counted from the indexes."""
    claimed = Counter({KEPT: version.kept, **version.reasons})
    for reason in sorted({*claimed, *totals}):
        if claimed[reason] != totals[reason]:
            yield Problem("manifest", None, f"says {claimed[reason]} {reason}, the indexes hold {totals[reason]}")
    if version.links != sum(totals.values()):
        yield Problem("manifest", None, f"says {version.links} links, the indexes hold {sum(totals.values())}")
    deselected = Counter({reason: n for reason, n in version.deselected.items() if reason != "subset"})
    for reason in sorted({*deselected, *ruled}):
        if deselected[reason] != ruled[reason]:
            yield Problem("manifest", None, f"deselects {deselected[reason]} as {reason}, its rules {ruled[reason]}")
    if version.rules:
        for what in rules.verify(version.dataset, version.rules):
            yield Problem("manifest", None, what)
    if version.samples != version.kept - sum(version.deselected.values()):
        yield Problem("manifest", None, f"says {version.samples} samples, but kept - deselected is another number")


class _Report:
    """What one shard contributes to the result."""

    def __init__(self, shard: str):
        self.shard = shard
        self.problems: list[Problem] = []
        self.counts = Counter[str]()  # rows of the index by reason
        self.superseded = Counter[str]()
        self.ruled = Counter[str]()  # rows that the version's rules take out
        self.bytes = 0
        self.unit = -1
        self.rows = np.empty(0, np.int64)
        self.reasons: list[str] = []  # of the rows

    def add(self, what: str, key: str | None = None) -> None:
        self.problems.append(Problem(self.shard, key, what))


class _Verdicts:
    """The verdict of every row so far, if there was a retry: a byte for each link. Shards are added oldest first."""

    def __init__(self, version: manifest.Manifest):
        generations = read_generations(version.dataset)
        self.first_retry = min((g.first_unit for g in generations), default=None)
        self._codes: dict[str, int] = {}  # from 1
        self._code_N = np.zeros(0, np.uint8)  # by row; 0: no verdict yet

    def add(self, report: _Report) -> None:
        """Check that a retry replaces the verdicts that its commit lists, and none that kept a picture."""
        rows = report.rows
        if self.first_retry is None or not len(rows):
            return
        if rows.max() >= len(self._code_N):
            self._code_N = np.concatenate([self._code_N, np.zeros(1 + int(rows.max()), np.uint8)])
        old = self._code_N[rows]
        names = ["", *self._codes]
        replaced = Counter({names[code]: int(n) for code, n in enumerate(np.bincount(old)) if n and code})
        if replaced != +report.superseded:
            report.add(f"replaces {dict(replaced)} of older units, its commit says {dict(report.superseded)}")
        if replaced[KEPT]:
            report.add(f"asks again for {replaced[KEPT]} links that older units kept")
        if report.unit >= self.first_retry and (new := int((old == 0).sum())):
            report.add(f"asks again for {new} links that no older unit has")
        self._code_N[rows] = [self._codes.setdefault(reason, len(self._codes) + 1) for reason in report.reasons]


def _check_shard(version: manifest.Manifest, number: int, decode: bool, columns: bool) -> _Report:
    shard = version.shards[number]
    report = _Report(shard.tar)
    report.unit = shard.unit
    try:
        commit = read_commit(version.dataset, shard.unit)
    except (store.StoreError, TypeError, AssertionError) as error:
        report.add(f"its commit cannot be read: {error}")
        commit = None
    if commit:
        report.superseded.update(commit.supersedes)
        for name in ("tar", "index", "tar_bytes", "tar_sha256", "links", "kept", "format"):
            said = version.format if name == "format" else getattr(shard, name)
            if getattr(commit, name) != said:
                report.add(f"the manifest has {name} {said}, the commit {getattr(commit, name)}")
    index = _read_index(version, shard, commit, report)
    if index is None:
        return report
    _check_index(version, number, index, commit, report)
    if columns:
        _check_columns(version.dataset, shard.unit, index, report)
    rows = kept_rows(index.filter(pc.field("reason") == KEPT))
    report.bytes = check_tar(version, shard, rows, decode, report.add)
    return report


def _read_index(
    version: manifest.Manifest, shard: manifest.Shard, commit: Commit | None, report: _Report
) -> pa.Table | None:
    try:
        body = store.read(store.join(version.dataset, "shards", shard.index))
        if commit and hashlib.sha256(body).hexdigest() != commit.index_sha256:
            report.add(f"the index {shard.index} does not have the sha256 of its commit")
        table = pq.ParquetFile(pa.BufferReader(body)).read(use_threads=False)
        table.validate(full=True)
    except DAMAGE as error:
        report.add(f"the index cannot be read: {in_one_line(error)}")
        return None
    if not table.schema.equals(INDEX_SCHEMA):
        report.add(f"the index {shard.index} does not have the columns of an index")
        return None
    return table


_PLANNED = ["key", "url", "labels", "row"]


def _check_index(
    version: manifest.Manifest, number: int, index: pa.Table, commit: Commit | None, report: _Report
) -> None:
    """Check the index against the plan, the commit's counts, and the manifest's selection."""
    shard = version.shards[number]
    report.rows, report.reasons = index["row"].to_numpy(), index["reason"].to_pylist()
    report.counts = Counter(report.reasons)
    if commit and report.counts != Counter({KEPT: commit.kept, **commit.reasons}):
        report.add(f"the index counts {dict(report.counts)}, the commit kept {commit.kept}, {commit.reasons}")
    try:
        plan = read_plan(version.dataset, shard.unit)
        planned = plan.select(_PLANNED)
    except (store.StoreError, pa.ArrowException, KeyError) as error:
        report.add(f"the plan cannot be read: {in_one_line(error)}")
    else:
        rows = index.select(_PLANNED)
        if len(rows) != len(planned):
            report.add(f"the index has {len(rows)} rows, the plan {len(planned)} links")
        if not rows.equals(planned):
            for row, link in zip(rows.to_pylist(), planned.to_pylist()):
                if row != link:
                    report.add(f"row {row['row']} of the index is not the link that was planned", link["key"])
    for name in ("key", "offset" if shard.foreign else "member"):  # foreign tars may repeat a name
        column = index[name].drop_null()
        if pc.count_distinct(column).as_py() < len(column):
            for value, times in Counter(column.to_pylist()).items():
                if times > 1:
                    report.add(f"{name} {value} is {times} times in the index", str(value))
    try:
        _check_rules(version, number, index, report)
        selected = report.counts[KEPT]
        if version.rules or version.subset:
            selected = selection.selected_index(version, number, ["key"]).num_rows
    except store.StoreError as error:
        report.add(str(error))
        return
    if selected != shard.selected:
        report.add(f"the manifest selects {shard.selected} samples, its rules {selected}")


def _check_columns(dataset: str, unit: int, index: pa.Table, report: _Report) -> None:
    """Check that the list's other columns belong to the same rows."""
    try:
        table = read_columns(dataset, unit)
    except (store.StoreError, pa.ArrowException) as error:
        report.add(f"the list's other columns cannot be read: {error}")
        return
    if table.schema.names[:2] != ["key", "row"] or not table.select([0, 1]).equals(index.select(["key", "row"])):
        report.add("the list's other columns belong to other rows than the index")


def _check_rules(version: manifest.Manifest, number: int, index: pa.Table, report: _Report) -> None:
    """Check that every rule is about a row that the index keeps, and does one thing to it."""
    if not version.rules:
        return
    kept = {row for row, reason in zip(report.rows.tolist(), report.reasons) if reason == KEPT}
    for found in rules.read_rules(version.dataset, version.rules, version.shards[number].unit).to_pylist():
        if found["row"] not in kept:
            report.add(f"a rule is about row {found['row']}, which the index does not keep")
        if (found["reason"] is None) == (found["labels"] is None):
            report.add(f"the rule about row {found['row']} neither takes it out nor joins labels")
        if found["reason"]:
            report.ruled[found["reason"]] += 1
