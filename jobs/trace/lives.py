"""A dataset's records of some samples: the line, every verdict, where the picture is, and the versions selecting it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.select import Exclusion, named_columns, named_rows
from shards import manifest, store
from shards.dataset import KEPT, Commit, committed_units, planned_units, read_commits, read_plan, read_table
from shards.manifest import Manifest, Shard
from shards.rules import read_rules
from shards.selection import key_hash, selected_index

MOST = 200_000  # links that one call traces
_AT_ONCE = 8  # indexes read at once
_OF_THE_LINK = ["key", "url", "labels", "row"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one fetch; for a kept link also where its picture is. None where the dataset has no record."""

    unit: int
    reason: str  # "kept", or a reason of docs/design.md
    detail: str | None
    http_status: int | None
    attempts: int | None
    fetched_at: str | None  # ISO 8601
    elapsed_ms: int | None
    fetched_bytes: int | None
    fetched_sha256: str | None
    source_format: str | None
    final_url: str | None
    sha256: str | None  # of the member
    width: int | None
    height: int | None
    tar: str | None
    member: str | None
    offset: int | None  # of the member's data in the tar, bytes
    length: int | None


@dataclass(frozen=True, slots=True)
class Selected:
    """A sample's state in a version: `selected`, the reason why not, or that the version does not have its unit yet."""

    number: int
    digest: str
    state: str


@dataclass(frozen=True, slots=True)
class Life:
    """One link of a dataset."""

    dataset: str
    key: str
    url: str
    labels: tuple[str, ...]
    row: int  # number of the link in the list, from 0
    line: str | None  # FILE:LINE in the list, if the list was given
    named_by: tuple[str, ...]  # the words that matched it
    answers: tuple[Answer, ...]  # oldest first
    waiting: int | None  # the unit that has yet to fetch it
    versions: tuple[Selected, ...] = ()

    @property
    def kept(self) -> Answer | None:
        return self.answers[-1] if self.answers and self.answers[-1].reason == KEPT else None


@dataclass
class _Found:
    link: tuple[str, str, tuple[str, ...], int]
    named_by: set[int] = dataclasses.field(default_factory=set)
    answers: dict[int, Answer] = dataclasses.field(default_factory=dict)
    waiting: int | None = None


_COLUMNS = [*_OF_THE_LINK, *(field.name for field in dataclasses.fields(Answer) if field.name not in ("unit", "tar"))]


def find(
    dataset: str, what: Exclusion, progress: Callable[[int, int, str], None] = lambda done, total, what: None
) -> list[Life]:
    """Every link of a dataset that a line names, by row; one pass over its indexes, with a few in memory at a time.

    Raises ValueError when more than MOST links are named.
    """
    units = _units(dataset)
    found: dict[int, _Found] = {}

    def named(unit: int) -> Iterator[tuple[int, list[dict[str, Any]], list[int]]]:
        index = store.join(dataset, "shards", units[unit].index)
        rows, lines = named_rows(read_table(index, named_columns(what)), what)
        if len(rows):
            yield unit, read_table(index, _COLUMNS).take(rows).to_pylist(), lines.tolist()

    for hits in _each(named, units, progress, "indexes"):
        for unit, rows, lines in hits:
            for line, values in zip(lines, rows):
                _of(found, values).named_by.add(line)
                found[values["row"]].answers[unit] = _answer(units[unit], dataset, values)
            if len(found) > MOST:
                raise ValueError(f"{dataset}: more than {MOST:,} links are named: trace fewer at once")
    for unit in sorted(set(planned_units(dataset)) - units.keys()):
        plan = read_plan(dataset, unit)
        rows, lines = named_rows(plan, what)
        for line, values in zip(lines.tolist(), plan.take(rows).to_pylist()):
            _of(found, values).named_by.add(line)
            found[values["row"]].waiting = unit
    _older_answers(dataset, units, found, progress)
    return [_life(dataset, what, found[row]) for row in sorted(found)]


def _units(dataset: str) -> dict[int, Shard]:
    """The committed units, from the newest version, or from their commits."""
    numbers = manifest.numbers(dataset, "versions", ".json")
    shards = {shard.unit: shard for shard in (manifest.read_manifest(dataset).shards if numbers else ())}
    fresh = read_commits(dataset, [unit for unit in committed_units(dataset) if unit not in shards])
    return shards | {commit.unit: _shard(commit) for commit in fresh}


def _shard(commit: Commit) -> Shard:
    names = {field.name for field in dataclasses.fields(Shard)} - {"selected"}
    return Shard(**{name: getattr(commit, name) for name in names}, selected=commit.kept)


def _each(
    work: Callable[[int], Any], units: Iterable[int], progress: Callable[[int, int, str], None], what: str
) -> Iterator[list[Any]]:
    """The items that `work` yields for each unit, in order."""
    units = sorted(units)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trace") as pool:
        for at in range(0, len(units), 4 * _AT_ONCE):
            yield from pool.map(lambda unit: list(work(unit)), units[at : at + 4 * _AT_ONCE])
            progress(min(at + 4 * _AT_ONCE, len(units)), len(units), what)


def _of(found: dict[int, _Found], values: dict[str, Any]) -> _Found:
    key, url, labels, row = (values[name] for name in _OF_THE_LINK)
    return found.setdefault(row, _Found((key, url, tuple(labels or ()), row)))


def _answer(shard: Shard, dataset: str, values: dict[str, Any]) -> Answer:
    answer = {name: value for name, value in values.items() if name not in _OF_THE_LINK}
    answer["fetched_at"] = answer["fetched_at"].isoformat(timespec="milliseconds") if answer["fetched_at"] else None
    return Answer(unit=shard.unit, tar=shard.tar_url(dataset) if values["reason"] == KEPT else None, **answer)


def _older_answers(
    dataset: str, units: dict[int, Shard], found: dict[int, _Found], progress: Callable[[int, int, str], None]
) -> None:
    """Add the rows' answers from other units: a sha256 matches only one of several answers."""
    if not found or not manifest.numbers(dataset, "generations", ".json"):
        return
    wanted = pa.array(sorted(found), pa.int64())

    def answers(unit: int) -> Iterator[tuple[int, dict[str, Any]]]:
        index = store.join(dataset, "shards", units[unit].index)
        rows = read_table(index, ["row"])["row"]
        here = np.flatnonzero(pc.is_in(rows, value_set=wanted).to_numpy(zero_copy_only=False))
        missing = [at for at, row in zip(here, rows.take(here).to_pylist()) if unit not in found[row].answers]
        if missing:
            yield from ((unit, values) for values in read_table(index, _COLUMNS).take(missing).to_pylist())

    for pairs in _each(answers, units, progress, "indexes, for older answers"):
        for unit, values in pairs:
            found[values["row"]].answers[unit] = _answer(units[unit], dataset, values)


def _life(dataset: str, what: Exclusion, found: _Found) -> Life:
    key, url, labels, row = found.link
    answers = tuple(found.answers[unit] for unit in sorted(found.answers))
    named_by = tuple(what.lines[line] for line in sorted(found.named_by))
    return Life(dataset, key, url, labels, row, None, named_by, answers, found.waiting)


# --- versions ------------------------------------------------------------------------------------------------------


def with_versions(dataset: str, lives: Sequence[Life]) -> list[Life]:
    """The lives with their state in each version of the dataset."""
    said: list[list[Selected]] = [[] for _ in lives]
    for number in manifest.numbers(dataset, "versions", ".json") if lives else ():
        digest = store.read_json(store.join(dataset, "versions", f"{number:06d}.json"))["digest"]
        for mine, state in zip(said, states(manifest.read_manifest(f"{dataset}@{digest}"), lives)):
            mine.append(Selected(number, digest, state))
    return [dataclasses.replace(life, versions=tuple(mine)) for life, mine in zip(lives, said)]


def states(version: Manifest, lives: Sequence[Life]) -> list[str]:
    """For each life, `selected`, or why the version does not select it."""
    units = {shard.unit for shard in version.shards}
    found = ["not in it"] * len(lives)
    kept: dict[int, list[int]] = defaultdict(list)
    for at, life in enumerate(lives):
        known = [answer for answer in life.answers if answer.unit in units]
        found[at] = known[-1].reason if known else found[at]
        if found[at] == KEPT:
            found[at] = "selected"
            kept[known[-1].unit].append(at)
    for unit, here in sorted(kept.items()) if version.rules else ():
        rules = read_rules(version.dataset, version.rules, unit) if version.rules else None
        assert rules is not None
        mine = rules.filter(pc.is_in(rules["row"], value_set=pa.array([lives[at].row for at in here], pa.int64())))
        reasons = {row: reason for row, reason in zip(mine["row"].to_pylist(), mine["reason"].to_pylist()) if reason}
        for at in here:
            found[at] = reasons.get(lives[at].row, found[at])
    if version.subset:
        left = [at for at in range(len(lives)) if found[at] == "selected"]
        hashes = key_hash([lives[at].key for at in left], version.subset.seed)
        for at, value in zip(left, hashes.tolist()):
            found[at] = "subset" if value >= version.subset.threshold else found[at]
    return found


def sample_numbers(version: Manifest, lives: Sequence[Life]) -> np.ndarray:
    """int64 [lives]: each one's number in the order of the manifest, -1 where the version does not select it."""
    shards = {shard.unit: number for number, shard in enumerate(version.shards)}
    first = np.cumsum(version.counts) - version.counts
    number_K, wanted = np.full(len(lives), -1), defaultdict[int, list[int]](list)
    for at, state in enumerate(states(version, lives)):
        if state == "selected":
            unit = next(answer.unit for answer in reversed(lives[at].answers) if answer.unit in shards)
            wanted[shards[unit]].append(at)

    def places(shard: int) -> Iterator[np.ndarray]:
        rows = selected_index(version, shard, ["row"])["row"]
        yield pc.index_in(pa.array([lives[at].row for at in wanted[shard]], pa.int64()), rows.combine_chunks())

    for shard, (at_row,) in zip(sorted(wanted), _each(places, wanted, lambda *_: None, "")):
        number_K[wanted[shard]] = first[shard] + at_row.to_numpy()
    return number_K
