"""Probe results of one ledger, joined with their arms, and their means over seeds with intervals.

The unit is the seed: a training with its probe. Where results record which images they got right, the images count as
a sample too (jobs.laws.statistics).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.laws import grouped, statistics, t_quantile
from jobs.report.arms import Line, Study
from jobs.report.ledger import HOLD_OUT, Ledger, LedgerRow, Run, probe_key, results_of

LEVEL = 0.95


@dataclass(frozen=True)
class Measured:
    """One probe of an encoder trained by one of the ledger's runs."""

    row: LedgerRow
    run: Run
    result: Mapping[str, Any]
    line: Line

    @property
    def accuracy(self) -> float:
        return self.row.accuracy or 0.0

    @cached_property
    def seed(self) -> str:
        """Identifies a repetition: the seeds of weights, data order and probe, as one number where they agree."""
        weights = self.row.seed if self.row.weights_seed is None else self.row.weights_seed
        parts = {"weights": weights, "order": self.row.order_seed, "probe": self.row.probe_seed}
        known = {name: seed for name, seed in parts.items() if seed is not None}
        if len({*known.values()}) == 1:
            return str(weights)
        return " ".join(f"{name} {seed}" for name, seed in known.items())

    @cached_property
    def protocol(self) -> dict[str, str]:
        """Everything that affects a probe's accuracy apart from its encoder and test images, by name."""
        row = self.row
        by_split = row.protocol.startswith(HOLD_OUT)
        return {
            "images that train the head": row.probe_train[:12],
            "rates tried": row.rates,
            "decays tried": row.decays,
            "layers tried": row.depths or str(row.layers or ""),
            "grid point chosen on": "a validation split" if by_split else f"the test images ({row.protocol})",
            "probe epochs": "" if row.probe_epochs is None else str(row.probe_epochs),
            "probe settings": ", ".join(w for w in row.how.split(", ") if not w.startswith("seed ")),
        }

    def bits(self) -> NDArray[np.bool_] | None:
        """Which test images it got right, [total]; None where the result has no such record or an impossible one."""
        from xtra.probe import unpack

        right = self.result.get("right")
        if not right or not self.row.total:
            return None
        try:
            bits = unpack(str(right), self.row.total)
        except ValueError:
            return None
        return bits if int(bits.sum()) == self.result.get("correct") else None

    @property
    def damaged(self) -> bool:
        """Whether the result's record of right images contradicts its accuracy."""
        return bool(self.result.get("right")) and self.bits() is None


def measured(ledger: Ledger, study: Study) -> list[Measured]:
    """Every readable result of a trained encoder."""
    runs = {run.url: run for run in ledger.runs}
    results = results_of(ledger)
    return [
        Measured(row, runs[row.run], results[probe_key(row)], study.line(row.run))
        for row in ledger.rows
        if row.encoder == "trained" and row.accuracy is not None and row.total
    ]


@dataclass(frozen=True)
class Bar:
    """A mean accuracy over seeds with its interval, and what the interval covers."""

    mean: float
    low: float
    high: float
    seeds: int
    over: str


def bar(group: Sequence[Measured], level: float = LEVEL) -> Bar:
    """The mean of repetitions; the interval covers seeds and images, seeds, or one seed's images, as far as known."""
    values = [m.accuracy for m in group]
    bits = [m.bits() for m in group]
    if all(b is not None and len(b) == len(bits[0] if bits[0] is not None else ()) for b in bits) and len(group) > 1:
        mean, variance, freedom = statistics.mean_of(np.stack([b for b in bits if b is not None]).astype(np.float32))
        over = "seeds and images"
    elif len(group) > 1:
        mean, variance, freedom = statistics.mean_of(np.array(values, np.float64)[:, None])
        over = "seeds"
    else:
        row = group[0].row
        low, high = (row.low, row.high) if row.low is not None and row.high is not None else (values[0], values[0])
        return Bar(values[0], low, high, 1, "the images of one seed")
    half = t_quantile(level, freedom) * math.sqrt(variance)
    return Bar(mean, max(0.0, mean - half), min(1.0, mean + half), len(group), over)


@dataclass(frozen=True)
class Point:
    """All repetitions of one line at one count, for one set, head and protocol."""

    line: Line
    group: tuple[Measured, ...]
    bar: Bar

    @property
    def row(self) -> LedgerRow:
        return self.group[0].row

    def x(self, axis: str) -> float:
        """Its value on an axis of the ledger; the mean where repetitions differ slightly, as in unique images."""
        return math.fsum(getattr(m.row, axis) for m in self.group) / len(self.group)


def points(found: Iterable[Measured]) -> list[Point]:
    """The points of one set and head, by line, then by samples seen. Each protocol gives separate points."""
    groups = grouped(found, lambda m: (m.line.style, m.row.samples_seen, str(sorted(m.protocol.items()))))
    return [
        Point(group[0].line, tuple(sorted(group, key=lambda m: m.seed)), bar(group))
        for _, group in sorted(groups.items(), key=lambda g: g[0])
    ]


def by_cell(found: Iterable[Measured]) -> dict[tuple[str, str, str, str], list[Measured]]:
    """Grouped by (set, digest of its images, head, how the grid point was chosen): results that may share a chart."""
    return dict(sorted(grouped(found, lambda m: (m.row.set, m.row.probe_eval, m.row.head, m.row.protocol)).items()))


def seeds_vary(found: Sequence[Measured]) -> str:
    """What the seeds of a study change, in words; "" where there is only one seed."""
    varied = {
        "initial weights and crops": {m.row.seed if m.row.weights_seed is None else m.row.weights_seed for m in found},
        "data order": {m.row.order_seed for m in found},
        "the probe's heads and views": {m.row.probe_seed for m in found},
    }
    return ", ".join(what for what, seeds in varied.items() if len(seeds) > 1)
