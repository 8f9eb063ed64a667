"""Student's t, the F distribution and the power of a t test, in numpy: SciPy is not among what the product needs."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
_TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) by its continued fraction (Numerical Recipes, section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = _away(1 + numerator / c), 1 / _away(1 + numerator * d)
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction / a


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t with `df` degrees of freedom, which need not be whole."""
    tail = incomplete_beta(df / 2, 0.5, df / (df + t * t)) / 2
    return tail if t >= 0 else 1 - tail


def p_value(t: float, df: float) -> float:
    """Two-sided."""
    return 2 * t_tail(abs(t), df)


def f_tail(f: float, df1: float, df2: float) -> float:
    """P(F > f) of the F distribution."""
    return incomplete_beta(df2 / 2, df1 / 2, df2 / (df2 + df1 * f))


@functools.lru_cache(maxsize=4096)
def t_quantile(level: float, df: float) -> float:
    """The half-width, in standard errors, of a two-sided interval at `level`: 2.920 for 0.9 and 2 degrees of freedom.

    An infinite `df` gives the normal distribution's.
    """
    if math.isinf(df):
        return _NORMAL.inv_cdf((1 + level) / 2)
    low, high = 0.0, 1.0
    while t_tail(high, df) > (1 - level) / 2:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > (1 - level) / 2 else (low, middle)
    return (low + high) / 2


def power(shift: float, df: float, alpha: float = 0.05) -> float:
    """The probability that a two-sided t test rejects when the true difference is `shift` standard errors.

    The noncentral t distribution, integrated over the estimate of the standard error (a scaled chi distribution).
    """
    critical = t_quantile(1 - alpha, df)
    if df > 1e4:
        return _NORMAL.cdf(shift - critical) + _NORMAL.cdf(-shift - critical)
    s = np.linspace(1e-6, 1 + 8 / math.sqrt(df), 4001)  # estimated over true standard error
    density = np.exp((df - 1) * np.log(s) - df * (s * s - 1) / 2)
    upper = np.array([_NORMAL.cdf(shift - critical * v) + _NORMAL.cdf(-shift - critical * v) for v in s])
    return float((density * upper).sum() / density.sum())


def detectable(df: float, alpha: float = 0.05, wanted: float = 0.8) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with probability `wanted`."""
    low, high = 0.0, 1.0
    while power(high, df, alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, df, alpha) < wanted else (low, middle)
    return (low + high) / 2
