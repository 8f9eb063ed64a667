"""Ledger rows -> inline SVG. No script, no fonts, no links out: the same rows give the same bytes.

A chart is one evaluation set and one probe head; colour is the model (variant and size), marker shape tells apart
subsets or sample counts. The palette is Okabe and Ito's, made for colour-blind readers.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import matplotlib
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jobs.report.html import escaped
from jobs.report.ledger import LedgerRow, Run

Axis = Literal["samples_seen", "unique_images", "flops"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HUES = {"xtra": ("#c4e3f6", "#0072B2"), "aim": ("#fbd9b5", "#D55E00")}  # lighter than the smallest model, the largest
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, SOFT, FAINT = "#1f2328", "#59616b", "#8a9099"
CURVE_POINTS = 240  # a loss curve is averaged in bins down to this many points
STYLE: dict[str, Any] = {
    "text.parse_math": False,  # names come from datasets, and may hold any sign
    "svg.fonttype": "none",  # text stays text: it follows the page's font and can be searched
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": "#b9bfc7",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e7eaee",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
LABELS: dict[Axis, str] = {
    "samples_seen": "samples seen in pretraining",
    "unique_images": "unique images in pretraining",
    "flops": "pretraining FLOPs (the paper's count)",
}


@dataclass(frozen=True)
class Baseline:
    """A horizontal line: what is reached without any pretraining; a band where several models were measured."""

    label: str
    accuracies: tuple[float, ...]
    dashes: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


def model_name(row: LedgerRow) -> str:
    return f"{row.variant.upper()} {row.size}"


def colours(rows: Iterable[LedgerRow]) -> dict[str, str]:
    """A colour for every model in the ledger, the same in all charts: hue is the variant, darker is larger."""
    found: dict[str, str] = {}
    models = {(r.variant, r.params, model_name(r)) for r in rows}
    for variant, (light, dark) in HUES.items():
        names = [name for v, _, name in sorted(models) if v == variant]
        for place, name in enumerate(names, 1):
            found[name] = to_hex(_between(light, dark, place / len(names)))
    return found


def _between(light: str, dark: str, share: float) -> tuple[float, float, float]:
    (r, g, b), (x, y, z) = to_rgb(light), to_rgb(dark)
    return r + (x - r) * share, g + (y - g) * share, b + (z - b) * share


def human(value: float) -> str:
    """1234567 -> 1.23M; powers of ten beyond 1e13."""
    for limit, unit, mark in ((1e13, 0, ""), (1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if value >= limit:
            return f"{value / unit:.3g}{mark}" if unit else f"{value:.2g}".replace("e+", "e")
    return f"{value:.3g}"


def baselines(rows: Sequence[LedgerRow], head: str) -> list[Baseline]:
    """Chance, raw pixels and the untrained encoders, lowest first, from rows of one evaluation set."""
    lines = {
        ("chance", (1.0, 2.0)): [1 / r.classes for r in rows if r.classes][:1],
        ("raw pixels", (5.0, 2.0, 1.0, 2.0)): [r.accuracy for r in rows if r.encoder == "none"],
        ("untrained", (5.0, 2.0)): [r.accuracy for r in rows if r.encoder == "random" and r.head == head],
    }
    found = [
        Baseline(label, tuple(v for v in values if v is not None), dashes) for (label, dashes), values in lines.items()
    ]
    return sorted((line for line in found if line.accuracies), key=lambda line: line.mean)


@matplotlib.rc_context(STYLE)
def accuracy_chart(rows: Sequence[LedgerRow], head: str, axis: Axis, palette: dict[str, str]) -> str | None:
    """Accuracy with 95% intervals over one axis, for rows of one evaluation set. None for less than two points."""
    points = [r for r in rows if r.encoder == "trained" and r.head == head and r.accuracy is not None]
    points = [r for r in points if getattr(r, axis) > 0]
    if len(points) < 2 or (axis == "unique_images" and len({r.unique_images for r in points}) < 2):
        return None
    several = len({r.selected for r in points}) > 1
    apart = "samples_seen" if axis == "unique_images" and several else "selected"
    others = sorted({int(getattr(r, apart)) for r in points})
    shapes = {value: MARKERS[i % len(MARKERS)] for i, value in enumerate(others)}
    sizes = {r.size for r in points}  # with one size, lightness is free to say: more data, stronger line
    strength = {v: 0.4 + 0.6 * (i + 1) / len(others) if len(sizes) == 1 else 1.0 for i, v in enumerate(others)}
    what = "samples seen" if apart == "samples_seen" else "images"
    entries = [(name, palette[name], "o") for name in palette if any(model_name(r) == name for r in points)]
    entries += [(f"{human(value)} {what}", FAINT, mark) for value, mark in shapes.items()] if len(shapes) > 1 else []
    figure, axes = _figure(entries)
    for (name, other), group in _grouped(points, apart).items():
        _draw(axes, group, axis, palette[name], shapes[other], strength[other])
    _draw_baselines(axes, baselines(rows, head))
    axes.set_xlabel(LABELS[axis])
    axes.set_title(f"{head} probe, accuracy in %", loc="left", fontsize=10.5, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}"))
    _log_axis(axes, [float(getattr(r, axis)) for r in points])
    if axis == "flops":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}".replace("e+", "e")))
    return _svg(figure, f"accuracy of the {head} probe against {LABELS[axis]}")


@matplotlib.rc_context(STYLE)
def loss_chart(runs: Sequence[Run], variant: str) -> str | None:
    """Training loss of the runs of one variant, named in the title; None if no run logged any."""
    runs = [r for r in runs if r.metrics]
    if not runs:
        return None
    uniques = sorted({int(r.info["manifest_samples"]) for r in runs})
    shades = {unique: PALETTE[i % len(PALETTE)] for i, unique in enumerate(uniques)}
    figure, axes = _figure([(f"{human(unique)} unique images", shade, "") for unique, shade in shades.items()])
    for run in runs:
        x, y = _thinned(run)
        axes.plot(x, y, color=shades[int(run.info["manifest_samples"])], linewidth=1.3, alpha=0.85)
    axes.set_xlabel(LABELS["samples_seen"])
    axes.set_title(f"{variant}, training loss", loc="left", fontsize=10.5, color=INK)
    _log_axis(axes, [float(m.samples_seen) for r in runs for m in r.metrics])
    return _svg(figure, f"{variant}: training loss against samples seen")


@matplotlib.rc_context(STYLE)
def selection_chart(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Accuracy over the learning rate where the grid point was chosen, a line for each head, layer set and decay of
    one probe; the chosen points are ringed. None where no head has several rates."""
    lines: dict[str, list[tuple[float, float]]] = {}
    rings = []
    for result in results:
        points = [point for point in result.get("selection") or () if point.get("lr") and "accuracy" in point]
        for point in points:
            others = {name: value for name, value in point.items() if name not in ("lr", "accuracy")}
            apart = [name for name in others if len({p.get(name) for p in points}) > 1]
            words = [str(result["head"]), *(f"{name.replace('_', ' ')} {others[name]:g}" for name in apart)]
            lines.setdefault(", ".join(words), []).append((point["lr"], point["accuracy"]))
        if points:
            best = max(points, key=lambda point: point["accuracy"])
            rings.append((best["lr"], best["accuracy"]))
    if not any(len({lr for lr, _ in line}) > 1 for line in lines.values()):
        return None
    shades = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(lines)}
    figure, axes = _figure([(name, shade, "o") for name, shade in shades.items()])
    for name, line in lines.items():
        axes.plot(*zip(*sorted(line)), color=shades[name], marker="o", markersize=4, linewidth=1.5)
    axes.plot(*zip(*rings), linestyle="none", marker="o", markersize=10, markerfacecolor="none", markeredgecolor=INK)
    where = "test images" if results[0].get("selected_on") == "eval" else "hold-out"
    axes.set_xlabel("learning rate")
    axes.set_title(f"accuracy in % on the {where}", loc="left", fontsize=10.5, color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.3g}"))
    _log_axis(axes, [lr for line in lines.values() for lr, _ in line])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    return _svg(figure, f"{results[0]['set']}, accuracy against learning rate, {_digest(lines)}")


def _digest(lines: object) -> str:
    """Tells charts apart that are of the same set: their ids follow from their titles."""
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:6]


def _thinned(run: Run) -> tuple[list[float], list[float]]:
    """The curve in at most CURVE_POINTS bins, equal on a log axis; a bin is the mean of its rows."""
    first, last = max(1, run.metrics[0].samples_seen), max(2, run.metrics[-1].samples_seen)
    bins: dict[int, list[tuple[int, float]]] = {}
    for m in run.metrics:
        place = math.log(max(1, m.samples_seen) / first) / max(1e-9, math.log(last / first))
        bins.setdefault(int(place * (CURVE_POINTS - 1)), []).append((m.samples_seen, m.loss))
    means = [[sum(column) / len(rows) for column in zip(*rows)] for _, rows in sorted(bins.items())]
    return [m[0] for m in means], [m[1] for m in means]


def _grouped(points: Sequence[LedgerRow], apart: str) -> dict[tuple[str, int], list[LedgerRow]]:
    groups: dict[tuple[str, int], list[LedgerRow]] = {}
    for row in points:
        groups.setdefault((model_name(row), getattr(row, apart)), []).append(row)
    return dict(sorted(groups.items()))


def _draw(axes: Any, rows: Sequence[LedgerRow], axis: Axis, colour: str, marker: str, alpha: float) -> None:
    """Every point with its interval; the line joins the mean of the seeds at each x."""
    at: dict[float, list[float]] = {}
    for r in rows:
        x, y = float(getattr(r, axis)), r.accuracy or 0.0
        at.setdefault(x, []).append(y)
        low, high = (y if r.low is None else r.low), (y if r.high is None else r.high)
        axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.7 * alpha)
    axes.plot(
        [float(getattr(r, axis)) for r in rows],
        [r.accuracy for r in rows],
        linestyle="none",
        marker=marker,
        markersize=6.5,
        color=colour,
        alpha=alpha,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=3,
    )
    xs = sorted(at)
    axes.plot(xs, [sum(at[x]) / len(at[x]) for x in xs], color=colour, linewidth=1.6, alpha=alpha)


def _draw_baselines(axes: Any, lines: Sequence[Baseline]) -> None:
    """Dashed lines, named in the right margin. A line so low that the curves would be squeezed is only named."""
    low, high = axes.dataLim.intervaly  # of the intervals
    floor = low - 1.2 * (high - low)
    drawn = [line for line in lines if line.mean >= floor]
    for line in drawn:
        axes.axhline(line.mean, color=FAINT, linewidth=1.1, dashes=line.dashes, zorder=1)
        axes.axhspan(min(line.accuracies), max(line.accuracies), color=FAINT, alpha=0.15, linewidth=0, zorder=0)
    low, high = min([low, *(min(line.accuracies) for line in drawn)]), max([high, *(line.mean for line in drawn)])
    bottom, top = max(0.0, low - 0.06 * (high - low)), high + 0.06 * (high - low)
    axes.set_ylim(bottom, top)
    height, taken = (top - bottom) * 0.065, -math.inf
    for line in lines:
        y = max(line.mean if line in drawn else bottom, taken + height)
        taken = y
        text = f"{line.label} {100 * line.mean:.3g}" + ("" if line in drawn else " ↓")
        axes.annotate(
            text,
            (1.015, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=SOFT,
            annotation_clip=False,
        )


def _figure(entries: Sequence[tuple[str, str, str]]) -> tuple[Figure, Any]:
    """Axes of one size in every chart, baselines' names to the right, the legend (label, colour, marker) below."""
    columns = 2 if any(len(label) > 14 for label, _, _ in entries) else 3
    legend = 0.2 * math.ceil(len(entries) / columns) + 0.05  # inches
    height = 0.3 + 2.45 + 0.55 + legend
    figure = Figure(figsize=(5.4, height))
    axes = figure.add_axes((0.075, (legend + 0.55) / height, 0.72, 2.45 / height))
    handles = [Line2D([], [], color=c, marker=m, markersize=6, linewidth=1.6, label=label) for label, c, m in entries]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.062, 0.0),
        borderpad=0.1,
        borderaxespad=0.0,
        ncols=columns,
        columnspacing=1.6,
    )
    return figure, axes


def _log_axis(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.35, high * 1.35)
    apart = sorted(set(values))
    if len(apart) <= 6 and all(b / a > (high / low) ** 0.1 for a, b in pairwise(apart)):
        axes.xaxis.set_major_locator(FixedLocator(apart))  # few values: name exactly these
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
    axes.grid(visible=False, axis="x")


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that scales with the page and shares no ids with its neighbours."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: m.group() if m.group(1) in used else "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escaped(title)}" ', 1).strip()
