"""This build against an older checkout: CPU seconds of planning lists and of fetching, in interleaved rounds.

    git worktree add ../older c9ee78b && xtra bench older --checkout ../older

Both run in this environment, each from its own tree. Compiled parts missing from the older tree are not built here:
build them there first (`python -m shards.entropy` and the like), or leave decoding out, as this bench does.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench import result
from jobs.bench.origin import serving
from jobs.bench.rounds import require_at_least

HERE = Path(__file__).resolve().parents[2]
KINDS = ("txt", "csv", "jsonl", "parquet")
# For any build: find its list reader, and print the CPU seconds of reading a whole list.
PLAN = """
import importlib, sys, time
for name in ("ingest.lists", "ingest.source"):
    try:
        lists = importlib.import_module(name)
        plan_units = lists.plan_units
    except (ImportError, AttributeError):
        continue
    break
try:
    from ingest.config import Config
    columns = Config().columns
except (ImportError, AttributeError):
    columns = importlib.import_module(plan_units.__module__).Columns()
since = time.process_time()
links = sum(len(part.links) for part in plan_units(sys.argv[1], 10240, "auto", columns))
print(links, time.process_time() - since)
"""


@dataclass(frozen=True)
class Config:
    checkout: str  # folder of the older build
    links: int = 300_000  # in each planned list
    images: int = 4000  # images to fetch, 110 KB each
    rounds: int = 7

    def __post_init__(self) -> None:
        if not (Path(self.checkout) / "jobs" / "cli.py").is_file():
            raise ValueError(f"checkout is {self.checkout}: it has no jobs/cli.py: give a checkout of an older build")
        require_at_least(self, links=1, images=1, rounds=1)


def run(config: Config) -> dict[str, object]:
    """Ratios: the median over rounds of the older build's CPU seconds over this one's; above 1, this one is faster."""
    trees = {"older": Path(config.checkout).resolve(), "this": HERE}
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="xtra-bench-") as folder:
        for kind in KINDS:
            path = _list(Path(folder), kind, config.links)
            rows += _rounds(f"plan {kind}", config.rounds, trees, lambda tree, path=path: _plan(tree, path))
        with serving(bytes="110000", bodies="256", hosts="4") as origin:
            path = Path(folder, "images.txt")
            path.write_text("".join(origin.url(f"/ok/{at}.jpg") + "\n" for at in range(config.images)))
            rows += _rounds("fetch", config.rounds, trees, lambda tree: _fetch(tree, path, Path(folder)))
    ratios = {}
    for what in dict.fromkeys(str(row["what"]) for row in rows):
        seconds = {
            w: [float(str(r["cpu_seconds"])) for r in rows if (r["what"], r["build"]) == (what, w)] for w in trees
        }
        ratios[f"{what.replace(' ', '_')}_speed"] = statistics.median(
            old / new for old, new in zip(seconds["older"], seconds["this"])
        )
    return result("older", rows, ratios)


def _rounds(
    what: str, rounds: int, trees: dict[str, Path], measure: Callable[[Path], float]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number in range(rounds):
        for build in sorted(trees, reverse=bool(number % 2)):  # they take turns in going first
            rows.append({"what": what, "build": build, "round": number, "cpu_seconds": measure(trees[build])})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _list(folder: Path, kind: str, links: int) -> Path:
    """A list of URLs; tables also have a label."""
    path = folder / f"list.{kind}"
    urls = [f"http://host{at % 997}.example/photos/{at % 89}/{at:09d}.jpg" for at in range(links)]
    labels = [f"n{at % 1000:08d}" for at in range(links)]
    if kind == "parquet":
        pq.write_table(pa.table({"url": urls, "label": labels}), path)
        return path
    with path.open("w") as file:
        if kind == "csv":
            file.write("url,label\n")
        for url, label in zip(urls, labels):
            line = {"txt": url, "csv": f"{url},{label}", "jsonl": json.dumps({"url": url, "label": label})}[kind]
            file.write(line + "\n")
    return path


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def _plan(tree: Path, path: Path) -> float:
    command = [sys.executable, "-c", PLAN, str(path)]
    done = subprocess.run(command, env=_environment(tree), cwd=tree, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[1])


def _fetch(tree: Path, path: Path, folder: Path) -> float:
    """CPU seconds of the whole command, including start-up."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", "jobs.cli", "ingest", "--urls", str(path), "--out", f"{out}/data"]
        command += ["--filter.no-decode-check", "--fetch.allow-private", "127.0.0.0/8"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=_environment(tree) | {"TMPDIR": out}, cwd=tree, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
