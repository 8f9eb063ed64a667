"""What training does to pictures beyond decoding them: the settings, and erasing on normalised pixels.

Crops and mirrors are shown by the decoders (xtra/data.py), RandAugment works on their uint8 pixels
(xtra/rand_augment.py), erasing on what is normalised, wherever that happens. Every choice is a draw keyed by (seed,
epoch, sample).
"""

from __future__ import annotations

from dataclasses import dataclass

from xtra import rand_augment


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation; the defaults are the paper's Table 1."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the image's area that a crop covers
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop
    flip: float = 0.5  # probability of a horizontal mirror
    randaugment: str = ""  # RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1; "": none
    erase: float = 0.0  # probability that a rectangle becomes noise (random erasing, timm's mode "pixel")

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"augment.{name} is {low} {high}; it must be two rising numbers above 0")
        if self.scale[1] > 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"augment.scale {self.scale} and augment.flip {self.flip} must not pass 1")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"augment.erase is {self.erase}; it must be a probability, 0 to 1")
        if self.randaugment:
            rand_augment.parse(self.randaugment)


PROBE = Augment(scale=(0.08, 1.0), randaugment="rand-m9-mstd0.5-inc1", erase=0.25)
"""Of the official probes (config/eval; the paper's Table 2 does not name the erasing)."""

PROBE_LINEAR_B = Augment(scale=(0.08, 1.0))
"""Of the official linear probe of XTRA-B/16 alone."""
