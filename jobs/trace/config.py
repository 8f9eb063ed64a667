"""The Config of `xtra trace`. Loads no Arrow: a command's flags are parsed into it (see jobs/config.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """What to trace, and where."""

    place: str  # a dataset, a run, or a folder of runs
    what: tuple[str, ...] = ()  # keys, URLs, sha256; also hosts and phash:HEX/BITS, as xtra select --exclude takes them
    file: str = ""  # a file with more of them, one per line
    runs: tuple[str, ...] = ()  # runs or folders of runs, if the place is a dataset
    urls: str = ""  # the list that the dataset was ingested from, to show each link's line
    url_column: str | None = None  # that list's URL column, as given to xtra ingest
