"""Manifests and versions: which samples a dataset holds, and the proof that every link is accounted for.

Beside what ingest wrote (`shards.dataset`, whose names are also found here), a dataset's folder holds immutable
manifests named by their own digest in `manifests/`, and `versions/`, whose newest number is the newest version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from shards import store
from shards.dataset import (
    FORMAT,
    INDEX_SCHEMA,
    KEPT,
    PLAN_SCHEMA,
    Commit,
    DatasetInfo,
    Generation,
    commit,
    committed_units,
    planned_units,
    read_commit,
    read_commits,
    read_generations,
    read_info,
    read_plan,
    read_table,
    table_bytes,
    unit_name,
    write_generation,
    write_info,
    write_plan,
)

__all__ = [
    "INDEX_SCHEMA",
    "KEPT",
    "PLAN_SCHEMA",
    "Commit",
    "DatasetInfo",
    "Generation",
    "Manifest",
    "Shard",
    "Subset",
    "commit",
    "committed_units",
    "make_version",
    "planned_units",
    "read_commit",
    "read_commits",
    "read_generations",
    "read_info",
    "read_manifest",
    "read_plan",
    "read_table",
    "table_bytes",
    "unit_name",
    "write_generation",
    "write_info",
    "write_manifest",
    "write_plan",
]

_SHARD_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("tar", pa.string()),
        ("index", pa.string()),
        ("tar_bytes", pa.int64()),
        ("tar_sha256", pa.string()),
        ("links", pa.int64()),
        ("kept", pa.int64()),
        ("selected", pa.int64()),
        ("deselected", pa.list_(pa.struct([("row", pa.int64()), ("reason", pa.string())]))),
    ]
)


@dataclass(frozen=True)
class Subset:
    """A random subset: the samples whose hashed key is below the threshold; smaller ones nest in larger ones."""

    samples: int  # asked for; the manifest's own count is what was got
    seed: int
    threshold: int  # on the first 8 bytes of blake2b(key, salt = seed)


@dataclass(frozen=True)
class Shard:
    """One tar of a manifest."""

    unit: int
    tar: str
    index: str
    tar_bytes: int
    tar_sha256: str
    links: int
    kept: int
    selected: int
    deselected: tuple[tuple[int, str], ...] = ()  # (row, reason), rules only; a subset is a threshold


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
        """sha256 of the content: equal for equal selections, wherever the dataset lies."""
        return hashlib.sha256(_canonical(_content(self))).hexdigest()

    @property
    def address(self) -> str:
        """What to pass to --data: this version and no later one."""
        return f"{self.dataset}@{self.digest[:16]}"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _content(manifest: Manifest) -> dict[str, Any]:
    shards = [dataclasses.asdict(shard) for shard in manifest.shards]
    return {
        "format": FORMAT,
        "list_name": manifest.list_name,
        "list_sha256": manifest.list_sha256,
        "shards_sha256": hashlib.sha256(_canonical(shards)).hexdigest(),
        "links": manifest.links,
        "kept": manifest.kept,
        "samples": manifest.samples,
        "reasons": manifest.reasons,
        "deselected": manifest.deselected,
        "subset": dataclasses.asdict(manifest.subset) if manifest.subset else None,
        "classes": list(manifest.classes) if manifest.classes is not None else None,
    }


# --- manifests and versions ----------------------------------------------------------------------------------------


def make_version(dataset: str, why: str) -> Manifest:
    """Compact the commits that are newer than the newest version into a new one; no new commits, no new version."""
    info = read_info(dataset)
    number, parent = _newest(dataset)
    known = {shard.unit for shard in parent.shards} if parent else set()
    fresh = read_commits(dataset, [unit for unit in committed_units(dataset) if unit not in known])
    if parent is not None and not fresh:
        return parent
    if not fresh:
        raise ValueError(
            f"{dataset}: no unit is committed yet, so there is no version to make: finish the ingest first"
        )
    reasons = Counter(parent.reasons if parent else {})
    links = parent.links if parent else 0
    for done in fresh:
        links += done.links - sum(done.supersedes.values())
        reasons.update(done.reasons)
        reasons.subtract(done.supersedes)
    shards = [*(parent.shards if parent else ()), *map(_shard, fresh)]
    manifest = Manifest(
        dataset=dataset,
        list_name=info.list_name,
        list_sha256=info.list_sha256,
        shards=tuple(sorted(shards, key=lambda shard: shard.unit)),
        links=links,
        kept=sum(shard.kept for shard in shards),
        reasons={reason: n for reason, n in sorted(reasons.items()) if n},
        deselected=parent.deselected if parent else {},
        classes=info.classes,
    )
    write_manifest(manifest)
    version = {
        "number": number + 1,
        "digest": manifest.digest,
        "parent": parent.digest if parent else None,
        "why": why,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not store.put_json_if_absent(store.join(dataset, "versions", f"{number + 1:06d}.json"), version):
        return make_version(dataset, why)  # another driver was faster: build on its version
    store.put_json(store.join(dataset, "latest.json"), version)
    return manifest


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
    base = store.join(manifest.dataset, "manifests", manifest.digest)
    rows = [
        dataclasses.asdict(shard) | {"deselected": [{"row": row, "reason": reason} for row, reason in shard.deselected]}
        for shard in manifest.shards
    ]
    store.put(base + ".parquet", table_bytes(pa.Table.from_pylist(rows, _SHARD_SCHEMA)))
    store.put_json(base + ".json", _content(manifest))


def _newest(dataset: str) -> tuple[int, Manifest | None]:
    numbers = [int(name.removesuffix(".json")) for name in store.names(store.join(dataset, "versions"))]
    if not numbers:
        return 0, None
    version = store.read_json(store.join(dataset, "versions", f"{max(numbers):06d}.json"))
    return max(numbers), _load(dataset, version["digest"])


def read_manifest(url: str) -> Manifest:
    """`DATASET` (its newest version), `DATASET@3` (a version by number) or `DATASET@DIGEST` (at least 8 hex digits).

    Raises ValueError when there is none, naming what there is.
    """
    dataset, version = _split(url)
    if version is None:
        read_info(dataset)
        manifest = _newest(dataset)[1]
        if manifest is None:
            raise ValueError(f"{dataset}: has no version yet: rerun xtra ingest (or import) to finish it")
        return manifest
    if len(version) <= 6:
        try:
            digest = store.read_json(store.join(dataset, "versions", f"{int(version):06d}.json"))["digest"]
        except store.Missing:
            raise ValueError(f"{dataset}: has no version {int(version)}: {_offer(dataset)}") from None
        return _load(dataset, digest)
    found = [
        n[:-5] for n in store.names(store.join(dataset, "manifests")) if n.startswith(version) and n[-5:] == ".json"
    ]
    if len(found) != 1:
        raise ValueError(f"{dataset}: {len(found)} manifests start with {version}: {_offer(dataset)}")
    return _load(dataset, found[0])


def _split(url: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(.+)@([0-9]{1,6}|[0-9a-f]{8,64})", url)
    dataset, version = (match[1], match[2]) if match else (url, None)
    return dataset.rstrip("/") or "/", version


def _offer(dataset: str) -> str:
    versions = [str(int(name.removesuffix(".json"))) for name in store.names(store.join(dataset, "versions"))]
    return f"it has versions {', '.join(versions)}" if versions else "it has none; finish the ingest first"


def _load(dataset: str, digest: str) -> Manifest:
    base = store.join(dataset, "manifests", digest)
    try:
        head = store.read_json(base + ".json")
    except store.Missing:
        raise ValueError(f"{dataset}: has no manifest {digest[:16]}: {_offer(dataset)}") from None
    try:
        manifest = _parse(dataset, head, read_table(base + ".parquet").to_pylist())
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"{base}: is damaged ({error!r}): restore it or use another version") from None
    if manifest.digest != digest:
        raise ValueError(f"{base}.json: does not have the content its name promises: restore it or use another version")
    return manifest


def _parse(dataset: str, head: dict[str, Any], rows: list[dict[str, Any]]) -> Manifest:
    for row in rows:
        row["deselected"] = tuple((entry["row"], entry["reason"]) for entry in row["deselected"])
    return Manifest(
        dataset=dataset,
        list_name=head["list_name"],
        list_sha256=head["list_sha256"],
        shards=tuple(Shard(**row) for row in rows),
        links=head["links"],
        kept=head["kept"],
        reasons=head["reasons"],
        deselected=head["deselected"],
        subset=Subset(**head["subset"]) if head["subset"] else None,
        classes=tuple(head["classes"]) if head["classes"] is not None else None,
    )
