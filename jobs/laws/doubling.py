"""The gain from doubling the samples, predicted by a fitted law."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.laws.fit import Fit
from jobs.laws.inversion import degrees_of_freedom
from jobs.laws.multiplier import Fitted, fit_weights, variance
from jobs.laws.student import t_quantile


@dataclass(frozen=True)
class Doubling:
    """From the largest measured count to twice it."""

    arm: str
    samples: int  # in addition to the measured ones
    points: float  # accuracy gained, as a share
    low: float | None
    high: float | None


def next_doubling(fit: Fit) -> tuple[Doubling, ...]:
    """One for every arm with a law in samples seen; the interval is linearised, over trunks."""
    return tuple(_doubling(arm.fitted, fit.level) for arm in fit.arms if arm.fitted)


def _doubling(fitted: Fitted, level: float) -> Doubling:
    largest = float(fitted.curve.x.max())
    points = float(fitted.law.error(largest) - fitted.law.error(2 * largest))
    left = degrees_of_freedom(fitted.curve)
    if left == 0:
        return Doubling(fitted.name, round(largest), points, None, None)
    weights = fit_weights(fitted, largest) - fit_weights(fitted, 2 * largest)
    half = t_quantile(level, left) * math.sqrt(variance(fitted, weights))
    return Doubling(fitted.name, round(largest), points, points - half, points + half)
