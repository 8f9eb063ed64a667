"""What `xtra select` may be asked. Loads no Arrow: the words of a command are read into it (see ingest/criteria.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.criteria import SelectConfig


@dataclass(frozen=True)
class Config:
    """Which version of a dataset to make: what the rules leave, or a random subset of the given version."""

    dataset: str  # DATASET, DATASET@VERSION or DATASET@DIGEST
    subset: int | None = None  # about this many random samples; with one seed, larger subsets contain smaller ones
    seed: int = 0  # of the random subset
    rules: SelectConfig = field(default_factory=SelectConfig)  # which kept pictures the new version contains
    # file of URLs, keys, hosts, sha256 or phash:HEX/BITS to leave out, now and in later versions
    exclude: str | None = None
    # local folder with room for about 80 bytes per picture; the system's temporary folder if None
    scratch: str | None = None

    def __post_init__(self) -> None:
        if self.subset is not None and self.rules != SelectConfig():
            raise ValueError("subset and rules: use one, then apply the other to the version that results")
        if self.subset is not None and self.exclude is not None:
            raise ValueError("subset and exclude: use one, then apply the other to the version that results")
