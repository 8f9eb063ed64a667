"""The first screen of the report: what was asked, on which data, and the answer in one sentence with its uncertainty.

The choice of comparison never depends on its outcome: it is the one that the study declared, or else the one with the
most samples and test images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.laws import statistics
from jobs.report.compare import Comparison, Primary
from jobs.report.ledger import Ledger
from jobs.report.measured import LEVEL, Measured, Point, by_cell, points, seeds_vary
from jobs.report.tables import human


@dataclass(frozen=True)
class Answer:
    question: str
    data: str
    sentence: str
    footing: tuple[str, ...]  # the evidence behind the sentence, and its limits
    cell: tuple[str, str, str, str] | None  # the chart: set, its digest, head, how the grid point was chosen


def answer(
    ledger: Ledger, found: Sequence[Measured], made: Sequence[Comparison], primary: Primary | None = None
) -> Answer:
    """primary: the declared comparison, whether or not it has been measured yet."""
    chosen = next((c for c in made if c.primary), None) or max(made, key=_weight, default=None)
    if chosen is not None:
        return _of_comparison(found, made, chosen, primary)
    if found:
        return _of_curve(found)
    runs = f"{len(ledger.runs)} runs" if len(ledger.runs) != 1 else "one run"
    return Answer(
        "What do these trainings reach?",
        _trained_on(ledger),
        "Nothing is known about accuracy: there is no probe of an encoder trained here yet.",
        (f"There are {runs}; their losses are below. xtra probe RUN measures an encoder.",),
        None,
    )


def _weight(c: Comparison) -> tuple[int, int, int, int]:
    """Depends on the plan alone, never on the results."""
    blocks = c.one.line.arm.block, c.other.line.arm.block
    return (c.one.row.samples_seen, c.one.row.total or 0, blocks[0] != blocks[1], blocks[0] - blocks[1])


def _of_comparison(
    found: Sequence[Measured], made: Sequence[Comparison], c: Comparison, primary: Primary | None
) -> Answer:
    row = c.one.row
    one, other = c.one.line.label, c.other.line.label
    way = "above" if c.difference > 0 else "below"
    undecided = f"Undecided{'' if c.seeds > 1 else ' with one seed'}: {one} is {way}"
    verdict = {"higher": f"Yes: {one} is higher", "lower": f"No: {one} is lower"}.get(c.verdict, undecided)
    none = "No comparison was declared before the runs."
    if primary is not None:
        none = (
            f"The declared comparison ({primary.arm} against {primary.against} on {primary.set}, {primary.head} probe, "
            f"after {primary.samples_seen:,} samples) has not been measured yet."
        )
    declared = (
        "This comparison was declared before the runs."
        if c.primary
        else f"{none} This is the one with the most samples and test images, whatever "
        f"its outcome; it is exploratory, and its verdict is Holm-adjusted over {sum(not m.primary for m in made)}."
    )
    return Answer(
        f"Does {one} reach a higher accuracy than {other} on {row.set} ({row.head} probe), "
        f"after {human(row.samples_seen)} training samples?",
        _data(found, c),
        f"{verdict} by {abs(100 * c.difference):.1f} points "
        f"(95 % interval of the difference {100 * c.low:+.1f} to {100 * c.high:+.1f}): "
        f"{100 * c.accuracies[0]:.1f} % against {100 * c.accuracies[1]:.1f} % for {other}.",
        (declared, _equality(c), *_decidable(c)),
        (row.set, row.probe_eval, row.head, row.protocol),
    )


def _equality(c: Comparison) -> str:
    code = f"in the commit ({' and '.join(c.commits)})" if c.commits[0] != c.commits[1] else ""
    data = f"in the import of the data ({' and '.join(c.imports)})" if c.imported_apart else ""
    if c.equal and (code or data):
        said = " and ".join(part for part in (f"in {c.differs[0]}", code, data) if part)
        return f"The two differ {said}, and in nothing else."
    if c.equal:
        return f"The two differ only in {c.differs[0]}."
    return f"The two differ in more than one thing: {'; '.join(map(str, c.differs))}."


def _decidable(c: Comparison) -> list[str]:
    """The smallest difference that this number of seeds can detect."""
    if c.seeds < 2:
        return ["Both sides share one seed, and the interval covers test images alone: another seed moves both."]
    others = {m.seed: m.accuracy for m in c.other.group}
    pairs = [m.accuracy - others[m.seed] for m in c.one.group if m.seed in others]
    mean = math.fsum(pairs) / len(pairs)
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in pairs) / (len(pairs) - 1) / 2)
    lines = [f"{c.seeds} seeds of each side; the interval is over {c.paired}, paired."]
    if spread > 0:
        lines.append(
            f"Seeds of one side differ by {100 * spread:.2f} points (standard deviation): a true difference of "
            f"{100 * statistics.detectable_difference(c.seeds, spread):.1f} points would be found with 80 % "
            "probability, smaller ones less often."
        )
    return lines


def _of_curve(found: Sequence[Measured]) -> Answer:
    """The sentence where there is only one line: its first and last accuracy."""
    cell, group = max(by_cell(found).items(), key=lambda item: (len(item[1]), item[1][0].row.total or 0))
    at = points(group)
    last = max(at, key=lambda p: (p.row.samples_seen, -p.line.style))
    first = min((p for p in at if p.line is last.line), key=lambda p: p.row.samples_seen)
    sentence = f"{last.line.label} reaches {_said(last)} after {human(last.row.samples_seen)} samples"
    if first is not last:
        sentence += f", from {_said(first)} after {human(first.row.samples_seen)}"
    seeds = f"{len(last.group)} seeds" if len(last.group) > 1 else "one seed"
    return Answer(
        f"What does {last.line.label} reach on {cell[0]} ({cell[2]} probe)?",
        _data(found, None),
        f"{sentence}.",
        (f"{seeds}; the intervals ({100 * LEVEL:g} %) are over {last.bar.over}. There is no second line to compare.",),
        cell,
    )


def _said(p: Point) -> str:
    return f"{100 * p.bar.mean:.1f} % ({100 * p.bar.low:.1f} to {100 * p.bar.high:.1f})"


def _data(found: Sequence[Measured], c: Comparison | None) -> str:
    rows = [m.row for p in (c.one, c.other) for m in p.group] if c else [m.row for m in found]
    names = {
        _name(r.dataset): int(m.run.info.get("manifest_samples") or 0) for m in found for r in [m.row] if r in rows
    }
    trained = ", ".join(f"{name} ({images:,} images)" for name, images in sorted(names.items()))
    tested = ", ".join(sorted({f"{r.total:,} test images of {r.set}" for r in rows}))
    varied = seeds_vary(found)
    return f"Trained on {trained}; probed on {tested}. " + (f"Seeds vary {varied}." if varied else "One seed.")


def _trained_on(ledger: Ledger) -> str:
    names = {_name(str(run.info.get("dataset") or "")) for run in ledger.runs}
    return f"Trained on {', '.join(sorted(names))}." if names else ""


def _name(address: str) -> str:
    """A dataset's name, without its folder and version digest."""
    return address.rstrip("/").rpartition("/")[2].partition("@")[0]
