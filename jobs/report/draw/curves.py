"""Training curves: loss, learning rate, gradient norm, throughput and waiting for data over samples seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.laws import grouped
from jobs.report.arms import Line, Study
from jobs.report.draw.charts import LABELS, lines_chart
from jobs.report.draw.plot import Axis, Form, Mark, Series, axis, log_axis
from jobs.report.ledger import Run
from jobs.report.tables import human
from xtra.run import Metric

BINS = 70  # points of an averaged curve
RUNS = 12  # most runs in one chart, the longest first


@dataclass(frozen=True)
class Quantity:
    title: str
    unit: str
    of: Callable[[Metric], float | None]
    form: Form = human
    log: bool = False


QUANTITIES = (
    Quantity("training loss", "loss", lambda m: m.loss),
    Quantity("learning rate", "rate", lambda m: m.lr),
    Quantity("gradient norm before clipping", "norm", lambda m: m.grad_norm, log=True),
    Quantity("throughput since the start", "samples/s", lambda m: m.samples_per_s),
    Quantity("waiting for data", "ms a step", lambda m: None if m.data_wait is None else 1000 * m.data_wait, log=True),
)


def losses_by_block(runs: Sequence[Run]) -> dict[int, list[Run]]:
    """Runs with a log by block size: losses are means over a block's targets, and compare only within one size."""
    logged = [run for run in runs if run.metrics]
    return dict(sorted(grouped(logged, lambda run: run.shape.block).items(), reverse=True))


def training_charts(study: Study, runs: Sequence[Run]) -> list[list[str]]:
    """A row for each quantity, a chart for each block size; one scale per row. A quantity that no run logged is left
    out."""
    chosen = {
        block: sorted(group, key=lambda run: (-run.samples_seen, run.name))[:RUNS]
        for block, group in losses_by_block(runs).items()
    }
    rows = []
    for quantity in QUANTITIES:
        series = {block: _series(study, group, quantity) for block, group in chosen.items()}
        points = [p for several in series.values() for s in several for path in s.paths for p in path]
        points = [p for p in points if p[0] > 0 and (p[1] > 0 or not quantity.log)]
        if not points:
            continue
        x = log_axis(LABELS["samples_seen"], [p[0] for p in points], human, exact=False)
        values = [p[1] for p in points]
        y = (
            log_axis(quantity.unit, values, quantity.form, exact=False)
            if quantity.log
            else axis(quantity.unit, values, quantity.form, floor=0.0)
        )
        rows.append(_each_block(series, quantity.title, x, y))
    return rows


def _series(study: Study, runs: Sequence[Run], quantity: Quantity) -> list[Series]:
    found = []
    for style, group in sorted(grouped(runs, lambda run: study.line(run.url).style).items()):
        paths = [path for run in group if len(path := _thinned(run, quantity)) > 1]
        if paths:
            found.append(Series(study.line(group[0].url).label, style, paths=paths))
    return found


def _thinned(run: Run, quantity: Quantity) -> list[tuple[float, float]]:
    """The curve as the means of at most BINS bins of equal width on a log axis."""
    first, last = max(1, run.metrics[0].samples_seen), max(2, run.metrics[-1].samples_seen)
    bins: dict[int, list[tuple[float, float]]] = {}
    for m in run.metrics:
        value = quantity.of(m)
        if value is not None and math.isfinite(value):
            place = math.log(max(1, m.samples_seen) / first) / max(1e-9, math.log(last / first))
            bins.setdefault(int(place * (BINS - 1)), []).append((m.samples_seen, value))
    return [
        (sum(x for x, _ in rows) / len(rows), sum(y for _, y in rows) / len(rows)) for _, rows in sorted(bins.items())
    ]


def held_out_charts(study: Study, runs: Sequence[Run]) -> list[str]:
    """The held-out loss at the end of each run over samples seen, a chart for each block size."""
    ends: dict[int, dict[Line, list[tuple[Run, float]]]] = {}
    for run in runs:
        value = next((m.val_loss for m in reversed(run.metrics) if m.val_loss is not None), None)
        if value is not None:
            ends.setdefault(run.shape.block, {}).setdefault(study.line(run.url), []).append((run, value))
    every = [(run, value) for by_line in ends.values() for group in by_line.values() for run, value in group]
    if not every:
        return []
    x = log_axis(LABELS["samples_seen"], [max(1, run.samples_seen) for run, _ in every], human)
    y = axis("loss", [value for _, value in every], lambda v: f"{v:.3g}")
    series = {
        block: [_held_out(line, group) for line, group in sorted(by_line.items(), key=lambda item: item[0].style)]
        for block, by_line in sorted(ends.items(), reverse=True)
    }
    return _each_block(series, "held-out loss", x, y)


def _each_block(series: Mapping[int, Sequence[Series]], what: str, x: Axis, y: Axis) -> list[str]:
    """A chart for each block size that has something to draw."""
    drawn = [lines_chart(f"{k}x{k} blocks: {what}", some, "", "", x=x, y=y) for k, some in series.items()]
    return [svg for svg in drawn if svg]


def _held_out(line: Line, group: Sequence[tuple[Run, float]]) -> Series:
    at = grouped(group, lambda end: end[0].samples_seen)
    means = {seen: sum(value for _, value in ends) / len(ends) for seen, ends in sorted(at.items())}
    marks = [
        Mark(seen, mean, f"{line.label}: {mean:.4f} after {human(seen)} samples, {len(at[seen])} runs")
        for seen, mean in means.items()
    ]
    dots = [(run.samples_seen, value) for run, value in group] if len(group) > len(means) else []
    return Series(line.label, line.style, marks, dots, [list(means.items())])
