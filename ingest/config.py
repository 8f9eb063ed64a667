"""What to ingest, and how: the settings of `ingest.run`. Loads none of Arrow and Pillow (see ingest/criteria.py)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field

from ingest import lists
from ingest.criteria import ClassConfig, FilterConfig, SelectConfig
from ingest.http import FetchConfig
from ingest.record import ASKABLE


@dataclass(frozen=True)
class Config:
    """What to ingest, and how."""

    urls: str = ""  # the list: a file, a folder or a pattern such as s3://b/part-*.csv.gz
    out: str = ""  # the dataset's folder
    unit: int = 10_240  # links per unit, which becomes one tar
    # format of the list: auto (by its name), text, csv, tsv, jsonl or parquet; each may be .gz or .zst
    format: str = "auto"
    url_column: str | None = None  # column of the URLs in a table: a name, or a number from 0; guessed if None
    id_column: str | None = None  # column whose values become the keys of the samples
    label_column: str | None = None  # column whose values become the labels of the samples
    # further columns to keep, in the json of each sample and in columns/: names, or none
    keep_columns: tuple[str, ...] = ("all",)
    where: str | None = None  # take only lines that meet this condition: "similarity > 0.3 and width >= 256"
    # column with the md5, sha1 or sha256 of each file; if the list is a dataset: the recorded hash
    hash_column: str | None = None
    classes: ClassConfig = field(default_factory=ClassConfig)  # which lines are fetched, by their labels
    fetch: FetchConfig = field(default_factory=FetchConfig)  # how to fetch; times in seconds, sizes in bytes
    filter: FilterConfig = field(default_factory=FilterConfig)  # which pictures are kept, and in which form
    select: SelectConfig = field(default_factory=SelectConfig)  # which kept pictures the first version contains
    # local folder for the bodies of the units in progress; the system's temporary folder if None
    scratch: str | None = None
    scratch_bytes: int | None = None  # space that a worker may use in scratch; the free space, less a reserve, if None
    # fetch links that failed for a temporary reason again; --retry REASON ...: links with these reasons. Needs no
    # --urls
    retry: bool = False
    # what --retry REASON ... sets: fetch links with these reasons; all temporary if empty
    retry_reasons: tuple[str, ...] = ()
    dry_run: int = 0  # write nothing: fetch and judge this many links, then forecast the whole list

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise ValueError(f"unit is {self.unit}: it must be at least 1 link")
        if not self.keep_columns or (len(self.keep_columns) > 1 and {"all", "none"} & set(self.keep_columns)):
            raise ValueError(f"keep_columns is {' '.join(self.keep_columns)}: give names of columns, or all, or none")
        if self.where is not None:
            lists.parse(self.where)
        if self.scratch_bytes is not None and self.scratch_bytes < 1:
            raise ValueError(f"scratch_bytes is {self.scratch_bytes}: it must be at least 1 byte")
        unknown = [reason for reason in self.retry_reasons if reason not in ASKABLE]
        if unknown:
            raise ValueError(
                f"retry of {unknown[0]!r}: give reasons of links that can be fetched: {', '.join(ASKABLE)}"
            )
        if self.retry_reasons and not self.retry:
            raise ValueError(f"retry_reasons are {', '.join(self.retry_reasons)}: give --retry {self.retry_reasons[0]}")
        if self.dry_run < 0:
            raise ValueError(f"dry_run is {self.dry_run}: it must be a number of links, or 0 for a real run")

    @property
    def rules(self) -> tuple[lists.Rule, ...]:
        """The rules of `where`."""
        return lists.parse(self.where) if self.where is not None else ()

    @property
    def columns(self) -> lists.Columns:
        """Which columns of the list are read."""
        keep: tuple[str, ...] | None = None if self.keep_columns == ("all",) else self.keep_columns
        hashed = (self.hash_column,) if self.hash_column is not None else ()
        if keep is not None:
            keep = tuple(dict.fromkeys([*(() if keep == ("none",) else keep), *hashed]))
        asked = tuple(dict.fromkeys([*(name for rule in self.rules for name in rule.columns), *hashed]))
        return lists.Columns(self.url_column, self.id_column, self.label_column, keep, asked)

    @property
    def digest(self) -> str:
        """The digest of the fields that decide what a unit holds; others may change between reruns. Its first half
        covers the fields about reading the list, which a retry does not need; the second those about judging."""
        classes = dataclasses.asdict(self.classes)
        for name in ("is_a", "words", "file"):  # the file may be moved: only its name counts
            classes[name] = lists.list_name(classes[name] or "")
        # A new field is left out where it has its default, so that datasets of older builds can be resumed.
        reads: list[object] = [self.format, self.url_column, self.id_column, self.label_column, classes]
        younger = {"keep_columns": self.keep_columns, "where": self.where, "hash_column": self.hash_column}
        if younger != {"keep_columns": ("all",), "where": None, "hash_column": None}:
            reads.append(younger)
        judges = {"filter": dataclasses.asdict(self.filter), "max_bytes": self.fetch.max_bytes}
        return _digest(reads) + _digest(judges)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
