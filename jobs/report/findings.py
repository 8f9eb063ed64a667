"""What a ledger shows and does not show, in plain words and with intervals: the text of the report.

Every sentence is computed from rows; a comparison that the rows do not allow is not made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.report.charts import human, model_name
from jobs.report.ledger import HOLD_OUT, Ledger, LedgerRow

PAPER = "1.02 billion for XTRA-B/16 and 1.32 billion for XTRA-H/14"  # samples seen, by its steps and batch sizes
SETS = 4  # as many are told one by one
UNTRAINED, PIXELS = "the untrained encoder", "a linear classifier of raw pixels"
ABOVE, BELOW, EVEN = "above", "below", "not distinguishable from"


@dataclass(frozen=True)
class Comparison:
    """XTRA minus AIM with the same settings, data, samples seen, set and head; accuracies are means over seeds."""

    size: str
    unique_images: int
    samples_seen: int
    set: str
    head: str
    xtra: float
    aim: float
    low: float
    high: float
    seeds: int  # of the side with fewer

    @property
    def verdict(self) -> str:
        return "XTRA higher" if self.low > 0 else "AIM higher" if self.high < 0 else "undecided"


def comparisons(rows: Sequence[LedgerRow]) -> list[Comparison]:
    """All pairs that differ in nothing but the variant, hardest evidence first within a set: most samples last."""
    cells: dict[tuple[str, str, str, str, str, str, int, int, str], dict[str, list[LedgerRow]]] = {}
    for r in rows:
        if r.encoder == "trained" and r.accuracy is not None and r.total:
            key = (probed_on(r), r.head, r.size, r.settings, r.manifest, r.how, r.unique_images, r.samples_seen)
            key = (*key, r.probe_eval)
            cells.setdefault(key, {}).setdefault(r.variant, []).append(r)
    found = []
    for (name, head, size, _, _, _, unique, seen, _), sides in sorted(
        cells.items(), key=lambda c: (c[0][:3], c[0][6:])
    ):
        if "xtra" in sides and "aim" in sides:
            (xtra, n_xtra), (aim, n_aim) = _mean(sides["xtra"]), _mean(sides["aim"])
            low, high = difference_interval(xtra, n_xtra, aim, n_aim)
            seeds = min(len({r.seed for r in side}) for side in sides.values())
            found.append(Comparison(size, unique, seen, name, head, xtra, aim, low, high, seeds))
    return found


def probed_on(row: LedgerRow) -> str:
    """The evaluation set, and how the grid point was chosen where it was not on a hold-out: what may be compared."""
    return row.set if row.protocol in ("", HOLD_OUT) else f"{row.set} ({row.protocol})"


def by_set(rows: Iterable[LedgerRow]) -> dict[str, list[LedgerRow]]:
    """The rows of each evaluation set on which a trained encoder was probed, by a title that is the set's alone.

    Two sets of one name stay apart: what a sample of a benchmark says is no match for what all of it says.
    """
    groups: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in rows:
        groups.setdefault((probed_on(row), row.probe_eval), []).append(row)
    groups = {key: group for key, group in groups.items() if any(r.encoder == "trained" for r in group)}
    names = Counter(name for name, _ in groups)
    titles = {
        (name, digest): f"{name} ({group[0].total:,} images, {digest[:8]})" if names[name] > 1 else name
        for (name, digest), group in groups.items()
    }
    return {titles[key]: groups[key] for key in sorted(groups, key=lambda key: titles[key])}


def _trained_heads(rows: Iterable[LedgerRow]) -> list[str]:
    return sorted({r.head for r in rows if r.encoder == "trained"})


def difference_interval(p: float, n: int, q: float, m: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of p - q for two shares of n and m images (Newcombe 1998, method 10: from the Wilson intervals).

    Treats the two test runs as independent; on the same images the true interval is narrower.
    """
    (p_low, p_high), (q_low, q_high) = _wilson(p, n, z), _wilson(q, m, z)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def _wilson(p: float, n: int, z: float) -> tuple[float, float]:
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def _mean(rows: Sequence[LedgerRow]) -> tuple[float, int]:
    """Mean accuracy over seeds and the number of test images (not seeds x images: the seeds share them)."""
    return sum(r.accuracy or 0.0 for r in rows) / len(rows), min(r.total or 1 for r in rows)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def shown(ledger: Ledger) -> list[str]:
    """What the numbers say: the best probe of each set and head against its baselines, and XTRA against AIM.

    Of more than SETS sets, in how many the best is above its baselines.
    """
    found = [
        _Best(name, head, max((r for r in rows if (r.encoder, r.head) == ("trained", head)), key=_accuracy), rows)
        for name, rows in by_set(ledger.rows).items()
        for head in _trained_heads(rows)
    ]
    many = len({best.name for best in found}) > SETS
    heads = sorted({best.head for best in found})
    lines = [_summary(h, [b for b in found if b.head == h]) for h in heads] if many else [_told(b) for b in found]
    pairs = comparisons(ledger.rows)
    if pairs:
        counts = {v: sum(p.verdict == v for p in pairs) for v in ("XTRA higher", "AIM higher", "undecided")}
        lines.append(
            f"XTRA and AIM met {_count(len(pairs), 'time')} at equal settings, data, samples seen, set and head: XTRA "
            f"was higher beyond the 95 % interval of the difference {_count(counts['XTRA higher'], 'time')}, AIM "
            f"{_count(counts['AIM higher'], 'time')}, and {counts['undecided']} stayed undecided."
        )
    return lines or ["No probe is in this folder yet, so nothing is shown about accuracy: run xtra probe."]


def _accuracy(row: LedgerRow) -> float:
    return row.accuracy or 0.0


@dataclass(frozen=True)
class _Best:
    """The best trained encoder on one set under one head, among all rows of the set."""

    name: str
    head: str
    row: LedgerRow
    rows: Sequence[LedgerRow]

    def against(self) -> dict[str, tuple[str, float] | None]:
        """Of each baseline whether the best is above or below it, and its accuracy; None: not measured."""
        untrained = [r for r in self.rows if r.encoder == "random" and r.head == self.head]
        same = [r for r in untrained if model_name(r) == model_name(self.row)]
        bars = {UNTRAINED: same or untrained, PIXELS: [r for r in self.rows if r.encoder == "none"]}
        return {what: self._verdict(rows) if rows else None for what, rows in bars.items()}

    def _verdict(self, rows: Sequence[LedgerRow]) -> tuple[str, float]:
        bar, n = _mean(rows)
        low, high = difference_interval(*_mean([self.row]), bar, n)
        return ABOVE if low > 0 else BELOW if high < 0 else EVEN, bar


def _told(best: _Best) -> str:
    accuracy, total = _mean([best.row])
    low, high = _wilson(accuracy, total, 1.959964)
    text = (
        f"{best.name}, {best.head} probe: the best is {percent(accuracy)} ({percent(low)} to {percent(high)}), by "
        f"{model_name(best.row)} after {human(best.row.samples_seen)} samples of {human(best.row.unique_images)} "
        f"unique images"
    )
    bars = best.against()
    said = [f"{bar[0]} {what} ({percent(bar[1])})" for what, bar in bars.items() if bar]
    missing = [what for what, bar in bars.items() if bar is None]
    text += "; it is " + " and ".join(said) if said else ""
    were = "was" if len(missing) == 1 else "were"
    return text + (f"; {' and '.join(missing)} {were} not measured" if missing else "") + "."


def _summary(head: str, found: Sequence[_Best]) -> str:
    """One line for many sets; their accuracies are in the tables."""
    parts = []
    for what in (UNTRAINED, PIXELS):
        bars = [best.against()[what] for best in found]
        counts = Counter(bar[0] for bar in bars if bar)
        told = [f"{how} it on {counts[how]}" for how in (ABOVE, BELOW, EVEN) if counts[how]]
        told += [f"{bars.count(None)} without that measurement"] if None in bars else []
        parts.append(f"against {what}, {', '.join(told)}")
    return f"{head} probe, the best encoder on each of {len(found)} sets: {'; '.join(parts)}. The tables have them all."


def not_shown(ledger: Ledger) -> list[str]:
    """The limits, each only where it applies."""
    trained = [r for r in ledger.rows if r.encoder == "trained"]
    lines = []
    if trained:
        cells: dict[tuple[object, ...], set[int]] = {}
        for r in trained:
            key = (r.variant, r.size, r.manifest, r.samples_seen, probed_on(r), r.probe_eval, r.head)
            cells.setdefault(key, set()).add(r.seed)
        several = sum(len(seeds) > 1 for seeds in cells.values())
        lines.append(
            f"The intervals cover the choice of test images only. Another training seed moves a point as well, and "
            f"{several} of {len(cells)} points have more than one seed."
        )
        lines.append(
            "The interval of a difference treats both probes as independent; on the same test images it is wider "
            "than it has to be. With many comparisons, one in twenty crosses its interval by chance."
        )
    ways: dict[tuple[str, str], set[str]] = {}
    for name, rows in by_set(trained).items():
        for r in rows:
            ways.setdefault((name, r.head), set()).add(r.how)
    if mixed := sorted({name for (name, _), how in ways.items() if len(how) > 1}):
        lines.append(
            f"Probes of {', '.join(mixed)} were made with different settings, which moves accuracy too: the details of "
            "the probes say which. XTRA and AIM are only compared at equal ones."
        )
    if any(r.protocol.startswith("published") for r in trained):
        lines.append(
            "Probes marked as published chose their grid point on the test images themselves, as the papers did, and "
            "so flatter. They have curves of their own."
        )
    if shared := sorted({r.set for r in trained if r.shared_sha256 or r.shared_phash}):
        lines.append(
            f"Of {', '.join(shared)} the training set of the heads holds some test images too: the details of the "
            "probes count them."
        )
    ends = {r.url: int(r.config.get("samples") or 0) for r in ledger.runs}
    if early := sum(0 < r.samples_seen < ends[r.run] for r in trained):
        lines.append(
            f"{early} of {len(trained)} probes are of checkpoints before the end of their run: with a decaying "
            "learning rate such a checkpoint is worse than a run that was planned to end there."
        )
    if len({r.shape.variant for r in ledger.runs}) > 1:
        lines.append(
            "Training losses of XTRA and AIM are means over different targets (a block of patches, one patch) and "
            "must not be compared with each other."
        )
    if seen := max((r.samples_seen for r in ledger.runs), default=0):
        lines.append(
            f"The longest run here saw {human(seen)} samples; the paper's saw {PAPER}. The lines join measured points: "
            "nothing is fitted, and nothing here says how they go on."
        )
    lines.append("Samples seen count repeats; unique images do not. Read both axes before comparing with other work.")
    return lines


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
