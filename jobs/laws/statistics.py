"""Comparisons of arms, from the images that each of their probes got right: paired by image and by seed.

The seed (a trunk with its probe) is the unit, and the images are a sample too. So the variance of a difference has a
component from the seeds and one from the images, as for several readers of the same cases: Dorfman, Berbaum and Metz
(1992), with the degrees of freedom of Hillis (2007), which equal those of the seeds where images vary little. One
comparison is declared primary before running; all others are exploratory and Holm-adjusted.

Shapes: S seeds, I images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.laws.student import detectable, f_tail, p_value, t_quantile

Bits = NDArray[np.bool_]  # [S, I]
LEVEL = 0.95
POOLED_FROM = 3  # with fewer arms, pooling adds nothing to pairing by seed
_UNEVEN = 0.25  # level of the test that refuses to pool


@dataclass(frozen=True)
class Comparison:
    """One arm's accuracy minus another's: a mean over seeds, as a share."""

    arm: str
    against: str
    difference: float
    low: float
    high: float
    p: float  # two-sided, for this comparison alone
    adjusted: float  # Holm-adjusted over all exploratory comparisons; for the primary one: p
    primary: bool
    seeds: int
    images: int
    freedom: float  # degrees of freedom; infinite with one seed, where only images vary
    pooled: bool  # whether the variance between seeds comes from all arms

    @property
    def unit(self) -> str:
        return "seeds and images" if self.seeds > 1 else "images of one seed"

    def verdict(self, level: float = LEVEL) -> str:
        """higher, lower or undecided, by the adjusted p."""
        if self.adjusted > 1 - level:
            return "undecided"
        return "higher" if self.difference > 0 else "lower"


def compare(
    bits: Mapping[str, Bits],
    pairs: Sequence[tuple[str, str]],
    primary: tuple[str, str] | None = None,
    level: float = LEVEL,
) -> tuple[Comparison, ...]:
    """One comparison for each pair (arm, against), the primary one first; all arms have the same seeds and images.

    Raises ValueError for an unknown arm, bits of different shapes, and a primary pair that is not among the pairs.
    """
    shapes = {name: np.shape(values) for name, values in bits.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 or min(shape) < 1 for shape in shapes.values()):
        raise ValueError(f"bits have shapes {shapes}; they must be [seeds, images], the same for every arm")
    if unknown := [name for pair in pairs for name in pair if name not in bits]:
        raise ValueError(f"arm {unknown[0]} has no bits; these arms have: {', '.join(bits)}")
    if primary is not None and primary not in pairs:
        raise ValueError(f"the primary comparison {' against '.join(primary)} is not among the pairs")
    found = [_one(bits, arm, against, (arm, against) == primary, level) for arm, against in pairs]
    exploratory = [c for c in found if not c.primary]
    adjusted = dict(zip((id(c) for c in exploratory), holm([c.p for c in exploratory])))
    found = [replace(c, adjusted=adjusted.get(id(c), c.p)) for c in found]
    return tuple(sorted(found, key=lambda c: not c.primary))


def pooled_variance(bits: Mapping[str, Bits], arm: str, against: str) -> tuple[float, int] | None:
    """The mean square between seeds of a difference of two arms, estimated from all arms with the seeds' own effect
    removed; and its degrees of freedom. None with too few arms or seeds, or if these two arms vary more than the rest.

    That test is one-sided with a high alpha, because pooling with steadier arms would cause false claims.
    """
    accuracy = {name: np.asarray(values, float).mean(1) for name, values in bits.items()}
    arms, seeds = len(accuracy), len(accuracy[arm])
    if arms < POOLED_FROM or seeds < 2:
        return None
    table = np.stack(list(accuracy.values()))  # [arms, S]
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    everything = float((residual**2).sum())
    own = float((accuracy[arm] - accuracy[against]).var()) * seeds / 2
    rest = max(everything - own, 0.0)
    freedom, own_freedom = (arms - 1) * (seeds - 1), seeds - 1
    if own > 0:
        ratio = (own / own_freedom) / (rest / (freedom - own_freedom)) if rest > 0 else math.inf
        if math.isinf(ratio) or f_tail(ratio, own_freedom, freedom - own_freedom) < _UNEVEN:
            return None
    return 2 * np.shape(bits[arm])[1] * everything / freedom, freedom


def _one(bits: Mapping[str, Bits], arm: str, against: str, primary: bool, level: float) -> Comparison:
    pooled = pooled_variance(bits, arm, against)
    difference = np.asarray(bits[arm], np.float32) - np.asarray(bits[against], np.float32)
    mean, variance, freedom = mean_of(difference, pooled)
    half = t_quantile(level, freedom) * math.sqrt(variance)
    p = p_value(mean / math.sqrt(variance), min(freedom, 1e9)) if variance > 0 else float(mean == 0)
    seeds, images = difference.shape
    return Comparison(
        arm, against, mean, mean - half, mean + half, p, p, primary, seeds, images, freedom, pooled is not None
    )


def mean_of(values: NDArray[np.floating], pooled: tuple[float, int] | None = None) -> tuple[float, float, float]:
    """The mean of [S, I] with seeds and images both as samples; its variance and degrees of freedom.

    pooled: a mean square between seeds and its degrees of freedom, used instead of these seeds' own. With one seed, the
    images are the only sample, and the degrees of freedom are infinite.
    """
    seeds, images = values.shape
    rows, columns = values.mean(1, dtype=np.float64), values.mean(0, dtype=np.float64)
    mean = float(rows.mean())
    if seeds == 1:
        return mean, float(columns.var(ddof=1)) / images if images > 1 else 0.0, math.inf
    between, freedom = (images * float(rows.var(ddof=1)), seeds - 1) if pooled is None else pooled
    of_images = seeds * float(columns.var(ddof=1)) if images > 1 else 0.0
    everything = float((np.asarray(values, np.float64) ** 2).sum()) - seeds * images * mean**2
    rest = everything - images * float(((rows - mean) ** 2).sum()) - seeds * float(((columns - mean) ** 2).sum())
    noise = max(rest, 0.0) / max((seeds - 1) * (images - 1), 1)
    # Seeds vary at least by chance; an estimate from two or three seeds is often below that.
    total = max(between, noise) + max(of_images - noise, 0.0)
    if between <= 0:
        return mean, total / (seeds * images), math.inf
    return mean, total / (seeds * images), freedom * (total / between) ** 2


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the probability of any false claim among those at most alpha is at most alpha."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Best:
    """The best of several arms, chosen on one half of the images and measured on the other: no winner's curse."""

    arm: str
    of: int  # arms that it was chosen from
    accuracy: float  # on the images not used for the choice
    low: float
    high: float
    chosen_at: float  # on the images used for the choice: optimistic


def best_of(bits: Mapping[str, Bits], level: float = LEVEL) -> Best:
    """Even images choose, odd ones measure. Raises ValueError for fewer than two images."""
    if any(np.shape(values)[1] < 2 for values in bits.values()):
        raise ValueError("the best of several needs at least two images: one half chooses, the other measures")
    chosen = {name: float(np.asarray(values, float)[:, ::2].mean()) for name, values in bits.items()}
    arm = max(chosen, key=lambda name: chosen[name])
    mean, variance, freedom = mean_of(np.asarray(bits[arm], np.float32)[:, 1::2])
    half = t_quantile(level, freedom) * math.sqrt(variance)
    return Best(arm, len(bits), mean, mean - half, mean + half, chosen[arm])


def detectable_difference(
    seeds: int, sd: float, arms: int = 2, comparisons: int = 1, level: float = LEVEL, wanted: float = 0.8
) -> float:
    """The true difference between two arms that a study detects with probability `wanted`, in the unit of `sd`.

    sd: standard deviation between seeds of one arm, beyond what equal seeds share. arms: arms over which the variance
    is pooled. comparisons: the number for Holm's procedure, whose hardest step counts; 1 for a declared primary one.
    Raises ValueError for numbers out of range.
    """
    for name, value, least in (("seeds", seeds, 2), ("arms", arms, 2), ("comparisons", comparisons, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not sd > 0:
        raise ValueError(f"sd is {sd:g}; it must be above 0")
    freedom = (arms - 1 if arms >= POOLED_FROM else 1) * (seeds - 1)
    return sd * math.sqrt(2 / seeds) * detectable(freedom, (1 - level) / comparisons, wanted)
