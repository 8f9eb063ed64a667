"""The details of one probe: its grid, its classes, what it confuses, and whose encoder it measured.

`probed` lists the results of all encoders, those of the runs here and those trained elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.sets import BENCHMARKS
from jobs.laws import grouped
from jobs.report.draw import selection_chart
from jobs.report.html import escaped
from jobs.report.ledger import Ledger, probe_key, protocol, results_of
from jobs.report.pictures import mistakes
from jobs.report.tables import human, points

EXTREMES = 5  # best and worst classes
PAIRS = 8  # most confused classes


@dataclass(frozen=True)
class Probed:
    """A probe result as its file records it, and whose encoder it measured."""

    who: str
    result: Mapping[str, Any]
    protocol: str
    data: str = ""  # the pretraining data, where a run records it

    @property
    def whole(self) -> bool:
        """Whether it has as many test images as the paper."""
        known = BENCHMARKS.get(self.result["set"])
        return known is not None and self.result["total"] == known.eval


def probed(ledger: Ledger) -> list[Probed]:
    """Every readable result of a trained encoder, ours or others'; untrained ones are baselines, not listed here."""
    results = results_of(ledger)
    found = [
        Probed(
            f"{row.name}, {human(row.samples_seen)} samples seen",
            results[probe_key(row)],
            row.protocol,
            row.dataset.rstrip("/").rpartition("/")[2],
        )
        for row in ledger.rows
        if row.encoder == "trained"
    ]
    needed = {"set", "head", "encoder", "accuracy", "total"}
    return found + [Probed(str(r["encoder"]), r, protocol(r)) for r in ledger.others if needed <= r.keys()]


# --- one probe -----------------------------------------------------------------------------------------------------


def details(ledger: Ledger, images: bool = False) -> str:
    """The best encoder of each set, protocol and origin, folded until clicked."""
    groups = grouped(
        probed(ledger),
        lambda p: (
            p.result["set"],
            str(p.result.get("manifest_eval") or ""),  # two sets may share a name
            p.protocol,
            p.result["encoder"],
            str(p.result.get("checkpoint") or p.who),
        ),
    )
    best: dict[tuple[str, str, str, str], list[Probed]] = {}
    for (name, digest, how, encoder, _), group in sorted(groups.items()):
        if _top(group) > _top(best.get((name, digest, how, encoder), [])):
            best[name, digest, how, encoder] = group
    if not best:
        return ""
    return "<p>The encoder with the best probe on each set; the table below has all others.</p>" + "".join(
        _one(how, group, images) for (_, _, how, _), group in best.items()
    )


def _top(group: Sequence[Probed]) -> float:
    return max((p.result["accuracy"] for p in group), default=-1.0)


def _one(how: str, group: Sequence[Probed], images: bool) -> str:
    first = group[0].result
    heads = ", ".join(f"{p.result['head']} {points(p.result['accuracy'])}" for p in group)
    title = (
        f"<strong>{escaped(first['set'])}</strong> {escaped(heads)} "
        f"<span>{first['total']:,} images; {escaped(group[0].who)}, {escaped(how)}</span>"
    )
    charted = selection_chart([p.result for p in group])
    body = [f'<div class="grid"><figure>{charted}</figure></div>'] if charted else []
    for p in group:
        facts = [fact(p.result) for fact in (_chosen, _warning, _shared, _time, _classes, _confused)]
        body.append(
            f"<h3>{escaped(p.result['head'])}</h3><ul>" + "".join(f"<li>{f}</li>" for f in facts if f) + "</ul>"
        )
        body += [mistakes(p.result)] if images else []
    if protocols := list(dict.fromkeys(str(p.result.get("protocol") or "") for p in group)):
        body.append("".join(f"<p>{escaped(words)}</p>" for words in protocols if words))
    return f"<details><summary>{title}</summary>{''.join(body)}</details>"


def _chosen(result: Mapping[str, Any]) -> str:
    """The chosen grid point, the grid's size, and the images it was chosen on."""
    point = result.get("chosen") or {name: result.get(name) for name in ("lr", "weight_decay")}
    words = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in point.items() if value is not None)
    chose = {"eval": "on the test images themselves", "nothing": "not here: the head came trained"}
    by = chose.get(str(result.get("selected_on")), "on a validation split of the training set")
    of = len(result.get("selection") or ())
    return escaped(f"chosen: {words} (of {of} grid points, {by})") if words and of else ""


def _warning(result: Mapping[str, Any]) -> str:
    return escaped(f"warning: {result['remark']}") if result.get("remark") else ""


def _confused(result: Mapping[str, Any]) -> str:
    """The pairs of classes that it confuses most often."""
    labels = [str(label) for label in result.get("labels") or ()]
    pairs = [
        f"{labels[of]} for {labels[taken]} ({times} times)"
        for of, taken, times in list(result.get("confused") or ())[:PAIRS]
        if max(of, taken) < len(labels)
    ]
    return escaped(f"it most often mistakes {', '.join(pairs)}") if pairs else ""


def _shared(result: Mapping[str, Any]) -> str:
    same, alike = result.get("shared_sha256"), result.get("shared_phash")
    if same is None:
        return ""
    more = f", {alike:,} more look alike" if alike is not None else "; how many look alike is not known"
    return f"{same:,} of the test images are among the training images byte for byte{more}"


def _time(result: Mapping[str, Any]) -> str:
    seconds = result.get("seconds")
    return f"{seconds:,.0f} s for all heads of the probe" if seconds else ""


def _classes(result: Mapping[str, Any]) -> str:
    """The classes with the best and the worst accuracy."""
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
