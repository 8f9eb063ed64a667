"""What is done to a whole dataset: checking it, opening a version of many units, listing commits on a far bucket.

check: CPU seconds of `xtra check` over those of reading the same tars once into one sha256. open: a version of many
units from its folder, in CPU seconds. list: which units are committed, and their commits read, from a bucket that
answers late. All in turns, each in a process of its own; check and open are timed at their second call.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench import result, select
from jobs.bench.bucket import serving
from jobs.bench.rounds import in_a_child, require_at_least
from jobs.bench.stream_data import pool, written
from shards import check, store
from shards.config import CheckConfig
from shards.dataset import Commit, DatasetInfo, commit, committed_units, read_commits, unit_name, write_info
from shards.manifest import read_manifest
from shards.tar import PIECE

UNIT = 10_240  # links of a unit, as ingest makes them by default


@dataclass(frozen=True)
class Config:
    """How much to make."""

    images: int = 5_000  # of the dataset that is checked, in units of ingest's size
    data: str | None = None  # folder of photographs, for --images; default: noise of ImageNet's sizes
    units: int = 100_000  # of the version that is opened
    commits: int = 1_387  # that are listed: an ingest of 14.2 million links
    latency: float = 0.05  # seconds until the bucket answers
    rounds: int = 5
    scratch: str | None = None  # a folder for the dataset that is checked; default: the system's

    def __post_init__(self) -> None:
        require_at_least(self, images=1, units=1, commits=1, latency=0, rounds=1)


def run(config: Config) -> dict[str, Any]:
    """Measure and print all three."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as folder:
        made = written(Path(folder, "checked"), config.images, pool(config.data), UNIT)
        in_a_child("dataset", "make", folder, config)
        for turn in range(config.rounds):
            for task in ("measure_hash", "measure_check", "measure_open", "measure_list"):
                rows.append({"what": task.removeprefix("measure_"), "round": turn, "load": os.getloadavg()[0]})
                rows[-1] |= in_a_child("dataset", task, folder, config)
    by = {what: [row for row in rows if row["what"] == what] for what in ("hash", "check", "open", "list")}
    each = [ours["cpu_s"] / once["cpu_s"] for ours, once in zip(by["check"], by["hash"])]
    ratios = {
        "check_cpu_vs_one_sha256": statistics.median(each),
        "check_cpu_vs_one_sha256_least": min(each),
        "check_cpu_vs_one_sha256_most": max(each),
        "open_cpu_s": statistics.median(row["cpu_s"] for row in by["open"]),
        "list_s": statistics.median(row["seconds"] for row in by["list"]),
    }
    print(f"check    {config.images:,} pictures, {made.bytes / 1e6:,.0f} MB: {_spread(each)} x one read and one sha256")
    print(f"open     {config.units:,} units: {_spread([row['cpu_s'] for row in by['open']])} s of CPU")
    late = f"{config.commits:,} commits, {1000 * config.latency:.0f} ms a reply"
    print(f"list     {late}: {_spread([row['seconds'] for row in by['list']])} s")
    return result("dataset", rows, ratios)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- tasks, each in a process of its own ---------------------------------------------------------------------------


def make(folder: str, config: Config) -> dict[str, Any]:
    """The version that is opened, and the commits that are listed."""
    opened = select.Config(open_units=config.units)
    write_info(store.join(folder, "opened"), _info(config.units))
    select.write_large(store.join(folder, "opened"), opened)
    listed = store.join(folder, "buckets", "bench", "listed")
    write_info(listed, _info(config.commits))
    for unit in range(config.commits):
        name = f"{unit_name(unit)}-a1"
        kept = Commit(unit, "a1", f"{name}.tar", 10**9, "0" * 64, f"{name}.parquet", "0" * 64, UNIT, UNIT, {})
        commit(listed, kept)
    return {}


def _info(units: int) -> DatasetInfo:
    return DatasetInfo("bench", "0" * 64, units, UNIT, "bench", "bench")


def measure_hash(folder: str, config: Config) -> dict[str, Any]:
    """Read every tar once, in the pieces that check reads, into one sha256."""
    buffer = memoryview(bytearray(PIECE))

    def hashed() -> int:
        size, digest = 0, hashlib.sha256()
        for path in sorted(Path(folder, "checked", "shards").glob("*.tar")):
            with path.open("rb", buffering=0) as file:
                while length := file.readinto(buffer):
                    digest.update(buffer[:length])
                    size += length
        return size

    return _second(lambda: {"bytes": hashed()})


def measure_check(folder: str, config: Config) -> dict[str, Any]:
    def checked() -> dict[str, Any]:
        found = check.run(CheckConfig(store.join(folder, "checked")))
        assert found.ok, found.problems
        return {"bytes": found.bytes}

    return _second(checked)


def measure_open(folder: str, config: Config) -> dict[str, Any]:
    return _second(lambda: {"units": len(read_manifest(store.join(folder, "opened")).shards)})


def measure_list(folder: str, config: Config) -> dict[str, Any]:
    with serving(Path(folder, "buckets"), latency=config.latency) as bucket:
        os.environ.update(bucket.variables())
        dataset = "s3://bench/listed"
        return _timed(lambda: {"commits": len(read_commits(dataset, committed_units(dataset)))})


def _second(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The second of two calls: the first imports."""
    work()
    return _timed(work)


def _timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, **done}


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (make, measure_hash, measure_check, measure_open, measure_list)}
    print(json.dumps(tasks[sys.argv[1]](sys.argv[2], Config(**json.loads(sys.argv[3])))))
