"""Small real datasets for tests: written through the same calls as ingest's, without fetching anything."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from shards import store
from shards.dataset import (
    FORMAT,
    INDEX_SCHEMA,
    PLAIN,
    PLAN_SCHEMA,
    Commit,
    DatasetInfo,
    Generation,
    commit,
    read_generations,
    table_bytes,
    unit_name,
    write_generation,
    write_info,
    write_plan,
)
from shards.manifest import Manifest, make_version, write_manifest
from shards.rules import SCHEMA, write_rules
from shards.tar import Member, tar_sha256, write_tar


def jpeg(number: int, side: int = 32) -> bytes:
    """A small picture that differs for every number."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(number)
    a, b, c = rng.uniform(0.05, 0.6, 3)
    pixels = np.stack([np.sin(a * x + number), np.sin(b * y), np.sin(c * (x + y))], -1)
    out = io.BytesIO()
    Image.fromarray((127.5 + 127 * pixels).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_unit(
    dataset: str,
    unit: int,
    rows: list[dict],
    attempt: str = "a1",
    supersedes: dict[str, int] | None = None,
    format_: int = FORMAT,
) -> Commit:
    """Tar, index and commit of one unit; `rows` are index rows with a `body` where they are kept."""
    tar, members = io.BytesIO(), []
    for row in rows:
        if row["reason"] == "kept":
            sha256 = hashlib.sha256(row["body"]).hexdigest()
            row |= {"sha256": sha256, "fetched_sha256": sha256, "member": row["key"] + ".jpg"}
            note = {name: row[name] for name in ("url", "labels", "sha256", "width", "height")}
            members += [
                Member(row["key"] + ".jpg", row["body"]),
                Member(row["key"] + ".json", json.dumps(note).encode()),
            ]
    placed = {p.name: p for p in write_tar(tar, members)}
    for row in rows:
        if row["reason"] == "kept":
            row |= {"offset": placed[row["member"]].offset, "length": placed[row["member"]].length}
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "body"} for row in rows], INDEX_SCHEMA)
    index = table_bytes(table)
    base = f"{unit_name(unit)}-{attempt}"
    store.put(store.join(dataset, "shards", base + ".tar"), tar.getvalue())
    store.put(store.join(dataset, "shards", base + ".parquet"), index)
    reasons = [row["reason"] for row in rows if row["reason"] != "kept"]
    return commit(
        dataset,
        Commit(
            unit=unit,
            attempt=attempt,
            tar=base + ".tar",
            tar_bytes=len(tar.getvalue()),
            tar_sha256=sha256_of(tar.getvalue(), format_),
            index=base + ".parquet",
            index_sha256=hashlib.sha256(index).hexdigest(),
            links=len(rows),
            kept=len(rows) - len(reasons),
            reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
            supersedes=supersedes or {},
            format=format_,
        ),
    )


def sha256_of(tar: bytes, format_: int) -> str:
    """What a commit in a dataset of this format says of a tar."""
    return hashlib.sha256(tar).hexdigest() if format_ == PLAIN else tar_sha256([memoryview(tar)])


def rows_of(first: int, count: int, classes: int = 5, bad: tuple[int, ...] = (), side: int = 32) -> list[dict]:
    """Index rows first .. first+count-1; the rows in `bad` are http_404."""
    return [
        {
            "key": f"k{row:06d}",
            "url": f"http://example.org/{row}.jpg",
            "labels": [f"c{row % classes}"],
            "row": row,
            "reason": "http_404" if row in bad else "kept",
            "width": None if row in bad else side,
            "height": None if row in bad else side,
            "source_format": None if row in bad else "jpeg",
            "body": b"" if row in bad else jpeg(row, side),
        }
        for row in range(first, first + count)
    ]


def plan_unit(dataset: str, unit: int, rows: list[dict]) -> None:
    plan = [{name: row.get(name) for name in PLAN_SCHEMA.names} for row in rows]
    write_plan(dataset, unit, pa.Table.from_pylist(plan, PLAN_SCHEMA))


def retry(manifest: Manifest, again: list[int], bad: tuple[int, ...] = ()) -> Manifest:
    """A new generation of one unit that asks for these http_404 rows again, and the version with it."""
    dataset, unit = manifest.dataset, max(shard.unit for shard in manifest.shards) + 1
    rows = [row for number in again for row in rows_of(number, 1, bad=bad)]
    plan_unit(dataset, unit, [row | {"why": "http_404"} for row in rows])
    write_generation(dataset, Generation(len(read_generations(dataset)) + 1, manifest.digest, unit, 1))
    write_unit(dataset, unit, rows, supersedes={"http_404": len(rows)}, format_=manifest.format)
    return make_version(dataset, "retry")


def rule(manifest: Manifest, rules: dict[int, list[tuple[int, str | None, list[str] | None]]]) -> Manifest:
    """The manifest with these rules: (row, reason, labels) by unit. It is written, but is no version."""
    tables = [
        pa.Table.from_pylist([{"unit": unit, "row": r, "reason": why, "labels": to} for r, why, to in some], SCHEMA)
        for unit, some in sorted(rules.items())
    ]
    with tempfile.TemporaryDirectory() as scratch:
        written = write_rules(manifest.dataset, tables, {"by": "hand"}, Path(scratch))
    reasons = Counter(why for some in rules.values() for _, why, _ in some if why)
    shards = []
    for shard in manifest.shards:
        out = sum(why is not None for _, why, _ in rules.get(shard.unit, []))
        shards.append(replace(shard, selected=shard.selected - out))
    ruled = replace(manifest, shards=tuple(shards), deselected=dict(sorted(reasons.items())), rules=written)
    write_manifest(ruled)
    return ruled


def make_dataset(
    dataset: str | Path,
    counts: list[int],
    bad: tuple[int, ...] = (),
    side: int = 32,
    name: str = "test",
    format_: int = FORMAT,
) -> Manifest:
    """A dataset of len(counts) units with counts[i] links each and a first version."""
    dataset = str(dataset)
    first = 0
    for unit, count in enumerate(counts):
        rows = rows_of(first, count, bad=bad, side=side)
        plan_unit(dataset, unit, rows)
        write_unit(dataset, unit, rows, format_=format_)
        first += count
    write_info(
        dataset,
        DatasetInfo(
            list_name=name,
            list_sha256="0" * 64,
            units=len(counts),
            unit=max(counts),
            config_digest="c",
            image_build="t",
            format=format_,
        ),
    )
    return make_version(dataset, "test")
