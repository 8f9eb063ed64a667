"""Comparisons of lines, paired by image and by seed, with every field in which the two sides differ.

A comparison is primary if the study declared it before it ran (`primary` in study.json); all others are exploratory
and Holm-adjusted together. "All else equal" is said only where exactly one thing was changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from jobs.laws import grouped, p_value, statistics, t_quantile
from jobs.report.arms import Difference, Line, differences
from jobs.report.measured import LEVEL, Measured, Point, by_cell, points
from jobs.report.tables import Columns, number, points as in_percent, table
from shards import store, typed_json
from shards.figures import wilson

PINNED = "study.json"  # in a study's folder, or one above
MOST = 7  # up to this many lines, every pair is compared; beyond it, each line only with the first
EQUAL, BUT_CODE = "all else equal", "all else equal except the commit"
BUT_IMPORT = "the import of the data"  # same_data.py


Pair = tuple[float, float]  # of one and the other


@dataclass(frozen=True)
class Primary:
    """The one comparison that a study declared before it ran; arms by the names in its configs."""

    arm: str
    against: str
    set: str
    head: str
    samples_seen: int


@dataclass(frozen=True)
class Comparison:
    """One point minus another; accuracies are means over the seeds that both have."""

    one: Point
    other: Point
    accuracies: Pair
    low: float
    high: float
    p: float | None  # None: one seed and no per-image results, so no test is possible
    adjusted: float | None
    primary: bool
    seeds: int
    paired: str  # what the interval covers
    differs: tuple[Difference, ...]  # in arm, data and probe; not in the commit
    commits: tuple[str, str]
    imports: tuple[str, str]  # where the sides saw the same data in different imports: their digests

    @property
    def difference(self) -> float:
        return self.accuracies[0] - self.accuracies[1]

    @property
    def equal(self) -> str:
        """Whether one thing alone was changed: EQUAL, BUT_CODE, the same with BUT_IMPORT, or ""."""
        if len(self.differs) != 1:
            return ""
        code = self.commits[0] != self.commits[1]
        if not self.imported_apart:
            return BUT_CODE if code else EQUAL
        return f"{BUT_CODE} and {BUT_IMPORT}" if code else f"{EQUAL} except {BUT_IMPORT}"

    @property
    def imported_apart(self) -> bool:
        """Whether the sides saw the same data in different imports."""
        return self.imports[0] != self.imports[1]

    @property
    def verdict(self) -> str:
        """Whether the first side is higher, lower or undecided; one seed decides nothing."""
        if self.adjusted is None or self.seeds < 2:
            return "undecided: one seed"
        if self.adjusted > 1 - LEVEL:
            return "undecided"
        return "higher" if self.difference > 0 else "lower"


def read_primary(root: str) -> Primary | None:
    """The comparison declared by study.json in the folder or its parent. Raises ValueError if it is unreadable."""
    found = declarations(root)
    if found is None:
        return None
    where, whole = found
    declared = whole.get("primary") if isinstance(whole, Mapping) else whole
    return _primary(where, declared) if declared else None


def declarations(root: str) -> tuple[str, Any] | None:
    """study.json in the folder (or beside the file) or in its parent: its URL and its contents, unchecked."""
    root = root.rstrip("/")
    above = root.rpartition("/")[0] or "."
    for folder in [above] if root.endswith(".csv") else [root, above]:
        where = store.join(folder, PINNED)
        if store.exists(where):
            return where, typed_json.parse(store.read(where), where)
    return None


def _primary(where: str, declared: Any) -> Primary:
    wanted = {"arm": str, "against": str, "set": str, "head": str, "samples_seen": int}
    if not isinstance(declared, Mapping):
        raise ValueError(f"{where}: primary is {declared!r}; it must be an object with {', '.join(wanted)}")
    for name, kind in wanted.items():
        if not isinstance(declared.get(name), kind):
            raise ValueError(f"{where}: primary.{name} is {declared.get(name)!r}; it must be {kind.__name__}")
    return Primary(**{name: declared[name] for name in wanted})


def primary_of(words: Sequence[str]) -> Primary:
    """Parse ARM AGAINST SET HEAD SAMPLES. Raises ValueError unless there are five words and SAMPLES is a number."""
    if len(words) != 5 or not words[4].isdigit():
        raise ValueError(f"--primary is {' '.join(words)}; it must be ARM AGAINST SET HEAD SAMPLES")
    arm, against, name, head, samples = words
    return Primary(arm, against, name, head, int(samples))


def comparisons(found: Sequence[Measured], primary: Primary | None = None) -> list[Comparison]:
    """Every pair of lines that differ in arm or in data, at the largest count that both have, for each set, head and
    protocol; the primary comparison first. Where that count has one seed of both, which decides nothing, also at the
    largest one with several."""
    made: list[Comparison] = []
    for group in by_cell(found).values():
        counts = grouped(points(group), lambda point: point.row.samples_seen)
        done: dict[tuple[int, int], int] = {}  # -> the seeds that both have
        for samples, here in sorted(counts.items(), reverse=True):
            for one, other in _pairs(here):
                is_primary = primary is not None and _is(primary, one, other, samples)
                if primary is not None and not is_primary and _is(primary, other, one, samples):
                    one, other, is_primary = other, one, True
                key = (one.line.style, other.line.style)
                seeds = len(_by_seed(one).keys() & _by_seed(other).keys())
                if is_primary or key not in done or done[key] < 2 <= seeds:
                    done[key] = max(done.get(key, 0), seeds)
                    made.append(_compare(one, other, here, is_primary))
    rest = [c for c in made if c.p is not None and not c.primary]
    adjusted = dict(zip(map(id, rest), statistics.holm([c.p for c in rest if c.p is not None])))
    made = [replace(c, adjusted=adjusted.get(id(c), c.p)) for c in made]
    return sorted(made, key=lambda c: (not c.primary, c.one.row.set, c.one.row.head, -c.one.row.samples_seen))


def _is(primary: Primary, one: Point, other: Point, samples: int) -> bool:
    wanted = (primary.set, primary.head, primary.samples_seen)
    names = [one.line.arm.names, other.line.arm.names]
    return (
        (one.row.set, one.row.head, samples) == wanted
        and one.line.manifest == other.line.manifest
        and primary.arm in names[0]
        and primary.against in names[1]
    )


def _pairs(here: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Pairs to compare at one count: two arms on the same data, or one arm on two datasets; pairs with the same probe
    protocol first."""
    several = len({p.line.style for p in here}) > MOST
    pairs = [(here[0], p) for p in here[1:]] if several else list(combinations(here, 2))
    return sorted(
        (
            (one, other)
            for one, other in pairs
            if one.line is not other.line
            and (one.line.arm == other.line.arm) != (one.line.manifest == other.line.manifest)
        ),
        key=lambda pair: pair[0].group[0].protocol != pair[1].group[0].protocol,
    )


def _compare(one: Point, other: Point, here: Sequence[Point], primary: bool) -> Comparison:
    sides = [_by_seed(one), _by_seed(other)]
    common = sorted(sides[0].keys() & sides[1].keys())
    accuracies = one.bar.mean, other.bar.mean
    commits = tuple(" ".join(sorted({m.row.git[:10] for m in p.group})) for p in (one, other))
    if common:
        mine, theirs = (math.fsum(s[seed].accuracy for seed in common) / len(common) for s in sides)
        accuracies = mine, theirs
    bits = _bits([one, other, *here], common) if common else {}  # where a line has several probes, these two
    if one.line.label in bits and other.line.label in bits:
        (c,) = statistics.compare(bits, [(one.line.label, other.line.label)])
        low, high, p, paired = c.low, c.high, c.p, "seeds and images" if len(common) > 1 else "images of one seed"
    elif len(common) > 1:
        values = np.array([[sides[0][s].accuracy - sides[1][s].accuracy] for s in common])
        mean, variance, freedom = statistics.mean_of(values)
        half = t_quantile(LEVEL, freedom) * math.sqrt(variance)
        p = p_value(mean / math.sqrt(variance), min(freedom, 1e9)) if variance > 0 else float(mean == 0)
        low, high, paired = mean - half, mean + half, "seeds"
    else:
        low, high = difference_interval(accuracies[0], one.row.total or 1, accuracies[1], other.row.total or 1)
        p, paired = None, "images, unpaired"
    return Comparison(
        one,
        other,
        accuracies,
        low,
        high,
        p,
        adjusted=p,
        primary=primary,
        seeds=len(common) or 1,
        paired=paired,
        differs=tuple(_differs(one, other)),
        commits=(commits[0], commits[1]),
        imports=_imports(one, other),
    )


def _imports(one: Point, other: Point) -> tuple[str, str]:
    """Of the training set, if both lines saw the same; or else of the test set; "" where they do not differ."""
    trained, tested = (
        [" ".join(sorted({str(of(m) or "")[:8] for m in point.group})) for point in (one, other)]
        for of in (lambda m: m.run.info.get("imported"), lambda m: m.result.get("imported"))
    )
    mine, theirs = trained if one.line.manifest == other.line.manifest and trained[0] != trained[1] else tested
    return (mine, theirs) if mine != theirs else ("", "")


def _by_seed(point: Point) -> dict[str, Measured]:
    return {m.seed: m for m in point.group}


def _bits(here: Sequence[Point], seeds: Sequence[str]) -> dict[str, np.ndarray]:
    """[seeds, images] of every line that has all these seeds; the variance is pooled over all of them."""
    found: dict[str, np.ndarray] = {}
    for point in here:
        sides = _by_seed(point)
        rows = [sides[seed].bits() for seed in seeds if seed in sides]
        if len(rows) == len(seeds) and all(row is not None for row in rows):
            found.setdefault(point.line.label, np.stack([row for row in rows if row is not None]))
    return found


def _differs(one: Point, other: Point) -> list[Difference]:
    found = differences(one.line.arm, other.line.arm)
    if one.line.manifest != other.line.manifest:
        found.append(Difference("data", _data(one.line), _data(other.line)))
    ours, theirs = one.group[0].protocol, other.group[0].protocol
    changed = [name for name in ours if ours[name] != theirs[name]]
    if len(changed) > 1 and "probe settings" in changed:  # repeats the other fields
        changed.remove("probe settings")
    return found + [Difference(name, ours[name] or "-", theirs[name] or "-") for name in changed]


def _data(line: Line) -> str:
    return f"{line.images:,} images ({line.manifest[:8]})"


def difference_interval(p: float, n: int, q: float, m: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of p - q for two shares of n and m images (Newcombe 1998, method 10, from Wilson intervals).

    Treats the two test runs as independent; on the same images the true interval is narrower.
    """
    (p_low, p_high), (q_low, q_high) = wilson(p * n, n, z), wilson(q * m, m, z)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def comparison_lines(made: Sequence[Comparison]) -> list[str]:
    """All comparisons as text, the declared one first."""
    heads = ("set, head, samples", "one - other, %", "points (95 %)", "p", "seeds", "verdict")
    cells = [heads, *map(_text, made)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in cells]


def _text(c: Comparison) -> tuple[str, ...]:
    sides = zip((c.one.line, c.other.line), c.accuracies)
    return (
        f"{c.one.row.set}, {c.one.row.head}, {c.one.row.samples_seen:,}",
        " - ".join(f"{line.label} {100 * accuracy:.1f}" for line, accuracy in sides),
        f"{100 * c.difference:+.1f} ({100 * c.low:+.1f} to {100 * c.high:+.1f})",
        number(c.adjusted, ".3f") or "-",
        str(c.seeds),
        f"{c.verdict}, declared" if c.primary else c.verdict,
    )


def comparison_table(made: Sequence[Comparison]) -> str:
    """All comparisons as an HTML table, the declared one first."""
    columns: Columns[Comparison] = {
        "": lambda c: "declared" if c.primary else "exploratory",
        "probe": lambda c: f"{c.one.row.set}, {c.one.row.head}",
        "samples": lambda c: c.one.row.samples_seen,
        "one": lambda c: c.one.line.label,
        "other": lambda c: c.other.line.label,
        "one, %": lambda c: in_percent(c.accuracies[0]),
        "other, %": lambda c: in_percent(c.accuracies[1]),
        "difference": lambda c: f"{100 * c.difference:+.1f}",
        "95 % interval": lambda c: f"{100 * c.low:+.1f} to {100 * c.high:+.1f}",
        "verdict": lambda c: c.verdict,
        "p, adjusted": lambda c: number(c.adjusted, ".3f"),
        "seeds": lambda c: c.seeds,
        "interval over": lambda c: c.paired,
        "all else": lambda c: {"": "not equal"}.get(c.equal, c.equal.removeprefix("all else ")),
        "they differ in": lambda c: "; ".join(map(str, c.differs)),
        **({"imports": lambda c: " / ".join(filter(None, c.imports))} if any(c.imported_apart for c in made) else {}),
    }
    return table(
        columns,
        made,
        "One minus other, in points, at the largest count that both have, and where that has one seed, also at the "
        "largest with several; paired by image and by seed where both are known. Each interval covers its own "
        "comparison alone; p is adjusted (Holm) over all exploratory ones, and the verdict follows from it. “Equal”: "
        "exactly one thing was changed.",
        lambda c: c.primary,
    )
