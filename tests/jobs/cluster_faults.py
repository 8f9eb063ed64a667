"""What can happen to a training on a cluster, one function each: do the harm, and check what comes of it.

A fault gets a fresh cluster, whether to strike while a checkpoint is written, and a source of random numbers. It gives
{"seconds": from the harm to the next COMMIT, "start": of an undisturbed start, ...} and raises AssertionError where
what comes out is not what it should be.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cluster_runs import (
    RECIPE,
    Command,
    actor,
    attempts,
    command,
    committed,
    events,
    once_each,
    pids_of,
    ranks,
    same,
    steps_since,
    training,
)
from forked import run_ranks
from made_datasets import make_dataset
from nodes import Cluster, cluster as started

from jobs.bench.origin import serving
from xtra import recipes, train

SAMPLES = 1600
SHARDS = [40, 37]  # samples of the dataset's
TWO = ("--workers=2", f"--samples={SAMPLES}")
QUICK = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "15"}  # a stopped rank is lost after that; else 60
ELASTIC = Path(__file__).with_name("ray_elastic.py")
DEAD = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}  # a stopped node; else a minute


@dataclass(frozen=True)
class Fault:
    run: Callable[[Cluster, bool, random.Random], dict]
    nodes: int = 2
    notice: int = 30
    env: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)  # of nodes.cluster()


@contextmanager
def prepared(fault: Fault) -> Iterator[Cluster]:
    """A fresh cluster for a fault, with the dataset of the runs."""
    with started(fault.nodes, env=fault.env, notice=fault.notice, **fault.more) as made:
        make_dataset(made.folder / "data", SHARDS)
        yield made


@cache
def undisturbed() -> Path:
    """The same run on two plain gloo processes, without Ray; once a process, which removes it at its end."""
    folder = Path(tempfile.mkdtemp(prefix="undisturbed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_dataset(folder / "data", SHARDS)
    base = dataclasses.replace(recipes.get(RECIPE[0]), batch=16, checkpoint_every=160, threads=1, device="cpu")
    config = dataclasses.replace(base, data=str(folder / "data"), out=str(folder / "whole"), samples=SAMPLES)
    run_ranks(alone, 2, str(folder / "setup"), config)
    return folder / "whole"


def alone(rank: int, world: int, setup: str, config: train.Config) -> None:
    """One rank of two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{setup}", rank=rank, world_size=world)
    train.run(config)
    torch.distributed.destroy_process_group()


def strike(command: Command, upload: bool, rng: random.Random) -> tuple[int, float]:
    """Wait for the moment; (the newest attempt, seconds from the start to the first step's checkpoint)."""
    first = command.until_commit(160) - command.began
    if upload:
        command.until_upload()
    else:
        time.sleep(rng.uniform(0.0, 3.0))
    return max(attempts(command.run)), first


def recovered(command: Command, attempt: int, since: float) -> float:
    """Seconds until a later attempt has committed."""
    return command.until(lambda: steps_since(command.run, attempt)) - since


def finished(command: Command, whole: Path) -> None:
    assert command.end() == 0, command.said
    once_each(command.run, SAMPLES)
    same(command.run, whole)


def worker(cluster: Cluster, upload: bool, rng: random.Random, number: int = signal.SIGKILL) -> dict:
    whole = undisturbed()
    with training(cluster, "run", *TWO, **QUICK) as command:
        attempt, start = strike(command, upload, rng)
        victim = rng.choice(sorted(ranks(cluster)))
        since = time.monotonic()
        os.kill(victim, number)
        seconds = recovered(command, attempt, since)
        finished(command, whole)
    return {"seconds": seconds, "start": start}


def worker_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return worker(cluster, upload, rng, signal.SIGSTOP)


def node(cluster: Cluster, upload: bool, rng: random.Random, spare: bool = True, number: int = signal.SIGKILL) -> dict:
    """A node of a rank goes, with another one free or one that is started then."""
    whole = undisturbed()
    with training(cluster, "run", *TWO, "--wait-for-workers=200", **QUICK) as command:
        attempt, start = strike(command, upload, rng)
        victim = rng.choice([node for node in ranks(cluster).values() if node is not cluster.head])
        since = time.monotonic()
        victim.kill(number)
        if not spare:
            command.until(lambda: "waiting for 2 CPUs: " in command.said)
            cluster.node()
            since = time.monotonic()
        seconds = recovered(command, attempt, since)
        finished(command, whole)
        if number == signal.SIGSTOP:
            victim.kill()
    return {"seconds": seconds, "start": start}


def node_comes_back(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return node(cluster, upload, rng, spare=False)


def node_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return node(cluster, upload, rng, number=signal.SIGSTOP)


def drain(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """A notice of 30 s: a COMMIT at once, and another group on the spare node long before the deadline."""
    whole = undisturbed()
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        victim = rng.choice([node for node in ranks(cluster).values() if node is not cluster.head])
        before = len(committed(command.run))
        since = time.monotonic()
        victim.drain()
        said = command.until(lambda: "about to go" in command.said) - since
        saved = command.until(lambda: events(command.run, "stop")) - since
        at = committed(command.run)[-1]
        assert len(committed(command.run)) >= before
        seconds = recovered(command, attempt, since)
        resumed = [event["samples_seen"] for event in events(command.run, "resume")]
        assert resumed[-1] == events(command.run, "stop")[0]["samples_seen"] == at, (resumed, at)
        finished(command, whole)
    return {"seconds": seconds, "start": start, "noticed": round(said, 1), "saved": round(saved, 1), "lost": 0}


def resize(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """Grow 1 -> 2 -> 3 as nodes come, and shrink to 1 as two of them go; then the same by Ray Train's own elasticity,
    which loses what was done since the last checkpoint."""
    words = ("--workers=1..3", "--samples=6400", "--resize-every=1", "--wait-for-workers=200")
    with training(cluster, "run", *words) as command:
        start = command.until_commit(160) - command.began
        seconds = grown_and_shrunk(cluster, command)
        assert command.end(900) == 0, command.said
        once_each(command.run, 6400)
    stops = [event["samples_seen"] for event in events(command.run, "stop")]
    resumes = [event["samples_seen"] for event in events(command.run, "resume")]
    assert stops == resumes, "samples were lost"
    assert worlds(command.run)[:3] == [1, 2, 3]
    rays = Command(cluster, cluster.folder / "rays", [], program=[sys.executable, str(ELASTIC)])
    rays.program += [str(cluster.folder / "data"), str(rays.run)]
    try:
        rays.start().until_commit(160)
        theirs = grown_and_shrunk(cluster, rays)
    finally:
        rays.close()
    return {"start": start, **seconds, "ray": theirs, "ray lost": lost(rays)}


def grown_and_shrunk(cluster: Cluster, command: Command) -> dict[str, float]:
    """Seconds to the first COMMIT of each new size, as two nodes come one by one and go together."""
    seconds: dict[str, float] = {}
    for workers in (2, 3):
        attempt = max(attempts(command.run))
        cluster.node()
        since = time.monotonic()
        seconds[f"to {workers}"] = recovered(command, attempt, since)
    since = time.monotonic()
    for each in cluster.nodes[-2:]:
        each.drain()
    command.until(lambda: worlds(command.run)[-1] == 1)
    seconds["to 1"] = recovered(command, max(attempts(command.run)) - 1, since)
    return {name: round(value, 1) for name, value in seconds.items()}


def lost(command: Command) -> list[int]:
    """Samples that were done, as far as it was said, and were done again: one number a restart."""
    found, seen = [], 0
    resumes = [event["samples_seen"] for event in events(command.run, "resume")]
    for line in command.said.splitlines():
        if line.startswith('{"samples_seen"'):
            now = json.loads(line)["samples_seen"]
            if now <= seen and resumes:
                found.append(seen - resumes.pop(0))
            seen = now
    return found


def worlds(run: Path) -> list[int]:
    return [event["world"] for name in ("start", "resume") for event in events(run, name)]


def overlap(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """Two drivers, one run: the later one is refused; with --take-over it goes on, the first says so and exits 1, and
    no checkpoint is torn."""
    words = ("--workers=1", "--samples=8000")
    with training(cluster, "run", *words) as first:
        start = first.until_commit(160) - first.began
        with training(cluster, "run", *words) as second:
            assert second.end() == 2, second.said
            assert "is at work on it" in second.said
        with training(cluster, "run", *words, "--take-over") as second:
            assert first.end() == 1, first.said
            assert "a later attempt has taken" in first.said
            assert second.end() == 0, second.said
        once_each(first.run, 8000)
    for path in first.run.glob("checkpoints/*/COMMIT.json"):
        for name, facts in json.loads(path.read_text())["files"].items():
            file = path.parent / name
            assert not file.exists() or file.stat().st_size == facts["bytes"], file
    return {"start": start}


def wait(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """A full cluster: a line every 10 s and exit 75; and it goes on when a node comes."""
    with training(cluster, "first", "--workers=2", "--samples=1000000") as first:
        start = first.until_commit(160) - first.began
        with training(cluster, "second", "--workers=2", "--samples=160", "--wait-for-workers=25") as second:
            assert second.end() == 75, second.said
        lines = re.findall(r"^waiting for 2 CPUs: 2 of 2 in use by 1 other job$", second.said, re.M)
        assert len(lines) == 2, second.said
        assert re.search(r"^xtra train: no place for 2 workers after \d+ s", second.said, re.M), second.said
        with training(cluster, "second", "--workers=2", "--samples=160", "--wait-for-workers=200") as second:
            second.until(lambda: "waiting for 2 CPUs" in second.said)
            cluster.node(2)
            assert second.end() == 0, second.said
        assert first.process.poll() is None
    with training(cluster, "third", "--workers=9", "--samples=160") as third:
        assert third.end() == 2, third.said
    return {"start": start, "lines": len(lines)}


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ingest(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """Three workers on three nodes: the limiter dies, a node goes for good, the driver is killed; two nodes end it.

    The origin stands still until the loss of the node has been noticed, so the ingest does not end before.
    """
    links = 480
    with serving(bodies=8, bytes=1500, hosts=2) as origin:
        urls = cluster.folder / "urls.txt"
        urls.write_text("".join(f"n{n % 7:08d}_{n}\t{origin.url(f'/slow/0.1/{n}.jpg', n)}\n" for n in range(links)))
        words = [
            "ingest",
            "--urls",
            str(urls),
            "--unit=20",
            "--workers=1..3",
            "--fetch.allow-private=127.0.0.0/8",
            "--json",
        ]
        words += ["--fetch.per-host=6"]
        commits = cluster.folder / "set" / "commits"

        def done() -> int:
            return len(list(commits.glob("*.json")))

        with command(cluster, "set", *words) as first:
            start = first.until(lambda: done() >= 2) - first.began
            os.kill(actor(cluster, "RateLimiter"), signal.SIGKILL)
            first.until(lambda: done() >= 6)
            workers = [node for node in cluster.nodes[1:] if pids_of(node, "ray::Ingester")]
            with standing_still(origin.pid):
                rng.choice(workers).kill()
                since = time.monotonic()
                seconds = first.until(lambda: "3 workers, 2 placed" in first.said) - since
            first.until(lambda: done() >= 12)
            first.process.kill()
        with command(cluster, "set", *words) as second:
            assert second.end() == 0, second.said
            result = json.loads(second.said.splitlines()[-1])
    assert (result["links"], result["kept"] + sum(result["reasons"].values())) == (links, links), result
    assert done() == links // 20
    return {"seconds": seconds, "start": start}


FAULTS = {
    "worker": Fault(worker),
    "worker-stops": Fault(worker_stops),
    "node": Fault(node, nodes=3),
    "node-comes-back": Fault(node_comes_back),
    "node-stops": Fault(node_stops, nodes=3, env=DEAD),
    "drain": Fault(drain, nodes=3),
    "resize": Fault(resize, nodes=1),
    "overlap": Fault(overlap),
    "wait": Fault(wait),
    "ingest": Fault(ingest, nodes=3),
}
