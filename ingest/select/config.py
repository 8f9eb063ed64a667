"""What `xtra select` may be asked. Loads no Arrow: the words of a command are read into it (see ingest/criteria.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.criteria import SelectConfig


@dataclass(frozen=True)
class Config:
    """Which version of a dataset to make: what the rules leave, or a random subset of the version that is given."""

    dataset: str  # DATASET, DATASET@VERSION or DATASET@DIGEST
    subset: int | None = None  # about this many random samples; with one seed, larger subsets contain smaller ones
    seed: int = 0  # of the subset
    rules: SelectConfig = field(default_factory=SelectConfig)
    exclude: str | None = None  # a file of URLs, keys, hosts, sha256 or phash:HEX/BITS to take out, now and for good
    scratch: str | None = None  # a local folder for about 80 bytes a picture; the system's own if None

    def __post_init__(self) -> None:
        if self.subset is not None and self.rules != SelectConfig():
            raise ValueError("subset and rules: use one, then apply the other to the version that results")
        if self.subset is not None and self.exclude is not None:
            raise ValueError("subset and exclude: use one, then apply the other to the version that results")
