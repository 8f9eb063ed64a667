"""Shares, spans of time, ages, and a line of little bars: how `xtra status` says numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime

WIDTH = 80
BARS = "▁▂▃▄▅▆▇█"


def tail(url: str) -> str:
    """The end of a long URL says more than its start."""
    return url if len(url) <= WIDTH - 9 else "…" + url[-(WIDTH - 10) :]


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def span(seconds: float | None) -> str:
    minutes = round((seconds or 0) / 60)
    if minutes < 2:
        return f"{round(seconds or 0)} s"
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} d"
    )


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
