"""Remove what no version will ever name: attempts at a unit that another one beat, and what dead writers left.

In `shards/` and `thumbs/`, an attempt's objects are removed if the unit's commit names another attempt, at any age;
while the unit has no commit, if they are older than `older_than`: a living writer commits within minutes of its last
object. Rules that no manifest names, partly written objects of dead writers and incomplete multipart uploads are also
removed by age. Objects that a version or a subset names are never removed, nor any with foreign names. (For runs and
probes see `jobs.run_sweep`.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shards import store, store_uploads, typed_json
from shards.config import SweepConfig as Config
from shards.dataset import committed_units, read_commits, read_info, read_table
from shards.manifest import Head
from shards.parallel import map_in_order

_ATTEMPT = re.compile(r"(?P<base>(?P<unit>\d{6,})-(?P<attempt>[A-Za-z0-9]+))\.(tar|parquet)")
_FOLDERS = ("", "links", "shards", "thumbs", "commits", "generations", "manifests", "versions", "events", "underway")
HALF_PUT = (".aside-", ".write-test-", ".probe-")  # prefixes of objects whose writer died; the last: of older builds


@dataclass(frozen=True)
class SweepResult:
    """What was removed, or would be; `young` objects may be removed later."""

    url: str
    objects: tuple[str, ...]  # names below the folder
    uploads: tuple[str, ...]  # names of objects whose uploads are incomplete
    bytes: int
    beaten: int  # objects removed because of a commit
    stale: int  # objects removed by age
    young: int  # including uploads
    dry_run: bool
    remark: str = ""  # what could not be checked


Found = list[tuple[str, store.Entry]]  # name below the folder


def run(config: Config) -> SweepResult:
    """Sweep a dataset. Raises ValueError if there is none, and StoreError, removing nothing, if a manifest cannot be
    read."""
    read_info(config.url)
    before = config.before()
    beaten, undecided = _attempts(config.url)
    return remove(config, beaten, undecided + _leftovers(config.url), before)


def remove(config: Config, beaten: Found, undecided: Found, before: float) -> SweepResult:
    """Remove beaten objects, and undecided objects and incomplete uploads older than `before`."""
    stale = [(name, entry) for name, entry in undecided if entry.modified < before]
    going = beaten + stale
    if not config.dry_run:
        for _ in map_in_order(lambda found: store.delete(store.join(config.url, found[0])), going):
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
    except store.StoreError as error:  # listing uploads needs extra permissions, and some stores do not support it
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
    """(bytes, time of the last write) of an upload; its parts are listed only if it began before `before`."""
    if upload.begun >= before:
        return 0, upload.begun
    try:
        return store_uploads.parts(url, upload)
    except store.Missing:  # it has ended since it was listed
        return 0, float("inf")


def _attempts(dataset: str) -> tuple[Found, Found]:
    """(objects of attempts that lost, objects of attempts at units without a commit)."""
    # Listed before commits are read: later attempts are not seen, and one that commits meanwhile is the winner.
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
                # A foreign tar is named by its whole path, which may be in this folder: it must not be removed.
                named.update(value.rpartition("/")[2].rpartition(".")[0] for value in column.to_pylist())
    return named


def _leftovers(dataset: str) -> Found:
    """Rules that no manifest names, progress files of killed ingests, and partly written objects."""
    manifests = store.join(dataset, "manifests")
    entries = store.entries(manifests)
    rules = [(f"manifests/{entry.name}", entry) for entry in entries if entry.name.endswith(".rules.parquet")]
    heads = [entry.name for entry in entries if entry.name.endswith(".json")]
    named = {_rules_of(store.join(manifests, name)) for name in heads}
    beats = [(f"underway/{entry.name}", entry) for entry in store.entries(store.join(dataset, "underway"))]
    beats = [found for found in beats if found[1].name.endswith(".json")]
    return [found for found in rules if found[1].name not in named] + beats + list(_half_put(dataset))


def _rules_of(head: str) -> str | None:
    """The rules file that a manifest names. Raises StoreError for a damaged manifest, whose rules must not be swept."""
    rules = typed_json.read(Head, head).rules
    return rules.file if rules else None


def _half_put(dataset: str) -> Iterator[tuple[str, store.Entry]]:
    for folder in _FOLDERS:
        for entry in store.entries(store.join(dataset, folder) if folder else dataset):
            if entry.name.startswith(HALF_PUT):
                yield f"{folder}/{entry.name}" if folder else entry.name, entry
