"""Scaling laws of a ledger: a law for each arm, how well it predicts, and how many times fewer samples one arm needs
than another, all with intervals over trunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from jobs.flags import nearest
from jobs.laws.bootstrap import FROM, bootstrap_intervals, resample
from jobs.laws.config import Config
from jobs.laws.held_out import HeldOut, held_out
from jobs.laws.inversion import Interval, intervals
from jobs.laws.joint import SIZES, JointLaw, fit_sizes
from jobs.laws.law import Curve, fit, too_few
from jobs.laws.multiplier import Fitted, Multiplier, levels, multiplier
from jobs.laws.table import AXES, Table, curves, grouped, read

_ALL_PAIRS = 6  # up to this many arms, all pairs are compared; beyond it, each only with the first


@dataclass(frozen=True)
class ArmFit:
    """One arm: its law with intervals, and the data that it was fitted to."""

    name: str
    row_name: str  # the arm's name in the table; differs from `name` where an arm's two sizes are fitted separately
    curve: Curve  # as measured; the largest size where there are several
    fitted: Fitted | None  # None where only the joint law could be fitted
    values: Mapping[str, Interval]  # E, A, a, n0; for a joint law also B, b
    joint: JointLaw | None
    sizes: tuple[Curve, ...]


@dataclass(frozen=True)
class Fit:
    axis: str
    arms: tuple[ArmFit, ...]
    multipliers: Mapping[str, tuple[Multiplier, ...]]  # by axis: the laws' own, and the table's others
    held_out: tuple[HeldOut, ...]
    level: float
    remarks: tuple[str, ...]
    table: Table

    def as_json(self) -> dict[str, object]:
        """The documented result: arms, multipliers on the axis of the fit, held-out points, level."""
        return {
            "arms": {arm.name: {name: asdict(value) for name, value in arm.values.items()} for arm in self.arms},
            "multipliers": [asdict(m) for m in self.multipliers.get(self.axis, ())],
            "held_out": [
                {name: getattr(h, name) for name in ("arm", "samples_seen", "accuracy", "predicted", "low", "high")}
                for h in self.held_out
            ],
            "level": self.level,
        }


def run(config: Config) -> Fit:
    """Fit every arm of a ledger and compare them.

    Raises ValueError, in one line, for a ledger that cannot be fitted, for arms that share no range of accuracy, and
    for an unknown arm.
    """
    only = {name: value for name, value in (("set", config.set), ("head", config.head)) if value}
    table = read(config.ledger, config.by, only)
    names = list(dict.fromkeys(row["arm"] for row in table.rows))
    if config.by and config.by not in (*names, *table.columns):
        raise ValueError(
            f"--by {config.by}: no arm of {config.ledger} has this name{nearest(config.by, names)}: "
            f"its arms are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
    found = analyse(table, config.x, config.by if config.by in names else "", config.level)
    if config.by in names and config.by not in [arm.row_name for arm in found.arms]:
        raise ValueError(
            f"--by {config.by}: this arm has too few counts for a law: compare with another arm, or add counts"
        )
    return found


def analyse(table: Table, axis: str, against: str, level: float) -> Fit:
    """A table's laws and comparisons, of all pairs or with the arm `against` ("": all). Raises what `run` raises."""
    arms, remarks = _arms(table, axis, level)
    found = {axis: _multipliers([arm.fitted for arm in arms if arm.fitted], against, level)}
    several = len(arms) > 1
    if several and not any(arm.fitted for arm in arms):
        remarks.append("No multiplier: no size of an arm has three counts.")
    elif several and not found[axis]:
        reached = [(arm.name, *arm.fitted.reached()) for arm in arms if arm.fitted]
        ranges = ", ".join(f"{name} {100 * low:.1f} to {100 * high:.1f} %" for name, low, high in reached[:4])
        raise ValueError(f"{table.where}: arms share no range of accuracy ({ranges}): measure more counts")
    for other in AXES:
        if several and other != axis and other in table.axes():
            try:
                found[other] = _multipliers(_on_another_axis(table, other, arms), against, level)
            except ValueError:  # one value of this axis, such as the same images at every count
                remarks.append(f"At equal {other}: no law, because an arm has too few values in this column.")
    remarks += _apart([arm.fitted for arm in arms if arm.fitted]) if found[axis] else []
    predictions = tuple(point for arm in arms if arm.fitted for point in held_out(arm.curve, level))
    return Fit(axis, tuple(arms), found, predictions, level, tuple(remarks), table)


def _arms(table: Table, axis: str, level: float) -> tuple[list[ArmFit], list[str]]:
    """Every arm with enough counts, and remarks on the others. Raises ValueError if no arm has enough."""
    measured, remarks = curves(table, axis)
    arms, left_out = [], []
    for name, sizes in grouped(measured, lambda curve: curve.name).items():
        sizes = sorted(sizes, key=lambda curve: curve.params or 0)
        if len(sizes) < SIZES and (why := [too_few(curve) for curve in sizes if too_few(curve)]):
            left_out += [f"{line[0].upper()}{line[1:]}." for line in why]
            sizes = [curve for curve in sizes if not too_few(curve)]
        if len(sizes) >= SIZES:
            arms.append(_joint(name, sizes, level))
            remarks.append(
                f"{name}: {len(sizes)} sizes, one law in x and parameters; multipliers at its largest, "
                f"{sizes[-1].params:.4g} parameters."
            )
        elif len(sizes) == 2:
            remarks.append(f"{name}: two sizes, each fitted separately (a law in parameters needs three).")
            arms += [_one(f"{name}, {curve.params:.4g} parameters", name, curve, level) for curve in sizes]
        elif sizes:
            arms.append(_one(name, name, sizes[0], level))
    if not arms:
        raise ValueError(f"{table.where}: {left_out[0][0].lower()}{left_out[0][1:-1]}")
    return arms, remarks + left_out


def _one(name: str, row_name: str, curve: Curve, level: float) -> ArmFit:
    curve = replace(curve, name=name)
    fitted = _fitted(curve)
    laws = fitted.resampled
    values = (
        bootstrap_intervals(fitted.curve, fitted.law, laws, level)
        if laws
        else intervals(fitted.curve, fitted.law, level)
    )
    return ArmFit(name, row_name, curve, fitted, values, None, (curve,))


def _fitted(curve: Curve) -> Fitted:
    law, cut = fit(curve)
    return Fitted(cut, law, resample(cut) if len(cut.seeds) >= FROM else None)


def _joint(name: str, sizes: Sequence[Curve], level: float) -> ArmFit:
    joint, values = fit_sizes(sizes, level)
    largest = sizes[-1]
    fitted = _fitted(largest) if largest.places >= 3 else None
    return ArmFit(name, name, largest, fitted, {**values, "n0": Interval(0.0, 0.0, 0.0)}, joint, tuple(sizes))


def _on_another_axis(table: Table, axis: str, arms: Sequence[ArmFit]) -> list[Fitted]:
    """The arms' curves on another axis, at the same sizes. Raises ValueError if an arm has too few values of it."""
    sizes = {(curve.name, curve.params): curve for curve in curves(table, axis)[0]}
    return [_fitted(replace(sizes[arm.row_name, arm.curve.params], name=arm.name)) for arm in arms if arm.fitted]


def _multipliers(ready: Sequence[Fitted], against: str, level: float) -> tuple[Multiplier, ...]:
    """Multipliers of every pair in both directions, or against one arm, at accuracies that both reach."""
    others = [arm for arm in ready if arm.name == against] or (ready if len(ready) <= _ALL_PAIRS else ready[:1])
    return tuple(
        multiplier(arm, other, accuracy, level)
        for other in others
        for arm in ready
        if arm is not other
        for accuracy in levels([arm, other])
    )


def _apart(ready: Sequence[Fitted]) -> list[str]:
    """Remarks on arms that share no accuracy with any other arm."""
    alone = [one.name for one in ready if not any(levels([one, other]) for other in ready if other is not one)]
    return [f"No multiplier for {name}: it shares no accuracy with another arm." for name in alone]
