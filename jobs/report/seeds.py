"""The negative control: the same line under different seeds, whose true difference is zero.

Two seeds are compared by their test images alone, paired. Where seeds vary more than images do, such a test calls equal
things different more often than its nominal level; so comparisons of lines count seeds (compare.py), and this table
shows how much that matters here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jobs.laws import p_value, statistics
from jobs.report.measured import Measured, Point, by_cell, points
from jobs.report.tables import Columns, table

LEVEL = 0.95


@dataclass(frozen=True)
class Control:
    """The seeds of one line at one count, on one set under one head. Accuracies and spreads are shares."""

    point: Point
    lowest: float
    highest: float
    spread: float  # standard deviation between seeds
    by_images: float | None  # the same, if only the choice of test images varied
    pairs: int
    differ: int | None  # pairs that differ by a test over images alone at 5 %


def controls(found: Sequence[Measured]) -> list[Control]:
    """One for every line, count, set and head with at least two seeds, in the order of the comparisons."""
    every = [point for group in by_cell(found).values() for point in points(group)]
    several = [point for point in every if len({m.seed for m in point.group}) > 1]
    return sorted(map(_control, several), key=lambda c: (c.point.row.set, c.point.row.head, -c.point.row.samples_seen))


def _control(point: Point) -> Control:
    group = list({m.seed: m for m in point.group}.values())
    values = np.array([m.accuracy for m in group])
    pairs = list(combinations([m.bits() for m in group], 2))
    by_images = differ = None
    if all(one is not None and other is not None and len(one) == len(other) for one, other in pairs):
        tests = [_test(np.asarray(one, np.float32) - np.asarray(other, np.float32)) for one, other in pairs]
        # The variance of a difference is twice that of one seed around the images' common effect.
        by_images = math.sqrt(sum(variance for variance, _ in tests) / len(tests) / 2)
        differ = sum(p <= 1 - LEVEL for _, p in tests)
    return Control(
        point, float(values.min()), float(values.max()), float(values.std(ddof=1)), by_images, len(pairs), differ
    )


def _test(difference_I: np.ndarray) -> tuple[float, float]:
    """The variance of the mean paired difference over images, and the p-value of a zero mean."""
    mean, variance, freedom = statistics.mean_of(difference_I[None])
    return variance, p_value(mean / math.sqrt(variance), min(freedom, 1e9)) if variance > 0 else float(mean == 0)


def control_table(made: Sequence[Control]) -> str:
    """As HTML; "" where no line has two seeds."""
    columns: Columns[Control] = {
        "probe": lambda c: f"{c.point.row.set}, {c.point.row.head}",
        "samples": lambda c: c.point.row.samples_seen,
        "line": lambda c: c.point.line.label,
        "seeds": lambda c: len({m.seed for m in c.point.group}),
        "lowest to highest, %": lambda c: f"{100 * c.lowest:.1f} to {100 * c.highest:.1f}",
        "SD between seeds, points": lambda c: f"{100 * c.spread:.2f}",
        "SD from images alone": lambda c: None if c.by_images is None else f"{100 * c.by_images:.2f}",
        "pairs of seeds that differ": lambda c: None if c.differ is None else f"{c.differ} of {c.pairs}",
    }
    return table(
        columns,
        made,
        "Negative control: a line against itself under different seeds, where nothing differs. A pair “differs” by a "
        "test over its test images alone at 5 %, ignoring seeds: if more than one pair in twenty differs, such a test "
        "cannot be trusted here.",
    )
