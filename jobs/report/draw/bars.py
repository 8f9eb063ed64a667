"""Counts as bars over a labelled axis -> an HTML <figure>: no scripts, fonts or links; the same input gives the same
bytes. Colours and sizes come from the common style (`jobs.report.html`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from jobs.report.draw.plot import ticks
from jobs.report.html import escaped, safe

LEFT, TOP, WIDE, HIGH, BOTTOM = 46, 20, 344, 120, 34  # the plotting area and its margins, pixels on a phone
TICKS = 8  # most labels below the bars
STEEP = 50  # the scale is logarithmic if the largest count is this many times the median
LEAST = 0.7  # where a logarithmic scale begins, so that a count of 1 is visible


def histogram(title: str, counts: Sequence[int], edges: Sequence[str], what: str) -> str:
    """Bars between labelled edges, from the first non-empty bin to the last; both ends are open. `what` names the
    counted things. "" if all bins are empty."""
    assert len(counts) == len(edges) + 1
    used = [at for at, n in enumerate(counts) if n]
    if not used:
        return ""
    first, last = max(0, used[0] - 1), min(len(edges), used[-1] + 1)
    names = [f"under {edges[0]}", *(f"{a} to {b}" for a, b in pairwise(edges)), f"{edges[-1]} or more"]
    bins = list(zip(counts, names))[first : last + 1]
    top, step = max(counts), WIDE / len(bins)
    bars = "".join(
        f'<rect x="{LEFT + at * step + 1:.1f}" y="{_y(n, top):.1f}" width="{step - 2:.1f}" '
        f'height="{TOP + HIGH - _y(n, top):.1f}"><title>{escaped(name)}: {n:,} {escaped(what)}</title></rect>'
        for at, (n, name) in enumerate(bins)
    )
    every = -(-len(bins) // TICKS)
    below = "".join(
        _text(LEFT + (at + 1) * step, TOP + HIGH + 15, label)
        for at, label in enumerate(edges[first:last])
        if at % every == 0
    )
    return _figure(title, f"{what} by {title}", bars + below, top, what)


def ranked(title: str, counts: Sequence[int], what: str) -> str:
    """Counts from the largest to the smallest as one shape, whether there are 2 or a million: at most one step per
    pixel, each as high as its largest count."""
    falling = sorted(counts, reverse=True)
    if not falling or not falling[0]:
        return ""
    steps = min(len(falling), WIDE)
    top, wide = falling[0], WIDE / steps
    log = top >= STEEP * max(1, falling[len(falling) // 2])
    path = [f"M{LEFT} {TOP + HIGH}"]
    for at in range(steps):
        path.append(f"V{_y(falling[at * len(falling) // steps], top, log):.1f}H{LEFT + (at + 1) * wide:.1f}")
    shape = f'<path class="shape" d="{"".join(path)}V{TOP + HIGH}Z"/>'
    marks = sorted({1, *(round(len(falling) * part / 4) for part in (1, 2, 3, 4))} - {0})
    shown = [rank for rank in marks if rank == 1 or rank > len(falling) / 8]
    kinds = ["end" if 1 < rank == len(falling) else "" for rank in shown]
    below = "".join(
        _text(LEFT + WIDE * (rank - 0.5) / len(falling), TOP + HIGH + 15, f"{rank:,}", kind)
        for rank, kind in zip(shown, kinds)
    )
    words = f"{len(falling):,} {title}: {what} from {falling[0]:,} down to {falling[-1]:,}"
    return _figure(f"{title}, by rank", words, shape + below, top, what, log)


def _y(n: float, top: int, log: bool = False) -> float:
    share = math.log(max(n, LEAST) / LEAST) / math.log(top / LEAST) if log else n / top
    return TOP + HIGH * (1 - share)


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{safe(words, 24)}</text>'


def _figure(title: str, words: str, drawn: str, top: int, what: str, log: bool = False) -> str:
    lines = [10**k for k in range(len(str(top)))] if log else sorted({round(tick) for tick in ticks(0, top, 4)})
    grid = "".join(f'<path d="M{LEFT} {_y(n, top, log):.1f}h{WIDE}"/>' for n in lines)
    labels = "".join(_text(LEFT - 6, _y(n, top, log) + 4, _short(n), "y") for n in lines)
    named = _text(LEFT - 6, 9, f"{what}, log scale" if log else what, "y first") + _text(
        LEFT + WIDE / 2, TOP + HIGH + 31, title
    )
    return (
        f'<figure class="bars"><svg viewBox="0 0 {LEFT + WIDE + 10} {TOP + HIGH + BOTTOM}" role="img" '
        f'aria-label="{safe(words)}">{grid}{drawn}{labels}{named}</svg></figure>'
    )


def _short(n: int) -> str:
    """A round number in few characters: 1,500 and 20k."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 10 * unit or (n >= unit and n % (unit // 10) == 0 and unit > 1000):
            return f"{n / unit:g}{letter}"
    return f"{n:,}"
