"""The Config of `xtra fit`. Loads no numpy: a command's flags are parsed into it (see jobs/config.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    ledger: str = ""  # Parquet or CSV with columns arm, samples_seen and accuracy (0..1); others are used if present
    x: Literal["samples_seen", "unique_images", "flops"] = "samples_seen"  # the axis of the law
    by: str = ""  # the arm to compare the others with; or, instead of `arm`, the column that names the arms
    set: str = ""  # which evaluation set, if the ledger has probes of several
    head: str = ""  # which probe head, if the ledger has several
    level: float = 0.9  # confidence level of the intervals
    at: tuple[float, ...] = ()  # also predict at these values of x
    published: bool = False  # instead of a fit: the paper's Figure 1 claim, by unique images and by samples seen
    power: bool = False  # instead of a fit: the difference that a comparison of --seeds seeds with --sd can detect
    seeds: int = 3  # for --power: trunks per arm
    sd: float = 0.5  # for --power: standard deviation between seeds, in points of accuracy
    arms: int = 2  # for --power: arms over which the variance is pooled
    comparisons: int = 1  # for --power: comparisons made; all except one are Holm-adjusted

    def __post_init__(self) -> None:
        if not self.ledger and not self.power and not self.published:
            raise ValueError("LEDGER is missing: xtra fit LEDGER; --help describes the flags")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level is {self.level:g}; it must be at least 0.5 and below 1")
        if any(n <= 0 for n in self.at):
            raise ValueError(f"at is {min(self.at):g}; it must be above 0")
