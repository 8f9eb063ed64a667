"""Selecting over a synthetic dataset of many rows with known duplicates: time, memory, and the duplicates found.

Only indexes, commits and manifests are written (no tars: selecting opens none). The proportions are those of ImageNet's
lists: 11 % of the rows are one placeholder image under as many URLs, 13 % repeat the bytes of an earlier row (half of
them under another label), 2 % look like an earlier row (2 or 4 of 64 bits differ). A twentieth of the hashes cluster
around a few hundred centres, as those of logos do, and some of these look alike by chance. Each measurement runs in a
separate process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.select import SelectConfig, select
from jobs.bench import result
from jobs.bench.rounds import in_a_child
from shards import store
from shards.dataset import INDEX_SCHEMA, Commit, DatasetInfo, commit, table_bytes, unit_name, write_info
from shards.manifest import Manifest, Shard, add_version, make_version, read_manifest
from shards.rules import read_rules
from shards.selection import selected_index

PLACEHOLDER, DUPLICATE, NEAR, CROWD = 0.11, 0.13, 0.02, 0.05  # shares of the rows
CLASSES = 21_841
LIMITS = {"select_seconds": 600.0, "select_peak_gib": 2.0, "open_seconds": 5.0}  # at the defaults


@dataclass(frozen=True)
class Config:
    """How much to make."""

    rows: int = 14_000_000
    unit: int = 10_240  # rows per shard
    open_units: int = 100_000  # shards in the manifest whose opening is timed
    seed: int = 0
    scratch: str | None = None  # a folder for about 250 bytes per row

    def __post_init__(self) -> None:
        for name, least in (("rows", 1000), ("unit", 1), ("open_units", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


def run(config: Config) -> dict[str, Any]:
    """Make, select, open; each in a child process, so that peak memory is measured separately."""
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as folder:
        planted = in_a_child("select", "make", folder, config)
        selected = in_a_child("select", "measure_select", folder, config)
        opened = in_a_child("select", "measure_open", folder, config)
    rows = [{"what": "made", **planted}, {"what": "select", **selected}, {"what": "open", **opened}]
    for row in rows:
        print(json.dumps(row))
    right = {**selected, "near_duplicate": selected["near_duplicate"] + selected["stays_by_right"]}
    ratios = {f"{what}_found_vs_planted": right[what] / max(1, planted[what]) for what in (*_KINDS, "joined")}
    took = {
        "select_seconds": selected["seconds"],
        "select_peak_gib": selected["peak_gib"],
        "open_seconds": opened["seconds"],
    }
    ratios |= {f"{name}_vs_limit": took[name] / limit for name, limit in LIMITS.items()}
    return result("select", rows, ratios)


def measured(begun: float, **values: Any) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / (1 << 20),
        **values,
    }


# --- the made dataset ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """The kind of every row; `source_N` is the row that it copies or resembles, itself for an original."""

    kind_N: np.ndarray  # 0 original, 1 placeholder, 2 duplicate, 3 near-duplicate
    source_N: np.ndarray
    label_N: np.ndarray
    hash_N: np.ndarray  # uint64, perceptual

    @property
    def joined(self) -> int:
        """Originals that take over another row's label."""
        takes_over = (self.kind_N >= 2) & (self.label_N != self.label_N[self.source_N])
        return len(np.unique(self.source_N[takes_over]))


def plant(rows: int, seed: int) -> Planted:
    draw = np.random.default_rng(seed)
    kind_N = np.searchsorted(np.cumsum([PLACEHOLDER, DUPLICATE, NEAR]), draw.random(rows), side="right")
    kind_N = np.array([1, 2, 3, 0], np.int8)[kind_N]
    kind_N[0] = 0
    original = np.flatnonzero(kind_N == 0)
    before_N = np.cumsum(kind_N == 0)  # originals up to and including each row
    source_N = np.arange(rows)
    copies = np.flatnonzero(kind_N >= 2)
    source_N[copies] = original[(draw.random(len(copies)) * before_N[copies]).astype(np.int64)]
    label_N = (CLASSES * draw.random(rows) ** 1.5).astype(np.int32)
    same = copies[draw.random(len(copies)) < 0.5]
    label_N[same] = label_N[source_N[same]]
    return Planted(kind_N, source_N, label_N, _hashes(draw, kind_N, source_N))


def _hashes(draw: np.random.Generator, kind_N: np.ndarray, source_N: np.ndarray) -> np.ndarray:
    """Hashes with half of the bits set, as a median gives; clustered ones differ from a centre by a few swaps."""
    rows = len(kind_N)
    hash_N = _swapped(draw, np.full(rows, 0xFFFFFFFF, np.uint64), 64)
    crowd = draw.random(rows) < CROWD
    centres = hash_N[:300]
    hash_N[crowd] = _swapped(draw, centres[draw.integers(0, len(centres), int(crowd.sum()))], 14)
    hash_N = hash_N[source_N]
    for swaps, part in ((1, 0), (2, 1)):
        near = np.flatnonzero((kind_N == 3) & (np.arange(rows) % 2 == part))
        hash_N[near] = _swapped(draw, hash_N[near], swaps, apart=True)
    hash_N[kind_N == 1] = hash_N[0] ^ np.uint64(0xFFFFFFFFFFFFFFFF)
    return hash_N


def _swapped(draw: np.random.Generator, hash_N: np.ndarray, swaps: int, apart: bool = False) -> np.ndarray:
    """The hashes after this many swaps of two random bits; `apart`: of a set and a clear bit, never swapped back."""
    hash_N, touched = hash_N.copy(), np.zeros_like(hash_N)
    for _ in range(swaps):
        todo = np.arange(len(hash_N))
        while len(todo):
            a, b = (np.uint64(1) << draw.integers(0, 64, len(todo), dtype=np.uint64) for _ in range(2))
            one, other = (hash_N[todo] & a) != 0, (hash_N[todo] & b) != 0
            good = one != other
            if apart:
                good &= (touched[todo] & (a | b)) == 0
            at = todo[good]
            hash_N[at] ^= (a | b)[good]
            touched[at] |= (a | b)[good]
            todo = todo[~good] if apart else todo[:0]
    return hash_N


def make(folder: str, config: Config) -> dict[str, Any]:
    """Write the dataset; return the planted counts."""
    begun, dataset = time.monotonic(), store.join(folder, "dataset")
    planted = plant(config.rows, config.seed)
    units = -(-config.rows // config.unit)
    write_info(dataset, DatasetInfo("bench", "0" * 64, units, config.unit, "bench", "bench"))
    for unit in range(units):
        first, last = unit * config.unit, min((unit + 1) * config.unit, config.rows)
        _write_unit(dataset, unit, _index(planted, first, last, config.seed))
    make_version(dataset, "bench")
    return measured(begun, rows=config.rows, joined=planted.joined) | {
        name: int((planted.kind_N == k).sum()) for k, name in enumerate(_KINDS, 1)
    }


_KINDS = ("placeholder", "duplicate", "near_duplicate")


def _index(planted: Planted, first: int, last: int, seed: int) -> pa.Table:
    here = slice(first, last)
    row = np.arange(first, last)
    # A row has its source's bytes; near-duplicates have their own, and all placeholders those of row -1.
    kind, source = planted.kind_N[here], planted.source_N[here]
    body = np.where(kind == 1, -1, np.where(kind == 3, row, source))
    sha256 = _sha256(body, seed)
    columns = {
        "key": [f"n{label:08d}_{r}" for label, r in zip(planted.label_N[here].tolist(), row.tolist())],
        "url": [f"http://farm{r % 9}.static.example.org/{r * 7919 % 10007}/{r}_{r * 31 % 65521:08x}.jpg" for r in row],
        "labels": pa.ListArray.from_arrays(
            pa.array(np.arange(len(row) + 1), pa.int32()), [f"n{label:08d}" for label in planted.label_N[here].tolist()]
        ),
        "row": row,
        "reason": ["kept"] * len(row),
        "fetched_sha256": sha256,
        "sha256": sha256,
        "phash": planted.hash_N[here],
        "width": np.full(len(row), 500, np.int32),
        "height": np.full(len(row), 375, np.int32),
        "orientation": np.ones(len(row), np.int8),
        "fetched_bytes": 60_000 + body % 100_000,
        "length": 60_000 + body % 100_000,
        "offset": row * 160_000,
    }
    arrays = {
        field.name: pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(len(row), field.type)
        for field in INDEX_SCHEMA
    }
    return pa.table(arrays, INDEX_SCHEMA)


def _sha256(body: np.ndarray, seed: int) -> list[str]:
    """Substitutes for hashes: 256 bits derived from the body's number."""
    mixed = np.stack([body.astype(np.uint64) * np.uint64(4) + np.uint64(i + 1) for i in range(4)], 1)
    mixed += np.uint64(seed) << np.uint64(40)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    text = mixed.astype(">u8").tobytes().hex()
    return [text[at : at + 64] for at in range(0, len(text), 64)]


def _write_unit(dataset: str, unit: int, index: pa.Table) -> None:
    name = unit_name(unit) + "-bench"
    store.put(store.join(dataset, "shards", name + ".parquet"), table_bytes(index))
    kept = len(index)
    commit(
        dataset,
        Commit(unit, "bench", name + ".tar", kept * 160_000, "0" * 64, name + ".parquet", "0" * 64, kept, kept, {}),
    )


# --- measured ------------------------------------------------------------------------------------------------------


def measure_select(folder: str, config: Config) -> dict[str, Any]:
    """Apply the default rules; time reading one shard's index with and without their result."""
    manifest = read_manifest(store.join(folder, "dataset"))
    begun = time.monotonic()
    ended: dict[str, float] = {}

    def note(what: str, done: int, total: int) -> None:
        ended[what] = round(time.monotonic() - begun, 1)

    chosen = select(manifest, SelectConfig(), Path(folder), note)
    return {
        **measured(begun, rows=config.rows, ended=ended),
        **_found(chosen, config),
        "index_ms": _index_ms(manifest),
        "index_ruled_ms": _index_ms(chosen),
    }


def _found(chosen: Manifest, config: Config) -> dict[str, Any]:
    """The rows deselected for their planted reason, and the number of others. A near-duplicate rightly stays if the row
    that it resembles was deselected by chance, in favour of a row that it does not resemble."""
    planted, found, joined = plant(config.rows, config.seed), dict.fromkeys(_KINDS, 0), 0
    gone_N = np.zeros(config.rows, bool)
    assert chosen.rules is not None
    for shard in chosen.shards:
        rules = read_rules(chosen.dataset, chosen.rules, shard.unit)
        row = rules["row"].to_numpy()
        reason = rules["reason"].fill_null("").to_numpy(zero_copy_only=False)
        joined += int((reason == "").sum())
        gone_N[row[reason != ""]] = True
        for number, name in enumerate(_KINDS, 1):
            found[name] += int(((planted.kind_N[row] == number) & (reason == name)).sum())
    return found | {
        "stays_by_right": int(((planted.kind_N == 3) & ~gone_N & gone_N[planted.source_N]).sum()),
        "others": sum(chosen.deselected.values()) - sum(found.values()),
        "joined": joined,
        "rules_bytes": chosen.rules.bytes,
    }


def _index_ms(manifest: Manifest) -> float:
    shards = np.linspace(0, len(manifest.shards) - 1, min(50, len(manifest.shards))).astype(int)
    begun = time.monotonic()
    for number in shards:
        selected_index(manifest, int(number), ["key", "row", "labels", "offset", "length"])
    return 1000 * (time.monotonic() - begun) / len(shards)


def measure_open(folder: str, config: Config) -> dict[str, Any]:
    """Time opening the newest version of a dataset with many units, from its folder alone."""
    dataset = store.join(folder, "large")
    write_info(dataset, DatasetInfo("bench", "0" * 64, config.open_units, 10_240, "bench", "bench"))
    in_a_child("select", "write_large", dataset, config)
    begun = time.monotonic()
    manifest = read_manifest(dataset)
    return measured(begun, units=len(manifest.shards), samples=manifest.samples)


def write_large(dataset: str, config: Config) -> dict[str, Any]:
    """Write a version with many shards of 10,240 links each."""
    sha256 = _sha256(np.arange(config.open_units), config.seed)
    shards = tuple(
        Shard(unit, f"{name}.tar", f"{name}.parquet", 10**9 + unit, sha256[unit], 10_240, 9_000, 9_000)
        for unit, name in ((unit, f"{unit_name(unit)}-{sha256[unit][:12]}") for unit in range(config.open_units))
    )
    n = config.open_units
    manifest = Manifest(dataset, "bench", "0" * 64, shards, 10_240 * n, 9_000 * n, {"http_404": 1_240 * n}, {})
    add_version(replace(manifest), "bench")
    return {}


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (make, measure_select, measure_open, write_large)}
    print(json.dumps(tasks[sys.argv[1]](sys.argv[2], Config(**json.loads(sys.argv[3])))))
