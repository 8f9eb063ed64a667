"""The comparisons of a study from its recorded rows alone: `python -m jobs.lab.compare_rows docs/study`.

The report reads run folders, which stay on the machine that made them; rows and probe bits (`rows.py`) are kept. So
this compares a study that went from one machine to another: each pair of arms at the largest count that both have, in
every set and head, paired by seed and image as in the report. Each machine imports the sets itself, and the digest of
an import covers where its files are. So sets count as equal by name and size, and the digests are listed below the
table where they differ.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from jobs.lab.rows import recorded
from jobs.laws import grouped, statistics
from jobs.report import read_primary
from shards import store
from xtra.probe import unpack

Cell = tuple[str, str, int]  # set, head, samples seen


@dataclass(frozen=True)
class Recorded:
    """One probe of a trained encoder."""

    arm: str
    seed: int
    cell: Cell
    total: int
    manifest: str  # of the training data
    manifest_eval: str
    right: str  # packed bits


@dataclass(frozen=True)
class Row:
    """One comparison of two arms; accuracies are means over the seeds that both have."""

    cell: Cell
    accuracy: float
    accuracy_against: float
    found: statistics.Comparison


def read(folder: str, name: str = "grid") -> list[Recorded]:
    """The recorded probes of trained encoders. Raises ValueError if there are none, or if one has no ledger row."""
    runs = {row["name"]: row for row in recorded(folder, name)}
    found = []
    for row in recorded(folder, f"{name}-right"):
        if row["encoder"] != "trained":
            continue
        if (run := runs.get(row["name"])) is None:
            where = store.join(folder, f"{name}.csv")
            raise ValueError(f"{where}: has no row of {row['name']}, whose bits are recorded: restore it")
        cell = row["set"], row["head"], int(row["samples_seen"])
        seed, total = int(row["seed"]), int(row["total"])
        found.append(Recorded(run["arm"], seed, cell, total, run["manifest"], row["manifest_eval"], row["right"]))
    if not found:
        raise ValueError(f"{folder}: has no {name}-right.csv with probes of trained encoders: give a study's rows")
    return found


def compared(probes: Sequence[Recorded], primary: tuple[str, str, Cell] | None = None) -> list[Row]:
    """Every pair of arms at the largest count that both have, and the declared pair, first; the others are
    Holm-adjusted together."""
    rows: list[Row] = []
    for (which, head), group in grouped(probes, lambda p: p.cell[:2]).items():
        counts = grouped(group, lambda p: p.cell[2])
        done: set[frozenset[str]] = set()
        for samples in sorted(counts, reverse=True):
            bits = _bits(counts[samples])
            for one, other in combinations(sorted(bits), 2):
                cell = which, head, samples
                declared = primary in ((one, other, cell), (other, one, cell))
                if declared and primary is not None:
                    one, other = primary[:2]
                if declared or frozenset((one, other)) not in done:
                    done.add(frozenset((one, other)))
                    rows += _compared(cell, bits, one, other, declared)
    rest = [row for row in rows if not row.found.primary]
    adjusted = dict(zip(map(id, rest), statistics.holm([row.found.p for row in rest])))
    rows = [replace(row, found=replace(row.found, adjusted=adjusted.get(id(row), row.found.p))) for row in rows]
    return sorted(rows, key=lambda r: (not r.found.primary, r.cell[:2], -r.cell[2], r.found.arm, r.found.against))


def _bits(probes: Sequence[Recorded]) -> dict[str, dict[int, np.ndarray]]:
    """Arm -> seed -> which images were right."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for probe in probes:
        found[probe.arm][probe.seed] = unpack(probe.right, probe.total)
    return found


def _compared(
    cell: Cell, bits: Mapping[str, Mapping[int, np.ndarray]], one: str, other: str, declared: bool
) -> list[Row]:
    """One row; none if the two share no seed. The variance is pooled over all arms that have the shared seeds."""
    seeds = sorted(bits[one].keys() & bits[other].keys())
    if not seeds:
        return []
    here = {arm: np.stack([of[seed] for seed in seeds]) for arm, of in bits.items() if of.keys() >= {*seeds}}
    (found,) = statistics.compare(here, [(one, other)], (one, other) if declared else None)
    return [Row(cell, float(here[one].mean()), float(here[other].mean()), found)]


def lines(probes: Sequence[Recorded], rows: Sequence[Row]) -> list[str]:
    """The table, and below it every arm's digests of data where one name has several."""
    text = [f"{'set, head, samples':<36} {'one - other, %':<44} {'points (95 %)':<22} p     seeds"]
    for row in rows:
        c = row.found
        where = f"{row.cell[0]}, {row.cell[1]}, {row.cell[2]:,}"
        pair = f"{c.arm} {100 * row.accuracy:.1f} - {c.against} {100 * row.accuracy_against:.1f}"
        interval = f"{100 * c.difference:+.1f} ({100 * c.low:+.1f} to {100 * c.high:+.1f})"
        verdict = c.verdict() if c.seeds > 1 else "one seed"
        mark = "declared" if c.primary else ""
        text.append(f"{where:<36} {pair:<44} {interval:<22} {c.adjusted:5.3f} {c.seeds}  {verdict} {mark}".rstrip())
    digests = {p.manifest[:12] for p in probes}
    for digest in sorted(digests if len(digests) > 1 else ()):
        runs = sorted({f"{p.arm} {p.cell[2]:,} seed {p.seed}" for p in probes if p.manifest.startswith(digest)})
        text.append(f"data {digest}: {len(runs)} runs, such as {runs[0]}")
    return text


def cost(folder: str) -> str:
    """What the recorded runs and probes took; heads of one probe share its seconds."""
    rows = [row for part in ("sweep", "grid") for row in recorded(folder, part)]
    trained = {row["name"]: row for row in rows if row["seconds"]}.values()
    probed = {(r["name"], r["set"], r["encoder"], r["samples_seen"]): r for r in rows if r["probe_seconds"]}.values()

    def hours(rows: Iterable[Mapping[str, str]], column: str) -> str:
        return f"{sum(float(row[column] or 0) for row in rows) / 3600:.1f} h"

    return (
        f"{len(trained)} runs: {hours(trained, 'cpu_seconds')} of CPU, {hours(trained, 'seconds')} of the clock; "
        f"{len(probed)} probes: {hours(probed, 'probe_seconds')} of the clock"
    )


def main(words: Sequence[str]) -> int:
    folder = words[0] if words else "docs/study"
    try:
        probes, declared = read(folder), read_primary(folder)
    except ValueError as error:
        print(f"compare_rows: {error}", file=sys.stderr)
        return 2
    primary = None
    if declared is not None:
        primary = declared.arm, declared.against, (declared.set, declared.head, declared.samples_seen)
    print("\n".join([*lines(probes, compared(probes, primary)), cost(folder)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
