"""Manifests and versions: which samples a dataset holds, and the proof that every link is accounted for.

Besides what ingest wrote (`shards.dataset`), a dataset's folder holds immutable manifests in `manifests/`, named by
their digests, and `versions/`, whose highest number is the newest version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa

from shards import store, typed_json
from shards.dataset import (
    FORMAT,
    PLAIN,
    Commit,
    DatasetInfo,
    committed_units,
    numbers,
    read_commits,
    read_info,
    read_table,
    table_bytes,
)
from shards.rules import Rules
from shards.typed_json import Count, Unsigned

SHARD_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("tar", pa.string()),
        ("index", pa.string()),
        ("tar_bytes", pa.int64()),
        ("tar_sha256", pa.string()),
        ("links", pa.int64()),
        ("kept", pa.int64()),
        ("selected", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Subset:
    """A random subset: the samples whose hashed key is below the threshold; smaller ones nest in larger ones."""

    samples: Count  # requested; the manifest counts those that were selected
    seed: Unsigned
    threshold: Unsigned  # on the first 8 bytes of blake2b(key, salt = seed)


@dataclass(frozen=True)
class Shard:
    """One tar of a manifest."""

    unit: int
    tar: str  # name under shards/, or the absolute path or URL of a foreign one
    index: str
    tar_bytes: int
    tar_sha256: str
    links: int
    kept: int
    selected: int

    @property
    def foreign(self) -> bool:
        """Whether others wrote the tar and keep it elsewhere: it is read there, and never written or removed."""
        return "://" in self.tar or self.tar.startswith("/")

    def tar_url(self, dataset: str) -> str:
        return self.tar if self.foreign else store.join(dataset, "shards", self.tar)


@dataclass(frozen=True)
class Manifest:
    """An immutable dataset version. links = kept + sum(reasons); samples = kept - sum(deselected)."""

    dataset: str
    list_name: str
    list_sha256: str
    shards: tuple[Shard, ...]
    links: int
    kept: int
    reasons: dict[str, int]
    deselected: dict[str, int]
    subset: Subset | None = None
    classes: tuple[str, ...] | None = None
    rules: Rules | None = None  # row by row; a subset is a threshold
    format: int = FORMAT  # of the dataset: what the tars' sha256 are

    def __post_init__(self) -> None:
        assert self.links == self.kept + sum(self.reasons.values()), "links do not balance"
        assert self.samples == self.kept - sum(self.deselected.values()), "selected samples do not balance"

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def counts(self) -> np.ndarray:
        """Selected samples a shard, int64 [shards]."""
        return np.array([shard.selected for shard in self.shards], np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256 of the content: equal for equal selections, wherever the dataset is."""
        return hashlib.sha256(_canonical(_content(self))).hexdigest()

    def tar_url(self, number: int) -> str:
        """The path or URL of the number-th shard's tar."""
        return self.shards[number].tar_url(self.dataset)

    @property
    def address(self) -> str:
        """What to pass to --data: this version and no later one."""
        return f"{self.dataset}@{self.digest[:16]}"


@dataclass(frozen=True)
class Version:
    """`versions/000007.json`, and `latest.json`."""

    digest: str
    number: Count = 0
    parent: str | None = None
    why: str = ""
    made_at: str | None = None  # ISO 8601

    def __post_init__(self) -> None:
        assert all(digest is None or _SHA256.fullmatch(digest) for digest in (self.digest, self.parent)), "no sha256"


@dataclass(frozen=True)
class Head:
    """`manifests/DIGEST.json`: a manifest without its table of shards."""

    list_name: str
    list_sha256: str
    links: Count
    kept: Count
    reasons: dict[str, int]  # below 0 if a damaged retry replaced more than there was: check reports it
    deselected: dict[str, Count]
    subset: Subset | None = None
    classes: tuple[str, ...] | None = None
    rules: Rules | None = None
    format: Count = PLAIN


def read_version(dataset: str, number: int) -> Version:
    """Raises Missing, and StoreError for one that is damaged."""
    return typed_json.read(Version, store.join(dataset, "versions", f"{number:06d}.json"))


def newest_version(dataset: str) -> Version | None:
    """What a dataset's name means without a version; None if there is none, or its file is damaged."""
    numbered = numbers(dataset, "versions", ".json")
    try:
        return read_version(dataset, numbered[-1]) if numbered else None
    except store.StoreError:
        return None


_SHA256 = re.compile("[0-9a-f]{64}")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _content(manifest: Manifest) -> dict[str, Any]:
    """All that the digest covers."""
    rules = manifest.rules
    return {
        "format": manifest.format,
        "list_name": manifest.list_name,
        "list_sha256": manifest.list_sha256,
        "shards_sha256": _shards_sha256(manifest.shards),
        "links": manifest.links,
        "kept": manifest.kept,
        "samples": manifest.samples,
        "reasons": manifest.reasons,
        "deselected": manifest.deselected,
        "subset": dataclasses.asdict(manifest.subset) if manifest.subset else None,
        "classes": list(manifest.classes) if manifest.classes is not None else None,
        **({"rules": {"sha256": rules.sha256, "rows": rules.rows, "how": rules.how}} if rules else {}),
    }


_FIELDS = tuple(field.name for field in dataclasses.fields(Shard))


def _shards_sha256(shards: tuple[Shard, ...]) -> str:
    """sha256 of the canonical JSON of all shards, written field by field: a manifest may have 100,000.

    Older builds kept row lists in "deselected", not in a file: without rules, digests are unchanged.
    """
    text = encode_basestring_ascii
    each = [
        f'{{"deselected":[],"index":{text(s.index)},"kept":{s.kept},"links":{s.links},"selected":{s.selected},'
        f'"tar":{text(s.tar)},"tar_bytes":{s.tar_bytes},"tar_sha256":{text(s.tar_sha256)},"unit":{s.unit}}}'
        for s in shards
    ]
    return hashlib.sha256(f"[{','.join(each)}]".encode()).hexdigest()


# --- manifests and versions ----------------------------------------------------------------------------------------


def make_version(dataset: str, why: str) -> Manifest:
    """Compact the commits that are newer than the newest version into a new one; no new commits, no new version.

    The new version holds every kept row: rules that compared rows of the old one say nothing about new rows.
    """
    info = read_info(dataset)
    while True:
        number, parent = _newest(dataset)
        known = {shard.unit for shard in parent.shards} if parent else set()
        fresh = read_commits(dataset, [unit for unit in committed_units(dataset) if unit not in known])
        if parent is not None and not fresh:
            _renew_hint(dataset, number)
            return parent
        if not fresh:
            raise ValueError(
                f"{dataset}: no unit is committed yet, so there is no version to make: finish the ingest first"
            )
        manifest = with_commits(dataset, info, parent, fresh)
        if _publish(manifest, number + 1, parent, why):
            return manifest  # else another driver was faster: build on its version


def with_commits(dataset: str, info: DatasetInfo, parent: Manifest | None, fresh: list[Commit]) -> Manifest:
    """The manifest of the parent's units and these; it keeps every kept row, and is not written."""
    reasons = Counter(parent.reasons if parent else {})
    links = parent.links if parent else 0
    for done in fresh:
        links += done.links - sum(done.supersedes.values())
        reasons.update(done.reasons)
        reasons.subtract(done.supersedes)
    old = [dataclasses.replace(shard, selected=shard.kept) for shard in (parent.shards if parent else ())]
    shards = sorted([*old, *map(_shard, fresh)], key=lambda shard: shard.unit)
    return Manifest(
        dataset=dataset,
        list_name=info.list_name,
        list_sha256=info.list_sha256,
        shards=tuple(shards),
        links=links,
        kept=sum(shard.kept for shard in shards),
        reasons={reason: n for reason, n in sorted(reasons.items()) if n},
        deselected={},
        classes=info.classes,
        format=info.format,
    )


def add_version(manifest: Manifest, why: str) -> bool:
    """Write a manifest, and make it the newest version unless it already is, or the newest has a unit that it has not:
    the newest version never loses links. Returns whether it is the newest version now."""
    units = {shard.unit for shard in manifest.shards}
    while True:
        number, newest = _newest(manifest.dataset)
        if newest is not None and newest.digest == manifest.digest:
            _renew_hint(manifest.dataset, number)
            return True
        if newest is not None and not units.issuperset(shard.unit for shard in newest.shards):
            write_manifest(manifest)
            return False
        if _publish(manifest, number + 1, newest, why):
            return True


def _publish(manifest: Manifest, number: int, parent: Manifest | None, why: str) -> bool:
    """Write the manifest, then the version of this number; False if another driver has made one meanwhile."""
    write_manifest(manifest)
    version = {
        "number": number,
        "digest": manifest.digest,
        "parent": parent.digest if parent else None,
        "why": why,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not store.put_json_if_absent(store.join(manifest.dataset, "versions", f"{number:06d}.json"), version):
        return False
    store.put_json(store.join(manifest.dataset, "latest.json"), version)
    return True


def _renew_hint(dataset: str, number: int) -> None:
    """A writer that died between a version and its hint left an older hint, or none."""
    version = store.read(store.join(dataset, "versions", f"{number:06d}.json"))
    hint = store.join(dataset, "latest.json")
    with contextlib.suppress(store.Missing):
        if store.read(hint) == version:
            return
    store.put(hint, version)


def _shard(done: Commit) -> Shard:
    return Shard(
        unit=done.unit,
        tar=done.tar,
        index=done.index,
        tar_bytes=done.tar_bytes,
        tar_sha256=done.tar_sha256,
        links=done.links,
        kept=done.kept,
        selected=done.kept,
    )


def write_manifest(manifest: Manifest) -> None:
    """Write `manifests/<digest>.parquet`, then `.json`: pure functions of the digest, so races are harmless."""
    for ending, body in objects(manifest).items():
        store.put(store.join(manifest.dataset, "manifests", manifest.digest + ending), body)


def objects(manifest: Manifest) -> dict[str, bytes]:
    """The two objects of a manifest by their ending, in the order in which they are written."""
    columns = {name: [getattr(shard, name) for shard in manifest.shards] for name in _FIELDS}
    head = _content(manifest)
    if manifest.rules:  # their location is not part of the content
        head["rules"] |= {"file": manifest.rules.file, "bytes": manifest.rules.bytes}
    return {
        ".parquet": table_bytes(pa.Table.from_pydict(columns, SHARD_SCHEMA)),
        ".json": store.json_bytes(head),
    }


def _newest(dataset: str) -> tuple[int, Manifest | None]:
    newest = max(numbers(dataset, "versions", ".json"), default=0)
    if not newest:
        return 0, None
    return newest, _load(dataset, read_version(dataset, newest).digest)


def read_manifest(url: str) -> Manifest:
    """`DATASET` (its newest version), `DATASET@3` (a version by number) or `DATASET@DIGEST` (at least 8 hex digits).

    Raises ValueError if there is none, naming those that exist.
    """
    dataset, version = split(url)
    store.require(dataset=dataset)
    if version is None:
        read_info(dataset)
        manifest = _newest(dataset)[1]
        if manifest is None:
            raise ValueError(f"{dataset}: has no version yet: rerun xtra ingest (or import) to finish it")
        return manifest
    if len(version) <= 6:
        try:
            digest = read_version(dataset, int(version)).digest
        except store.Missing:
            raise ValueError(f"{dataset}: has no version {int(version)}: {_offer(dataset)}") from None
        return _load(dataset, digest)
    found = [
        n[:-5] for n in store.names(store.join(dataset, "manifests")) if n.startswith(version) and n[-5:] == ".json"
    ]
    if len(found) != 1:
        raise ValueError(f"{dataset}: {len(found)} manifests start with {version}: {_offer(dataset)}")
    return _load(dataset, found[0])


def split(url: str) -> tuple[str, str | None]:
    """The dataset's folder, and the version or digest after it."""
    match = re.fullmatch(r"(.+)@([0-9]{1,6}|[0-9a-f]{8,64})", url)
    dataset, version = (match[1], match[2]) if match else (url, None)
    return dataset.rstrip("/") or "/", version


def _offer(dataset: str) -> str:
    versions = list(map(str, numbers(dataset, "versions", ".json")))
    return f"it has versions {', '.join(versions)}" if versions else "it has none; finish the ingest first"


def _load(dataset: str, digest: str) -> Manifest:
    base = store.join(dataset, "manifests", digest)
    try:
        head = typed_json.parse(store.read(base + ".json"), base + ".json")
    except store.Missing:
        raise ValueError(f"{dataset}: has no manifest {digest[:16]}: {_offer(dataset)}") from None
    if isinstance(head, dict) and isinstance(head.get("format"), int) and head["format"] > FORMAT:
        raise ValueError(
            f"{base}.json: has format {head['format']}, this build reads {FORMAT}: upgrade, or use another version"
        )
    try:
        manifest = parse(dataset, head, read_table(base + ".parquet", list(_FIELDS)))
    except (AssertionError, TypeError, AttributeError) as error:
        raise ValueError(f"{base}: is damaged ({error!r}): restore it or use another version") from None
    if manifest.digest != digest:
        raise ValueError(f"{base}.json: does not have the content its name promises: restore it or use another version")
    return manifest


def parse(dataset: str, head: dict[str, Any], table: pa.Table) -> Manifest:
    """The manifest in its two objects. Raises StoreError, AssertionError or TypeError if they are damaged."""
    fields = typed_json.checked(Head, head, f"{dataset}: a manifest")
    assert not fields.rules or "/" not in fields.rules.file, "its rules are outside manifests/"
    return Manifest(
        dataset=dataset,
        list_name=fields.list_name,
        list_sha256=fields.list_sha256,
        shards=tuple(map(_checked, map(Shard, *(table[name].to_pylist() for name in _FIELDS)))),
        links=fields.links,
        kept=fields.kept,
        reasons=fields.reasons,
        deselected=fields.deselected,
        subset=fields.subset,
        classes=fields.classes,
        rules=fields.rules,
        format=fields.format,
    )


def _checked(shard: Shard) -> Shard:
    """Names in a foreign manifest become file names here: of caches, and of what a repair writes."""
    inside = "/" not in shard.index and (shard.foreign or "/" not in shard.tar)
    assert inside, f"unit {shard.unit}: its tar or index is outside shards/"
    assert _SHA256.fullmatch(shard.tar_sha256), f"unit {shard.unit}: its tar_sha256 is no sha256"
    counts = (shard.unit, shard.tar_bytes, shard.links, shard.kept, shard.selected)
    assert min(counts) >= 0, f"unit {shard.unit}: a count is below 0"
    assert shard.selected <= shard.kept <= shard.links, f"unit {shard.unit}: its counts are damaged"
    return shard
