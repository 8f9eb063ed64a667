"""What `xtra import` may be asked. Loads no Arrow: the words of a command are read into it (see ingest/criteria.py)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ingest.criteria import FilterConfig
from ingest.sets.benchmarks import BENCHMARKS

LabelFrom = Literal["auto", "folder", "parent", "tar"]
MAX_BYTES = 32 << 20  # of a picture, as of one that an ingest fetches


@dataclass(frozen=True)
class ImportConfig:
    source: str  # a folder of class folders, a folder of .tar files, one .tar, or a pattern of them
    out: str  # the dataset to make
    unit: int = 10_240  # pictures per unit, which becomes one tar
    classes: str | None = None  # JSON that names the numbers in .cls files: a list, {"3": "cat"} or [{"label", "name"}]
    name: str | None = None  # name of the set in results; the name of the source if None
    # pictures that are kept; by default of any size, since an evaluation set must stay as it is
    filter: FilterConfig = field(default_factory=lambda: FilterConfig(min_side=1))
    max_bytes: int = MAX_BYTES  # largest picture; larger ones are not read, and are rejected as too_large
    scratch: str | None = None  # local folder with room for two copies of a unit; the system's temporary folder if None
    threads: int = 2  # decoding threads
    in_place: bool = False  # index WebDataset tars where they are (also s3://, https://), copy nothing
    set: str = ""  # SOURCE is this evaluation set (cifar10, …) as its publishers pack it: makes OUT/train and OUT/eval
    # with --set: require the numbers of images of the paper's table, or accept any
    counts: Literal["table", "any"] = "table"
    # the label is the first folder, the last one (parent) or the tar; auto: as the source suggests
    label_from: LabelFrom = "auto"
    labels: bool = True  # --no-labels: import pictures without labels
    split: str | None = None  # the folder or Parquet files of one split, such as train

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise ValueError(f"unit is {self.unit}: it must be at least 1 link")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}: it must be at least 1")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}: it must be at least 1 byte")
        if self.set and self.set not in BENCHMARKS:
            raise ValueError(f"set is {self.set!r}: it must be one of {', '.join(BENCHMARKS)}")
        if self.set and (self.in_place or self.classes or self.name):
            raise ValueError(
                f"set {self.set} has its own name and classes, and is copied: leave out "
                "--in-place, --classes and --name"
            )
        kept = replace(self.filter, decode_check=True, resize=None, quality=FilterConfig.quality)
        if self.set and kept != FilterConfig(min_side=1):
            raise ValueError(
                f"set {self.set} is taken whole: leave out --filter flags, except .decode-check, .resize and .quality"
            )
        if self.counts != "table" and not self.set:
            raise ValueError(
                f"counts is {self.counts!r}: only an evaluation set is counted: give --set, or leave it out"
            )
