"""Remove what no version will ever name: attempts at a unit that another one beat, and what dead writers left.

Of `shards/` and `thumbs/`, objects of an attempt go when the unit's commit names another attempt, at whatever age, and,
while the unit has no commit, when they are older than `older_than`: a writer that lives commits within minutes of its
last object. Rules that no manifest names, objects that were half put when their writer died and uploads in parts that
nobody completed go by age, too. What a version or a subset names is never removed, nor anything whose name we did not
give. (What runs and probes leave: `jobs.run_sweep`.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shards import store, store_uploads, typed_json
from shards.config import SweepConfig as Config
from shards.dataset import READERS, committed_units, read_commits, read_info, read_table
from shards.manifest import Head

_ATTEMPT = re.compile(r"(?P<base>(?P<unit>\d{6,})-(?P<attempt>[A-Za-z0-9]+))\.(tar|parquet)")
_FOLDERS = ("", "links", "shards", "thumbs", "commits", "generations", "manifests", "versions", "events", "underway")
HALF_PUT = (".aside-", ".probe-")  # how names begin of objects whose writer died while it put them


@dataclass(frozen=True)
class SweepResult:
    """What was removed, or would be; `young` objects may go when they are older."""

    url: str
    objects: tuple[str, ...]  # names below the folder
    uploads: tuple[str, ...]  # names of objects whose uploads nobody completed
    bytes: int
    beaten: int  # of the objects, by a commit
    stale: int  # of the objects, by age
    young: int  # uploads included
    dry_run: bool
    remark: str = ""  # what could not be looked at


Found = list[tuple[str, store.Entry]]  # name below the folder


def run(config: Config) -> SweepResult:
    """Raises ValueError when there is no dataset, and StoreError when a manifest cannot be read: then nothing goes."""
    read_info(config.url)
    before = config.before()
    beaten, undecided = _attempts(config.url)
    return remove(config, beaten, undecided + _leftovers(config.url), before)


def remove(config: Config, beaten: Found, undecided: Found, before: float) -> SweepResult:
    """Remove what is beaten, and what is undecided or was uploaded in part and is older than `before`."""
    stale = [(name, entry) for name, entry in undecided if entry.modified < before]
    going = beaten + stale
    if not config.dry_run:
        with ThreadPoolExecutor(READERS, thread_name_prefix="sweep") as pool:
            for _ in pool.map(lambda found: store.delete(store.join(config.url, found[0])), going):
                pass
    remark, ended, size, young = "", [], 0, 0
    try:
        for upload in store_uploads.unfinished(config.url):
            bytes_, last = _parts(config.url, upload, before)
            if last >= before:
                young += 1
                continue
            ended.append(upload.name)
            size += bytes_
            if not config.dry_run:
                store_uploads.abort(config.url, upload)
    except store.StoreError as error:  # it needs permissions of its own, and some stores do not know it
        remark = f"incomplete uploads were not removed: {error}"
    return SweepResult(
        url=config.url,
        objects=tuple(name for name, _ in going),
        uploads=tuple(ended),
        bytes=size + sum(entry.bytes for _, entry in going),
        beaten=len(beaten),
        stale=len(stale),
        young=len(undecided) - len(stale) + young,
        dry_run=config.dry_run,
        remark=remark,
    )


def _parts(url: str, upload: store_uploads.Upload, before: float) -> tuple[int, float]:
    """Bytes, and when the upload was last written to; parts are only asked for where its beginning is old enough."""
    if upload.begun >= before:
        return 0, upload.begun
    try:
        return store_uploads.parts(url, upload)
    except store.Missing:  # it has ended since it was listed
        return 0, float("inf")


def _attempts(dataset: str) -> tuple[Found, Found]:
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
    beaten: Found = []
    undecided: Found = []
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


def _leftovers(dataset: str) -> Found:
    """Rules that no manifest names, last words of ingests that were killed, and objects that were half put."""
    manifests = store.join(dataset, "manifests")
    entries = store.entries(manifests)
    rules = [(f"manifests/{entry.name}", entry) for entry in entries if entry.name.endswith(".rules.parquet")]
    heads = [entry.name for entry in entries if entry.name.endswith(".json")]
    named = {_rules_of(store.join(manifests, name)) for name in heads}
    words = [(f"underway/{entry.name}", entry) for entry in store.entries(store.join(dataset, "underway"))]
    words = [found for found in words if found[1].name.endswith(".json")]
    return [found for found in rules if found[1].name not in named] + words + list(_half_put(dataset))


def _rules_of(head: str) -> str | None:
    """The rules file of a manifest. Raises StoreError: what a damaged one names must not be swept."""
    rules = typed_json.read(Head, head).rules
    return rules.file if rules else None


def _half_put(dataset: str) -> Iterator[tuple[str, store.Entry]]:
    for folder in _FOLDERS:
        for entry in store.entries(store.join(dataset, folder) if folder else dataset):
            if entry.name.startswith(HALF_PUT):
                yield f"{folder}/{entry.name}" if folder else entry.name, entry
