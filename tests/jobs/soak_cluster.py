"""Kill, stop and drain what a training needs, on a cluster of real nodes; compare what comes out, and print a table.

    python tests/jobs/soak_cluster.py --faults all --rounds 5
    python tests/jobs/soak_cluster.py --faults worker,drain --times
    python tests/jobs/soak_cluster.py --faults all --rounds 5 --json rows.jsonl    # again: goes on after its last row

Every round begins a run, waits for a moment (a random one; in two of five rounds the write of a checkpoint), does the
harm, and looks: the run ends by itself or by the same command, no line is a traceback, the metrics have every step
once, losses and weights are those of the undisturbed run to the bit. Seconds are from the harm to the next COMMIT, also
as a ratio to an undisturbed start in the same call. Exit 1 where anything differs.

With --json the rows of earlier calls stay: a round that has a row there, from whatever commit (it is in the row), is
not done again, and the table covers all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / below) for below in ("", "jobs", "shards"))]

import cluster_faults  # noqa: E402
import driver_faults  # noqa: E402

FAULTS = cluster_faults.FAULTS | driver_faults.FAULTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="all", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--times", action="store_true", help="five rounds of each, and medians")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also add the rows to this file, and leave out what it has")
    given = parser.parse_args()
    asked = list(FAULTS) if given.faults == "all" else given.faults.split(",")
    if unknown := set(asked) - set(FAULTS):
        parser.error(f"{', '.join(unknown)}: not among {', '.join(FAULTS)}")
    rounds, rows = 5 if given.times else given.rounds, read(given.json)
    done = {(row["fault"], row["round"]) for row in rows}
    for number in range(rounds):  # of every fault the first, then of every fault the second
        for name in asked:
            if (name, number) in done:
                continue
            row = {"fault": name, "round": number, "load": round(os.getloadavg()[0], 1), "commit": commit()}
            rng = random.Random(f"{given.seed} {name} {number}")
            begun = time.monotonic()
            try:
                row |= one(name, number, rng)
            except AssertionError as error:
                row |= {"ok": False, "why": str(error)[-3000:]}
            except Exception:
                row |= {"ok": False, "why": traceback.format_exc()[-3000:]}
            row |= {"took": round(time.monotonic() - begun)}
            print(json.dumps(row), flush=True)
            if row["ok"] is None:
                continue
            rows.append(row)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    rows = [row for row in rows if row["fault"] in asked]
    print("\n" + table(rows))
    missing = {(name, number) for name in asked for number in range(rounds)} - {(r["fault"], r["round"]) for r in rows}
    return 0 if not missing and all(row["ok"] for row in rows) else 1


def read(path: Path | None) -> list[dict]:
    """The rows of earlier calls."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []


@cache
def commit() -> str:
    """Of this checkout, with a + where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "?"


def one(name: str, number: int, rng: random.Random) -> dict:
    """One round on a cluster of its own; {"ok": None} where the machine was too busy for that to start."""
    fault = FAULTS[name]
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(cluster_faults.prepared(fault))
        except AssertionError as error:
            return {"ok": None, "why": str(error)[-300:]}
        return {"ok": True, **fault.run(cluster, number % 5 < 2, rng)}


def table(rows: list[dict]) -> str:
    """One line a fault: rounds that held, median seconds and ratio."""
    lines = [
        "| fault | rounds | held | seconds, median | x a start | load | commits |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == name]
        seconds = [row["seconds"] for row in mine if row.get("seconds") is not None]
        ratios = [row["seconds"] / row["start"] for row in mine if row.get("seconds") and row.get("start")]
        middle = f"{statistics.median(seconds):.1f}" if seconds else ""
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        commits = ", ".join(dict.fromkeys(row.get("commit", "?") for row in mine))
        load = f"{min(r['load'] for r in mine)} to {max(r['load'] for r in mine)}"
        lines.append(
            f"| {name} | {len(mine)} | {sum(r['ok'] for r in mine)} | {middle} | {ratio} | {load} | {commits} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
