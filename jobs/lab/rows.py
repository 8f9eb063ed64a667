"""A study's results, small enough for a repository: its ledger, and the images that every probe got right.

`xtra report` reads them (jobs/report/rows), as it does run folders.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from jobs.report import Run, digested, ledger_csv, read_runs, settings_digest, without_places
from jobs.report.rows import RIGHT, SETTINGS, read_settings
from shards import store
from xtra.probe import unpack

LEDGER_ORDER = ("arm", "seed", "samples_seen", "set", "head", "encoder", "name")
RIGHT_ORDER = ("name", "set", "head", "encoder", "samples_seen")


def write_rows(runs: str, out: str, name: str = "ledger") -> None:
    """Write `out`/NAME.csv, the ledger of a folder of runs without machine-specific paths; `out`/NAME-right.csv: for
    each probe, base64 of one bit per image in the order of the evaluation set's rows, the first in the highest bit (1:
    right); and `out`/NAME-settings.json: the settings behind each digest in the ledger.

    Existing rows of runs that are not in the folder (from a machine that is gone) are kept. Raises ValueError for a
    folder without runs, and for a file that cannot be read.
    """
    ledger = read_runs(runs)
    if ledger.problems:
        raise ValueError(ledger.problems[0])
    text = ledger_csv(without_places(ledger.rows))
    right = [line for run in ledger.runs for line in _right(run)]
    runs_here = {run.name for run in ledger.runs}
    tables = {
        name: _with_recorded(out, name, list(csv.reader(io.StringIO(text))), runs_here, LEDGER_ORDER),
        f"{name}-right": _with_recorded(out, f"{name}-right", [list(RIGHT), *right], runs_here, RIGHT_ORDER),
    }
    where = store.join(out, name + SETTINGS)
    settings = {settings_digest(run.config): digested(run.config) for run in ledger.runs}
    settings = read_settings(where) | settings
    for table, lines in tables.items():  # only now: everything has been read
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        store.put(store.join(out, f"{table}.csv"), text.getvalue().encode())
    store.put(where, json.dumps(settings, indent=1, sort_keys=True).encode() + b"\n")


def recorded(out: str, name: str) -> list[dict[str, str]]:
    """The rows of a table that `write_rows` wrote; empty if there is no such table."""
    try:
        text = store.read(store.join(out, f"{name}.csv")).decode()
    except store.Missing:
        return []
    return list(csv.DictReader(io.StringIO(text)))


def _with_recorded(
    out: str, name: str, lines: Sequence[Sequence[object]], runs: set[str], order: Sequence[str]
) -> list[Sequence[object]]:
    """The lines (the first names the columns) merged with the recorded rows of other runs, in order."""
    columns = [str(column) for column in lines[0]]
    others = [[row.get(column) or "" for column in columns] for row in recorded(out, name) if row["name"] not in runs]
    places = [columns.index(column) for column in order]

    def key(line: Sequence[object]) -> list[tuple[float, str]]:
        cells = [str(line[place]) for place in places]
        return [(float(cell), "") if cell.isdigit() else (-1.0, cell) for cell in cells]

    return [lines[0], *sorted([*lines[1:], *others], key=key)]


def _right(run: Run) -> list[list[object]]:
    """One line per probe that recorded its bits. Raises ValueError naming a file whose bits do not match its counts."""
    lines = []
    for probe in sorted((p for p in run.probes if p.get("right")), key=lambda p: p["_file"]):
        if int(unpack(probe["right"], probe["total"]).sum()) != probe["correct"]:
            raise ValueError(f"{probe['_file']}: `right` and `correct` disagree: the file is damaged")
        lines.append([run.name if column == "name" else probe.get(column) for column in RIGHT])
    return lines
