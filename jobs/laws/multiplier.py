"""How many times fewer samples one arm needs than another for the same accuracy, with an interval.

M(accuracy) = n_against / n_arm: above 1, the arm is cheaper. Both laws are inverted only at accuracies that both curves
reach within their measured counts. The interval is for log M: each trunk's influence on log n at that accuracy (its
residuals through the fit, over the slope) is one number, and Student's t is over trunks: over paired differences where
the two arms have the same seeds, otherwise with Welch's degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.laws.bootstrap import Resampled, percentiles
from jobs.laws.inversion import degrees_of_freedom, per_trunk, residual_deviation, tangents
from jobs.laws.law import Array, Curve, Law, number_of_parameters
from jobs.laws.student import t_quantile

_STEPS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # between compared accuracies
_MOST = 8


@dataclass(frozen=True)
class Fitted:
    """An arm with its law; `curve` has its outliers moved to Huber's threshold."""

    curve: Curve
    law: Law
    resampled: Resampled | None = None  # from ten trunks on

    @property
    def name(self) -> str:
        return self.curve.name

    def reached(self) -> tuple[float, float]:
        """The law's lowest and highest accuracy within the measured range."""
        low, high = sorted(1 - float(self.law.error(n)) for n in (self.curve.x.min(), self.curve.x.max()))
        return low, high

    def covers(self, accuracy: float) -> bool:
        """Whether the law reaches an accuracy at a definite n within the measured range: a flat law never does."""
        return 0.999 * self.curve.x.min() <= self.law.count_at(1 - accuracy) <= 1.001 * self.curve.x.max()


@dataclass(frozen=True)
class Multiplier:
    arm: str
    against: str
    at_accuracy: float
    value: float
    low: float | None
    high: float | None


def levels(arms: Sequence[Fitted]) -> list[float]:
    """Round accuracies that all these arms reach; the middle of the shared range where it is too narrow for one."""
    low, high = max(arm.reached()[0] for arm in arms), min(arm.reached()[1] for arm in arms)
    if low >= high:
        return []
    step = next((s for s in _STEPS if (high - low) / s <= _MOST), _STEPS[-1])
    found = [round(k * step, 4) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [level for level in found or [(low + high) / 2] if all(arm.covers(level) for arm in arms)]


def multiplier(arm: Fitted, against: Fitted, accuracy: float, level: float) -> Multiplier:
    """M at one accuracy that both laws reach."""
    error = 1 - accuracy
    value = against.law.count_at(error) / arm.law.count_at(error)
    if arm.resampled and against.resampled:
        ratios = np.nan_to_num(against.resampled.log_count_at(error) - arm.resampled.log_count_at(error), nan=0.0)
        ends = percentiles(ratios, level, min(len(arm.curve.seeds), len(against.curve.seeds)))
        low, high = (math.exp(min(max(end, -700.0), 700.0)) for end in ends)
        return Multiplier(arm.name, against.name, accuracy, value, min(low, value), max(high, value))
    half = _half_width(arm, against, error, level)
    if half is None:
        return Multiplier(arm.name, against.name, accuracy, value, None, None)
    factor = math.exp(min(half, 700.0))
    return Multiplier(arm.name, against.name, accuracy, value, value / factor, value * factor)


def _half_width(arm: Fitted, against: Fitted, error: float, level: float) -> float | None:
    """The half-width of the interval of log M; None where one of the arms has no interval."""
    if 0 in (degrees_of_freedom(arm.curve), degrees_of_freedom(against.curve)):
        return None
    if arm.curve.by_trunk and sorted(arm.curve.seeds) == sorted(against.curve.seeds):
        order = [against.curve.seeds.index(seed) for seed in arm.curve.seeds]
        difference = shares(arm, influence(arm, error)) - shares(against, influence(against, error))[order]
        return t_quantile(level, len(difference) - 1) * float(difference.std(ddof=1) * math.sqrt(len(difference)))
    variances = [variance(fitted, influence(fitted, error)) for fitted in (arm, against)]
    freedoms = [degrees_of_freedom(fitted.curve) for fitted in (arm, against)]
    total = sum(variances)
    if total == 0:
        return 0.0
    welch = total**2 / sum(v * v / df for v, df in zip(variances, freedoms))
    return t_quantile(level, round(welch, 2)) * math.sqrt(total)


def influence(fitted: Fitted, error: float) -> Array:
    """How much each point moves the log n at which the curve reaches an error: first-order weights, [P]."""
    law, n = fitted.law, fitted.law.count_at(error)
    slope = law.a * (error - law.E) * n / (n + law.n0)  # -d error / d log n
    return fit_weights(fitted, n) / slope


def fit_weights(fitted: Fitted, n: float) -> Array:
    """How much each point moves the fitted error at n: first-order weights, [P]."""
    curve, law = fitted.curve, fitted.law
    directions = tangents(
        np.append(curve.x, n), np.array([law.a]), np.array([law.n0]), number_of_parameters(curve) == 4
    )
    held = {"E"} if law.E <= 0 else set()
    J = np.stack([direction[0] for name, direction in directions.items() if name not in held], axis=1)
    return J[-1] @ np.linalg.pinv(J[:-1])


def shares(fitted: Fitted, weights: Array) -> Array:
    """Each trunk's contribution to a weighted sum of residuals, [K]."""
    curve = fitted.curve
    return per_trunk(weights * (curve.error - fitted.law.error(curve.x)), curve)


def variance(fitted: Fitted, weights: Array) -> float:
    """The variance of a weighted sum of errors: from trunks, or from points where there are none."""
    if fitted.curve.by_trunk:
        each = shares(fitted, weights)
        return float(each.var(ddof=1) * len(each))
    return float((weights**2).sum()) * residual_deviation(fitted.curve, fitted.law) ** 2
