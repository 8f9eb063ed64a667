"""RandAugment as in timm's `rand-m9-mstd0.5-inc1` (Cubuk et al., arXiv 1909.13719), with our own draws.

A policy chooses `ops` of the 15 operations below at random, with repeats, and applies each with probability `prob`, at
its own strength: Gaussian around `magnitude`, clipped to 0..`most`. Geometric operations fill with ImageNet's mean
colour and resample bicubically, as in the official probes.

timm draws from a generator; here draws are counter-based, so they depend only on sample and epoch. Pillow computes the
pixels, so equal draws give timm's pixels exactly (tests/xtra/test_rand_augment.py).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from shards.stream import uniform

_SCALE = 10.0  # the magnitude of strength 1
_FILL = (124, 116, 104)  # ImageNet's mean colour
_SETTINGS = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+\.?\d*|\.\d+|inf)")


@dataclass(frozen=True)
class Policy:
    """A parsed notation; see `parse`."""

    magnitude: float = 10.0
    noise: float = 0.0  # standard deviation of the magnitude; inf: uniform from 0 to the magnitude
    most: float = _SCALE  # magnitudes are clipped to it
    ops: int = 2  # operations per image
    prob: float = 0.5  # of applying each
    increasing: bool = False  # every operation is stronger at a higher magnitude; if not, some are weaker


@functools.cache
def parse(notation: str) -> Policy:
    """`rand-m9-mstd0.5-inc1`: m magnitude, mstd its noise, mmax its maximum, n operations, p probability, inc 0 or 1.

    Raises ValueError naming an unknown part.
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
                f"augment.randaugment is {notation!r}; its part {part!r} is unknown: each of m, n, mmax, inc (whole "
                "numbers), mstd and p may be given once, as in rand-m9-mstd0.5-inc1"
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


class Act(NamedTuple):
    """One operation to apply."""

    op: int  # in OPS
    strength: float  # magnitude / 10
    negate: bool  # the opposite direction, for geometric operations and increasing enhancements


def draw(policy: Policy, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> list[list[Act]]:
    """The operations for each sample, in order. Uses Python's arithmetic, as numpy's log and cos may differ between
    processors."""
    epoch_B, sample_B = np.asarray(epoch_B, np.int64), np.asarray(sample_B, np.int64)
    u = uniform(seed, "randaugment", epoch_B[:, None], sample_B[:, None], np.arange(policy.ops * 5))
    return [
        [_act(policy, *five) for five in image if five[1] < policy.prob]
        for image in u.reshape(-1, policy.ops, 5).tolist()
    ]


def _act(policy: Policy, which: float, whether: float, one: float, two: float, sign: float) -> Act:
    if math.isinf(policy.noise):
        magnitude = one * policy.magnitude
    else:  # Box and Muller's normal draw
        magnitude = policy.magnitude + policy.noise * math.sqrt(-2 * math.log(1 - one)) * math.cos(2 * math.pi * two)
    return Act(int(which * len(OPS)), max(0.0, min(magnitude, policy.most)) / _SCALE, sign < 0.5)


def apply(policy: Policy, acts: list[Act], pixels_3HW: np.ndarray) -> None:
    """Apply operations to uint8 pixels, in place."""
    if not acts:
        return
    picture = Image.fromarray(np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0)))
    for act in acts:
        picture = perform(picture, act, policy.increasing)
    pixels_3HW[:] = np.asarray(picture).transpose(2, 0, 1)


def perform(picture: Image.Image, act: Act, increasing: bool) -> Image.Image:
    """Apply one operation to an RGB picture."""
    return OPS[act.op][1](picture, act.strength, -1 if act.negate else 1, increasing)


# ---- the operations: of a picture, a strength, a sign, and whether more strength always does more --------------------


def _moved(picture: Image.Image, *matrix: float) -> Image.Image:
    how: Any = {"resample": Image.Resampling.BICUBIC, "fillcolor": _FILL}
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **how)


def _rotate(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return picture.rotate(sign * (strength * 30), Image.Resampling.BICUBIC, fillcolor=_FILL)


def _shear_x(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return _moved(picture, 1, sign * (strength * 0.3), 0, 0, 1, 0)


def _shear_y(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return _moved(picture, 1, 0, 0, sign * (strength * 0.3), 1, 0)


def _translate_x(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return _moved(picture, 1, 0, sign * (strength * 0.45) * picture.width, 0, 1, 0)


def _translate_y(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return _moved(picture, 1, 0, 0, 0, 1, sign * (strength * 0.45) * picture.height)


def _autocontrast(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return ImageOps.equalize(picture)


def _invert(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    return ImageOps.invert(picture)


def _posterize(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    """0 bits give black, as in Pillow before 13, which now refuses: there timm fails at magnitude 10."""
    bits = int(strength * 4)
    mask = -(1 << max(8 - (4 - bits if increasing else bits), 0))
    return picture.point([value & mask for value in range(256)] * 3)


def _solarize(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    threshold = min(256, int(strength * 256))
    return ImageOps.solarize(picture, 256 - threshold if increasing else threshold)


def _solarize_add(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
    """Brighten the darker half of the values."""
    more = min(128, int(strength * 110))
    return picture.point([min(255, value + more) if value < 128 else value for value in range(256)] * 3)


def _enhance(kind: Callable[[Image.Image], Any]) -> Op:
    """An enhancement: 0 removes the property, 1 leaves the picture unchanged, 2 doubles it."""

    def op(picture: Image.Image, strength: float, sign: int, increasing: bool) -> Image.Image:
        factor = max(0.1, 1.0 + sign * (strength * 0.9)) if increasing else strength * 1.8 + 0.1
        return kind(picture).enhance(factor)

    return op


Op = Callable[[Image.Image, float, int, bool], Image.Image]

OPS: tuple[tuple[str, Op], ...] = (
    ("AutoContrast", _autocontrast),
    ("Equalize", _equalize),
    ("Invert", _invert),
    ("Rotate", _rotate),
    ("Posterize", _posterize),
    ("Solarize", _solarize),
    ("SolarizeAdd", _solarize_add),
    ("Color", _enhance(ImageEnhance.Color)),
    ("Contrast", _enhance(ImageEnhance.Contrast)),
    ("Brightness", _enhance(ImageEnhance.Brightness)),
    ("Sharpness", _enhance(ImageEnhance.Sharpness)),
    ("ShearX", _shear_x),
    ("ShearY", _shear_y),
    ("TranslateX", _translate_x),
    ("TranslateY", _translate_y),
)
"""In timm's order, each as likely as any other."""
