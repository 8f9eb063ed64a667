"""The result of a layout's reader, and functions that all readers need."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ingest.sets.pictures import Picture
from shards.local_files import refuse_special


@dataclass(frozen=True)
class Found:
    """Both splits of a set; labels are names among `classes`, which are in the set's own order."""

    train: Sequence[Picture]
    eval: Sequence[Picture]
    classes: tuple[str, ...]


def below(source: Path, *wanted: str) -> Path | None:
    """The folder that holds all the wanted paths: the source, or a folder directly in it, as archives unpack to; None
    if there is none. Raises ValueError if there are two."""
    if not source.is_dir():
        return None
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))]
    holding = [folder for folder in folders if all((folder / path).exists() for path in wanted)]
    if len(holding) > 1:
        raise ValueError(f"{source}: {holding[0]} and {holding[1]} both hold {wanted[0]}: give one of them as SOURCE")
    return holding[0] if holding else None


def lines(path: Path) -> list[str]:
    """The stripped lines that are not empty, without a byte order mark. Raises ValueError if it is not text."""
    refuse_special(path)
    try:
        return [line for line in map(str.strip, path.read_text("utf-8-sig").splitlines()) if line]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): get the set's archive again") from None


def table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file. Raises ValueError if it is not CSV, or a column or a row's value is missing."""
    refuse_special(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for column in columns:
                if column not in (rows.fieldnames or ()):
                    raise ValueError(f"{path}: has no column {column}: it must be the file of the set's own archive")
            for row in rows:
                if any(row[column] is None for column in columns):
                    raise ValueError(f"{path}: line {rows.line_num} is cut short: unpack the set again")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}): get the set's archive again") from None


def matlab(path: Path, name: str, whose: str) -> np.ndarray:
    """A variable of a .mat file, as a vector. Raises ValueError if the variable or scipy is missing."""
    loadmat = library("scipy.io", whose).loadmat
    refuse_special(path)
    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[name])
    except Exception as error:  # for a bad file scipy may raise anything
        raise ValueError(f"{path}: cannot be read ({error}): get the file again") from None


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names, sorted; as numbers if all are numbers."""
    each = set(names)
    return tuple(sorted(each, key=int if all(name.isdecimal() for name in each) else None))


def library(name: str, needed: str) -> Any:
    """Import a library that only some sets need. Raises ValueError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(f"{package} is missing, and {needed} needs it: python -m pip install {package}") from None
