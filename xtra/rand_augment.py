"""RandAugment as timm's `rand-m9-mstd0.5-inc1` does it (Cubuk et al., arXiv 1909.13719), on draws of our own.

A policy takes `ops` operations of the 15 below at random, with repeats, and does each with probability `prob`, at a
strength of its own: Gaussian around `magnitude`, clipped to 0..`most`. What moves is filled with the mean colour of
ImageNet and resampled bicubically, as the official probes ask for.

What timm draws from a generator is a counter-based draw here: the same for a sample in an epoch, whoever decodes it.
Pillow does the pixels, so equal draws give timm's pixels exactly (tests/xtra/test_rand_augment.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SCALE = 10.0  # a magnitude of 10 is the strength of 1 below
_SETTINGS = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+\.?\d*|\.\d+|inf)")


@dataclass(frozen=True)
class Policy:
    """What the notation says; `parse` makes it."""

    magnitude: float = 10.0
    noise: float = 0.0  # standard deviation of the magnitude; inf: uniform from 0 to the magnitude
    most: float = _SCALE  # magnitudes are clipped to it
    ops: int = 2  # operations an image
    prob: float = 0.5  # of doing each
    increasing: bool = False  # every operation does more at a higher magnitude; if not, some do less


def parse(notation: str) -> Policy:
    """`rand-m9-mstd0.5-inc1`: m magnitude, mstd its noise, mmax its maximum, n operations, p probability, inc 0 or 1.

    Raises ValueError naming the part that is not understood.
    """
    kind, *parts = notation.split("-")
    if kind != "rand":
        raise ValueError(f"augment.randaugment is {notation!r}; it must begin with rand, as in rand-m9-mstd0.5-inc1")
    given: dict[str, float] = {}
    for part in parts:
        found = _SETTINGS.fullmatch(part)
        whole = found is not None and (found[1] in ("mstd", "p") or found[2].isdigit())
        if found is None or not whole or found[1] in given:
            raise ValueError(
                f"augment.randaugment is {notation!r}; of its part {part!r} nothing is known: each of m, n, mmax, inc "
                "(whole numbers), mstd and p may stand once, as in rand-m9-mstd0.5-inc1"
            )
        given[found[1]] = float(found[2])
    policy = Policy(
        magnitude=given.get("m", _SCALE),
        noise=math.inf if given.get("mstd", 0.0) > 100 else given.get("mstd", 0.0),
        most=given.get("mmax", 0.0) or _SCALE,
        ops=int(given.get("n", 2)),
        prob=given.get("p", 0.5),
        increasing=bool(given.get("inc", 0)),
    )
    if not 1 <= policy.ops <= 16 or policy.prob > 1:
        raise ValueError(f"augment.randaugment is {notation!r}; n must be 1 to 16 and p at most 1")
    return policy
