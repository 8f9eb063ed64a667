"""Student's t, F and the power of a t test, from scipy.special: importing scipy.stats takes seconds."""

from __future__ import annotations

import functools
import math

from scipy import special


def p_value(t: float, df: float) -> float:
    """Two-sided; `df` need not be whole."""
    return float(2 * special.stdtr(df, -abs(t)))


def f_tail(f: float, df1: float, df2: float) -> float:
    """P(F > f) of the F distribution."""
    return float(special.fdtrc(df1, df2, f))


@functools.lru_cache(maxsize=4096)
def t_quantile(level: float, df: float) -> float:
    """The half-width, in standard errors, of a two-sided interval at `level`: 2.920 for 0.9 and 2 degrees of freedom.

    An infinite `df` gives the normal distribution's.
    """
    above = (1 + level) / 2
    return float(special.ndtri(above) if math.isinf(df) else special.stdtrit(df, above))


def power(shift: float, df: float, alpha: float = 0.05) -> float:
    """The probability that a two-sided t test rejects when the true difference is `shift` standard errors (noncentral
    t)."""
    critical = t_quantile(1 - alpha, df)
    if df > 1e4:
        return float(special.ndtr(shift - critical) + special.ndtr(-shift - critical))
    # Both are NaN for some large shifts, where they are below 1e-15.
    inside, below = (float(special.nctdtr(df, shift, end)) for end in (critical, -critical))
    return 1 - (0 if math.isnan(inside) else inside) + (0 if math.isnan(below) else below)


def detectable(df: float, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The true difference, in standard errors, that a two-sided t test detects with probability `wanted`."""
    low, high = 0.0, 1.0
    while power(high, df, alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, df, alpha) < wanted else (low, middle)
    return (low + high) / 2
