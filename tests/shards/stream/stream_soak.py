"""24 hours in miniature: 200 epochs of a small set, with ranks killed and their number changed on the way.

    python tests/shards/stream/stream_soak.py
    python tests/shards/stream/stream_soak.py --data s3://bucket/soak --faults --cache

With --faults a proxy before the store that AWS_ENDPOINT_URL names adds latency, answers 503, breaks connections, and is
gone for some seconds once. Then what the ranks saw must be the order to the last key, no process may have grown in
memory, open files or threads, and the cache folder must have stayed within its bound. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in (".", "shards", "shards/stream"))]

from fault_proxy import FaultProxy, Rule  # noqa: E402
from ranks import Expected, Line, Run, Setting, begin, prove, small_set  # noqa: E402

from shards.manifest import Manifest  # noqa: E402
from shards.stream import ReadConfig  # noqa: E402
from shards.stream.order import Order  # noqa: E402

WORLDS = (1, 2, 3, 4, 8)
SIDE = 48  # of the pictures, pixels
FAULTS = (
    Rule("slow_down", chance=0.02),
    Rule("reset", chance=0.01),
    Rule("reset_reply", method="GET", chance=0.01),
    Rule("cut", method="GET", chance=0.01),
)
VITALS = ("memory_mb", "files", "threads")


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    base = args.data.rstrip("/") + f"/{time.time_ns():x}" if args.data else str(folder / "data")
    share = args.samples // 5
    broken = (2 * share + 7,)
    manifest = small_set(base, [args.samples - 3 * share, share, share, share], broken, SIDE)
    cache = folder / "cache"
    limit = sum(shard.tar_bytes for shard in manifest.shards) // 2  # so that it has to choose
    # Little memory, few connections: both are taken as they are first needed, and all should be in use soon.
    read = ReadConfig(connections=4, memory=1 << 20, cache=str(cache) if args.cache else None, cache_bytes=limit)
    with faults(args.faults, args.seed) as proxy:
        setting = Setting(
            data=manifest.address,
            folder=folder / "seen",
            batch=args.batch,
            stop_at=args.epochs * args.samples,
            order=Order(seed=args.seed, lanes=8, chunk=8, window=4),
            read=read,
            env={name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        )
        run, begun = begin(setting), time.monotonic()
        worlds, most = go(run, args, proxy, cache)
        seconds = time.monotonic() - begun
        happened = dict(proxy.counts) if proxy else {}
    proof = prove(run, Expected(manifest, setting, broken, SIDE), every=args.check)
    if args.cache:
        entry = 2 * setting.order.chunk * 2 * limit // manifest.samples  # a chunk with its gaps, at most
        over = max(WORLDS) * max(limit // 64, entry)
        assert most <= limit + over, f"the cache had {most} bytes, it may have {limit} and for a moment {over} more"
    report = (
        proof | measured(run, manifest) | {"attempts": run.attempts, "worlds": worlds, "seconds": round(seconds, 1)}
    )
    return report | {"faults": happened, "cache": {"limit": limit, "most": most} if args.cache else None}


def go(run: Run, args: argparse.Namespace, proxy: FaultProxy | None, cache: Path) -> tuple[list[int], int]:
    """To the end, through kills and stops; returns the world sizes, and the most bytes that were in the cache."""
    chosen = random.Random(args.seed)
    total = run.setting.stop_at // run.setting.batch
    worlds: list[int] = []
    most, looked = 0, 0.0
    outage = max(1, args.kills // 2) if proxy else None  # in which attempt, or the next

    def meanwhile() -> None:
        nonlocal most, looked, outage
        if time.monotonic() > looked + 1:
            looked = time.monotonic()
            most = max(most, held(cache))
        if proxy and outage and run.attempts >= outage and run._reached() > run.cursor["samples_seen"]:
            proxy.outage(args.outage)
            print(f"soak: the store is away for {args.outage:g} s", file=sys.stderr)
            outage = None

    while not run.done:
        last = run.attempts == args.kills
        worlds.append(chosen.choice([world for world in WORLDS if world != (worlds or [0])[-1]]))
        batches = None if last else min(1 + int(chosen.expovariate((args.kills + 1) / total)), total // 4)
        run.attempt(worlds[-1], batches, chosen.choice(["kill", "kill", "term"]), chosen, meanwhile)
        print(f"soak: {run.cursor['samples_seen']} of {run.setting.stop_at}, was {worlds[-1]} ranks", file=sys.stderr)
    return worlds, max(most, held(cache))


def held(folder: Path) -> int:
    """Bytes in a folder that others write."""
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def faults(wanted: bool, seed: int) -> Iterator[FaultProxy | None]:
    """A store that misbehaves, before the one that AWS_ENDPOINT_URL names."""
    if not wanted:
        yield None
        return
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with FaultProxy(endpoint, *FAULTS, seed=seed, latency=0.005) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        try:
            yield proxy
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint


def measured(run: Run, manifest: Manifest) -> dict[str, Any]:
    """Vitals of a rank by quarters of the run; and of each process that lived for ten epochs or more, in the first and
    the last quarter of its life, once it had begun."""
    lives: dict[tuple[int, int], list[Line]] = defaultdict(list)
    quarters: list[list[tuple[float, ...]]] = [[], [], [], []]
    for line in run.lines():
        lives[line.attempt, line.rank].append(line)
        quarters[4 * line.start // run.setting.stop_at].append(_vitals(line))
    long = {}
    for (attempt, rank), lines in lives.items():
        steady = [_vitals(line) for line in lines[len(lines) // 8 :]]
        if len(lines) * run.setting.batch >= 10 * manifest.samples:
            quarter = len(steady) // 4
            parts = [np.mean(part, axis=0).round(1).tolist() for part in (steady[:quarter], steady[-quarter:])]
            long[f"{attempt}.{rank}"] = dict(zip(VITALS, zip(*parts)))
    means = [np.mean(quarter, axis=0).round(1).tolist() for quarter in quarters]
    return {
        "quarters": dict(zip(VITALS, map(list, zip(*means)))),
        "first_and_last_quarter_of_long_lives": long,
        "cpu_seconds": round(sum(lines[-1].vitals[3] for lines in lives.values()), 1),
    }


def _vitals(line: Line) -> tuple[float, ...]:
    memory, files, threads, _ = line.vitals
    return memory / 2**20, files, threads


def check_flat(report: dict[str, Any]) -> None:
    spread = 6 if report["faults"] else 2  # of connections that were just broken
    for name, life in report["first_and_last_quarter_of_long_lives"].items():
        (before, after), files, threads = (life[vital] for vital in VITALS)
        assert after <= 1.01 * before + 3, f"process {name} grew from {before} to {after} MB"
        assert files[1] <= files[0] + spread, f"process {name} had {files[0]} files open, then {files[1]}"
        assert threads[1] <= threads[0] + 2, f"process {name} had {threads[0]} threads, then {threads[1]}"


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--kills", type=int, default=12, help="attempts that are killed or stopped")
    parser.add_argument("--data", default="", help="folder on a store; default: a local one that is removed afterwards")
    parser.add_argument("--faults", action="store_true", help="put the fault proxy in front of AWS_ENDPOINT_URL")
    parser.add_argument(
        "--outage",
        type=float,
        default=5.0,
        help="seconds, with --faults; a process that never reached the store waits 10",
    )
    parser.add_argument("--cache", action="store_true", help="a disk cache that holds half of the set")
    parser.add_argument("--check", type=int, default=8, help="of every so many-th batch the pixels are checked as well")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = soak(args, Path(folder))
    if args.data:
        print(f"soak: what was written below {args.data} is left there", file=sys.stderr)
    print(json.dumps(report))
    check_flat(report)
    return report


if __name__ == "__main__":
    main()
