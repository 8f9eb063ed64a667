"""The papers' tables and figure together with our results: XTRA's Tables 3 to 6 and Figure 1, AIM's Tables 2 and 6.

Our results are compared only on the papers' own sets, by name; a set of another size is marked, and an average is
given only over all 15. A number that could not be read in a source is an empty cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ingest.sets import BENCHMARKS
from jobs.report import published
from jobs.report.draw import Axis, Chart, Mark, Series, axis, log_axis
from jobs.report.ledger import Ledger, LedgerRow
from jobs.report.measured import Point
from jobs.report.probes import Probed, probed
from jobs.report.tables import Columns, human, percent, points, table

OURS = 12  # most of our rows below the papers'


@dataclass(frozen=True)
class Line:
    """One row of the table of 15; cells are text, as shown."""

    method: str
    arch: str
    data: str
    source: str
    cells: Mapping[str, str]
    average: str | None
    ours: bool = False


def benchmarks(ledger: Ledger) -> str:
    """Tables 3, 4 and 5: the 15 sets, and both probes on ImageNet-1k."""
    results = [p for p in probed(ledger) if p.result["set"] in BENCHMARKS]
    theirs = [
        Line(
            row.method,
            row.arch,
            row.data,
            row.source,
            {name: f"{100 * value:.1f}" for name, value in row.accuracy.items()},
            points(row.average),
        )
        for row in published.ATTENTIVE
    ]
    ours = _our_lines(results)
    columns: Columns[Line] = {
        "method": lambda r: r.method,
        "model or head": lambda r: r.arch,
        "pretrained on": lambda r: r.data,
        "average": lambda r: r.average,
        **{b.title: lambda r, name=name: r.cells.get(name) for name, b in BENCHMARKS.items()},
        "source": lambda r: r.source,
    }
    text = (
        "Top-1 accuracy in % on a frozen encoder. The papers' rows are attentive probes whose grid point was chosen on "
        "the test images; our rows, below, state their head and how their grid point was chosen. An average is given "
        "only over all 15 sets. An asterisk: not as many test images as in the paper."
    )
    if len(ours) > OURS:
        text += f" Of our rows, the first {OURS}; ledger.csv has all."
    return table(columns, [*theirs, *ours[:OURS]], text, lambda r: r.ours, "dense") + _on_imagenet(results)


def _our_lines(results: Sequence[Probed]) -> list[Line]:
    """One line for each encoder, head and protocol, by the number of whole sets, then of all sets, then by the mean."""
    lines: dict[tuple[str, str, str, str], dict[str, Probed]] = {}
    for p in sorted(
        results, key=lambda p: (p.whole, p.result["total"])
    ):  # of two sets with one name, the whole one is kept
        lines.setdefault((p.who, p.data, p.result["head"], p.protocol), {})[p.result["set"]] = p
    ranked = []
    for (who, data, head, how), found in lines.items():
        mean = sum(p.result["accuracy"] for p in found.values()) / len(found)
        cells = {name: f"{100 * p.result['accuracy']:.1f}" + "*" * (not p.whole) for name, p in found.items()}
        whole = sum(p.whole for p in found.values())
        average = points(mean) if whole == len(BENCHMARKS) else None
        line = Line(who, f"{head}, {how}", data, "this page", cells, average, ours=True)
        ranked.append((-whole, -len(found), -mean, who, line))
    return [line for *_, line in sorted(ranked, key=lambda r: r[:-1])]


def _on_imagenet(results: Sequence[Probed]) -> str:
    """Linear and attentive probes on ImageNet-1k: the papers' models pretrained on it, and all of ours."""
    ours: dict[tuple[str, str, str], dict[str, float]] = {}
    for p in results:
        if p.result["set"] == "imagenet1k" and p.whole:
            ours.setdefault((p.who, p.data, p.protocol), {})[p.result["head"]] = p.result["accuracy"]
    columns: Columns[tuple[str, str, str, int | None, float | None, float | None, str]] = {
        "method": lambda r: r[0],
        "model": lambda r: r[1],
        "pretrained on": lambda r: r[2],
        "epochs": lambda r: r[3],
        "linear": lambda r: points(r[4]),
        "attentive": lambda r: points(r[5]),
        "source": lambda r: r[6],
    }
    rows: list[tuple[str, str, str, int | None, float | None, float | None, str]] = [
        *((r.method, r.arch, "IN-1k", r.epochs, r.linear, r.attentive, r.source) for r in published.IMAGENET),
        *(
            (who, "", data, None, a.get("linear"), a.get("attentive"), f"this page, {how}")
            for (who, data, how), a in ours.items()
        ),
    ]
    return table(columns, rows, "Both probes on ImageNet-1k.", lambda r: r[6].startswith("this page"))


# --- Table 6 and Figure 1 ------------------------------------------------------------------------------------------


def ablations(ours: Sequence[Point]) -> str:
    """Table 6, and next to its block sizes our accuracies for blocks that cover the same share of the image."""
    shares = {_share(p): p for p in ours}
    columns: Columns[published.Ablation] = {
        "changed": lambda a: a.changed,
        "to": lambda a: a.value,
        "a block covers": lambda a: a.share or None,
        "paper, %": lambda a: points(a.accuracy),
        "less the baseline": lambda a: f"{100 * (a.accuracy - published.BASELINE):+.1f}",
    }
    if shares:
        columns = {**columns, "ours, %": lambda a: _ours(shares.get(a.share), a)}
    text = (
        "XTRA's Table 6: B/16, 100 epochs of ImageNet-1k, decoder 8 x 384, attentive probe on ImageNet-1k; the "
        f"baseline is {points(published.BASELINE)}."
    )
    if ours:
        row = ours[0].row
        text += (
            f" Ours: {row.head} probe on {row.set} after {human(row.samples_seen)} samples, with 95 % intervals, in "
            "the rows with the same share of an image. Set and scale differ: only the ranking of the three compares."
        )
    return table(columns, published.ABLATIONS, text)


def _share(p: Point) -> str:
    settings = p.line.arm.settings
    grid = int(settings["model.image"]) // int(settings["model.patch"])
    return f"1/{(grid // p.line.arm.block) ** 2}"


def _ours(p: Point | None, a: published.Ablation) -> str | None:
    if p is None or a.changed != "block, 256 px":
        return None
    return f"{100 * p.bar.mean:.1f} ({100 * p.bar.low:.1f} to {100 * p.bar.high:.1f})"


def figure_1(ledger: Ledger) -> str:
    """Both panels from published rows, the left one also over samples seen, with our results where there are any."""
    ours = _our_averages(ledger)
    xtra, aim = published.FIGURE_1[:2]
    times = published.efficiency(xtra, aim)
    text = (
        f"XTRA's Figure 1, from published rows. Left: {_name(aim)} was trained on {times.unique_images:.0f} times the "
        f"unique images of {_name(xtra)}. Middle: it saw only {times.samples_seen:.1f} times its samples, because "
        f"{_name(xtra)} saw every image about {xtra.epochs:.0f} times and {_name(aim)} about once. The first ratio is "
        "about how many images must be collected, the second about how long the training takes. Single points: the "
        "accuracies are not equal, and no interval can be given. Right: XTRA-B/16 on ImageNet-1k; the accuracies of "
        "the larger models that the paper compares it with could not be read, and are not drawn."
    )
    if not ours:
        text += " No encoder here was probed on all 15 sets, so the left panel has none of ours."
    every = [*published.FIGURE_1, *ours]
    y = axis("average of 15 sets, %", [e.average for e in every], percent)
    columns: Columns[published.Pretraining] = {
        "model": _name,
        "data": lambda e: e.data,
        "unique images": lambda e: e.unique_images,
        "samples seen": lambda e: e.samples_seen,
        "epochs": lambda e: f"{e.epochs:.1f}",
        "average, %": lambda e: points(e.average),
        "source": lambda e: e.source,
    }
    left, middle = (_efficiency(along, every, y) for along in ("unique_images", "samples_seen"))
    figures = "".join(f"<figure>{svg}</figure>" for svg in (left, middle, _parameters(ledger)))
    return f'<p>{text}</p><div class="grid">{figures}</div>' + table(
        columns, every, "The points of Figure 1, left.", lambda e: e in ours
    )


def _name(e: published.Pretraining) -> str:
    return f"{e.method} {e.arch}".strip()


def _our_averages(ledger: Ledger) -> list[published.Pretraining]:
    """Encoders here that were probed on all of the 15 sets, whole, with an attentive head."""
    groups: dict[tuple[str, int], dict[str, LedgerRow]] = {}
    for r in ledger.rows:
        known = BENCHMARKS.get(r.set)
        if known and r.total == known.eval and (r.encoder, r.head) == ("trained", "attentive"):
            groups.setdefault((r.name, r.samples_seen), {})[r.set] = r
    found = []
    for (name, seen), rows in sorted(groups.items()):
        if len(rows) == len(BENCHMARKS):
            first = next(iter(rows.values()))
            mean = sum(r.accuracy or 0.0 for r in rows.values()) / len(rows)
            data = first.dataset.rstrip("/").rpartition("/")[2]
            found.append(published.Pretraining(name, "", data, first.unique_images, seen, mean, "this page"))
    return found


def _efficiency(along: str, every: Sequence[published.Pretraining], y: Axis) -> str:
    title = along.replace("_", " ")
    values = [float(getattr(e, along)) for e in every]
    series = [
        Series(
            _name(e), style, [Mark(value, e.average, f"{_name(e)}: {points(e.average)} % of {human(value)} {title}")]
        )
        for style, (e, value) in enumerate(zip(every, values))
    ]
    return Chart(f"average of 15 sets, {title}", log_axis(title, values, human), y, series).svg()


def _parameters(ledger: Ledger) -> str:
    rows = [r for r in published.IMAGENET if r.linear is not None and r.attentive is not None]
    series = []
    for style, head in enumerate(("linear", "attentive")):
        marks = [
            Mark(
                r.parameters,
                getattr(r, head),
                f"{r.method} {r.arch}, {r.epochs} epochs, {head}: {points(getattr(r, head))} %",
            )
            for r in rows
        ]
        series.append(Series(f"XTRA ViT-B/16, {head}", style, marks))
    ours = [
        Mark(r.params, r.accuracy, f"{r.name}, {r.head}: {points(r.accuracy)} %")
        for r in ledger.rows
        if r.set == "imagenet1k" and r.encoder == "trained" and r.accuracy is not None
        if r.total == BENCHMARKS["imagenet1k"].eval
    ]
    series += [Series("ours", 2, ours)] if ours else []
    marks = [m for s in series for m in s.marks]
    return Chart(
        "ImageNet-1k, parameters of the encoder",
        log_axis("parameters", [*(m.x for m in marks), *(r.parameters for r in published.IMAGENET)], human),
        axis("accuracy in %", [m.y for m in marks], percent),
        series,
    ).svg()
