"""A million links through Ray actors, with workers and the driver killed on the way; then every row is accounted for.

    python tests/ingest/soak.py --links 1000000 --workers 2
    python tests/ingest/soak.py --links 20000 --unit 1024 --out s3://bucket/soak --faults
    python tests/ingest/soak.py --slow-host --links 40000        (110 KB bodies, one host answers Retry-After: 60)

An origin on loopback serves small pictures among dead links, junk, redirects and answers that fail at first; `xtra
ingest` runs on it as a process of its own, is killed, and is run again until it is done. Then every row of the list
must have exactly one verdict, and the right one; tars must be sound; and no process may have grown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from jobs.bench.origin import Served, serving, verdict  # noqa: E402
from shards import check, store  # noqa: E402
from shards.dataset import committed_units, read_commits, read_table  # noqa: E402

LIMIT = 600 << 20  # bytes of memory that no process may exceed
TICKS = os.sysconf("SC_CLK_TCK")

# Of a hundred links; a line that is no path stands as it is. Names are appended.
MIX = (
    *["ok"] * 60,
    *["404"] * 15,
    *["410"] * 2,
    *["403"] * 2,
    *["html"] * 5,
    *["redirect"] * 5,
    *["same/7"] * 4,
    *["flaky"] * 3,
    *["cut"] * 2,
    "truncated",
    "private",
    "ftp:",
)


# Loaded by Python itself when a process starts: a decoder with a hole. Some pictures end the process that opens them.
HOLE = """
import ctypes, io
from PIL import ImageFile
load = ImageFile.ImageFile.load
def holed(self):
    if isinstance(self.fp, io.BytesIO) and self.fp.getvalue().endswith(b"SEGV"):
        ctypes.string_at(0)
    return load(self)
ImageFile.ImageFile.load = holed
"""


# --- the list ------------------------------------------------------------------------------------------------------


def kind_of(row: int) -> str:
    """A fixed shuffle of the mix."""
    return MIX[(row * 37 + row // 100 * 11) % len(MIX)]


def link_of(row: int, origin: Served, poisons: frozenset[int]) -> str:
    if row in poisons:
        return origin.url(f"/file/{row}.gif", row)
    kind = kind_of(row)
    return f"ftp://127.0.0.1/{row}.jpg" if kind == "ftp:" else origin.url(f"/{kind}/{row}.jpg", row)


def expected(row: int, poisons: frozenset[int]) -> str:
    if row in poisons:
        return "undecodable"
    kind = kind_of(row)
    return "bad_url" if kind == "ftp:" else verdict(f"/{kind}/{row}.jpg")


def write_list(path: Path, links: int, link: Callable[[int], str]) -> None:
    with path.open("w") as file:
        file.writelines(f"n{row % 1000:08d}_{row}\t{link(row)}\n" for row in range(links))


# --- processes -----------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """A process that was seen: what it is, and its memory over time."""

    pid: int
    kind: str  # driver, worker, limiter, ray
    cpu: float = 0.0  # seconds
    peak: int = 0  # bytes
    memory: list[int] = field(default_factory=list)


class Watch:
    """Looks at all descendants of a process, twice a second."""

    def __init__(self) -> None:
        self.lives: dict[tuple[int, str], Life] = {}  # by id and start time: ids come again
        self.root = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def living(self, kind: str) -> list[int]:
        return [pid for (pid, born), life in list(self.lives.items()) if life.kind == kind and _born(pid) == born]

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            if self.root:
                self.look()

    def look(self) -> None:
        for pid in _descendants(self.root):
            with contextlib.suppress(OSError, ValueError, KeyError):  # it may end at any time
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                kind = "driver" if pid == self.root else _kind(command)
                life = self.lives.setdefault((pid, stat[19]), Life(pid, kind))
                life.kind = life.kind if kind == "ray" else kind  # a Ray process is renamed while it works
                life.cpu = (int(stat[11]) + int(stat[12])) / TICKS
                life.peak = max(life.peak, int(status["VmHWM"].split()[0]) << 10)
                life.memory.append(int(status["VmRSS"].split()[0]) << 10)


def _kind(command: str) -> str:
    for name, kind in (("ray::Ingester", "worker"), ("ray::RateLimiter", "limiter"), ("ingest.isolate", "child")):
        if name in command:
            return kind
    return "ray"


def _born(pid: int) -> str:
    """When a living process began; empty for one that is dead, buried or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if stat[0] in "ZX" else stat[19]


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parts[2])] = int(path.read_text().rpartition(")")[2].split()[1])
    found, todo = [], [root]
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return [pid for pid in found if pid in parents]


# --- the run -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What all runs of the command together did."""

    result: dict[str, Any]  # of the last run
    seconds: float
    runs: int
    killed: list[str]  # what, and when in units done
    watch: Watch


def ingest(words: Sequence[str], out: str, units: int, kills: Sequence[str], seed: int, also: str = "") -> Outcome:
    """Run the command until it is done; meanwhile kill a worker or the driver at random moments. Modules are found in
    the folder `also`, too."""
    chosen = random.Random(seed)
    at = sorted(chosen.uniform(0.05, 0.9) * units for _ in kills)
    plan = list(zip(at, kills))
    watch, killed, runs, begun = Watch(), [], 0, time.monotonic()
    env = {"RAY_ADDRESS": "local"} | os.environ  # a cluster of its own, so that it dies with its driver
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, [also, str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "jobs.cli", "ingest", *words, "--out", out, "--json"]
    while True:
        runs += 1
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.__stderr__, text=True, env=env) as process:
            watch.root = process.pid
            said: list[str] = []
            reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
            reader.start()
            while process.poll() is None:
                time.sleep(0.2)
                done = len(store.names(store.join(out, "commits"))) if plan else 0
                workers = watch.living("worker")
                if not (plan and done >= plan[0][0] and workers):
                    continue
                os.kill(process.pid if plan[0][1] == "driver" else chosen.choice(workers), signal.SIGKILL)
                killed.append(f"{plan.pop(0)[1]} at {done} of {units} units")
                print(f"soak: killed {killed[-1]}", file=sys.stderr, flush=True)
                time.sleep(chosen.uniform(0, 1))
            reader.join()
        if process.returncode == 0:
            watch.close()
            assert not plan, f"the run was over before {plan}"
            return Outcome(json.loads(said[-1]), time.monotonic() - begun, runs, killed, watch)
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"soak: xtra ingest ended with {process.returncode}")
        _wait_for_the_end_of(watch)


def _wait_for_the_end_of(watch: Watch) -> None:
    """Workers notice by themselves that their driver is gone; Ray's dashboard takes a minute to, and is let alone."""
    deadline = time.monotonic() + 60
    while left := watch.living("worker") + watch.living("limiter"):
        if time.monotonic() > deadline:
            raise SystemExit(f"soak: a minute after the driver was killed, workers {left} are still there")
        time.sleep(0.2)


# --- the proof -----------------------------------------------------------------------------------------------------


def prove(out: str, links: int, result: dict[str, Any], rule: Callable[[int], str]) -> dict[str, Any]:
    """Every row has one verdict, the right one; counts balance; tars are sound."""
    units = committed_units(out)
    assert units == list(range(result["units"])), "units are missing"
    seen = np.zeros(links, np.int64)
    wrong: list[str] = []
    poisons: list[str] = []
    commits = read_commits(out, units)
    for commit in commits:
        table = read_table(store.join(out, "shards", commit.index), ["row", "reason", "detail"])
        for row, reason, detail in zip(*(table[name].to_pylist() for name in ("row", "reason", "detail"))):
            seen[row] += 1
            if "kills its decoder" in detail:
                poisons.append(f"row {row} {detail}")
            if reason != rule(row):
                wrong.append(f"row {row}: {reason} ({detail}), not {rule(row)}")
    assert (seen == 1).all(), f"{(seen == 0).sum()} rows have no verdict, {(seen > 1).sum()} have several"
    assert not wrong, f"{len(wrong)} wrong verdicts: {wrong[:5]}"
    assert links == result["links"] == result["kept"] + sum(result["reasons"].values())
    assert result["kept"] == sum(commit.kept for commit in commits)
    assert result["samples"] == result["kept"] - sum(result["deselected"].values())
    found = check.run(check.Config(out))
    assert found.ok, f"xtra check: {found.problems[:5]}"
    counts = {name: result[name] for name in ("kept", "samples", "reasons", "deselected")}
    return {"units": len(units), **counts, "poisons": poisons}


def measured(outcome: Outcome, links: int) -> dict[str, Any]:
    lives = list(outcome.watch.lives.values())
    cpu = {
        kind: sum(life.cpu for life in lives if life.kind == kind) for kind in ("worker", "driver", "limiter", "ray")
    }
    ours = [life for life in lives if life.kind in ("worker", "driver", "limiter")]
    flat = {}
    for life in ours:
        memory = life.memory[20:]  # after it has begun, which takes some 10 s
        if life.kind == "worker" and len(memory) >= 40:
            quarter = len(memory) // 4
            flat[str(life.pid)] = [
                round(float(np.mean(part)) / 2**20) for part in (memory[:quarter], memory[-quarter:])
            ]
    return {
        "seconds": round(outcome.seconds, 1),
        "runs": outcome.runs,
        "killed": outcome.killed,
        "links_per_s": round(links / outcome.seconds, 1),
        "cpu_seconds": {kind: round(seconds, 1) for kind, seconds in cpu.items()},
        "links_per_worker_cpu_s": round(links / max(1e-9, cpu["worker"]), 1),
        "peak_mb": {kind: max((life.peak >> 20 for life in ours if life.kind == kind), default=0) for kind in cpu},
        "worker_mb_first_and_last_quarter": flat,
    }


@contextlib.contextmanager
def faults(wanted: bool) -> Iterator[None]:
    """A store that answers 503, breaks connections and loses replies, before the one that AWS_ENDPOINT_URL names."""
    if not wanted:
        yield
        return
    from fault_proxy import FaultProxy, Rule

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    rules = (
        Rule("slow_down", chance=0.02),
        Rule("reset", chance=0.01),
        Rule("lost_reply", method="PUT|POST", chance=0.02),
        Rule("reset_reply", method="GET", chance=0.005),
    )
    with FaultProxy(endpoint, *rules, seed=1) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        try:
            yield
            print(f"soak: faults {dict(proxy.counts)}", file=sys.stderr)
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Small bodies, kills, and the proof."""
    out = args.out or str(folder / "dataset")
    chosen = random.Random(args.seed)
    poisons = frozenset(chosen.sample(range(args.links), args.poisons))
    for name in ("served", "hole"):
        (folder / name).mkdir()
    for row in poisons:
        write_poison(folder / "served" / f"{row}.gif")
    (folder / "hole" / "sitecustomize.py").write_text(HOLE)
    with serving(bodies=64, bytes=1500, hosts=8, folder=folder / "served") as origin:
        write_list(folder / "list.txt", args.links, lambda row: link_of(row, origin, poisons))
        words = ["--urls", str(folder / "list.txt"), "--workers", str(args.workers), "--unit", str(args.unit)]
        words += ["--fetch.allow-private", "127.0.0.0/8", "--fetch.per-host", "32", "--fetch.backoff", "0.05"]
        kills = ["worker"] * args.kills + ["driver"] * args.driver_kills
        chosen.shuffle(kills)
        with faults(args.faults):
            outcome = ingest(words, out, -(-args.links // args.unit), kills, args.seed, str(folder / "hole"))
            proof = prove(out, args.links, outcome.result, lambda row: expected(row, poisons))
    assert len(proof["poisons"]) == args.poisons, f"{args.poisons} links kill their process; named: {proof['poisons']}"
    return proof | measured(outcome, args.links)


def write_poison(path: Path) -> None:
    with path.open("wb") as file:
        Image.new("L", (64, 64), 128).save(file, "GIF")
        file.write(b"SEGV")


def slow_host(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """110 KB bodies; of four hosts one wants to be left alone for a while with every new link."""
    out, wait = args.out or str(folder / "dataset"), args.retry_after
    with serving(bodies=64, bytes=110_000, hosts=4) as origin:

        def path(row: int) -> str:
            return f"/busy/{wait}/{row}.jpg" if row % 4 == 3 else f"/ok/{row}.jpg"

        write_list(folder / "list.txt", args.links, lambda row: origin.url(path(row), row))
        words = ["--urls", str(folder / "list.txt"), "--workers", str(args.workers), "--unit", str(args.unit)]
        words += ["--fetch.allow-private", "127.0.0.0/8", "--fetch.patience", str(args.patience)]
        done: list[tuple[float, int]] = []
        ended = threading.Event()
        begun = time.monotonic()

        def look() -> None:
            while not ended.wait(1):
                with contextlib.suppress(OSError, ValueError):
                    import urllib.request

                    with urllib.request.urlopen(origin.url("/stats")) as reply:
                        done.append((time.monotonic() - begun, json.load(reply)["asked"].get("ok", 0)))

        threading.Thread(target=look, daemon=True).start()
        outcome = ingest(words, out, -(-args.links // args.unit), [], args.seed)
        ended.set()
    proof = prove(out, args.links, outcome.result, lambda row: verdict(path(row)))
    others = sum(1 for row in range(args.links) if row % 4 != 3)
    all_asked = next((at for at, asked in done if asked >= others), outcome.seconds)
    return proof | measured(outcome, args.links) | {"others_asked_after_s": round(all_asked, 1)}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unit", type=int, default=10_240)
    parser.add_argument("--kills", type=int, default=3, help="of workers")
    parser.add_argument("--driver-kills", type=int, default=1)
    parser.add_argument("--poisons", type=int, default=1, help="links whose pictures end the process that decodes them")
    parser.add_argument("--out", default="", help="default: a folder that is removed afterwards")
    parser.add_argument("--faults", action="store_true", help="put the fault proxy in front of AWS_ENDPOINT_URL")
    parser.add_argument("--slow-host", action="store_true")
    parser.add_argument("--retry-after", type=int, default=60, help="seconds, of the slow host")
    parser.add_argument("--patience", type=float, default=300, help="--fetch.patience with the slow host")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = (slow_host if args.slow_host else soak)(args, Path(folder))
    print(json.dumps(report, indent=1))
    peak = max(report["peak_mb"].values())
    assert peak < LIMIT >> 20, f"a process has taken {peak} MB"
    return report


if __name__ == "__main__":
    main()
