"""error(n, N) = E + A n^-a + B N^-b for an arm with several sizes, by variable projection (Hoffmann et al. 2022,
section 3.3, whose fit by L-BFGS stopped early: Besiroglu et al. 2024).

For given exponents, E, A and B have a closed form, so a grid over (a, b) covers all starting points; none of the three
may be negative. Intervals are linearised, with the trunk (here one size under one seed) as the unit.

Shapes: P points, G grid cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.laws.inversion import Interval
from jobs.laws.law import CUT, FLATTEST, STEEPEST, Array, Curve
from jobs.laws.student import t_quantile

SIZES = 3  # least sizes for a law in size
_GRID, _ZOOM, _ROUNDS = 28, 7, 16


@dataclass(frozen=True)
class JointLaw:
    """A and B are the coefficients of n and N in their own units."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def error(self, n: Array, params: Array) -> Array:
        return self.E + self.A * n**-self.a + self.B * params**-self.b


def fit_sizes(sizes: Sequence[Curve], level: float) -> tuple[JointLaw, dict[str, Interval]]:
    """The joint law of one arm's curves, one per size, with intervals.

    Raises ValueError for fewer than three sizes, or fewer than six cells (size, count).
    """
    cells = sum(len(curve.counts) for curve in sizes)
    if len(sizes) < SIZES or cells < 6:
        raise ValueError(f"arm {sizes[0].name} has {len(sizes)} sizes and {cells} cells: a joint law needs 3 and 6")
    x = np.concatenate([curve.x for curve in sizes])
    params = np.concatenate([np.full(len(curve.x), curve.params) for curve in sizes])
    error = np.concatenate([curve.error for curve in sizes])
    firsts = np.cumsum([0, *(max(len(curve.seeds), 1) for curve in sizes)])
    trunk = np.concatenate([curve.trunk + first for curve, first in zip(sizes, firsts)])
    law = _least_squares(x, params, error)
    for _ in range(3):
        residual = error - law.error(x, params)
        limit = max(CUT * 1.4826 * float(np.median(np.abs(residual))), 1e-12)
        law = _least_squares(x, params, law.error(x, params) + np.clip(residual, -limit, limit))
    return law, _intervals(law, x, params, error, trunk if all(c.by_trunk for c in sizes) else None, level)


def _least_squares(x: Array, params: Array, error: Array) -> JointLaw:
    log_x, log_params = np.log(x) - np.log(x).mean(), np.log(params) - np.log(params).mean()
    a = b = np.geomspace(FLATTEST, STEEPEST, _GRID)
    best = np.zeros(5)
    for round_ in range(_ROUNDS):
        cells_a, cells_b = (grid.ravel() for grid in np.meshgrid(a, b))
        steps = np.exp(-cells_a[:, None] * log_x), np.exp(-cells_b[:, None] * log_params)
        scales, loss = _not_negative(np.stack([np.ones_like(steps[0]), *steps], axis=1), error)
        cell = int(loss.argmin())
        best = np.array([*scales[cell], cells_a[cell], cells_b[cell]])
        reach = math.log(STEEPEST / FLATTEST) / (_GRID - 1) * 0.6**round_
        around = np.exp(np.linspace(-reach, reach, _ZOOM))
        a, b = (np.clip(exponent * around, FLATTEST, STEEPEST) for exponent in best[3:])
    E, A, B, best_a, best_b = map(float, best)
    A, B = A * math.exp(best_a * np.log(x).mean()), B * math.exp(best_b * np.log(params).mean())
    return JointLaw(E, A, best_a, B, best_b)


def _not_negative(terms: Array, error: Array) -> tuple[Array, Array]:
    """The best non-negative scales of each cell's three terms: the best fit over all subsets of the terms."""
    gram = terms @ terms.transpose(0, 2, 1)
    right = terms @ error
    found, lowest = np.zeros((len(terms), 3)), np.full(len(terms), float(error @ error))
    for subset in itertools.chain.from_iterable(itertools.combinations(range(3), size) for size in (1, 2, 3)):
        part = np.ix_(range(len(terms)), subset, subset)
        ridge = 1e-13 * np.trace(gram[part], axis1=1, axis2=2)[:, None, None] * np.eye(len(subset))
        scales = np.zeros((len(terms), 3))
        scales[:, subset] = np.linalg.solve(gram[part] + ridge, right[:, subset, None])[..., 0]
        loss = error @ error - 2 * (scales * right).sum(1) + np.einsum("gi,gij,gj->g", scales, gram, scales)
        better = (scales >= 0).all(1) & (loss < lowest)
        found[better], lowest[better] = scales[better], loss[better]
    return found, lowest


def _intervals(
    law: JointLaw, x: Array, params: Array, error: Array, trunk: np.ndarray | None, level: float
) -> dict[str, Interval]:
    """E, A, a, B and b; A and B on a log scale, because their uncertainty is one of magnitude."""
    names = [name for name in ("E", "A", "a", "B", "b") if getattr(law, name) > 0]
    columns = {
        "E": np.ones(len(x)),
        "A": law.A * x**-law.a,  # by log A
        "a": -law.A * x**-law.a * np.log(x),
        "B": law.B * params**-law.b,
        "b": -law.B * params**-law.b * np.log(params),
    }
    weights = np.linalg.pinv(np.stack([columns[name] for name in names], axis=1), rcond=1e-12)
    residual = error - law.error(x, params)
    units = np.arange(len(x)) if trunk is None else trunk
    each = np.stack([(weights * residual)[:, units == k].sum(1) for k in np.unique(units)], axis=1)
    lost = 3 if trunk is not None else len(names)  # parameters fitted to the trunks' means: E, B and b
    left = each.shape[1] - lost
    found = {}
    for name in ("E", "A", "a", "B", "b"):
        value = float(getattr(law, name))
        if name not in names or left < 1:
            found[name] = Interval(value, None, None)
            continue
        deviation = math.sqrt(float((each[names.index(name)] ** 2).sum()) * each.shape[1] / left)
        half = t_quantile(level, left) * deviation
        if name in ("A", "B"):
            factor = math.exp(min(half, 300.0))
            found[name] = Interval(value, value / factor, value * factor)
        else:
            found[name] = Interval(
                value, max(value - half, 0.0), min(value + half, 1.0) if name == "E" else value + half
            )
    return found
