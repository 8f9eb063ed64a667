"""Ages, and a line of little bars: how `xtra status` says numbers (shards/figures.py has the rest)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime

from shards.figures import span

WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"


def tail(url: str) -> str:
    """The end of a long URL says more than its start."""
    return url if len(url) <= WIDTH - 9 else "…" + url[-(WIDTH - 10) :]


def moment(iso: str | None) -> str:
    return (iso or "")[:19].replace("T", " ")


def ago(iso: str, now: datetime) -> str:
    return f"{span((now - datetime.fromisoformat(iso)).total_seconds())} ago ({moment(iso)})"


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, the lowest for the least; equal values are all low."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in values)


def thinned(values: Sequence[float], most: int) -> tuple[float, ...]:
    """At most so many values: means of stretches of equal length."""
    cuts = [round(n * len(values) / most) for n in range(most + 1)] if len(values) > most else range(len(values) + 1)
    return tuple(sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts))
