"""What a study has found, small enough for a repository: its ledger, and which images every probe got right."""

from __future__ import annotations

import csv
import dataclasses
import io

from jobs.report import Run, ledger_csv, read_runs
from shards import store
from xtra.probe import unpack

RIGHT = ("name", "set", "head", "encoder", "samples_seen", "seed", "manifest_eval", "total", "right")


def write_rows(runs: str, out: str, name: str = "ledger") -> None:
    """`out`/NAME.csv: the ledger of a folder of runs, without the paths of this machine. `out`/NAME-right.csv: for each
    probe, base64 of one bit an image in the order of the evaluated set's rows, the first in the highest bit (1: right).

    Raises ValueError for a folder without runs, and for a file that cannot be read.
    """
    ledger = read_runs(runs)
    if ledger.problems:
        raise ValueError(ledger.problems[0])
    rows = [
        dataclasses.replace(row, run=row.name, dataset=row.dataset.rstrip("/").rsplit("/", 1)[-1])
        for row in sorted(ledger.rows, key=lambda r: (r.arm, r.seed, r.samples_seen, r.set, r.head, r.encoder, r.name))
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RIGHT)
    writer.writerows(line for run in sorted(ledger.runs, key=lambda r: r.name) for line in _right(run))
    store.put(store.join(out, f"{name}.csv"), ledger_csv(rows).encode())  # only now: all that is said was read
    store.put(store.join(out, f"{name}-right.csv"), text.getvalue().encode())


def _right(run: Run) -> list[list[object]]:
    """One line a probe that recorded its bits. Raises ValueError naming a file whose bits do not match its counts."""
    lines = []
    for probe in sorted(run.probes, key=lambda p: p["_file"]):
        if not probe.get("right"):
            continue
        if int(unpack(probe["right"], probe["total"]).sum()) != probe["correct"]:
            raise ValueError(f"{probe['_file']}: right has other counts than correct: it is damaged")
        lines.append([run.name if column == "name" else probe.get(column) for column in RIGHT])
    return lines
