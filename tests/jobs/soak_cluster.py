"""Kill, stop and drain what a training needs, on a cluster of real nodes; compare what comes out, and print a table.

    python tests/jobs/soak_cluster.py --faults all --rounds 5
    python tests/jobs/soak_cluster.py --faults worker,drain --times

Every round begins a run, waits for a moment (a random one; in two of five rounds the write of a checkpoint), does the
harm, and looks: the run ends by itself or by the same command, no line is a traceback, the metrics have every step
once, losses and weights are those of the undisturbed run to the bit. Seconds are from the harm to the next COMMIT, also
as a ratio to an undisturbed start in the same call. Exit 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / below) for below in ("", "jobs", "shards"))]

import cluster_faults  # noqa: E402
import nodes  # noqa: E402
from made_datasets import make_dataset  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="all", help=f"of {', '.join(cluster_faults.FAULTS)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--times", action="store_true", help="five rounds of each, and medians")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    given = parser.parse_args()
    asked = list(cluster_faults.FAULTS) if given.faults == "all" else given.faults.split(",")
    if unknown := set(asked) - set(cluster_faults.FAULTS):
        parser.error(f"{', '.join(unknown)}: not among {', '.join(cluster_faults.FAULTS)}")
    rounds, rows = 5 if given.times else given.rounds, []
    for name in asked:
        for number in range(rounds):
            row = {"fault": name, "round": number, "load": round(os.getloadavg()[0], 1)}
            rng = random.Random(f"{given.seed} {name} {number}")
            begun = time.monotonic()
            try:
                row |= one(name, number, rng)
            except AssertionError as error:
                row |= {"ok": False, "why": str(error)[-3000:]}
            except Exception:
                row |= {"ok": False, "why": traceback.format_exc()[-3000:]}
            rows.append(row | {"took": round(time.monotonic() - begun)})
            print(json.dumps(rows[-1]), flush=True)
            if given.json:
                given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n" + table(rows))
    return 0 if all(row["ok"] for row in rows) else 1


def one(name: str, number: int, rng: random.Random) -> dict:
    """One round on a cluster of its own."""
    fault = cluster_faults.FAULTS[name]
    with nodes.cluster(fault.nodes, env=fault.env, notice=fault.notice) as cluster:
        make_dataset(cluster.folder / "data", cluster_faults.SHARDS)
        return {"ok": True, **fault.run(cluster, number % 5 < 2, rng)}


def table(rows: list[dict]) -> str:
    """One line a fault: rounds that held, median seconds and ratio."""
    lines = ["| fault | rounds | held | seconds, median | x a start | load |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == name]
        seconds = [row["seconds"] for row in mine if row.get("seconds") is not None]
        ratios = [row["seconds"] / row["start"] for row in mine if row.get("seconds") and row.get("start")]
        middle = f"{statistics.median(seconds):.1f}" if seconds else ""
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        load = f"{min(r['load'] for r in mine)} to {max(r['load'] for r in mine)}"
        lines.append(f"| {name} | {len(mine)} | {sum(r['ok'] for r in mine)} | {middle} | {ratio} | {load} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
