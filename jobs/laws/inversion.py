"""Intervals of a law's parameters: all values that a t test over trunks does not reject.

The test of, say, a = a0 uses the direction in which a alone would move the curve: the derivative by a, minus its
projection on the other parameters' directions. Under the hypothesis, every trunk's residual along it has mean zero,
whatever the correlation between the counts of one trunk (a shared offset, noise of each point, a drift). So the mean
over its standard error over K trunks follows Student's t with K - 1 degrees of freedom: exactly for a, whose direction
depends on a0 alone, and to second order for E, A and n0, whose direction depends on the other fitted parameters.
Nothing is sampled and nothing is linearised at the estimate; intervals are as skewed as the data make them
(`xtra bench coverage` measures their coverage).

Without trunks the unit is the point: the same direction, with the variance of the residuals.

Shapes: P points, K trunks, V candidate values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.laws.law import FLATTEST, STEEPEST, Array, Curve, Law, basis, number_of_parameters, project
from jobs.laws.student import t_quantile

_SIDE, _CLOSER = 40, 14  # candidates on each side: from 1e-5 of the way to the bound on, then between two neighbours


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds: None where the data give none, infinite where the data do not limit it."""

    value: float
    low: float | None
    high: float | None


def degrees_of_freedom(curve: Curve) -> int:
    """The t test's: trunks - 1, or without trunks, points - parameters. 0: no interval is possible."""
    return len(curve.seeds) - 1 if curve.by_trunk else max(len(curve.x) - number_of_parameters(curve), 0)


def intervals(curve: Curve, law: Law, level: float) -> dict[str, Interval]:
    """E, A, a and n0 of the law with their intervals at `level`; `curve` is the one that `fit` returned."""
    offset = number_of_parameters(curve) == 4
    if degrees_of_freedom(curve) == 0:
        found = {name: Interval(getattr(law, name), None, None) for name in ("E", "A", "a")}
        return found | {"n0": Interval(law.n0, None, None) if offset else Interval(0.0, 0.0, 0.0)}
    test = _Test(curve, law, offset, t_quantile(level, degrees_of_freedom(curve)))
    free = project(curve.x, curve.error[None], offset, free_E=True, rounds=12)
    found = {
        "E": test.invert(test.of_E, law.E, (0.0, min(1.0, float(curve.error.max())))),
        "a": test.invert(test.of_a, float(free[2][0]), (FLATTEST, STEEPEST)),
        "n0": test.invert(test.of_n0, law.n0, (0.0, 100 * float(curve.x.min()))) if offset else (0.0, 0.0),
    }
    found["A"] = test.of_all_a(found["a"]) if offset else test.of_A()
    return {
        name: Interval(value, min(low, value), max(high, value))
        for name, (low, high) in ((name, found[name]) for name in ("E", "A", "a", "n0"))
        for value in (getattr(law, name),)
    }


@dataclass(frozen=True)
class _Test:
    curve: Curve
    law: Law
    offset: bool
    critical: float

    def invert(
        self, statistic: Callable[[Array], Array], estimate: float, bounds: tuple[float, float]
    ) -> tuple[float, float]:
        """The ends of the values that are not rejected; where no candidate is rejected, the end is the bound."""
        sides = np.array([[-1.0], [1.0]])
        span = np.abs(np.array([bounds]).T - estimate)  # [2, 1]
        inner, outer = np.zeros((2, 1)), span.copy()
        steps = span * np.geomspace(1e-5, 1, _SIDE)
        for _ in range(3):
            rejected = np.abs(statistic((estimate + sides * steps).ravel())).reshape(2, -1) > self.critical
            first = rejected.argmax(1)[:, None]
            found = np.any(rejected, axis=1, keepdims=True) & (span > 0)
            before = np.where(first > 0, np.take_along_axis(steps, np.maximum(first - 1, 0), 1), inner)
            inner = np.where(found, before, inner)
            outer = np.where(found, np.take_along_axis(steps, first, 1), outer)
            steps = inner + (outer - inner) * np.linspace(0, 1, _CLOSER)[1:]
        low, high = (estimate + sides * outer)[:, 0]
        return float(low), float(high)

    def of_a(self, a: Array) -> Array:
        return self._statistic("a", *project(*self._data, a=a, free_E=True))

    def of_E(self, E: Array) -> Array:
        return self._statistic("E", *project(*self._data, E=E))

    def of_A(self) -> tuple[float, float]:
        bounds = math.log(1e-12), math.log(1e60)
        low, high = self.invert(self._of_log_A, math.log(max(self.law.A, 1e-12)), bounds)
        return math.exp(low), math.exp(high)

    def of_all_a(self, a: tuple[float, float]) -> tuple[float, float]:
        """With n0 free, A is almost a function of a: its range over the interval of a."""
        steps = np.linspace(*a, _SIDE)
        scaled = project(*self._data, a=steps, free_E=True)[1]
        A = np.exp(np.log(np.maximum(scaled, 1e-12)) + steps * np.log(self.curve.x).mean())
        return float(A.min()), float(A.max())

    def _of_log_A(self, log_A: Array) -> Array:
        return self._statistic("A", *project(*self._data, A=np.exp(log_A), free_E=True))

    def of_n0(self, n0: Array) -> Array:
        return self._statistic("n0", *project(*self._data, n0=n0, free_E=True))

    @property
    def _data(self) -> tuple[Array, Array, bool]:
        return self.curve.x, self.curve.error[None], self.offset

    def _statistic(self, name: str, E: Array, A: Array, a: Array, n0: Array) -> Array:
        """t of the residuals along the direction of one parameter, [V]."""
        directions = tangents(self.curve.x, a, n0, self.offset)
        if name == "A":  # with A fixed, a rotates the curve about n = 1
            directions["a"] = directions["a"] + np.log(self.curve.x).mean() * directions["A"]
        residual = self.curve.error - E[:, None] - A[:, None] * directions["A"]
        others = np.stack([v for key, v in directions.items() if key != name], axis=2)
        along = left_over(directions[name], others)
        total = (along * residual).sum(1)
        tiny = 1e-9 * np.sqrt((along**2).sum(1))  # rounding error
        if not self.curve.by_trunk:
            return total / (np.sqrt((along**2).sum(1)) * residual_deviation(self.curve, self.law) + tiny)
        return total / (spread(along * residual, self.curve) + tiny)


def tangents(x: Array, a: Array, n0: Array, offset: bool) -> dict[str, Array]:
    """The direction, up to a factor, in which each parameter moves the curve: [V, P] each."""
    phi = basis(x, a, n0)
    shifted = x + n0[:, None]
    return {
        "E": np.ones_like(phi),
        "A": phi,
        "a": phi * (np.log(shifted) - np.log(x).mean()),
        **({"n0": phi * x.min() / shifted} if offset else {}),
    }


def left_over(target: Array, others: Array) -> Array:
    """target [V, P] minus its projection on others [V, P, parameters]."""
    q = np.linalg.qr(others / np.sqrt((others**2).sum(1, keepdims=True)))[0]
    return target - (q @ (q.transpose(0, 2, 1) @ target[..., None]))[..., 0]


def per_trunk(values: Array, curve: Curve) -> Array:
    """Sums of [..., P] over the points of each trunk: [..., K]."""
    members = np.zeros((len(curve.x), len(curve.seeds)))
    members[np.arange(len(curve.x)), curve.trunk] = 1
    return values @ members


def spread(values: Array, curve: Curve) -> Array:
    """The standard error of a sum over all points, from the variation of the trunks' shares."""
    return per_trunk(values, curve).std(axis=-1, ddof=1) * math.sqrt(len(curve.seeds))


def residual_deviation(curve: Curve, law: Law) -> float:
    """Standard deviation of a point around the law, with residual degrees of freedom."""
    left = len(curve.x) - number_of_parameters(curve)
    return math.sqrt(float(((curve.error - law.error(curve.x)) ** 2).sum()) / left) if left > 0 else math.nan
