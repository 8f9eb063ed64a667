"""A 64-bit perceptual hash of a picture: similar pictures have hashes a small Hamming distance apart.

As in pHash (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): gray, 32x32, DCT-II,
64 low frequencies without the mean; a bit is set if its coefficient is above their median. But the 64 frequencies are
those of the lowest radius, not a square of 8x8: at the same false-alarm rate they change less under rescaling.

Measured on 400 pictures of ImageNet (short side 256), and for unrelated pictures on 7.8e8 pairs that include 55,000
pictures of Tiny ImageNet:

    share at a distance of at most     2       4       6       8
    JPEG quality 50, or 20         99.8 %   100 %   100 %   100 %
    half the size                  97.8 %  99.2 %   100 %   100 %
    64x64                          85.5 %  96.8 %  99.8 %  99.8 %
    1.7 times the size             73.5 %  95.0 %  99.5 %   100 %
    a line of text in a corner     82.2 %  96.0 %   100 %   100 %
    gamma 0.7                      79.2 %  97.2 %  99.2 %   100 %
    3 % cropped off each side      12.2 %  36.5 %  64.5 %  86.8 %
    unrelated pictures              <1e-9   <1e-9    1e-9    2e-8

14 million pictures are 1e14 pairs. From distance 4 to 6, false pairs grow from some thousands to some hundred thousand,
so 4 is the distance to use (`NEAR`). Copies that are cropped, mirrored or turned are not found. Distances are even,
because half of the bits are set. Only pictures of one colour have hash 0, which must not be compared.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from shards.config import NEAR as NEAR

SIDE = 32

_FREQUENCIES = sorted(
    ((v, u) for v in range(11) for u in range(11) if u + v), key=lambda f: (f[0] ** 2 + f[1] ** 2, f)
)[:64]
_CHOSEN = np.array([11 * v + u for v, u in _FREQUENCIES])
# Integers, so that every sum is exact and the hash does not depend on the order of additions in BLAS.
_DCT = np.rint(1024 * np.cos(np.pi / SIDE * np.outer(np.arange(11), np.arange(SIDE) + 0.5)))
_DCT_T = np.ascontiguousarray(_DCT.T)


def phash(image: Image.Image) -> int:
    """The hash of an upright picture of any size and mode; 0 if it has one colour only."""
    factor = min(image.size) // (2 * SIDE)
    if factor > 1:
        image = image.reduce(factor)  # as decoding a JPEG at a fraction of its size does
    gray = image if image.mode == "L" else image.convert("L")
    small = gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    levels = np.frombuffer(small.tobytes(), np.uint8).reshape(SIDE, SIDE)  # np.asarray(small) costs 10 us more
    spectrum = (_DCT @ levels.astype(np.float64) @ _DCT_T).ravel()[_CHOSEN]
    bits = spectrum > np.partition(spectrum, 31)[31]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(a: int, b: int) -> int:
    """How many of the 64 bits differ."""
    return (a ^ b).bit_count()
