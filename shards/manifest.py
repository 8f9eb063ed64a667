"""Units, commits and versions: which samples a dataset holds, and the proof that every link is accounted for.

A dataset is a folder (design section 3): `dataset.json`, the plan `links/`, the tars and indexes in `shards/`, one
commit a unit in `commits/` (written last, put if absent), immutable manifests named by their own digest in
`manifests/`, and `versions/`, whose newest number is the newest version. A unit without a commit never happened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import store

FORMAT = 1
KEPT = "kept"

PLAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("row", pa.int64()),
        ("line", pa.int64()),  # of the list, from 1, where it holds no usable link; else null
        ("why", pa.string()),  # it does not
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("row", pa.int64()),
        ("reason", pa.string()),  # "kept" or a Reason
        ("detail", pa.string()),
        ("http_status", pa.int32()),
        ("attempts", pa.int32()),
        ("fetched_at", pa.timestamp("ms", "UTC")),
        ("elapsed_ms", pa.int32()),
        ("fetched_bytes", pa.int64()),
        ("fetched_sha256", pa.string()),
        ("source_format", pa.string()),
        ("decode_checked", pa.bool_()),
        ("sha256", pa.string()),  # of the member as stored
        ("phash", pa.uint64()),
        ("width", pa.int32()),  # as stored
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("orientation", pa.int8()),
        ("progressive", pa.bool_()),
        ("subsampling", pa.string()),
        ("icc", pa.bool_()),
        ("member", pa.string()),
        ("offset", pa.int64()),  # of the member's data in the tar, bytes
        ("length", pa.int64()),
    ]
)
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
class DatasetInfo:
    """`dataset.json`: what the dataset was made from; a rerun must agree with all of it."""

    list_name: str
    list_sha256: str
    units: int
    unit: int  # links a unit
    config_digest: str
    image_build: str
    classes: tuple[str, ...] | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class Commit:
    """`commits/000017.json`: which attempt at a unit counts."""

    unit: int
    attempt: str
    tar: str  # object name under shards/
    tar_bytes: int
    tar_sha256: str
    index: str
    index_sha256: str
    links: int
    kept: int
    reasons: dict[str, int]  # without "kept"
    supersedes: dict[str, int] = field(default_factory=dict)  # older verdicts that rows of this unit replace

    def __post_init__(self) -> None:
        assert self.links == self.kept + sum(self.reasons.values()), f"unit {self.unit}: links do not balance"


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


def unit_name(unit: int) -> str:
    return f"{unit:06d}"


# --- dataset.json and the plan -------------------------------------------------------------------------------------


def read_info(dataset: str) -> DatasetInfo:
    """Raises ValueError when there is no dataset or it is of a newer format."""
    try:
        value = store.read_json(store.join(dataset, "dataset.json"))
    except store.Missing:
        raise ValueError(
            f"{dataset}: is not a dataset (no dataset.json): make one with xtra ingest or import"
        ) from None
    if not isinstance(value, dict) or not {field.name for field in dataclasses.fields(DatasetInfo)} <= value.keys():
        raise ValueError(f"{dataset}: its dataset.json is not one of ours: give the folder of a dataset")
    if value["format"] != FORMAT:
        raise ValueError(f"{dataset}: is of format {value['format']}, this build reads {FORMAT}: upgrade to read it")
    classes = value.pop("classes")
    return DatasetInfo(**value, classes=tuple(classes) if classes is not None else None)


def write_info(dataset: str, info: DatasetInfo) -> None:
    """Put if absent. Raises ValueError naming the first field in which a rerun differs."""
    value = dataclasses.asdict(info)
    if store.put_json_if_absent(store.join(dataset, "dataset.json"), value):
        return
    old = read_info(dataset)
    for name in ("list_sha256", "list_name", "unit", "config_digest", "units", "classes"):
        if getattr(old, name) != getattr(info, name):
            raise ValueError(
                f"{dataset}: was made with another {name} ({_short(getattr(old, name))}, now "
                f"{_short(getattr(info, name))}): use the same list and settings, or another --out"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "…"


def write_plan(dataset: str, unit: int, plan: pa.Table) -> None:
    """Put if absent. Raises ValueError when another list was planned here, by an earlier or a concurrent driver."""
    url = store.join(dataset, "links", unit_name(unit) + ".parquet")
    plan = plan.cast(PLAN_SCHEMA)
    if not store.put_if_absent(url, table_bytes(plan)) and not read_table(url).equals(plan):
        raise ValueError(f"{url}: plans other links than this list gives: use the same list, or another --out")


def read_plan(dataset: str, unit: int) -> pa.Table:
    return read_table(store.join(dataset, "links", unit_name(unit) + ".parquet"))


def planned_units(dataset: str) -> list[int]:
    return [int(name.removesuffix(".parquet")) for name in store.names(store.join(dataset, "links"))]


def table_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(store.read(url)), columns=columns)
    except pa.ArrowInvalid as error:
        raise store.StoreError(f"{url}: is damaged ({error}): run xtra check on the dataset") from None


# --- commits -------------------------------------------------------------------------------------------------------


def committed_units(dataset: str) -> list[int]:
    return [int(name.removesuffix(".json")) for name in store.names(store.join(dataset, "commits"))]


def read_commit(dataset: str, unit: int) -> Commit:
    return Commit(**store.read_json(store.join(dataset, "commits", unit_name(unit) + ".json")))


def commit(dataset: str, ours: Commit) -> Commit:
    """Put the commit if no other attempt has; returns the winner, which is whoever the object read back names."""
    store.put_json_if_absent(store.join(dataset, "commits", unit_name(ours.unit) + ".json"), dataclasses.asdict(ours))
    return read_commit(dataset, ours.unit)


# --- manifests and versions ----------------------------------------------------------------------------------------


def make_version(dataset: str, why: str) -> Manifest:
    """Compact the commits that are newer than the newest version into a new one; no new commits, no new version."""
    info = read_info(dataset)
    number, parent = _newest(dataset)
    known = {shard.unit for shard in parent.shards} if parent else set()
    fresh = [read_commit(dataset, unit) for unit in committed_units(dataset) if unit not in known]
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
