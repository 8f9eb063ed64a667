"""Numbers formatted for people: sizes, durations, shares; and the confidence interval of a share."""

from __future__ import annotations

import math

Z = 1.959963984540054  # the normal quantile of a 95 % interval


def size(count: float) -> str:
    """Bytes in decimal units: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB" if count < 999.5 else f"{count:,.0f} PB"


def span(seconds: float) -> str:
    """48 s, 12 min, 3.1 h, 2.4 d."""
    if 0 < seconds < 1:
        return "< 1 s"
    for unit, length, upto in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < upto:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:,.1f} d"


def percent(part: float, whole: float = 1.0) -> str:
    """12.3 %; a share above 0 is never shown as 0."""
    value = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < value < 0.05 else f"{value:.1f} %"


def wilson(hits: float, total: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), 95 % by default: also valid at 0, at 1 and for few
    samples; (0, 1) for none."""
    if not total:
        return 0.0, 1.0
    share, weight = hits / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
