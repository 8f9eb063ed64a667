"""Repair a dataset: rebuild objects whose exact content is still in other objects, and list what is lost.

    commits/     from the manifest, the index and the plan          shards/*.parquet   from the tar and the plan
    links/       from the index                                     manifests/         from the commits and the rules
    versions/    from latest.json, or the version after it          generations/       from the existing units
    latest.json  from the newest version

A rebuilt manifest is proved right by its digest. Tars, dataset.json and rules cannot be rebuilt. Each object is written
whole, so a killed repair can be completed by another; without damage nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import manifest as manifests, rules as rules_files, selection, store
from shards.dataset import (
    FORMAT,
    INDEX_SCHEMA,
    Commit,
    DatasetInfo,
    numbers,
    read_info,
)
from shards.manifest import SHARD_SCHEMA, Manifest, Shard
from shards.parallel import map_in_order
from shards.repair import history
from shards.repair.unit import Line, Older, Rebuilt, Unit, Unusable, parsed, read, repair, table_of


def _manifest(dataset: str, head: dict[str, Any], table: pa.Table) -> Manifest:
    """The manifest of these two objects. Raises Unusable, AssertionError or TypeError if they are damaged."""
    try:
        return manifests.parse(dataset, head, table)
    except store.StoreError as error:
        raise Unusable(f"is damaged ({error})") from None


_DIGEST = re.compile(r"([0-9a-f]{64})\.(?:json|parquet)")


@dataclass(frozen=True)
class RepairResult:
    """What a repair did; `lost` lists what could not be rebuilt, or only in part."""

    dataset: str
    rebuilt: tuple[Line, ...]
    lost: tuple[Line, ...]
    dry_run: bool


def run(
    dataset: str,
    jobs: int = 1,
    dry_run: bool = False,
    settings: Sequence[Mapping[str, Any]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RepairResult:
    """Repair the dataset at `DATASET` (a version after it is ignored), `jobs` units in parallel;
    `progress(units done, units)`.

    `settings` are selection settings to try if the manifest of a selection is gone; those of the other manifests are
    tried, too. Raises ValueError if there is no dataset, and StoreError if the store does not answer.
    """
    work = _Repair(manifests.split(dataset)[0], dry_run, settings)
    try:
        parsed(read(work.dataset, "dataset.json"))
    except Unusable as error:
        if not numbers(work.dataset, "commits", ".json"):
            read_info(work.dataset)  # raises: this is not a dataset
        again = "rerun the command that made the dataset, with the same list and settings, then repair"
        work.lose("dataset.json", f"{error}, and its settings are not stored elsewhere: {again}")
        return work.result()
    info = read_info(work.dataset)
    work.load_manifests()
    work.repair_units(info, jobs, progress)
    work.repair_manifests(info)
    work.repair_history(info)
    work.find_lost_rules()
    return work.result()


class _Repair:
    def __init__(self, dataset: str, dry_run: bool, settings: Sequence[Mapping[str, Any]]) -> None:
        self.dataset, self.dry_run, self.settings = dataset, dry_run, [dict(each) for each in settings]
        self.rebuilt: list[Line] = []
        self.lost: list[Line] = []
        self.history = history.load(dataset)
        self.manifests: dict[str, Manifest] = {}  # sound ones, by digest
        self.named: dict[int, Shard] = {}  # their entry for each unit
        self.commits: dict[int, Commit] = {}

    def result(self) -> RepairResult:
        return RepairResult(self.dataset, tuple(self.rebuilt), tuple(self.lost), self.dry_run)

    def lose(self, name: str, why: str) -> None:
        self.lost.append(Line(name, why))

    def write(self, made: Rebuilt) -> None:
        """Put a rebuilt object: if absent where there is none, else in place of the damaged one, in one step."""
        url = store.join(self.dataset, made.name)
        self.rebuilt.append(Line(made.name, made.how))
        if self.dry_run:
            return
        if made.name.startswith("shards/") or store.exists(url):
            store.put(url, made.body)
        elif not store.put_if_absent(url, made.body):
            raise store.StoreError(f"{url}: was written by another process meanwhile: repair again")

    # --- units ---

    def repair_units(self, info: DatasetInfo, jobs: int, progress: Callable[[int, int], None] | None) -> None:
        units = sorted({*numbers(self.dataset, "commits", ".json"), *self.named})
        firsts = [0, *(g.first_unit for g in self.history.generations.values()), 1 + max(units, default=0)]
        done = 0
        for first, end, before in zip(firsts, firsts[1:], [0, *firsts]):  # a retry after what it asks for again
            older = self._older(range(before, first)) if first else None
            mine = [unit for unit in units if first <= unit < end]
            for unit, found in zip(mine, self._repaired(mine, info.format, older, jobs)):
                self._take(unit, found)
                done += 1
                if progress:
                    progress(done, len(units))
        self._find_lost_tars()

    def _repaired(self, units: Sequence[int], format_: int, older: Older | None, jobs: int) -> Iterator[Unit]:
        return map_in_order(lambda unit: repair(self.dataset, unit, format_, self.named.get(unit), older), units, jobs)

    def _take(self, unit: int, found: Unit) -> None:
        if found.commit:
            self.commits[unit] = found.commit
        for made in found.rebuilt:
            self.write(made)
        self.lost += found.lost

    def _older(self, units: range) -> Older:
        def verdicts(rows: set[int]) -> dict[int, str]:
            found: dict[int, str] = {}
            wanted = pa.array(sorted(rows), pa.int64())
            for unit in units:
                if unit not in self.commits:
                    raise Unusable(f"the older verdicts of unit {unit} are not known")
                try:
                    table = table_of(read(self.dataset, f"shards/{self.commits[unit].index}"), INDEX_SCHEMA)
                except Unusable as error:
                    raise Unusable(f"the older index {self.commits[unit].index} {error}") from None
                table = table.filter(pc.is_in(table["row"], value_set=wanted))
                found |= dict(zip(table["row"].to_pylist(), table["reason"].to_pylist()))
            return found

        return verdicts

    def _find_lost_tars(self) -> None:
        there = {entry.name: entry.bytes for entry in store.entries(store.join(self.dataset, "shards"))}
        for commit in self.commits.values():
            if "://" in commit.tar or commit.tar.startswith("/") or there.get(commit.tar) == commit.tar_bytes:
                continue
            size = there.get(commit.tar)
            what = "is gone" if size is None else f"has {size:,} bytes, its commit says {commit.tar_bytes:,}"
            self.lose(f"shards/{commit.tar}", f"{what}: its pictures are not stored elsewhere: restore it from a copy")

    # --- manifests ---

    def load_manifests(self) -> None:
        """Load the sound manifests, and their entry for each unit."""
        names = store.names(store.join(self.dataset, "manifests"))
        self._digests = {match[1] for match in map(_DIGEST.fullmatch, names) if match} | self.history.digests()
        self._rules_files = [name for name in names if name.endswith(".rules.parquet")]
        self._damaged: dict[str, tuple[dict[str, Any] | None, str]] = {}  # (its head if readable, what is wrong)
        for digest in sorted(self._digests):
            head: dict[str, Any] | None = None
            try:
                head = parsed(read(self.dataset, f"manifests/{digest}.json"))
                if head.get("format", FORMAT) > FORMAT:
                    raise ValueError(f"{self.dataset}: manifest {digest[:16]} has a newer format: upgrade to repair")
                table = table_of(read(self.dataset, f"manifests/{digest}.parquet"), SHARD_SCHEMA)
                found = _manifest(self.dataset, head, table)
                if found.digest != digest:
                    raise Unusable("does not have the content that its name promises")
            except Unusable as error:
                self._damaged[digest] = head, str(error)
            except (AssertionError, TypeError) as error:
                self._damaged[digest] = None, f"is damaged ({error!r})"
            else:
                self.manifests[digest] = found
        age = {value["digest"]: number for number, value in sorted(self.history.versions.items())}
        for found in sorted(self.manifests.values(), key=lambda found: age.get(found.digest, 0)):  # the newest wins
            self.named |= {shard.unit: shard for shard in found.shards}

    def repair_manifests(self, info: DatasetInfo) -> None:
        for digest, (head, problem) in self._damaged.items():
            found = next((m for m in self._candidates(info, head) if m.digest == digest), None)
            if found is None:
                again = "restore it from a copy, or make it again by xtra select with the same settings"
                self.lose(f"manifests/{digest}.json", f"{problem}, and the commits and rules do not give it: {again}")
                continue
            self.manifests[digest] = found
            for ending, body in manifests.objects(found).items():
                name = f"manifests/{digest}{ending}"
                if not self._says(name, body):
                    self.write(Rebuilt(name, f"{problem}: rebuilt from the commits", body))

    def _says(self, name: str, body: bytes) -> bool:
        """Whether the object has this content, perhaps in other bytes."""
        try:
            old = read(self.dataset, name)
            if name.endswith(".json"):
                return parsed(old) == parsed(body)
            return table_of(old, SHARD_SCHEMA).equals(table_of(body, SHARD_SCHEMA))
        except Unusable:
            return False

    def _candidates(self, info: DatasetInfo, head: Mapping[str, Any] | None) -> Iterator[Manifest]:
        """Candidates for the lost manifest; the right one has its digest."""
        subset = None
        if head and head.get("subset"):
            with contextlib.suppress(TypeError):
                subset = manifests.Subset(**head["subset"])
        for units in self._unit_sets(info):
            plain = manifests.with_commits(self.dataset, info, None, [self.commits[unit] for unit in units])
            for made in (plain, *self._ruled(plain, head)):
                yield made
                if subset:
                    with contextlib.suppress(store.StoreError):  # an index is lost, which is already reported
                        yield selection.below(made, subset)

    def _unit_sets(self, info: DatasetInfo) -> list[list[int]]:
        """The possible sets of units of a version: those of the list, with one retry, with two, and so on."""
        ends = {info.units, *(g.first_unit + g.units for g in self.history.generations.values()), len(self.commits)}
        sets = {tuple(range(end)) for end in ends} | {
            tuple(shard.unit for shard in found.shards) for found in self.manifests.values()
        }
        return [list(units) for units in sorted(sets, key=len) if units and self.commits.keys() >= set(units)]

    def _ruled(self, plain: Manifest, head: Mapping[str, Any] | None) -> Iterator[Manifest]:
        named = (head or {}).get("rules")
        named = named if isinstance(named, dict) else {}
        known = [found.rules.how for found in self.manifests.values() if found.rules]
        hows = [named["how"]] if isinstance(named.get("how"), dict) else [*known, *self.settings]
        own = named.get("file")
        for file in [own] if isinstance(own, str) and "/" not in own else self._rules_files:
            try:
                some, reasons, out = rules_files.describe(self.dataset, file, {})
            except store.StoreError:
                continue  # `find_lost_rules` reports it if a manifest names it
            kept = {shard.unit: shard.kept for shard in plain.shards}
            if any(n > kept.get(unit, 0) for unit, n in out.items()):
                continue
            for how in hows:
                yield _ruled(plain, dataclasses.replace(some, how=how), reasons, out)

    def find_lost_rules(self) -> None:
        whole_first = sorted(self.manifests.values(), key=lambda found: found.subset is not None)
        files = {found.rules.file: found for found in reversed(whole_first) if found.rules}
        for file, found in sorted(files.items()):
            if problem := _rules_problem(self.dataset, file):
                plain = self.history.newest_without_rules(self.manifests, found)
                again = (
                    f"xtra select {self.dataset}@{plain} with the settings in manifests/{found.digest}.json makes it"
                )
                self.lose(f"manifests/{file}", f"{problem}: {again if plain else 'restore it from a copy'}")

    # --- versions, retries, the hint ---

    def repair_history(self, info: DatasetInfo) -> None:
        made, lost = history.repair(self.dataset, self.history, info, self.manifests, sorted(self.commits))
        for each in made:
            self.write(each)
        self.lost += lost


def _ruled(plain: Manifest, rules: rules_files.Rules, reasons: Counter[str], out: Mapping[int, int]) -> Manifest:
    shards = tuple(dataclasses.replace(shard, selected=shard.kept - out.get(shard.unit, 0)) for shard in plain.shards)
    return dataclasses.replace(plain, shards=shards, deselected=dict(sorted(reasons.items())), rules=rules)


def _rules_problem(dataset: str, file: str) -> str:
    """What is wrong with a rules file, whose name has the sha256 of its bytes; "" if nothing is."""
    try:
        body = read(dataset, f"manifests/{file}")
    except Unusable as error:
        return str(error)
    same = hashlib.sha256(body).hexdigest() == file.partition(".")[0]
    return "" if same else "does not have the content that its name promises"
