"""Our reader in a separate process, measured by `xtra bench stream` against the peers'.

    python -m jobs.bench.stream_ours '{"verb": "read", "data": "DATASET", "batch": 256, "largest": 400000, …}'

prints one JSON object. With `"profile": FILE`, the pass runs under cProfile.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.bench.peers import Slot, cpu, drain, peak_rss
from shards.stream import Encoded, Order, Stream, read_mixture

_READY = 6  # most batches that are prefetched


def opened(spec: dict[str, Any]) -> Stream:
    """The stream for a spec; endless without `stop_at`."""
    rank, world = spec.get("rank", 0), spec.get("world", 1)
    manifest = read_mixture(spec["data"], ["=".join(spec["mix"])] if "mix" in spec else [])
    return Stream(manifest, Order(), spec["batch"], stop_at=spec.get("stop_at"), rank=rank, world=world)


def read(spec: dict[str, Any]) -> dict[str, Any]:
    """Read every byte of every sample into a batch's memory; our batches already use one buffer."""
    for module in ("pyarrow.dataset", "pyarrow.parquet", "s3fs"):
        importlib.import_module(module)  # lazy imports, kept outside the measurement as for the peers
    return drain(lambda: _bodies(opened(spec)), spec, copied=True)


def _bodies(stream: Stream) -> Iterator[list[memoryview]]:
    try:
        for batch in stream:
            yield batch.bodies
            batch.release()
    finally:
        stream.close()


def epochs(spec: dict[str, Any]) -> dict[str, Any]:
    """Read `passes` epochs, and record the resident memory after each: is it flat?"""
    slot = Slot(spec["batch"], spec["largest"])
    before, begun = cpu(), time.perf_counter()
    stream, resident = opened(spec | {"stop_at": spec["images"] * spec["passes"]}), []
    for batch in stream:
        slot.note(batch.bodies)
        if batch.stop // spec["images"] > batch.start // spec["images"]:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        batch.release()
    wall, used = time.perf_counter() - begun, cpu() - before
    stream.close()
    return {"resident": resident, "rss": peak_rss(), "bytes": slot.bytes, "cpu": used, "wall": wall}


def first(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds from a URL to the first batch, including manifest and indexes."""
    begun, before = time.perf_counter(), cpu()
    stream = opened(spec)
    opening = time.perf_counter() - begun
    size = sum(map(len, next(iter(stream)).bodies))
    wall, used = time.perf_counter() - begun, cpu() - before
    stream.close()
    return {"first_s": wall, "open_s": opening, "cpu": used, "bytes": size, "rss": peak_rss()}


def wait(spec: dict[str, Any]) -> dict[str, Any]:
    """How long a consumer waits that takes `share` of the loader's own rate.

    Two phases alternate on one stream: `count` images as fast as possible, which gives the current rate, and as many at
    `share` of it, like training steps: busy for the duration of a batch, then waiting for the next.
    """
    stream = opened(spec)
    loader = iter(_decoded(stream, spec) if spec.get("decode") else stream)
    slot = Slot(spec["batch"], spec["largest"])
    _phase(loader, slot, spec, 0.0)
    turns = []
    for _ in range(spec["turns"]):
        rate, _ = _phase(loader, slot, spec, 0.0)
        turns.append((rate, *_phase(loader, slot, spec, spec["share"] * rate)))
    stream.close()
    rate, taken, waited = (statistics.median(column) for column in zip(*turns))
    return {"rate": rate, "taken": taken, "wait": waited, "waits": [turn[2] for turn in turns], "rss": peak_rss()}


def _phase(loader: Iterator[Any], slot: Slot, spec: dict[str, Any], rate: float) -> tuple[float, float]:
    """(images/s, share of the time waited) of a consumer with this rate (0: unlimited), without the first batches,
    which were prefetched at the pace of the previous phase."""
    for _ in range(_READY):
        _take(next(loader), slot)
    begun, waited, images = time.perf_counter(), 0.0, 0
    while images < spec["count"]:
        asked = time.perf_counter()
        batch = next(loader)
        came = time.perf_counter()
        waited += came - asked
        count = _take(batch, slot)
        images += count
        if rate:
            time.sleep(max(0.0, came + count / rate - time.perf_counter()))
    took = time.perf_counter() - begun
    return images / took, waited / took


def _decoded(stream: Stream, spec: dict[str, Any]) -> Iterator[Any]:
    from xtra.data import Augment, train_batches  # late: torch's memory would show in the other measurements

    return train_batches(stream, 224, Augment(), seed=0, threads=spec["threads"])


def _take(batch: Any, slot: Slot) -> int:
    """Check a batch if it has encoded samples, and release it; returns its number of images."""
    if isinstance(batch, Encoded):
        slot.note(batch.bodies)
        slot.numbers.clear()
    batch.release()
    return len(batch)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    verb = {"read": read, "epochs": epochs, "first": first, "wait": wait}[asked["verb"]]
    if asked.get("profile"):
        import cProfile

        profile = cProfile.Profile()
        done = profile.runcall(verb, asked)
        profile.dump_stats(asked["profile"])
    else:
        done = verb(asked)
    print(json.dumps(done), flush=True)
