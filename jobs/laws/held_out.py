"""The largest counts, left out of the fit and predicted by it: does the law predict better than simpler ones?

The interval is for a prediction that did not use the point. Its width comes from how the difference (measured minus
predicted) varies from trunk to trunk, as everywhere here; without trunks, from the residuals of the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jobs.laws.inversion import degrees_of_freedom, per_trunk, residual_deviation
from jobs.laws.law import OFFSET_FROM, Curve, fit
from jobs.laws.multiplier import Fitted, fit_weights
from jobs.laws.student import t_quantile

_TWO_FROM = OFFSET_FROM + 2  # from this many counts on, two are left out: n0 can still be fitted


@dataclass(frozen=True)
class HeldOut:
    """One count left out of the fit; accuracies are means over trunks."""

    arm: str
    samples_seen: int
    accuracy: float
    predicted: float
    low: float | None
    high: float | None
    constant: float  # predicted by no further gain: the accuracy at the largest fitted count
    log_linear: float  # predicted by a straight line in log n through the fitted counts


def held_out(curve: Curve, level: float) -> list[HeldOut]:
    """Predictions of the largest one or two counts; none where fewer than three would be left."""
    leave = 2 if len(curve.counts) >= _TWO_FROM else 1
    if len(curve.counts) - leave < 3:
        return []
    kept = curve.where(curve.count < curve.counts[-leave])
    if kept.places < 3:
        return []
    law, cut = fit(kept)
    line = np.polynomial.Polynomial.fit(np.log(cut.x), cut.error, 1)
    top = cut.error[cut.count == cut.counts[-1]].mean()
    return [_predicted(curve, Fitted(cut, law), int(n), level, float(top), line) for n in curve.counts[-leave:]]


def _predicted(
    curve: Curve, fitted: Fitted, count: int, level: float, top: float, line: np.polynomial.Polynomial
) -> HeldOut:
    there = curve.where(curve.count == count)
    n, error = float(np.exp(np.log(there.x).mean())), float(there.error.mean())
    predicted = float(fitted.law.error(n))
    half = _half_width(there, fitted, n, level)
    low, high = (None, None) if half is None else (max(1 - predicted - half, 0.0), min(1 - predicted + half, 1.0))
    return HeldOut(curve.name, count, 1 - error, 1 - predicted, low, high, 1 - top, 1 - float(line(math.log(n))))


def _half_width(there: Curve, fitted: Fitted, n: float, level: float) -> float | None:
    kept, weights = fitted.curve, fit_weights(fitted, n)
    both = [seed for seed in kept.seeds if seed in there.seeds]
    if len(both) > 1:
        residual = kept.error - fitted.law.error(kept.x)
        ahead = per_trunk(weights * residual, kept) * len(kept.seeds)  # each trunk's influence on the prediction
        at = per_trunk(there.error, there) / per_trunk(np.ones(len(there.x)), there)
        difference = np.array([at[there.seeds.index(s)] - ahead[kept.seeds.index(s)] for s in both])
        return t_quantile(level, len(both) - 1) * float(difference.std(ddof=1)) / math.sqrt(len(both))
    left = degrees_of_freedom(kept)
    if kept.by_trunk or left == 0:
        return None
    spread = math.sqrt(float((weights**2).sum()) + 1 / len(there.x))
    return t_quantile(level, left) * residual_deviation(kept, fitted.law) * spread
