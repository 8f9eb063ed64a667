"""The report's section on laws: each line's error(n) = E + A (n + n0)^-a, and how many times fewer samples one needs.

All numbers equal those of `xtra fit` on the same rows (jobs.laws); a line with fewer than three counts has no law.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.laws import Doubling, fit, fit_text, next_doubling, table
from jobs.report.draw import LABELS, Along, Chart, Mark, Series, axis, lines_chart, log_axis
from jobs.report.html import escaped
from jobs.report.measured import Measured, by_cell
from jobs.report.tables import Columns, percent, table as html_table

LEVEL = 0.9
LEAST = 3  # counts that a law with a floor needs
COLUMNS = ("arm", "samples_seen", "accuracy", "seed", "unique_images", "flops", "params")
STEPS = 40  # points of a law's drawn line
AXES: tuple[Along, ...] = ("samples_seen", "unique_images", "flops")


@dataclass(frozen=True)
class Laws:
    """The fits of one set and head; `why`: one line on what could not be fitted."""

    fit: fit.Fit | None
    why: str
    styles: Mapping[str, int]
    reference: str


def laws(group: Sequence[Measured]) -> Laws:
    """The laws of one set, head and protocol, for all lines that have enough counts."""
    counts = Counter(label for label, _ in {(m.line.label, m.row.samples_seen) for m in group})
    ready = [m for m in group if counts[m.line.label] >= LEAST]
    styles = {m.line.label: m.line.style for m in group}
    if not ready:
        most = max(counts.values(), default=0)
        return Laws(
            None, f"No law: a line needs {LEAST} sample counts, and none here has more than {most}.", styles, ""
        )
    lines = sorted({m.line for m in ready}, key=lambda line: line.style)
    reference = next((line.label for line in lines if line.arm.block == 1), lines[-1].label)
    rows = _rows(ready)
    try:
        return Laws(_analyse(rows, reference if len(lines) > 1 else ""), "", styles, reference)
    except ValueError as error:
        return Laws(*_alone(rows, str(error)), styles, reference)


def _analyse(rows: Sequence[Mapping[str, Any]], against: str) -> fit.Fit:
    return fit.analyse(table.Table("these runs", COLUMNS, tuple(rows)), "samples_seen", against, LEVEL)


def _alone(rows: Sequence[Mapping[str, Any]], why: str) -> tuple[fit.Fit | None, str]:
    """The first line's law, where the lines cannot be compared."""
    first = [row for row in rows if row["arm"] == rows[0]["arm"]]
    try:
        return _analyse(first, ""), why
    except ValueError as error:
        return None, str(error)


def _rows(group: Sequence[Measured]) -> list[dict[str, Any]]:
    """Rows as in a ledger, with each line as an arm; of several probes of one training, the first counts."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    numbers: dict[str, int] = {}
    for m in group:
        seed = numbers.setdefault(m.seed, len(numbers))
        own = {"arm": m.line.label, "accuracy": m.accuracy, "seed": seed}
        row = {name: getattr(m.row, name, None) for name in COLUMNS} | own
        found.setdefault((m.line.label, m.seed, m.row.samples_seen), row)
    return list(found.values())


def section(found: Sequence[Measured], titles: Mapping[tuple[str, str, str, str], str]) -> str:
    """Laws and multipliers of every set and head that has them; for the others, the reasons why not."""
    parts: list[str] = []
    reasons: dict[str, list[str]] = {}
    for cell, group in by_cell(found).items():
        known = laws(group)
        if known.fit is None:
            reasons.setdefault(known.why, []).append(titles[cell])
            continue
        parts.append(f"<h3>{escaped(titles[cell])}</h3>{_one(known, known.fit, group)}")
    parts += [f"<p>{escaped('; '.join(where))}: {escaped(why)}</p>" for why, where in reasons.items()]
    return "".join(parts)


def _one(known: Laws, found: fit.Fit, group: Sequence[Measured]) -> str:
    """The charts and tables of one cell; `found` is its fit."""
    arms = sorted(found.arms, key=lambda arm: known.styles.get(arm.name, len(known.styles)))  # as in the other charts
    figures = [_law_chart(known, arms, group), *_multiplier_charts(known, found)]
    drawn = "".join(f"<figure>{svg}</figure>" for svg in figures if svg)
    said = "".join(f"<p>{escaped(remark)}</p>" for remark in (known.why, *found.remarks) if remark)
    tables = _law_table(arms) + _next_doubling(known, found) + _held_out(known, found) + _multiplier_table(known, found)
    return f'<div class="grid">{drawn}</div>{said}{tables}'


def _law_chart(known: Laws, arms: Sequence[fit.ArmFit], group: Sequence[Measured]) -> str | None:
    series = []
    for arm in arms:
        if arm.fitted is None:
            continue
        n = np.geomspace(arm.curve.x.min(), arm.curve.x.max(), STEPS)
        at = [(float(v), fit_text.predicted(arm.fitted, float(v), LEVEL)) for v in n]
        band = [(v, p.low, p.high) for v, p in at if p.low is not None and p.high is not None]
        measured = sorted((m.row.samples_seen, m.accuracy) for m in group if m.line.label == arm.name)
        paths = [[(v, p.value) for v, p in at]]
        series.append(Series(arm.name, known.styles.get(arm.name, 7), (), measured, paths, band))
    return lines_chart("fitted laws and single runs", series, LABELS["samples_seen"], "accuracy in %", percent)


def _multiplier_charts(known: Laws, found: fit.Fit) -> list[str]:
    """One chart for each axis, all with one scale; above 1, the line needs fewer."""
    several = {a: ms for a in AXES if (ms := [m for m in found.multipliers.get(a, ()) if m.against == known.reference])}
    ends = [v for ms in several.values() for m in ms for v in (m.value, m.low, m.high) if v]
    if not ends:
        return []
    low, high = max(min(ends), 1e-2), min(max(ends), 1e2)
    y = log_axis("times fewer", [min(low, 0.9), max(high, 1.1)], lambda v: f"{v:g}", exact=False)
    charts = []
    for along, ms in several.items():
        x = axis("accuracy in %", [m.at_accuracy for m in ms], percent)
        series = [Series("equal", 7, paths=[[(x.low, 1.0), (x.high, 1.0)]], dashed=True)]
        for arm in sorted({m.arm for m in ms}, key=lambda arm: known.styles.get(arm, 0)):
            marks = [Mark(m.at_accuracy, m.value, _said(m, along), m.low, m.high) for m in ms if m.arm == arm]
            series.append(Series(arm, known.styles.get(arm, 7), marks, paths=[[(m.x, m.y) for m in marks]]))
        title = f"times fewer {'FLOPs' if along == 'flops' else along.replace('_', ' ')} than {known.reference}"
        charts.append(Chart(title, x, y, series).svg())
    return charts


def _said(m: Any, along: str) -> str:
    interval = f" ({m.low:.2f} to {m.high:.2f})" if m.low is not None and m.high is not None else ""
    what = along.replace("_", " ")
    return f"at {100 * m.at_accuracy:.1f} %: {m.arm} needs {m.value:.2f} times fewer {what}{interval}"


def _law_table(arms: Sequence[fit.ArmFit]) -> str:
    def value(arm: fit.ArmFit, name: str) -> str | None:
        v = arm.values.get(name)
        if v is None:
            return None
        times = 100 if name == "E" else 1
        if v.low is None or v.high is None:
            return f"{times * v.value:.3g}"
        limited = v.low > 1e-11 and v.high < 1e11 if name == "A" else True
        return f"{times * v.value:.3g} " + (
            f"({times * v.low:.3g} to {times * v.high:.3g})" if limited else "(no limit)"
        )

    columns: Columns[fit.ArmFit] = {
        "line": lambda a: a.name,
        "E: irreducible error, %": lambda a: value(a, "E"),
        "a: steepness": lambda a: value(a, "a"),
        "A": lambda a: value(a, "A"),
        "counts": lambda a: len(a.curve.counts),
        "seeds": lambda a: max(1, len(a.curve.seeds)),
    }
    return html_table(
        columns,
        arms,
        f"error(n) = E + A n^-a, n: samples seen; {100 * LEVEL:g} % intervals over seeds, or over residuals with one.",
    )


def _next_doubling(known: Laws, found: fit.Fit) -> str:
    columns: Columns[Doubling] = {
        "line": lambda d: d.arm,
        "samples": lambda d: d.samples,
        "twice as many would add, points": lambda d: f"{100 * d.points:.1f}",
        "interval": lambda d: None if d.low is None or d.high is None else f"{100 * d.low:.1f} to {100 * d.high:.1f}",
    }
    return html_table(
        columns,
        sorted(next_doubling(found), key=lambda d: known.styles.get(d.arm, 0)),
        "The gain that the law predicts for the next doubling of samples, beyond the largest measured count.",
    )


def _held_out(known: Laws, found: fit.Fit) -> str:
    def off(value: float, measured: float) -> str:
        return f"{100 * (value - measured):+.1f}"

    columns: Columns[Any] = {
        "line": lambda h: h.arm,
        "samples": lambda h: h.samples_seen,
        "measured, %": lambda h: f"{100 * h.accuracy:.1f}",
        "predicted, %": lambda h: f"{100 * h.predicted:.1f}",
        "interval": lambda h: None if h.low is None else f"{100 * h.low:.1f} to {100 * h.high:.1f}",
        "law off by": lambda h: off(h.predicted, h.accuracy),
        "no gain off by": lambda h: off(h.constant, h.accuracy),
        "log-linear off by": lambda h: off(h.log_linear, h.accuracy),
    }
    return html_table(
        columns,
        sorted(found.held_out, key=lambda h: (known.styles.get(h.arm, 0), h.samples_seen)),
        "The largest counts, left out of the fit and predicted by it; for comparison also by no further gain, and by a "
        "line in log n.",
    )


def _multiplier_table(known: Laws, found: fit.Fit) -> str:
    rows = [(a, m) for a in AXES for m in found.multipliers.get(a, ()) if m.against == known.reference]
    rows.sort(key=lambda row: (AXES.index(row[0]), known.styles.get(row[1].arm, 0), row[1].at_accuracy))
    columns: Columns[tuple[str, Any]] = {
        "line": lambda r: r[1].arm,
        "against": lambda r: r[1].against,
        "counted in": lambda r: "FLOPs" if r[0] == "flops" else r[0].replace("_", " "),
        "accuracy, %": lambda r: f"{100 * r[1].at_accuracy:.1f}",
        "times fewer": lambda r: f"{r[1].value:.2f}",
        "interval": lambda r: None if r[1].low is None else f"{r[1].low:.2f} to {r[1].high:.2f}",
    }
    text = (
        f"Sample-efficiency multiplier against {known.reference}: above 1 the line needs fewer. Only accuracies that "
        f"both lines reach within their measured counts; {100 * LEVEL:g} % intervals. A multiplier whose interval "
        "contains 1 decides nothing."
    )
    shown = html_table(columns, rows, text)
    return f"<details><summary>The multipliers as numbers</summary>{shown}</details>" if rows else ""
