"""The Configs of this room: the order and the reading of a stream, `xtra check` and `xtra sweep`.

A file of their own, because a command's flags are parsed into them: it loads none of numpy, Arrow and fsspec,
so that help and error messages are quick. `shards.check.Config` and the others are these.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from shards import roles

MAX_PIXELS = 178_956_970  # Pillow refuses more than this itself; a lower cap can be asked for
KEPT = "kept"  # the reason of a link whose picture was kept
NEAR = 4  # bits of a perceptual hash; at most so many differ between copies of one picture
_AGE = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Order:
    """Parameters of the shuffled order; all of them travel in the cursor."""

    seed: int = roles.trial(0)  # seed of the shuffle
    version: int = roles.law(1)  # version of the order's definition; this build knows 1
    lanes: int = roles.law(64)  # L: independent runs of the epoch's sequence that are read side by side
    chunk: int = roles.law(16)  # c: samples of one shard that stay together, the unit of reading
    window: int = roles.law(32)  # w: chunks whose samples are mixed inside a lane

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(f"order.version is {self.version}; this build knows 1: upgrade to read it")
        for name in ("lanes", "chunk", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"order.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ReadConfig:
    """How samples are fetched; nothing of it changes which samples come, or their order."""

    connections: int = roles.machine(64)  # ranged reads at once from a remote store
    # bytes of remote samples to keep in memory; None: what the order's window needs
    memory: int | None = roles.machine(None)
    # folder for what was fetched from a remote store, shared by the processes of a node
    cache: str | None = roles.machine(None)
    cache_bytes: int = roles.machine(64 << 30)  # most bytes in the cache; the least recently used go first
    ahead: int = roles.machine(2)  # batches prepared in advance

    def __post_init__(self) -> None:
        for name in ("connections", "ahead", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"read.{name} is {getattr(self, name)}; it must be at least 1")
        if self.memory is not None and self.memory < 1 << 20:
            raise ValueError(f"read.memory is {self.memory} bytes; it must be at least {1 << 20}")


@dataclass(frozen=True)
class CheckConfig:
    dataset: str  # DATASET, DATASET@VERSION or DATASET@DIGEST
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)  # shards checked in parallel, each on one core
    decode: bool = False  # also decode every image in full
    problems_per_shard: int = 20  # more are counted, not listed
    repair: bool = False  # rebuild damaged objects from others of the dataset, list what is lost; then check
    dry_run: bool = False  # with --repair: report the same, but write nothing

    def __post_init__(self) -> None:
        if self.dry_run and not self.repair:
            raise ValueError("--dry-run needs --repair: without --repair nothing is written anyway")


@dataclass(frozen=True)
class SweepConfig:
    url: str  # the folder of a dataset, of a run, or of probes or several runs
    older_than: str = "7d"  # remove objects that no commit names if they are older: a number and m, h, d or w
    dry_run: bool = False  # only show what would be removed

    def __post_init__(self) -> None:
        match = _AGE.fullmatch(self.older_than)
        if not match:
            raise ValueError(f"older_than is {self.older_than!r}: give a number and m, h, d or w, such as 7d")
        if self.seconds < 600:
            raise ValueError(f"older_than is {self.older_than}: what is that young may still be committed; give 10m")

    @property
    def seconds(self) -> float:
        number, unit = _AGE.fullmatch(self.older_than).groups()  # type: ignore[union-attr]
        return float(number) * _SECONDS[unit]

    def before(self) -> float:
        """What is older than this may go, by the store's clock: this machine's may be days off."""
        from shards import store

        return store.clock(self.url) - self.seconds
