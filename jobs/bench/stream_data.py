"""The data for `xtra bench stream`: a small dataset of complete pictures, and large ones with sparse tars.

`written` makes a dataset with the functions that ingest uses, so that its tars are plain webdataset tars. `cloned`
makes one with many shards from a single index and a single sparse tar, hard-linked under every shard's name: offsets,
lengths, headers and index bytes are as in a real one, bodies are zeros, and it takes a few MB on disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bench.origin import body_of, photographs, real_photographs
from shards import store
from shards.dataset import (
    FORMAT,
    INDEX_SCHEMA,
    PLAN_SCHEMA,
    Commit,
    DatasetInfo,
    commit,
    table_bytes,
    unit_name,
    write_info,
    write_plan,
)
from shards.manifest import Manifest, Shard, make_version, write_manifest
from shards.tar import BLOCK, Member, header, tar_sha256, write_tar

MEAN_BYTES = 110_000  # per picture, ImageNet's mean
SPREAD = 0.5  # standard deviation of the logarithm of a size
UNIT = 500  # pictures per tar: 55 MB, like the peers' default shards


@dataclass(frozen=True)
class Made:
    """A dataset of pictures on disk; picture k contains its number k in eight digits (`peers.stream.NUMBER`)."""

    folder: Path
    tars: tuple[str, ...]  # names
    images: int
    bytes: int  # of the pictures
    largest: int

    @property
    def address(self) -> str:
        """The manifest of a `cloned` set in the bench's bucket."""
        return f"s3://bench/{self.folder.name}@{(self.folder / 'address').read_text()}"


def pool(data: str | None, kinds: int = 8, each: int = 4) -> list[bytes]:
    """The pictures to copy from: real ones if given, otherwise synthetic ones with log-normal sizes."""
    if data is not None:
        return real_photographs(Path(data), 256)
    quantiles = np.quantile(np.random.default_rng(0).standard_normal(1 << 12), (np.arange(kinds) + 0.5) / kinds)
    sizes = np.exp(SPREAD * quantiles)
    sizes *= MEAN_BYTES / sizes.mean()
    return [body for k, size in enumerate(sizes) for body in photographs(each, int(size), k * each)]


def written(folder: Path, images: int, pictures: list[bytes], unit: int = UNIT) -> Made:
    """Write a dataset with `images` pictures and its first version."""
    dataset = str(folder)
    sizes = []
    tars = []
    for number, first in enumerate(range(0, images, unit)):
        bodies = [body_of(pictures, f"{k:08d}") for k in range(first, min(first + unit, images))]
        tars.append(_write_unit(dataset, number, first, bodies))
        sizes += map(len, bodies)
    _write_info(dataset, len(tars), unit)
    make_version(dataset, "bench")
    return Made(folder, tuple(tars), images, sum(sizes), max(sizes))


def _write_info(dataset: str, units: int, unit: int) -> None:
    write_info(dataset, DatasetInfo("bench", "0" * 64, units, unit, config_digest="bench", image_build="bench"))


def _row(row: int) -> dict[str, Any]:
    """An index row as long as a real one."""
    digest = hashlib.sha256(str(row).encode()).hexdigest()
    url = f"http://farm{row % 9}.static.example.org/{row % 3000}/{int(digest[:9], 16)}_{digest[9:19]}.jpg"
    return {
        "key": f"n{row // 700:08d}_{row}",
        "url": url,
        "final_url": url,
        "labels": [f"n{row // 700:08d}"],
        "row": row,
        "reason": "kept",
        "http_status": 200,
        "attempts": 1,
        "fetched_at": datetime(2026, 1, 1, tzinfo=UTC),
        "elapsed_ms": int(digest[:2], 16),
        "fetched_sha256": digest,
        "source_format": "jpeg",
        "decode_checked": True,
        "sha256": digest,
        "phash": int(digest[:16], 16),
        "width": 500,
        "height": 375,
        "mode": "RGB",
        "progressive": False,
        "subsampling": "4:2:0",
        "icc": False,
        "member": f"n{row // 700:08d}_{row}.jpg",
    }


def _write_unit(dataset: str, unit: int, first: int, bodies: list[bytes]) -> str:
    rows = [_row(first + k) for k in range(len(bodies))]
    members = []
    for row, body in zip(rows, bodies):
        row["sha256"] = hashlib.sha256(body).hexdigest()
        note = {name: row[name] for name in ("url", "labels", "sha256", "width", "height")}
        members += [Member(row["member"], body), Member(row["key"] + ".json", json.dumps(note).encode())]
    out = io.BytesIO()
    placed = {p.name: p for p in write_tar(out, members)}
    for row in rows:
        row |= {"offset": placed[row["member"]].offset, "length": placed[row["member"]].length}
    base = f"{unit_name(unit)}-a1"
    index = table_bytes(pa.Table.from_pylist(rows, INDEX_SCHEMA))
    tar = out.getvalue()
    write_plan(
        dataset, unit, pa.Table.from_pylist([{n: r.get(n) for n in PLAN_SCHEMA.names} for r in rows], PLAN_SCHEMA)
    )
    store.put(store.join(dataset, "shards", base + ".tar"), tar)
    store.put(store.join(dataset, "shards", base + ".parquet"), index)
    commit(
        dataset,
        Commit(
            unit=unit,
            attempt="a1",
            tar=base + ".tar",
            tar_bytes=len(tar),
            tar_sha256=tar_sha256([memoryview(tar)]),
            index=base + ".parquet",
            index_sha256=hashlib.sha256(index).hexdigest(),
            links=len(rows),
            kept=len(rows),
            reasons={},
            format=FORMAT,
        ),
    )
    return base + ".tar"


def cloned(folder: Path, shards: int, links: int) -> Made:
    """A dataset of identical sparse shards with `links` pictures each; the file `address` names its manifest."""
    sizes = np.exp(SPREAD * np.random.default_rng(1).standard_normal(links) - SPREAD**2 / 2) * MEAN_BYTES
    (folder / "shards").mkdir(parents=True)
    tar, index = folder / "shards" / "one.tar", folder / "shards" / "one.parquet"
    rows, at = [], 0
    with tar.open("wb") as file:
        for k, size in enumerate(sizes.astype(int).tolist()):
            rows.append(_row(k) | {"offset": at + BLOCK, "length": size})
            file.seek(at)
            file.write(header(rows[-1]["member"], size))  # readers may parse it; the rest is a hole
            at += 3 * BLOCK + size + -size % BLOCK  # the space of the json's header and body, and of the member
        file.truncate(at + 2 * BLOCK)
    index.write_bytes(table_bytes(pa.Table.from_pylist(rows, INDEX_SCHEMA)))
    names = [f"{unit_name(unit)}-a1" for unit in range(shards)]
    for name in names:
        os.link(tar, folder / "shards" / f"{name}.tar")
        os.link(index, folder / "shards" / f"{name}.parquet")
    _write_info(str(folder), shards, links)
    listed = tuple(
        Shard(unit, f"{name}.tar", f"{name}.parquet", at + 2 * BLOCK, "0" * 64, links, links, links)
        for unit, name in enumerate(names)
    )
    manifest = Manifest(str(folder), "bench", "0" * 64, listed, shards * links, shards * links, {}, {})
    write_manifest(manifest)
    (folder / "address").write_text(manifest.digest[:16])
    total = int(sizes.astype(int).sum())
    return Made(folder, tuple(shard.tar for shard in listed), shards * links, shards * total, int(sizes.max()))


def uploaded(folder: Path, url: str) -> None:
    """Copy a folder's files to a store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_file(store.join(url, path.relative_to(folder).as_posix()), path)
