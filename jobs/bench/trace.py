"""Tracing withdrawn samples through a synthetic dataset and run: time, memory, and whether the steps are right.

    xtra bench trace                                    # 14 million rows, a run of 1.3 billion samples, 1,000 words
    xtra bench trace --rows 100000 --samples 2000000

The run has the folder that training leaves: one row of metrics per step in segments of half a minute, and attempts at
different world sizes, one of them killed and redone. Steps are checked against the stream's batches.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import trace
from jobs.bench import result, select
from jobs.bench.rounds import in_a_child
from jobs.trace import RunSaw
from shards import store
from shards.dataset import read_table
from shards.manifest import Manifest, add_version, read_manifest
from shards.rules import SCHEMA, write_rules
from shards.selection import selected_index
from shards.stream import Order, Sequence, batch

DUPLICATES = 0.1  # share of the rows that the newer version leaves out
LIMITS = {"seconds": 60.0, "peak_gib": 1.0}  # at the defaults
RATE = 10_000  # samples/s of the synthetic run, which sets the steps per metrics segment
CHECKED = 200  # sightings compared with the stream's batches


@dataclass(frozen=True)
class Config:
    """How much to make, and how much to trace."""

    rows: int = 14_000_000
    unit: int = 10_240  # rows per shard
    samples: int = 1_300_000_000  # seen by the run
    batch: int = 4096
    words: int = 1000  # keys, URLs and sha256, a third each
    seed: int = 0
    scratch: str | None = None  # a folder for about 250 bytes per row and 300 per step

    def __post_init__(self) -> None:
        for name, least in (("rows", 1000), ("unit", 1), ("samples", 100 * self.batch), ("words", 3), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


def run(config: Config) -> dict[str, Any]:
    """Make, trace; each in a child process, so that peak memory is measured separately."""
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as folder:
        made, traced = (in_a_child("trace", task, folder, config) for task in ("make", "measure"))
    rows = [{"what": "made", **made}, {"what": "traced", **traced}]
    for row in rows:
        print(json.dumps(row))
    ratios = {f"{name}_vs_limit": traced[name] / limit for name, limit in LIMITS.items()}
    ratios |= {"words_found": traced["found"] / config.words, "steps_right": traced["right"] / traced["checked"]}
    return result("trace", rows, ratios)


# --- made ----------------------------------------------------------------------------------------------------------


def make(folder: str, config: Config) -> dict[str, Any]:
    """A dataset with two versions, a run that read the newer one, and a file of words."""
    begun = time.monotonic()
    select.make(folder, select.Config(rows=config.rows, unit=config.unit, seed=config.seed))
    dataset = store.join(folder, "dataset")
    assert add_version(_without_duplicates(read_manifest(dataset), folder, config), "bench")
    steps = _make_run(store.join(folder, "run"), read_manifest(dataset), config)
    Path(folder, "words.txt").write_text("\n".join(_words(read_manifest(dataset), config)))
    return {"seconds": time.monotonic() - begun, "rows": config.rows, "steps": steps}


def _without_duplicates(manifest: Manifest, folder: str, config: Config) -> Manifest:
    draw, out = np.random.default_rng(config.seed + 2), []  # other draws than those that planted the rows

    def rules() -> Iterator[pa.Table]:
        for shard in manifest.shards:
            rows = np.flatnonzero(draw.random(shard.links) < DUPLICATES) + shard.unit * config.unit
            out.append(len(rows))
            yield pa.Table.from_pydict(
                {
                    "unit": np.full(len(rows), shard.unit),
                    "row": rows,
                    "reason": ["duplicate"] * len(rows),
                    "labels": [None] * len(rows),
                },
                SCHEMA,
            )

    written = write_rules(manifest.dataset, rules(), {"by": "bench"}, Path(folder))
    shards = tuple(replace(shard, selected=shard.kept - n) for shard, n in zip(manifest.shards, out))
    return replace(manifest, shards=shards, deselected={"duplicate": sum(out)}, rules=written)


def _make_run(run: str, manifest: Manifest, config: Config) -> int:
    """Three attempts: on 8 ranks, on 16 (partly lost), and on 8 again; returns the number of steps."""
    facts = {"dataset": manifest.dataset, "manifest": manifest.digest, "manifest_samples": manifest.samples}
    store.put_json(
        store.join(run, "config.json"), {"batch": config.batch, "samples": config.samples, "order": asdict(Order())}
    )
    store.put_json(store.join(run, "run.json"), facts | {"world": 8})
    third = config.samples // config.batch // 3 * config.batch
    lost = third // 10 // config.batch * config.batch
    spans = [(8, 0, third), (16, third, 2 * third + lost), (8, 2 * third, config.samples)]
    for number, (world, start, stop) in enumerate(spans, 1):
        store.put_json(store.join(run, "attempts", f"{number:06d}.json"), facts | {"attempt": number, "world": world})
        _make_log(run, number, start, stop, config)
    for seen in range(third, config.samples, third // 10):
        seen = seen // config.batch * config.batch
        commit = {"attempt": 1, "samples_seen": seen, "files": {}, "manifest": manifest.digest}
        store.put_json(store.join(run, "checkpoints", f"{seen:012d}", "COMMIT.json"), commit)
    return -(-config.samples // config.batch)


def _make_log(run: str, attempt: int, start: int, stop: int, config: Config) -> None:
    a_part = max(1, 30 * RATE // config.batch)
    ends = [*range(start + config.batch, stop, config.batch), stop]
    for part, at in enumerate(range(0, len(ends), a_part)):
        body = "".join(json.dumps(_metric(seen, start)) + "\n" for seen in ends[at : at + a_part])
        store.put(store.join(run, "metrics", f"{attempt:06d}-{part:06d}.jsonl"), body.encode())
    events = [{"event": "resume" if start else "start", "samples_seen": start}, {"event": "stop", "samples_seen": stop}]
    body = "".join(json.dumps(event) + "\n" for event in events)
    store.put(store.join(run, "events", f"{attempt:06d}-000000.jsonl"), body.encode())


def _metric(seen: int, start: int) -> dict[str, float]:
    rate = {"seconds": (seen - start) / RATE, "samples_per_s": float(RATE), "data_wait": 0.0001, "cpu_seconds": 1e4}
    return {"samples_seen": seen, "lr": 1e-3, **rate, "memory_bytes": 10**10, "loss": 0.25, "grad_norm": 0.5}


def _words(manifest: Manifest, config: Config) -> list[str]:
    """Words for rows with unique bytes: planted copies share theirs."""
    draw, words = np.random.default_rng(config.seed + 1), []
    planted = select.plant(config.rows, config.seed)
    alone = np.flatnonzero((planted.kind_N == 0) & (np.bincount(planted.source_N, minlength=config.rows) == 1))
    rows = np.sort(draw.choice(alone, config.words, replace=False))
    for number, row in enumerate(rows.tolist()):
        index = manifest.shards[row // config.unit].index
        column = ("key", "url", "sha256")[number % 3]
        words.append(
            read_table(store.join(manifest.dataset, "shards", index), [column])[column][row % config.unit].as_py()
        )
    return words


# --- measured ------------------------------------------------------------------------------------------------------


def measure(folder: str, config: Config) -> dict[str, Any]:
    """Trace all words through the dataset and the run; the memory is the whole process's."""
    begun = time.monotonic()
    found = trace.run(trace.Config(store.join(folder, "run"), file=store.join(folder, "words.txt")))
    took = select.measured(begun)
    assert not found.problems, found.problems
    (saw,) = found.runs
    manifest = read_manifest(store.join(folder, "dataset"))
    checked, right = _checked(saw, manifest, {life.key: life.row for life in found.lives}, config)
    return took | {
        "found": len(found.lives),
        "selected": sum(one.selected for one in saw.seen),
        "sightings": sum(len(one.sightings) for one in saw.seen),
        "checked": checked,
        "right": right,
    }


def _checked(saw: RunSaw, manifest: Manifest, rows: dict[str, int], config: Config) -> tuple[int, int]:
    """(number checked, number confirmed by the stream) for some sightings."""
    draw, sequence = np.random.default_rng(config.seed), Sequence(manifest.counts, Order())
    pairs = [(one.key, s) for one in saw.seen for s in one.sightings]
    chosen = [pairs[at] for at in draw.choice(len(pairs), min(CHECKED, len(pairs)), replace=False)]
    right = 0
    for key, s in sorted(chosen, key=lambda pair: pair[1].samples_seen):
        world = {1: 8, 2: 16, 3: 8}[s.attempt or 0]
        assert s.rank is not None
        assert s.rank_index is not None
        place = batch(sequence, s.samples_seen - s.batch, s.samples_seen, s.rank, world)
        number = int(place.sample[s.rank_index])
        shard = int(np.searchsorted(np.cumsum(manifest.counts), number, side="right"))
        first = int(manifest.counts[:shard].sum())
        right += _rows_of(manifest, shard)[number - first] == rows[key] and int(place.epoch[s.rank_index]) == s.epoch
    return len(chosen), right


def _rows_of(manifest: Manifest, shard: int) -> np.ndarray:
    return selected_index(manifest, shard, ["row"])["row"].to_numpy()


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (make, measure)}
    print(json.dumps(tasks[sys.argv[1]](sys.argv[2], Config(**json.loads(sys.argv[3])))))
