"""Our stream against webdataset, MosaicML streaming, litdata and Hugging Face datasets: CPU per image, rate, distance,
memory, mixing, waits.

Every reader is one process on the first core, shuffles as its users would, and puts every byte of every picture into
the memory of a batch (the peers' bodies are copied there; ours are read into it, and datasets gathers its own from a
memory-mapped Arrow table, at random places, without a look at what it finds there); nothing is decoded. The file server
(`bucket`) has the last core. CPU is the user + system time of the client and its children over some passes after a
first one, which is reported separately with opening. Rounds are interleaved; a ratio is the median over rounds of ours
over theirs: below 1 is better for CPU, above 1 for rates.

Parts (`--only`): `local`, a warm disk; `s3`, an S3 endpoint; `delayed`, the same with 50 ms to the first byte and
60 MB/s per connection, with memory and bytes read over whole epochs at several world sizes, also in batches that are no
multiple of the order's lanes and in a mixture; `mixing`, classes in a
batch of a class-sorted set, from the order alone; `wait`, how long a consumer of 80 % of the loader's rate waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from jobs.bench import bucket, result, stream_data
from jobs.bench.peers import environments, stream
from shards.stream import Order, ReadConfig, Sequence, batch

REMOTE = ("ours", "webdataset", "mosaic", "litdata")
READERS = (*REMOTE, "hf")  # of a local disk
PARTS = ("local", "s3", "delayed", "mixing", "wait")
LATENCY, RATE = 0.05, 60e6  # seconds to the first byte, bytes/s per connection
WORLDS = (1, 3, 8)
LINKS = 1024  # pictures per shard, in the set for whole epochs
UNEVEN = 6  # a batch without so many pictures is no multiple of the order's lanes
MIXED = 0.2  # the second set's share of a mixture; it has as many of both sets' pictures
SHARE, TURNS = 0.8, 3  # the consumer's share of the loader's rate; how often both are measured
CLASSES, SAMPLES, UNIT = 21_000, 14_200_000, 10_240  # of the class-sorted set
GLOBAL_BATCH = 2048


@dataclass(frozen=True)
class Config:
    """What to measure."""

    only: tuple[str, ...] = PARTS
    images: int = 4000  # in the set that peers also read; about 110 KB each
    passes: int = 4  # over it in one measurement, after a first one that is reported separately
    rounds: int = 3
    batch: int = 256
    epoch_images: int = 40_000  # in the set for whole epochs: more than one window of the order
    shards: int = 1400  # in the set for the first batch, 10,240 links each
    data: str | None = None  # a folder or tar of real JPEGs; default: synthetic ones
    store: str | None = None  # s3://bucket/folder for part s3, reached by the AWS variables; default: loopback
    scratch: str | None = None  # a folder for the data, about 2 GB

    def __post_init__(self) -> None:
        for name in ("images", "passes", "rounds", "batch", "epoch_images", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for part in self.only:
            if part not in PARTS:
                raise ValueError(f"only has {part!r}: give some of {', '.join(PARTS)}")


@dataclass
class Bench:
    """State shared by the parts: the data, made on first use, and the machine's cores."""

    config: Config
    root: Path  # the file server's folder; the data is in its bucket `bench`
    cores: list[int] = field(default_factory=lambda: sorted(os.sched_getaffinity(0)))

    @cached_property
    def python(self) -> Path:
        return environments.build(environments.STREAMS)

    @cached_property
    def arrow(self) -> Path:
        return environments.build(environments.ARROW)

    @cached_property
    def made(self) -> stream_data.Made:
        return stream_data.written(self.root / "bench" / "ours", self.config.images, stream_data.pool(self.config.data))

    @cached_property
    def formats(self) -> None:
        """The same pictures in the peers' formats."""
        for who in ("mosaic", "litdata", "hf"):
            tars = [str(self.made.folder / "shards" / name) for name in self.made.tars]
            self.client(who, {"verb": "write", "folder": str(self.root / "bench" / who), "tars": tars})

    @cached_property
    def epoch(self) -> stream_data.Made:
        return stream_data.cloned(self.root / "bench" / "epoch", -(-self.config.epoch_images // LINKS), LINKS)

    @cached_property
    def more(self) -> stream_data.Made:
        """The second set of a mixture."""
        shards = -(-self.config.epoch_images // LINKS)
        return stream_data.cloned(self.root / "bench" / "more", max(1, round(shards * MIXED / (1 - MIXED))), LINKS)

    @cached_property
    def wide(self) -> stream_data.Made:
        return stream_data.cloned(self.root / "bench" / "wide", self.config.shards, UNIT)

    def bucket(self, distant: bool = False) -> contextlib.AbstractContextManager[bucket.Served]:
        latency, rate = (LATENCY, RATE) if distant else (0, 0)
        return bucket.serving(self.root, self.cores[-1], latency, rate)

    def spec(self, made: stream_data.Made, **more: Any) -> dict[str, Any]:
        return {"verb": "read", "batch": self.config.batch, "images": made.images, "largest": made.largest} | more

    def client(self, who: str, spec: dict[str, Any], variables: dict[str, str] | None = None) -> dict[str, Any]:
        """Run one reader to its end on the first core. Raises ValueError with its last output line if it fails."""
        env = environments.environment() | (variables or {})
        if who == "ours":
            command = [sys.executable, "-m", "jobs.bench.stream_ours"]
            env["PYTHONPATH"] = str(Path(__file__).parents[2])
        else:
            command = [
                str(self.arrow if who == "hf" else self.python),
                "-P",
                stream.__file__,
            ]  # -P: this folder has a module named select
        with tempfile.TemporaryDirectory(dir=self.root) as cache:
            words = json.dumps(spec | {"who": who, "cache": cache})
            done = subprocess.run(
                [*command, words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=cache,
                env=env,
                preexec_fn=lambda: os.sched_setaffinity(0, {self.cores[0]}),
            )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise ValueError(f"{who} failed with status {done.returncode}: {said[-1]}")
        return json.loads(done.stdout.splitlines()[-1])


def run(config: Config) -> dict[str, Any]:
    """Measure the parts and print one line per row. Raises ValueError if a reader fails or reads other bytes."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as name:
        bench = Bench(config, Path(name))
        for part in config.only:
            measured, found = MEASURE[part](bench)
            for row in measured:
                print(_line({"part": part, **row}), flush=True)
                rows.append({"part": part, **row})
            ratios |= found
    return result("stream", rows, ratios)


def _line(row: dict[str, Any]) -> str:
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if not isinstance(v, list)}
    return "  ".join(f"{k} {v}" for k, v in shown.items())


Measured = tuple[list[dict[str, Any]], dict[str, float]]

# --- against the peers ---------------------------------------------------------------------------------------------


def local(bench: Bench) -> Measured:
    _ = bench.formats
    made, folder = bench.made, bench.root / "bench"
    common = bench.spec(made, passes=bench.config.passes)
    specs = {
        "ours": {"data": str(made.folder)},
        "webdataset": {"tars": [str(made.folder / "shards" / name) for name in made.tars]},
        "mosaic": {"folder": str(folder / "mosaic")},
        "litdata": {"folder": str(folder / "litdata")},
        "hf": {"folder": str(folder / "hf")},
    }
    runs = _interleaved(bench, {who: lambda who=who: bench.client(who, common | specs[who]) for who in READERS})
    return _rows(runs, made.images), {
        **{f"local_cpu_vs_{who}": _ratio(runs, who, "cpu") for who in READERS[1:]},
        "local_first_pass_cpu_vs_webdataset": _ratio(runs, "webdataset", "first_cpu"),
    }


def s3(bench: Bench) -> Measured:
    _ = bench.formats
    made = bench.made
    with _endpoint(bench) as (base, variables, plain, load):
        common = bench.spec(made, passes=bench.config.passes)
        tars = [f"pipe:curl -s '{plain(f'ours/shards/{name}')}'" for name in made.tars]
        specs = {
            "ours": {"data": f"{base}/ours"},
            "webdataset": {"tars": tars},
            "mosaic": {"remote": f"{base}/mosaic"},
            "litdata": {"remote": f"{base}/litdata"},
        }

        def reader(who: str) -> Callable[[], dict[str, Any]]:
            return lambda: load(lambda: bench.client(who, common | specs[who], variables))

        runs = _interleaved(bench, {who: reader(who) for who in REMOTE})
    return _rows(runs, made.images), {
        **{f"s3_cpu_vs_{who}": _ratio(runs, who, "cpu") for who in REMOTE[1:]},
        **{f"s3_rate_vs_{who}": 1 / _ratio(runs, who, "wall") for who in REMOTE[1:]},
        "s3_first_pass_cpu_vs_webdataset": _ratio(runs, "webdataset", "first_cpu"),
    }


@contextlib.contextmanager
def _endpoint(bench: Bench) -> Iterator[tuple[str, dict[str, str], Callable[[str], str], Callable]]:
    """The data's address, its environment variables, a plain address for curl, and a wrapper that adds the share of its
    core that the server used, if the server is ours."""
    if bench.config.store is None:
        with bench.bucket() as server:
            variables = server.variables()

            def load(client: Callable[[], dict[str, Any]]) -> dict[str, Any]:
                before = server.counts()
                done = client()
                return done | {"server_share": server.counts().since(before).cpu / (done["first_wall"] + done["wall"])}

            yield "s3://bench", variables, lambda name: server.url(f"bench/{name}"), load
        return
    base = bench.config.store.rstrip("/")
    for who in ("ours", "mosaic", "litdata"):
        stream_data.uploaded(bench.root / "bench" / who, f"{base}/{who}")
    fs, place = fsspec.core.url_to_fs(base)
    yield base, {}, lambda name: fs.sign(f"{place}/{name}", expiration=7200), lambda client: client()


def _interleaved(
    bench: Bench, readers: dict[str, Callable[[], dict[str, Any]]], most: int = 1000
) -> list[dict[str, dict[str, Any]]]:
    """Rounds of one run each; the order changes from round to round."""
    names, rounds = list(readers), []
    for turn in range(min(bench.config.rounds, most)):
        first = turn % len(names)
        rounds.append({who: readers[who]() for who in names[first:] + names[:first]})
    return rounds


def _ratio(runs: list[dict[str, dict[str, Any]]], who: str, what: str) -> float:
    """The median over rounds of ours over theirs, per image: readers stop at the end of a batch."""

    def cost(run: dict[str, Any]) -> float:
        return run[what] / (1 if what.startswith("first") else run["images"])

    return statistics.median(cost(one["ours"]) / cost(one[who]) for one in runs)


def _rows(runs: list[dict[str, dict[str, Any]]], images: int) -> list[dict[str, Any]]:
    rows = []
    for who in runs[0]:
        mine = [one[who] for one in runs]
        row: dict[str, Any] = {
            "reader": who,
            "images": mine[0]["images"],
            "cpu_us": 1e6 * statistics.median(run["cpu"] / run["images"] for run in mine),
            "wall_us": 1e6 * statistics.median(run["wall"] / run["images"] for run in mine),
            "first_pass_cpu_us": 1e6 / images * statistics.median(run["first_cpu"] for run in mine),
            "mb_s": statistics.median(run["bytes"] / run["wall"] for run in mine) / 1e6,
            "first_s": statistics.median(run["first_s"] for run in mine),
            "rss_mb": max(run["rss"] for run in mine) / 1e6,
        }
        if "server_share" in mine[0]:
            row["server_share"] = statistics.median(run["server_share"] for run in mine)
        rows.append(row | {"rounds": [{k: run[k] for k in ("cpu", "wall", "first_cpu")} for run in mine]})
    return rows


# --- a distant store -----------------------------------------------------------------------------------------------


def delayed(bench: Bench) -> Measured:
    rows, ratios = _epochs(bench)
    for more_rows, more in (_distance(bench), _first(bench)):
        rows += more_rows
        ratios |= more
    return rows, ratios


def _epochs(bench: Bench) -> Measured:
    """Bytes sent over bytes used in a whole epoch, for all ranks, including indexes and manifest; and whether a rank's
    memory after its third epoch equals that after its first."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    made = bench.epoch
    with bench.bucket() as server:
        for what, world, more in (
            *(("epoch", world, {}) for world in WORLDS),
            *(("uneven", world, {"batch": bench.config.batch - UNEVEN}) for world in WORLDS[1:]),
            *(
                (
                    "mixture",
                    world,
                    {"mix": (bench.more.address, f"{MIXED:g}"), "images": made.images + bench.more.images},
                )
                for world in WORLDS[1:]
            ),
        ):
            spec: dict[str, Any] = bench.spec(made, world=world, data=made.address) | {"verb": "epochs"} | more
            before = server.counts()
            ranks = [bench.client("ours", spec | {"rank": r, "passes": 1}, server.variables()) for r in range(world)]
            sent = server.counts().since(before)
            used = sum(rank["bytes"] for rank in ranks)
            row: dict[str, Any] = {
                "what": what,
                "world": world,
                "images": spec["images"],
                "batch": spec["batch"],
                "read_ratio": sent.bytes / used,
                "requests": sent.requests,
                "cpu_us": 1e6 * sum(r["cpu"] for r in ranks) / spec["images"],
                "peak_rss_mb": max(r["rss"] for r in ranks) / 1e6,
            }
            if what == "epoch":
                long = bench.client("ours", spec | {"rank": 0, "passes": 3}, server.variables())
                row |= {
                    "peak_rss_mb": max(row["peak_rss_mb"], long["rss"] / 1e6),
                    "rise_mb": (long["resident"][2] - long["resident"][0]) / 1e6,
                    "resident_mb": [round(r / 1e6) for r in long["resident"]],
                }
            rows.append(row)
            ratios[f"read_ratio_w{world}" if what == "epoch" else f"read_ratio_{what}_w{world}"] = row["read_ratio"]
    return rows, ratios | {"rank_memory_mb": rows[0]["peak_rss_mb"]}


def _distance(bench: Bench) -> Measured:
    """One rank's rate over an epoch with delays, divided by the rate without, or by its connections' capacity."""
    made = bench.epoch
    spec = bench.spec(made, verb="epochs", passes=1)
    cap = ReadConfig().connections * RATE
    with bench.bucket() as near, bench.bucket(distant=True) as far:
        data = {"data": made.address}
        runs = _interleaved(
            bench,
            {
                "near": lambda: bench.client("ours", spec | data, near.variables()),
                "far": lambda: bench.client("ours", spec | data, far.variables()),
            },
            most=3,
        )
    rates = [{name: run["bytes"] / run["wall"] for name, run in one.items()} for one in runs]
    rows = [
        {"what": f"rate {name}", "mb_s": statistics.median(r[name] for r in rates) / 1e6, "images": made.images}
        | {"cpu_us": 1e6 / made.images * statistics.median(one[name]["cpu"] for one in runs)}
        for name in ("near", "far")
    ]
    return rows, {"delayed_rate": statistics.median(rate["far"] / min(rate["near"], cap) for rate in rates)}


def _first(bench: Bench) -> Measured:
    """Seconds to the first batch of a wide set with delays, for a single rank and for one of eight."""
    rows: list[dict[str, Any]] = []
    with bench.bucket(distant=True) as server:
        data = bench.wide.address
        for world in (1, 8):
            spec = {"verb": "first", "data": data, "batch": GLOBAL_BATCH, "world": world}
            done = bench.client("ours", spec, server.variables())
            rows.append(
                {
                    "what": "first batch",
                    "shards": bench.config.shards,
                    "links": UNIT,
                    "world": world,
                    **{name: done[name] for name in ("first_s", "open_s", "cpu")},
                    "rss_mb": done["rss"] / 1e6,
                }
            )
    return rows, {"first_batch_s": max(row["first_s"] for row in rows)}


# --- mixing, waiting -----------------------------------------------------------------------------------------------


def mixing(bench: Bench) -> Measured:
    """Distinct classes in a batch over those in a random batch, for batches from the first to the last of an epoch."""
    counts = np.full(-(-SAMPLES // UNIT), UNIT, np.int64)
    counts[-1] -= counts.sum() - SAMPLES
    sequence = Sequence(counts, Order())
    starts = np.linspace(0, SAMPLES - GLOBAL_BATCH, 65).astype(np.int64).tolist()
    found = [_classes(batch(sequence, start, start + GLOBAL_BATCH).sample) for start in starts]
    at_random = CLASSES * (1 - (1 - 1 / CLASSES) ** GLOBAL_BATCH)  # expected, classes of equal size
    row = {
        "classes": CLASSES,
        "samples": SAMPLES,
        "batch": GLOBAL_BATCH,
        "batches": len(starts),
        "random": at_random,
        "distinct": statistics.mean(found),
        "distinct_first": found[0],
        "distinct_least": min(found),
    }
    return [row], {"mixing": row["distinct"] / at_random}


def _classes(sample_B: np.ndarray) -> int:
    return len(np.unique(sample_B * CLASSES // SAMPLES))


def wait(bench: Bench) -> Measured:
    """Near and far, encoded and decoded; `data_wait` is that of encoded samples, at the worse of the two places."""
    made, epoch = bench.made, bench.epoch
    # The distant epoch is longer than one window of the order: a shorter one is fetched completely at its beginning.
    todo = [
        ("encoded", "local", bench.spec(made, data=str(made.folder), count=8 * made.images)),
        ("encoded", "s3 delayed", bench.spec(epoch, data=epoch.address, count=epoch.images)),
        ("decoded", "local", bench.spec(made, data=str(made.folder), count=1024, batch=64)),
        ("decoded", "s3 delayed", bench.spec(made, data="s3://bench/ours", count=1024, batch=64)),
    ]
    rows: list[dict[str, Any]] = []
    with bench.bucket(distant=True) as server:
        for what, place, spec in todo:
            spec |= {"verb": "wait", "share": SHARE, "turns": TURNS, "decode": what == "decoded", "threads": 1}
            rows.append({"what": what, "place": place, **bench.client("ours", spec, server.variables())})
    worst = {what: max(row["wait"] for row in rows if row["what"] == what) for what in ("encoded", "decoded")}
    return rows, {"data_wait": worst["encoded"], "data_wait_decoded": worst["decoded"]}


MEASURE: dict[str, Callable[[Bench], Measured]] = {
    "local": local,
    "s3": s3,
    "delayed": delayed,
    "mixing": mixing,
    "wait": wait,
}
