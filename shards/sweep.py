"""Remove what no version will ever name: attempts at a unit that another one beat, and what dead writers left.

Of `shards/` and `thumbs/`, objects of an attempt go when the unit's commit names another attempt, at whatever age, and,
while the unit has no commit, when they are older than `older_than`: a writer that lives commits within minutes of its
last object. Rules that no manifest names and objects that were half put when their writer died go by age, too. What a
version or a subset names is never removed, nor anything whose name we did not give.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shards import store
from shards.dataset import READERS, committed_units, read_commits, read_info, read_table

_ATTEMPT = re.compile(r"(?P<base>(?P<unit>\d{6,})-(?P<attempt>[A-Za-z0-9]+))\.(tar|parquet)")
_AGE = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FOLDERS = ("", "links", "shards", "thumbs", "commits", "generations", "manifests", "versions", "events")


@dataclass(frozen=True)
class Config:
    dataset: str  # its folder
    older_than: str = "7d"  # age of what no commit decides about: a number and m, h, d or w
    dry_run: bool = False  # only say what would go

    def __post_init__(self) -> None:
        match = _AGE.fullmatch(self.older_than)
        if not match:
            raise ValueError(f"older_than is {self.older_than!r}: give a number and m, h, d or w, such as 7d")
        if self.seconds < 600:
            raise ValueError(f"older_than is {self.older_than}: what is that young may still be committed; give 10m")

    @property
    def seconds(self) -> float:
        number, unit = _AGE.fullmatch(self.older_than).groups()  # type: ignore[union-attr]
        return float(number) * _SECONDS[unit]


@dataclass(frozen=True)
class SweepResult:
    """What was removed, or would be; `young` objects may go when they are older."""

    dataset: str
    objects: tuple[str, ...]  # names below the dataset's folder
    bytes: int
    beaten: int  # of the objects, by a commit
    stale: int  # of the objects, by age
    young: int
    dry_run: bool


def run(config: Config) -> SweepResult:
    """Raises ValueError when there is no dataset, and StoreError when a manifest cannot be read: then nothing goes."""
    read_info(config.dataset)
    before = store.clock(config.dataset) - config.seconds  # this machine's clock may be days off
    beaten, undecided = _attempts(config.dataset)
    undecided += _leftovers(config.dataset)
    stale = [(name, entry) for name, entry in undecided if entry.modified < before]
    going = beaten + stale
    if not config.dry_run:
        with ThreadPoolExecutor(READERS, thread_name_prefix="sweep") as pool:
            for _ in pool.map(lambda found: store.delete(store.join(config.dataset, found[0])), going):
                pass
    return SweepResult(
        dataset=config.dataset,
        objects=tuple(name for name, _ in going),
        bytes=sum(entry.bytes for _, entry in going),
        beaten=len(beaten),
        stale=len(stale),
        young=len(undecided) - len(stale),
        dry_run=config.dry_run,
    )


_Found = list[tuple[str, store.Entry]]


def _attempts(dataset: str) -> tuple[_Found, _Found]:
    """Objects of attempts that lost, and of attempts at units that have no commit."""
    # Listed before commits are read: an attempt that appears later is not looked at, one that commits meanwhile wins.
    found = [
        (f"{folder}/{entry.name}", entry, match)
        for folder in ("shards", "thumbs")
        for entry in store.entries(store.join(dataset, folder))
        if (match := _ATTEMPT.fullmatch(entry.name))
    ]
    named = _named_by_manifests(dataset)
    found = [(name, entry, match) for name, entry, match in found if match["base"] not in named]
    units = {int(match["unit"]) for _, _, match in found}
    winners = {c.unit: c.attempt for c in read_commits(dataset, sorted(units.intersection(committed_units(dataset))))}
    beaten: _Found = []
    undecided: _Found = []
    for name, entry, match in found:
        winner = winners.get(int(match["unit"]))
        if winner is None:
            undecided.append((name, entry))
        elif winner != match["attempt"]:
            beaten.append((name, entry))
    return beaten, undecided


def _named_by_manifests(dataset: str) -> set[str]:
    """Names, without folder and ending, of all tars and indexes that a version or a subset names."""
    named: set[str] = set()
    for name in store.names(store.join(dataset, "manifests")):
        if name.endswith(".parquet") and not name.endswith(".rules.parquet"):
            table = read_table(store.join(dataset, "manifests", name), ["tar", "index"])
            for column in table.itercolumns():
                # A tar of others is named by its whole path: it may lie here, too, and is not ours to remove.
                named.update(value.rpartition("/")[2].rpartition(".")[0] for value in column.to_pylist())
    return named


def _leftovers(dataset: str) -> _Found:
    """Rules that no manifest names, and objects that were half put."""
    manifests = store.join(dataset, "manifests")
    entries = store.entries(manifests)
    rules = [(f"manifests/{entry.name}", entry) for entry in entries if entry.name.endswith(".rules.parquet")]
    heads = [entry.name for entry in entries if entry.name.endswith(".json")]
    named = {(store.read_json(store.join(manifests, name)).get("rules") or {}).get("file") for name in heads}
    return [found for found in rules if found[1].name not in named] + list(_half_put(dataset))


def _half_put(dataset: str) -> Iterator[tuple[str, store.Entry]]:
    for folder in _FOLDERS:
        for entry in store.entries(store.join(dataset, folder) if folder else dataset):
            if entry.name.startswith((".aside-", ".probe-")):
                yield f"{folder}/{entry.name}" if folder else entry.name, entry
