"""Which classes, pictures and samples are taken: settings that `ingest.config` and others contain.

They are here, and not next to the code that applies them, because a command's flags are parsed into them: this file
loads none of numpy, Arrow and Pillow, so that help and error messages are quick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from shards.config import MAX_PIXELS, NEAR

WNID = re.compile(r"n\d{8}")
MAX_DISTANCE = 6  # bits


@dataclass(frozen=True)
class ClassConfig:
    """Which labels are taken. Every rule that is set narrows the choice; none set takes every link, labelled or not."""

    subtree: tuple[str, ...] = ()  # wnids (or names, with words) whose class and all classes below are taken
    is_a: str | None = None  # wordnet.is_a.txt, for subtree: a line "parent child" for every edge
    words: str | None = None  # words.txt, for names in subtree: a line "wnid<TAB>lemma, lemma" for every synset
    file: str | None = None  # classes to take, one per line: the first word if it is a wnid, else the first column
    # take only classes with at least this many links in the list; in a selection: with so many kept pictures
    min_count: int = 0

    def __post_init__(self) -> None:
        if self.min_count < 0:
            raise ValueError(f"classes.min_count is {self.min_count}: it must be 0 or more")
        if self.subtree and self.is_a is None:
            raise ValueError(
                f"classes.subtree {self.subtree[0]!r} needs a hierarchy: set --classes.is-a wordnet.is_a.txt"
            )
        for name in self.subtree:
            if WNID.fullmatch(name) is None and self.words is None:
                raise ValueError(
                    f"classes.subtree {name!r} is not a wnid like n02084071: give the wnid, or set --classes.words"
                )

    @property
    def all(self) -> bool:
        """No rule is set."""
        return not (self.subtree or self.file is not None or self.min_count)


@dataclass(frozen=True)
class FilterConfig:
    """Which pictures are kept, and in which form."""

    min_side: int = 32  # shortest side that is kept, pixels
    max_pixels: int = 89_478_485  # most pixels by the header, before decoding; at most 178956970
    max_aspect: float = 20.0  # largest ratio of the long side to the short side
    decode_check: bool = True  # decode every picture once; without it only headers are checked
    # short side in pixels; larger pictures are shrunk to it and stored as JPEG; None: keep the bytes as they came
    resize: int | None = None
    quality: int = 95  # JPEG quality of pictures that were shrunk

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"filter.max_pixels is {self.max_pixels}: it must be 1 to {MAX_PIXELS}")
        if self.min_side < 1:
            raise ValueError(f"filter.min_side is {self.min_side}: it must be at least 1")
        if self.max_aspect < 1:
            raise ValueError(f"filter.max_aspect is {self.max_aspect}: it must be at least 1 (long side over short)")
        if self.resize is not None and self.resize < self.min_side:
            raise ValueError(f"filter.resize is {self.resize}: it must be at least min_side, {self.min_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"filter.quality is {self.quality}: it must be 1 to 100")


@dataclass(frozen=True)
class SelectConfig:
    """Which of the kept pictures a version contains."""

    duplicates: bool = True  # keep one of pictures that are equal or look alike: the lowest row, which gets all labels
    near_distance: int = NEAR  # bits of 64 in which perceptual hashes of copies may differ; -1: compare bytes only
    placeholder_from: int = 64  # equal bytes from this many URLs of few sites are a placeholder image; 0: never
    placeholder_labels: int = 16  # so are equal bytes from this many URLs with as many labels; 0: ignore labels
    # pictures by their labels: each rule that is set narrows the choice
    classes: ClassConfig = field(default_factory=ClassConfig)
    # leave out classes that are left with fewer pictures by the other rules (ImageNet-21K-P: more than 500, so 501)
    min_per_class: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.near_distance <= MAX_DISTANCE:
            raise ValueError(f"near_distance is {self.near_distance}: it must be 0 to {MAX_DISTANCE} bits, or -1")
        for name in ("placeholder_from", "placeholder_labels"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 2, or 0 for never")
        if self.min_per_class < 0:
            raise ValueError(f"min_per_class is {self.min_per_class}: it must be 0 or more")
