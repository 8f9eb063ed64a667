"""What `xtra fit` may be asked. Loads no numpy: the words of a command are read into it (see jobs/config.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    ledger: str = ""  # Parquet or CSV with columns arm, samples_seen and accuracy (0..1); others are used where present
    x: Literal["samples_seen", "unique_images", "flops"] = "samples_seen"  # the axis of the law
    by: str = ""  # the arm that the others are compared with; or a column that names the arms, if not `arm`
    set: str = ""  # where a ledger has probes of several sets: which
    head: str = ""  # where a ledger has probes of several heads: which
    level: float = 0.9  # of the intervals
    at: tuple[float, ...] = ()  # also predict at these values of x
    published: bool = False  # instead: the claim of the paper's Figure 1, by unique images and by samples seen
    power: bool = False  # instead: the difference that a comparison of --seeds seeds with --sd finds
    seeds: int = 3  # trunks of an arm, for --power
    sd: float = 0.5  # standard deviation between seeds, in points of accuracy, for --power
    arms: int = 2  # over which the variance is pooled, for --power
    comparisons: int = 1  # that are made: all but one are Holm-adjusted, for --power

    def __post_init__(self) -> None:
        if not self.ledger and not self.power and not self.published:
            raise ValueError("LEDGER is missing: xtra fit LEDGER; --help describes the flags")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"level is {self.level:g}; it must be at least 0.5 and below 1")
        if any(n <= 0 for n in self.at):
            raise ValueError(f"at is {min(self.at):g}; it must be above 0")
