"""Charts of a study's results: accuracy over three axes, the efficient front, held-out loss, learning-rate grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jobs.laws import grouped
from jobs.report.draw.plot import (
    HEIGHT,
    WIDTH,
    Axis,
    Chart,
    Form,
    Mark,
    Rule,
    Series,
    axis,
    log_axis,
)
from jobs.report.ledger import LedgerRow
from jobs.report.measured import Point
from jobs.report.tables import human, percent, power

Along = Literal["samples_seen", "unique_images", "flops"]
LABELS: dict[Along, str] = {
    "samples_seen": "samples seen in pretraining",
    "unique_images": "unique images in pretraining",
    "flops": "pretraining FLOPs, as the official code computes",
}


def baselines(rows: Iterable[LedgerRow], head: str) -> list[Rule]:
    """Chance, raw pixels and the untrained encoders, lowest first, from rows of one evaluation set."""
    rows = list(rows)
    values = {
        "chance": [1 / r.classes for r in rows if r.classes][:1],
        "raw pixels": [r.accuracy for r in rows if r.encoder == "none"],
        "untrained": [r.accuracy for r in rows if r.encoder == "random" and r.head == head],
    }
    known = {label: [v for v in found if v is not None] for label, found in values.items()}
    return sorted(
        (Rule(label, min(found), max(found)) for label, found in known.items() if found),
        key=lambda rule: rule.low + rule.high,
    )


def accuracy_axis(points: Sequence[Point], rules: Sequence[Rule]) -> Axis:
    """One scale for all charts of a set and head: spans the intervals, and baselines not far below them."""
    values = [v for p in points for v in (p.bar.low, p.bar.high, p.bar.mean)]
    low, high = min(values), max(values)
    near = [v for rule in rules for v in (rule.low, rule.high) if v >= low - 1.2 * (high - low)]
    return axis("accuracy in %", [*values, *near], percent, floor=0.0)


def accuracy_chart(
    points: Sequence[Point],
    rules: Sequence[Rule],
    along: Along,
    title: str,
    y: Axis | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> str | None:
    """Accuracy of one set and head over one axis. None for fewer than two points, or one value of the axis."""
    shown = [p for p in points if p.x(along) > 0]
    if len(shown) < 2 or len({p.x(along) for p in shown}) < 2:
        return None
    x = log_axis(LABELS[along], [p.x(along) for p in shown], power if along == "flops" else human)
    series = []
    for group in _lines(shown):
        marks = [Mark(p.x(along), p.bar.mean, said(p), p.bar.low, p.bar.high) for p in group]
        dots = [(p.x(along), m.accuracy) for p in group if len(p.group) > 1 for m in p.group]
        path = sorted((m.x, m.y) for m in marks) if along != "unique_images" else [(m.x, m.y) for m in marks]
        series.append(Series(group[0].line.label, group[0].line.style, marks, dots, [path]))
    return Chart(title, x, y or accuracy_axis(shown, rules), series, rules, *size).svg()


def said(p: Point) -> str:
    """A point in words."""
    seeds = f", {len(p.group)} seeds" if len(p.group) > 1 else ", one seed"
    return (
        f"{p.line.label}: {100 * p.bar.mean:.1f} % ({100 * p.bar.low:.1f} to {100 * p.bar.high:.1f}) after "
        f"{human(p.row.samples_seen)} samples of {human(p.x('unique_images'))} images{seeds}"
    )


def _lines(points: Sequence[Point]) -> list[list[Point]]:
    return list(grouped(points, lambda p: (p.line.style, str(p.group[0].protocol))).values())


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats at equal or fewer FLOPs, cheapest first."""
    best: list[Point] = []
    for p in sorted(points, key=lambda p: (p.x("flops"), -p.bar.mean)):
        if not best or p.bar.mean > best[-1].bar.mean:
            best.append(p)
    return best


def front_chart(points: Sequence[Point], title: str, y: Axis) -> str | None:
    """Accuracy over FLOPs with the efficient front as a step line. None for fewer than three points."""
    shown = [p for p in points if p.x("flops") > 0]
    if len(shown) < 3 or len({p.x("flops") for p in shown}) < 2:
        return None
    x = log_axis(LABELS["flops"], [p.x("flops") for p in shown], power)
    series = [
        Series(
            group[0].line.label,
            group[0].line.style,
            [Mark(p.x("flops"), p.bar.mean, f"{said(p)}, {power(p.x('flops'))} FLOPs") for p in group],
        )
        for group in _lines(shown)
    ]
    steps: list[tuple[float, float]] = []
    for p in front(shown):
        steps += [(p.x("flops"), y) for _, y in steps[-1:]] + [(p.x("flops"), p.bar.mean)]
    edge = Series("efficient front", 7, paths=[[*steps, (x.high, steps[-1][1])]], dashed=True)
    return Chart(title, x, y, [edge, *series]).svg()


def loss_charts(points: Sequence[Point], y: Axis) -> list[str]:
    """Accuracy over the held-out loss, a chart for each block size, as losses compare only within one."""
    logged = [p for p in points if all(m.row.val_loss is not None for m in p.group)]
    drawn = []
    for block, group in sorted(grouped(logged, lambda p: p.line.arm.block).items(), reverse=True):
        series = []
        for mine in _lines(group):
            losses = [sum(m.row.val_loss or 0.0 for m in p.group) / len(p.group) for p in mine]
            marks = [
                Mark(loss, p.bar.mean, f"{said(p)}, loss {loss:.4f}", p.bar.low, p.bar.high)
                for loss, p in zip(losses, mine)
            ]
            series.append(Series(mine[0].line.label, mine[0].line.style, marks))
        x = axis("held-out loss", [m.x for s in series for m in s.marks], lambda v: f"{v:.3g}")
        drawn += [Chart(f"{block}x{block} blocks: accuracy in %", x, y, series).svg()] if len(group) > 2 else []
    return drawn


def lines_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_form: Form = human,
    x: Axis | None = None,
    y: Axis | None = None,
    log_y: bool = False,
) -> str | None:
    """Paths and marks over samples seen, or over `x`. None if there is nothing to draw."""
    points = [
        *(point for s in series for path in s.paths for point in path),
        *((m.x, v) for s in series for m in s.marks for v in (m.y, m.low, m.high) if v is not None),
        *((px, v) for s in series for px, low, high in s.band for v in (low, high)),
    ]
    points = [point for point in points if point[0] > 0 and (point[1] > 0 or not log_y)]
    if not points:
        return None
    x = x or log_axis(x_label, [point[0] for point in points], human)
    if y is None:
        values = [point[1] for point in points]
        y = log_axis(y_label, values, y_form, exact=False) if log_y else axis(y_label, values, y_form)
    return Chart(title, x, y, series).svg()


def selection_chart(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Accuracy over the learning rate, on the images that chose the grid point; a line for each head, layer set and
    weight decay of one probe. None if no head has several rates."""
    lines: dict[str, list[tuple[float, float]]] = {}
    best: dict[str, float] = {}
    for result in results:
        points = [point for point in result.get("selection") or () if point.get("lr") and "accuracy" in point]
        top = max(points, key=lambda point: point["accuracy"], default=None)
        for point in points:
            others = {name: value for name, value in point.items() if name not in ("lr", "accuracy")}
            apart = [name for name in others if len({p.get(name) for p in points}) > 1]
            words = [str(result["head"]), *(f"{name.replace('_', ' ')} {others[name]:g}" for name in apart)]
            lines.setdefault(", ".join(words), []).append((point["lr"], point["accuracy"]))
            if top is not None and point is top:
                best[", ".join(words)] = float(top["lr"])
    if not any(len({lr for lr, _ in line}) > 1 for line in lines.values()):
        return None
    where = "test images" if results[0].get("selected_on") == "eval" else "validation split"
    marks = {
        name: [
            Mark(lr, value, f"{name}, rate {lr:g}: {100 * value:.1f} %" + (", chosen" if best.get(name) == lr else ""))
            for lr, value in sorted(line)
        ]
        for name, line in lines.items()
    }
    series = [
        Series(name, style, marks[name], paths=[sorted(line)]) for style, (name, line) in enumerate(lines.items())
    ]
    return lines_chart(
        f"accuracy in % on the {where}",
        series,
        "",
        "accuracy in %",
        percent,
        x=log_axis("learning rate", [lr for line in lines.values() for lr, _ in line], lambda lr: f"{lr:g}"),
    )
