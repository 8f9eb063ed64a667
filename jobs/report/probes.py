"""The probes' part of the report: the papers' tables with our rows beneath, and what one probe has to say.

Ours stand beside theirs only for the papers' own sets, by name; a set of another size is marked, and an average is
given only where all 15 are there. What is not known is an empty cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.sets import BENCHMARKS
from jobs.report import charts, published
from jobs.report.html import escaped
from jobs.report.ledger import Ledger, Run, protocol
from jobs.report.tables import Columns, points, table

OURS = 12  # rows of ours beside the papers'
EXTREMES = 5  # best and worst classes


@dataclass(frozen=True)
class Probed:
    """A probe result as its file says it, and whose encoder it is about."""

    who: str
    result: Mapping[str, Any]
    data: str = ""  # of pretraining, where a run says so

    @property
    def protocol(self) -> str:
        return protocol(self.result)

    @property
    def whole(self) -> bool:
        """Whether it is about as many images as the paper's."""
        known = BENCHMARKS.get(self.result["set"])
        return known is not None and self.result["total"] == known.eval


def probed(ledger: Ledger) -> list[Probed]:
    """Every readable result of encoders, trained by us or by others; those that saw nothing are baselines elsewhere."""
    readable = {(r.run, r.set, r.head, r.encoder, r.protocol, r.samples_seen) for r in ledger.rows}
    found = []
    for run in ledger.runs:
        for result in run.probes:
            key = (
                run.url,
                result.get("set"),
                result.get("head"),
                "trained",
                protocol(result),
                result.get("samples_seen"),
            )
            if result.get("encoder") == "trained" and key in readable:
                found.append(
                    Probed(f"{run.name}, {charts.human(result['samples_seen'])} samples seen", result, _data(run))
                )
    needed = {"set", "head", "encoder", "accuracy", "total"}
    found += [Probed(str(r["encoder"]), r) for r in ledger.others if needed <= r.keys()]
    return found


def _data(run: Run) -> str:
    return str(run.info.get("dataset") or "").rstrip("/").rpartition("/")[2]


# --- beside the papers ---------------------------------------------------------------------------------------------


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
    """The table of the 15 sets; empty when nobody probed one of them."""
    results = [p for p in probed(ledger) if p.result["set"] in BENCHMARKS]
    if not results:
        return ""
    theirs = [
        Line(row.method, row.arch, row.data, row.source, _cells(row.accuracy), points(row.average))
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
        "the test images; ours, beneath, say their head and how theirs was chosen. An average is of all 15 or is not "
        "given. An asterisk: not as many test images as in the paper."
    )
    if len(ours) > OURS:
        text += f" Of ours, the first {OURS}; all are in ledger.csv."
    return table(columns, [*theirs, *ours[:OURS]], text, lambda r: r.ours, "dense") + _on_imagenet(results)


def _cells(accuracy: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.1f}" for name, value in accuracy.items()}


def _our_lines(results: Sequence[Probed]) -> list[Line]:
    """One line for each encoder, head and protocol; those with most sets first, then by their mean. Sets that are whole
    count first."""
    lines: dict[tuple[str, str, str, str], dict[str, Probed]] = {}
    for p in sorted(results, key=lambda p: (p.whole, p.result["total"])):  # of sets of one name the whole one stays
        lines.setdefault((p.who, p.data, p.result["head"], p.protocol), {})[p.result["set"]] = p
    ranked = []
    for (who, data, head, how), found in lines.items():
        mean = sum(p.result["accuracy"] for p in found.values()) / len(found)
        cells = {name: f"{100 * p.result['accuracy']:.1f}" + "*" * (not p.whole) for name, p in found.items()}
        all_of_them = len(found) == len(BENCHMARKS) and all(p.whole for p in found.values())
        average = points(mean) if all_of_them else None
        line = Line(who, f"{head}, {how}", data, "this page", cells, average, ours=True)
        ranked.append((-sum(p.whole for p in found.values()), -len(found), -mean, who, line))
    return [line for *_, line in sorted(ranked, key=lambda r: r[:-1])]


def _on_imagenet(results: Sequence[Probed]) -> str:
    """Linear and attentive probes on ImageNet-1k: the papers' models that were pretrained on it, and all of ours."""
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
        (r.method, r.arch, "IN-1k", r.epochs, r.linear, r.attentive, r.source) for r in published.IMAGENET
    ]
    rows += [
        (who, "", data, None, a.get("linear"), a.get("attentive"), f"this page, {how}")
        for (who, data, how), a in ours.items()
    ]
    return table(columns, rows, "Both probes on ImageNet-1k.", lambda r: r[6].startswith("this page"))


# --- one probe -----------------------------------------------------------------------------------------------------


def details(ledger: Ledger) -> str:
    """The best encoder of each set, protocol and origin, closed until it is asked for."""
    groups: dict[tuple[str, str, str, str, str], list[Probed]] = {}
    for p in probed(ledger):
        of = (p.result["set"], str(p.result.get("manifest_eval") or ""))  # two sets of one name are two sets
        key = (*of, p.protocol, p.result["encoder"], str(p.result.get("checkpoint") or p.who))
        groups.setdefault(key, []).append(p)
    best: dict[tuple[str, str, str, str], list[Probed]] = {}
    for (*of_whom, _), group in sorted(groups.items()):
        name, digest, how, encoder = of_whom
        if _top(group) > _top(best.get((name, digest, how, encoder), [])):
            best[name, digest, how, encoder] = group
    if not best:
        return ""
    text = "<p>Of each set the encoder with the best probe; all others are in the table below.</p>"
    return text + "".join(_one(how, group) for (_, _, how, _), group in best.items())


def _top(group: Sequence[Probed]) -> float:
    return max((p.result["accuracy"] for p in group), default=-1.0)


def _one(how: str, group: Sequence[Probed]) -> str:
    first = group[0].result
    heads = ", ".join(f"{p.result['head']} {points(p.result['accuracy'])}" for p in group)
    title = (
        f"<strong>{escaped(first['set'])}</strong> {escaped(heads)} "
        f"<span>{first['total']:,} images; {escaped(group[0].who)}, {escaped(how)}</span>"
    )
    charted = charts.selection_chart([p.result for p in group])
    body = [f"<figure>{charted}</figure>"] if charted else []
    for p in group:
        facts = [_chosen(p.result), _shared(p.result), _time(p.result), _classes(p.result)]
        body.append(
            f"<h3>{escaped(p.result['head'])}</h3><ul>" + "".join(f"<li>{f}</li>" for f in facts if f) + "</ul>"
        )
    if protocols := list(dict.fromkeys(str(p.result.get("protocol") or "") for p in group)):
        body.append("".join(f"<p>{escaped(words)}</p>" for words in protocols if words))
    return f"<details><summary>{title}</summary>{''.join(body)}</details>"


def _chosen(result: Mapping[str, Any]) -> str:
    """The grid point, of how many, and what chose it."""
    point = result.get("chosen") or {name: result.get(name) for name in ("lr", "weight_decay")}
    words = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in point.items() if value is not None)
    chose = {"eval": "the test images themselves", "nothing": "nothing: it came trained"}
    by = chose.get(str(result.get("selected_on")), "a hold-out of the training set")
    of = len(result.get("selection") or ())
    return escaped(f"chosen: {words} (of {of} grid points, by {by})") if words and of else ""


def _shared(result: Mapping[str, Any]) -> str:
    same, alike = result.get("shared_sha256"), result.get("shared_phash")
    if same is None:
        return ""
    text = f"{same:,} of the test images are among the training images byte for byte"
    return text + (f", {alike:,} more look alike" if alike is not None else "; how many look alike is not known")


def _time(result: Mapping[str, Any]) -> str:
    seconds = result.get("seconds")
    return f"{seconds:,.0f} s for all heads of the probe" if seconds else ""


def _classes(result: Mapping[str, Any]) -> str:
    """The classes that it knows best and worst."""
    pairs = zip(result.get("labels") or (), result.get("per_class") or ())
    ranked = sorted((accuracy, str(label)) for label, accuracy in pairs if accuracy is not None)
    if len(ranked) < 2:
        return ""
    several = min(EXTREMES, len(ranked) // 2)
    ends = {"best": ranked[::-1][:several], "worst": ranked[:several]}
    said = [f"{end} {', '.join(f'{label} {100 * a:.0f}' for a, label in some)}" for end, some in ends.items()]
    return escaped(
        f"of {len(ranked)} classes, {'; '.join(said)}; the median class {100 * ranked[len(ranked) // 2][0]:.0f}"
    )
