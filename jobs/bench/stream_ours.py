"""Our reader in a process of its own, as `xtra bench stream` measures it beside the peers'.

    python -m jobs.bench.stream_ours '{"verb": "read", "data": "DATASET", "batch": 256, "largest": 400000, …}'

prints one JSON object. With `"profile": FILE` the pass is run under cProfile.
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
from shards.manifest import read_manifest
from shards.stream import Encoded, Order, Stream

_READY = 6  # batches, at most, that are ready before they are asked for


def opened(spec: dict[str, Any]) -> Stream:
    """The stream of a spec; endless without `stop_at`."""
    rank, world = spec.get("rank", 0), spec.get("world", 1)
    manifest = read_manifest(spec["data"])
    return Stream(manifest, Order(), spec["batch"], stop_at=spec.get("stop_at"), rank=rank, world=world)


def read(spec: dict[str, Any]) -> dict[str, Any]:
    """Every byte of every sample into a batch slot: the buffer of our batches is one."""
    for module in ("pyarrow.dataset", "pyarrow.parquet", "s3fs"):
        importlib.import_module(module)  # imported when first needed; as for the peers, outside the measurement
    return drain(lambda: _bodies(opened(spec)), spec, copied=True)


def _bodies(stream: Stream) -> Iterator[list[memoryview]]:
    try:
        for batch in stream:
            yield batch.bodies
            batch.release()
    finally:
        stream.close()


def epochs(spec: dict[str, Any]) -> dict[str, Any]:
    """`passes` epochs, from opening to the end, and the resident memory after each: is it flat?"""
    slot = Slot(spec["batch"], spec["largest"])
    before, begun = cpu(), time.perf_counter()
    stream, resident = opened(spec | {"stop_at": spec["images"] * spec["passes"]}), []
    for batch in stream:
        slot.note(batch.bodies)
        if batch.stop // spec["images"] > batch.start // spec["images"]:
            resident.append(_resident())
        batch.release()
    wall, used = time.perf_counter() - begun, cpu() - before
    stream.close()
    return {"resident": resident, "rss": peak_rss(), "bytes": slot.bytes, "cpu": used, "wall": wall}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def first(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds from a URL to the first batch, manifest and indexes included."""
    begun, before = time.perf_counter(), cpu()
    stream = opened(spec)
    opening = time.perf_counter() - begun
    batch = next(iter(stream))
    size = sum(map(len, batch.bodies))
    wall, used = time.perf_counter() - begun, cpu() - before
    stream.close()
    return {"first_s": wall, "open_s": opening, "cpu": used, "bytes": size, "rss": peak_rss()}


def wait(spec: dict[str, Any]) -> dict[str, Any]:
    """How long a consumer waits that takes `share` of the loader's own rate.

    On one stream, turn about: `count` images as fast as they come, which gives the rate of just now, and as many at
    `share` of it, as a training step would take them: busy for as long as a batch lasts, then waiting for the next.
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
    """(images a second, share of the time waited) of a consumer of this rate, 0: as fast as it goes; without the first
    batches, which were made ready at the pace of the phase before."""
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
    from xtra.data import Augment, train_batches  # torch takes memory that the other measurements would show

    return train_batches(stream, 224, Augment(), seed=0, threads=spec["threads"])


def _take(batch: Any, slot: Slot) -> int:
    """Look at a batch, if it is of encoded samples, and give it back; how many images it had."""
    if isinstance(batch, Encoded):
        slot.note(batch.bodies)
        slot.numbers.clear()
    batch.release()
    return len(batch)


def main() -> None:
    spec = json.loads(sys.argv[1])
    verb = {"read": read, "epochs": epochs, "first": first, "wait": wait}[spec["verb"]]
    if spec.get("profile"):
        import cProfile

        profile = cProfile.Profile()
        done = profile.runcall(verb, spec)
        profile.dump_stats(spec["profile"])
    else:
        done = verb(spec)
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
