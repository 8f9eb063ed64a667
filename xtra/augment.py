"""Training augmentation: its settings, and random erasing on normalised pixels.

Decoders apply crops and mirrors (xtra/data.py), RandAugment works on their uint8 pixels (xtra/rand_augment.py), erasing
on normalised pixels, on any device. Every choice is a draw keyed by (seed, epoch, sample).
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from shards.stream import mix64, uniform
from xtra.config import Augment

_AREA = (0.02, 1 / 3)  # erased share of the image
_ASPECT = (0.3, 1 / 0.3)  # height over width of the erased rectangle
_TRIES = 10  # to find a rectangle that fits; then the image stays whole
# As in shards.stream.order.mix64.
_GAMMA, _MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


PROBE = Augment(scale=(0.08, 1.0), randaugment="rand-m9-mstd0.5-inc1", erase=0.25)
"""The official probes' (config/eval; the paper's Table 2 does not mention erasing)."""

PROBE_LINEAR_B = Augment(scale=(0.08, 1.0))
"""The official linear probe's of XTRA-B/16 only."""


def erase(images_B3HW: Tensor, augment: Augment, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """Random erasing (Zhong et al., arXiv 1708.04896) as in timm's RandomErasing(mode="pixel", count 1): in some images
    a rectangle becomes unit Gaussian noise. Works in place on normalised images, on their device, and returns them.
    """
    if augment.erase:
        height, width = images_B3HW.shape[2:]
        for row, box in enumerate(erased(augment, seed, epoch_B, sample_B, height, width)):
            if box is not None:
                top, left, h, w = box
                key = mix64(seed, zlib.crc32(b"erase noise"), int(epoch_B[row]), int(sample_B[row]))
                noise = _normal(int(key), 3 * h * w, images_B3HW.device)
                images_B3HW[row, :, top : top + h, left : left + w] = noise.view(3, h, w)
    return images_B3HW


def erased(
    augment: Augment, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray, height: int, width: int
) -> list[tuple[int, int, int, int] | None]:
    """(top, left, height, width) of each image's erased rectangle."""
    epoch_B, sample_B = np.asarray(epoch_B, np.int64), np.asarray(sample_B, np.int64)
    u = uniform(seed, "erase", epoch_B[:, None], sample_B[:, None], np.arange(1 + 4 * _TRIES))
    return [
        _rectangle(tries, height, width) if hit < augment.erase else None
        for hit, tries in zip(u[:, 0].tolist(), u[:, 1:].reshape(-1, _TRIES, 4).tolist())
    ]


def _rectangle(tries: list[list[float]], height: int, width: int) -> tuple[int, int, int, int] | None:
    low, high = (math.log(aspect) for aspect in _ASPECT)
    for area_u, aspect_u, top_u, left_u in tries:
        area = (_AREA[0] + (_AREA[1] - _AREA[0]) * area_u) * height * width
        aspect = math.exp(low + (high - low) * aspect_u)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return math.floor(top_u * (height - h + 1)), math.floor(left_u * (width - w + 1)), h, w
    return None


def _normal(state: int, count: int, device: torch.device) -> Tensor:
    """[count] float32 normal draws on a device, the i-th a function of (state, i // 2): `mix64(…, i // 2)`, whose other
    words `state` has absorbed, and the Box-Muller transform."""
    z = (torch.arange((count + 1) // 2, device=device) ^ _signed(state)) + _signed(_GAMMA)
    for shift, factor in _MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    z = z ^ _shifted(z, 31)
    radius = (((_shifted(z, 40) + 1) * 2.0**-24).log() * -2).sqrt()
    angle = ((z >> 16) & 0xFFFFFF) * (2 * math.pi * 2.0**-24)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 1).flatten()[:count]


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits for unsigned numbers stored as torch's signed ones."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
