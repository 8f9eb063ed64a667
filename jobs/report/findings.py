"""What a ledger shows and does not show, in plain words and with intervals.

Every sentence is computed from rows. The best of several is marked as chosen, with the way it was chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.laws import statistics
from jobs.report.compare import Comparison, difference_interval
from jobs.report.ledger import HOLD_OUT, Ledger, LedgerRow
from jobs.report.measured import Measured, Point, by_cell, points
from jobs.report.tables import human
from shards.figures import percent

PAPER = "1.02 billion for XTRA-B/16 and 1.32 billion for XTRA-H/14"  # samples seen, by its steps and batch sizes
SETS = 4  # up to this many sets are reported one by one
UNTRAINED, PIXELS = "the untrained encoder", "a linear classifier of raw pixels"
ABOVE, BELOW, EVEN = "above", "below", "not distinguishable from"

Cell = tuple[str, str, str, str]


def titles(cells: Iterable[Cell]) -> dict[Cell, str]:
    """A title for each set, head and protocol. Two sets with one name stay separate: a result on a sample of a
    benchmark is not comparable with one on all of it."""
    cells = list(cells)
    sets = Counter(name for name, _ in {(name, digest) for name, digest, _, _ in cells})
    found = {}
    for name, digest, head, protocol in cells:
        digits = f" [{digest[:8]}]" if sets[name] > 1 else ""
        how = f" ({protocol})" if protocol not in ("", HOLD_OUT) else ""
        found[name, digest, head, protocol] = f"{name}{digits}, {head} probe{how}"
    return found


def shown(ledger: Ledger, found: Sequence[Measured], made: Sequence[Comparison]) -> list[str]:
    """The best encoder of each set and head against its baselines, and the outcome of the comparisons.

    With more than SETS sets: on how many of them the best is above its baselines.
    """
    cells = by_cell(found)
    names = titles(cells)
    best = [_Best(names[cell], cell, points(group), ledger.rows) for cell, group in cells.items()]
    if len({b.cell[0] for b in best}) > SETS:
        lines = [_summary(head, [b for b in best if b.cell[2] == head]) for head in sorted({b.cell[2] for b in best})]
    else:
        lines = [_reported(b) for b in best]
    if made:
        counts = Counter(c.verdict.partition(":")[0] for c in made)
        lines.append(
            f"{len(made)} comparison{'' if len(made) == 1 else 's'}: {counts['higher'] + counts['lower']} decided, "
            f"{counts['undecided']} undecided; all except a declared one are Holm-adjusted together. The table below "
            "lists them all, with how the two sides differ."
        )
    return lines or ["No probe is in this folder yet, so nothing is shown about accuracy: run xtra probe."]


@dataclass(frozen=True)
class _Best:
    """The best encoder of one set and head."""

    name: str
    cell: Cell
    points: Sequence[Point]
    rows: Sequence[LedgerRow]

    @property
    def point(self) -> Point:
        return max(self.points, key=lambda p: p.bar.mean)

    def unbiased(self) -> statistics.Best | None:
        """Chosen on one half of the images, measured on the other; None where per-image results are missing."""
        bits: dict[str, np.ndarray] = {}
        for at, p in enumerate(self.points):
            rows = [m.bits() for m in p.group]
            if all(row is not None for row in rows):
                bits[str(at)] = np.stack([row for row in rows if row is not None])
        if len(bits) < 2 or len(bits) < len(self.points) or len({b.shape[1] for b in bits.values()}) != 1:
            return None
        return statistics.best_of(bits)

    def against(self) -> dict[str, tuple[str, float] | None]:
        """For each baseline: whether the best is above or below it, and its accuracy; None: not measured."""
        name, digest, head, _ = self.cell
        here = [r for r in self.rows if (r.set, r.probe_eval) == (name, digest) and r.accuracy is not None]
        untrained = [r for r in here if r.encoder == "random" and r.head == head]
        same = [r for r in untrained if (r.size, r.block) == (self.point.row.size, self.point.row.block)]
        bars = {UNTRAINED: same or untrained, PIXELS: [r for r in here if r.encoder == "none"]}
        return {what: self._verdict(rows) if rows else None for what, rows in bars.items()}

    def _verdict(self, rows: Sequence[LedgerRow]) -> tuple[str, float]:
        bar = sum(r.accuracy or 0.0 for r in rows) / len(rows)
        total = self.point.row.total or 1
        low, high = difference_interval(self.point.bar.mean, total, bar, min(r.total or 1 for r in rows))
        return ABOVE if low > 0 else BELOW if high < 0 else EVEN, bar


def _reported(best: _Best) -> str:
    p = best.point
    unbiased = best.unbiased()
    if unbiased is not None:
        p = best.points[int(unbiased.arm)]
        text = (
            f"{best.name}: the best of {unbiased.of} is {p.line.label} after {human(p.row.samples_seen)} samples, with "
            f"{_interval(unbiased.accuracy, unbiased.low, unbiased.high)} on the half of the images that was not used "
            "to choose it"
        )
    else:
        many = len(best.points)
        text = (
            f"{best.name}: {'the best is' if many > 1 else 'there is'} {p.line.label} after "
            f"{human(p.row.samples_seen)} samples, {_interval(p.bar.mean, p.bar.low, p.bar.high)}"
            + (f" (the best of {many} on these very images, so slightly optimistic)" if many > 1 else "")
        )
    bars = best.against()
    said = [f"{bar[0]} {what} ({percent(bar[1])})" for what, bar in bars.items() if bar]
    missing = [what for what, bar in bars.items() if bar is None]
    text += "; it is " + " and ".join(said) if said else ""
    were = "was" if len(missing) == 1 else "were"
    return text + (f"; {' and '.join(missing)} {were} not measured" if missing else "") + "."


def _interval(mean: float, low: float, high: float) -> str:
    return f"{percent(mean)} ({percent(low)} to {percent(high)})"


def _summary(head: str, found: Sequence[_Best]) -> str:
    """One line for many sets; the tables have the accuracies."""
    parts = []
    for what in (UNTRAINED, PIXELS):
        bars = [best.against()[what] for best in found]
        counts = Counter(bar[0] for bar in bars if bar)
        said = [
            *(f"{how} it on {counts[how]}" for how in (ABOVE, BELOW, EVEN) if counts[how]),
            *([f"{bars.count(None)} without that measurement"] if None in bars else []),
        ]
        parts.append(f"against {what}, {', '.join(said)}")
    return f"{head} probe, the best encoder on each of {len(found)} sets: {'; '.join(parts)}. The tables have them all."


def not_shown(ledger: Ledger, found: Sequence[Measured], made: Sequence[Comparison]) -> list[str]:
    """The limits, each only where it applies."""
    trained = [m.row for m in found]
    lines = []
    if found:
        at = [p for group in by_cell(found).values() for p in points(group)]
        several = sum(len(p.group) > 1 for p in at)
        lines.append(
            f"{several} of {len(at)} points have more than one seed. The interval of a point with one seed covers the "
            "choice of test images only; another training seed moves the point as well."
        )
    if any(c.p is None for c in made):
        lines.append(
            "Some probes do not record which images they got right: their comparisons treat both sides as independent, "
            "and with one seed decide nothing."
        )
    if unequal := sum(not c.equal for c in made):
        lines.append(f"{unequal} of {len(made)} comparisons change more than one thing: no cause can be named there.")
    if any(r.protocol.startswith("published") for r in trained):
        lines.append(
            "Probes marked as published chose their grid point on the test images themselves, as the papers did, which "
            "overestimates accuracy. They have separate curves, and are compared only with each other."
        )
    if edges := sorted({f"{r.set} ({r.remark})" for r in trained if r.remark}):
        many = sum(bool(r.remark) for r in trained)
        lines.append(f"{many} of {len(trained)} probes carry a warning: {'; '.join(edges[:4])}.")
    if shared := sorted({r.set for r in trained if r.shared_sha256 or r.shared_phash}):
        lines.append(
            f"For {', '.join(shared)}, the heads' training set contains some of the test images: the probes' details "
            "count them."
        )
    ends = {r.url: int(r.config.get("samples") or 0) for r in ledger.runs}
    if early := sum(0 < r.samples_seen < ends[r.run] for r in trained):
        lines.append(
            f"{early} of {len(trained)} probes measure checkpoints before the end of their run: with a decaying "
            "learning rate such a checkpoint is worse than a run that was planned to end there."
        )
    if any(r.shape.block == 1 for r in ledger.runs):
        lines.append(
            "AIM-like is what the paper calls AIM in its ablations: blocks of one token in this same model, without "
            "the prefix attention of the real AIM unless the name contains “prefix”."
        )
    if len({r.shape.block for r in ledger.runs}) > 1:
        lines.append(
            "Losses of different block sizes are means over different targets and must not be compared with each other."
        )
    if seen := max((r.samples_seen for r in ledger.runs), default=0):
        lines.append(
            f"The longest run here saw {human(seen)} samples; the paper's saw {PAPER}. Lines join measured points, and "
            "no law is extrapolated more than a decade beyond them."
        )
    lines.append("Samples seen count repeats; unique images do not. Read both axes before comparing with other work.")
    return lines
