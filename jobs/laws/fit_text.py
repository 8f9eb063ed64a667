"""The result of `xtra fit` in at most 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from jobs.laws.fit import ArmFit, Fit
from jobs.laws.held_out import HeldOut
from jobs.laws.inversion import Interval, degrees_of_freedom
from jobs.laws.multiplier import Fitted, Multiplier, fit_weights, variance
from jobs.laws.student import t_quantile

_AXIS = {"samples_seen": "samples seen", "unique_images": "unique images", "flops": "FLOPs"}
_DECADE = 10
_MIDDLE_FROM = 3  # from this many arms on, only the middle accuracy of a pair is shown
_NAME = 22


def lines(fit: Fit, at: Sequence[float]) -> list[str]:
    """Laws, held-out predictions, multipliers, predictions at given points, and remarks on their limits."""
    found = [
        f"error = E + A (n + n0)^-a, n: {_AXIS[fit.axis]}; intervals at {100 * fit.level:g} %",
        "",
        f"{'':<{_NAME}} {'':<4}{'value':>10}{'low':>10}{'high':>10}   from",
        *(line for arm in fit.arms for line in _law(arm)),
    ]
    if fit.held_out:
        found += ["", *_held_out(fit.held_out)]
    for axis, several in fit.multipliers.items():
        if several:
            found += ["", *_multipliers(several, axis, len(fit.arms))]
    if at:
        found += ["", *_predictions(fit, at)]
    remarks = [*fit.remarks, *_loss(fit)]
    return found + [""] * bool(remarks) + [line for remark in remarks for line in textwrap.wrap(remark, 80)]


def _cut(name: str, width: int = _NAME - 1) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _law(arm: ArmFit) -> list[str]:
    many = f"{len(arm.curve.seeds)} trunks" if arm.curve.by_trunk else "residuals"
    fitted = {name: value for name, value in arm.values.items() if value != Interval(0.0, 0.0, 0.0) or name != "n0"}
    found = []
    for name in [name for name in ("E", "a", "A", "n0", "B", "b") if name in fitted]:
        value = fitted[name]
        cells = "".join(f"{_number(v, name):>10}" for v in (value.value, value.low, value.high))
        first, where = ("", "") if found else (_cut(arm.name), f"   {len(arm.curve.counts)} counts, {many}")
        found.append(f"{first:<{_NAME}} {'E, %' if name == 'E' else name:<4}{cells}{where}".rstrip())
    return found


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if name == "E" else f"{value:.3g}" if name != "n0" or value >= 1e6 else f"{value:,.0f}"


def _held_out(points: Sequence[HeldOut]) -> list[str]:
    found = [
        "largest counts, predicted without them; off by, in points:",
        f"{'':<17}{'samples':>15}{'is':>6}{'predicted':>17}{'law':>9}{'none':>7}{'log':>7}",
    ]
    for p in points:
        interval = "" if p.low is None or p.high is None else f"({100 * p.low:.1f} to {100 * p.high:.1f})"
        off = [100 * (value - p.accuracy) for value in (p.predicted, p.constant, p.log_linear)]
        found.append(
            f"{_cut(p.arm, 16):<17}{p.samples_seen:>15,}{100 * p.accuracy:>6.1f}"
            f"{100 * p.predicted:>6.1f} {interval:<15}{off[0]:>+5.1f}{off[1]:>+7.1f}{off[2]:>+7.1f}"
        )
    law, constant, log = (
        math.sqrt(np.mean([(getattr(p, name) - p.accuracy) ** 2 for p in points])) * 100
        for name in ("predicted", "constant", "log_linear")
    )
    found.append(f"root mean square: law {law:.2f}, no further gain {constant:.2f}, log-linear {log:.2f} points")
    return found


def _multipliers(several: Sequence[Multiplier], axis: str, arms: int) -> list[str]:
    found = [f"times fewer {_AXIS[axis]} than the other arm for equal accuracy:"]
    shown: set[frozenset[str]] = set()
    for pair in dict.fromkeys((m.arm, m.against) for m in several):
        if frozenset(pair) in shown:
            continue
        shown.add(frozenset(pair))
        mine = [m for m in several if (m.arm, m.against) == pair]
        for m in [mine[len(mine) // 2]] if arms >= _MIDDLE_FROM else mine:
            interval = "no interval" if m.low is None or m.high is None else f"({_times(m.low)} to {_times(m.high)})"
            who = f"{_cut(m.arm, 13)} against {_cut(m.against, 13)}"
            found.append(f"  {who:<35}{100 * m.at_accuracy:>5.1f} % {_times(m.value):>6} {interval:<17}{_verdict(m)}")
    return found


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


def _verdict(m: Multiplier) -> str:
    if m.low is None or m.high is None:
        return ""
    return "fewer" if m.low > 1 else "more" if m.high < 1 else "undecided"


def _count(n: float) -> str:
    return f"{n:,.0f}" if n < 1e10 else f"{n:.3g}"


def predicted(fitted: Fitted, n: float, level: float) -> Interval:
    """A law's accuracy at n; the interval is the fitted curve's, linearised, over trunks."""
    accuracy = min(max(1 - float(fitted.law.error(n)), 0.0), 1.0)
    left = degrees_of_freedom(fitted.curve)
    if left == 0:
        return Interval(accuracy, None, None)
    half = t_quantile(level, left) * math.sqrt(variance(fitted, fit_weights(fitted, n)))
    return Interval(accuracy, max(accuracy - half, 0.0), min(accuracy + half, 1.0))


def _predictions(fit: Fit, at: Sequence[float]) -> list[str]:
    found = [f"predicted accuracy at {_AXIS[fit.axis]}:"]
    for arm in fit.arms:
        if arm.fitted is None:
            continue
        for n in at:
            value = predicted(arm.fitted, n, fit.level)
            interval = (
                "" if value.low is None or value.high is None else f"({100 * value.low:.1f} to {100 * value.high:.1f})"
            )
            beyond = max(n / float(arm.curve.x.max()), float(arm.curve.x.min()) / n)
            found.append(f"  {_cut(arm.name):<{_NAME}}{_count(n):>14}{100 * value.value:>7.1f} {interval}")
            if beyond > _DECADE:
                found.append(f"    {beyond:.3g} times beyond the data, more than a decade: a guess")
    return found


def _loss(fit: Fit) -> list[str]:
    """The correlation of held-out or training loss with accuracy, within each block size: losses compare only there."""
    name = next((n for n in ("val_loss", "loss") if n in fit.table.columns), None)
    if name is None or "block" not in fit.table.columns:
        return []
    found = []
    for block in sorted({str(row["block"]) for row in fit.table.rows}):
        rows = [row for row in fit.table.rows if str(row["block"]) == block and row[name] is not None]
        pairs = np.array([(float(row[name]), row["accuracy"]) for row in rows])
        if len(pairs) >= 4 and np.isfinite(pairs).all() and (pairs.std(0) > 0).all():
            rank = np.corrcoef(pairs.argsort(0).argsort(0).astype(float).T)[0, 1]
            found.append(
                f"Block {block}: rank correlation of {name} and accuracy {rank:+.2f} over {len(pairs)} points."
            )
    return found
