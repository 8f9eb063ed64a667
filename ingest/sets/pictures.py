"""Labelled pictures of a set on disk: where each one is, and how it is read when needed.

A set has up to 1.3 million pictures, so their bytes are not held: a picture is a file's name, or a row number of an
array or table. Rows are read in blocks, two of which are in memory.
"""

from __future__ import annotations

import functools
import io
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ingest.lists import keys
from ingest.record import Link
from shards.local_files import refuse_special

ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "mpo"})


class Picture(Protocol):
    """One labelled picture of a source."""

    @property
    def name(self) -> str:
        """Its path relative to the source; its url in the dataset."""
        ...

    @property
    def key(self) -> str:
        """Not yet unique; may contain any characters."""
        ...

    @property
    def label(self) -> str:
        """The first label; "" if there is none."""
        ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def size(self) -> int:
        """Bytes of the picture, or of the file that it is a row of; must be the same in a rerun."""
        ...

    @property
    def bytes_before_reading(self) -> int:
        """The picture's own size in bytes if known without reading it; else 0."""
        ...

    def read(self) -> bytes:
        """The encoded picture. Raises ValueError naming the file that cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A picture that is a file: `root/name`."""

    root: Path  # one object for all pictures of a set
    name: str
    key: str
    label: str
    size: int

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,) if self.label else ()

    @property
    def bytes_before_reading(self) -> int:
        return self.size

    def read(self) -> bytes:
        return _read(self.root / self.name, 0, self.size)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A picture that is part of a file, such as a member of a tar."""

    path: Path
    name: str
    key: str
    label: str
    offset: int
    size: int
    more: tuple[str, ...] = ()  # labels

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label, *self.more) if self.label else ()

    @property
    def bytes_before_reading(self) -> int:
        return self.size

    def read(self) -> bytes:
        return _read(self.path, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class Missing:
    """A sample of a tar that has no picture; it is still a link, so that it is counted."""

    name: str
    key: str
    label: str
    more: tuple[str, ...]
    why: str
    size: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label, *self.more) if self.label else ()

    @property
    def bytes_before_reading(self) -> int:
        return 0

    def read(self) -> bytes:
        raise ValueError(f"{self.name}: {self.why}")


@dataclass(frozen=True, slots=True)
class Row:
    """A picture that is a row of an array or a table."""

    blocks: Blocks
    block: int
    at: int  # in the block
    name: str
    key: str
    label: str
    size: int

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,) if self.label else ()

    @property
    def bytes_before_reading(self) -> int:
        return 0

    def read(self) -> bytes:
        value = self.blocks[self.block][self.at]
        return value if isinstance(value, bytes) else png(value)


class Blocks:
    """Rows of a source, read a block at a time. The last two blocks are kept: the judging threads are never further
    apart. `load(block)` returns encoded pictures, or pixels uint8 [pictures, H, W, 3]."""

    def __init__(self, load: Callable[[int], Sequence[bytes] | np.ndarray]) -> None:
        self._load = functools.lru_cache(maxsize=2)(load)
        self._lock = threading.Lock()  # so that no block is read twice by two threads

    def __getitem__(self, block: int) -> Sequence[bytes] | np.ndarray:
        with self._lock:
            return self._load(block)


def png(pixels_HW3: np.ndarray) -> bytes:
    """The pixels uint8 [H, W, 3] as a PNG. The same pixels and image library give the same bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels_HW3).save(out, "PNG")
    return out.getvalue()


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            body = file.read(size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): rerun when it can be read") from None
    if len(body) < size:
        raise ValueError(f"{path}: became shorter during the import: rerun into another --out")
    return body


# --- finding files -------------------------------------------------------------------------------------------------


def listed(root: Path, name: str, label: str, where: Path) -> File:
    """The file that a list names. Raises ValueError when it is not there, or outside the set."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{where}: {name!r} is outside the set: get the list again")
    try:
        about = os.stat(root / name)
    except OSError:
        raise ValueError(f"{root / name}: is listed in {where.name}, but missing: unpack the set again") from None
    refuse_special(root / name, mode=about.st_mode)
    return File(root, name, file_key(name, label), label, about.st_size)


def file_key(name: str, label: str) -> str:
    """The file's own name if it starts with the label, else its whole path with `_` for `/`; without the ending."""
    stem, dot, _ = name.rpartition(".")
    stem = stem if dot else name
    last = stem.rpartition("/")[2]
    return last if last.startswith(label) else stem.replace("/", "_")


def is_picture(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in ENDINGS


# --- pictures -> links ---------------------------------------------------------------------------------------------


def links(pictures: Sequence[Picture]) -> list[Link]:
    """Links with valid, unique keys; a repeated key gets `_r<row>`. Raises ValueError for a name that is not UTF-8."""
    seen: set[str] = set()
    found = []
    for row, picture in enumerate(pictures):
        try:
            f"{picture.name}{''.join(picture.labels)}".encode()
        except UnicodeEncodeError:
            raise ValueError(f"{picture.name!r}: is a name that is not UTF-8: rename it") from None
        key = re.sub(r"[^A-Za-z0-9_-]", "_", picture.key)[: keys.KEY_LENGTH] or f"{row:09d}"
        tries = 0
        while key in seen:
            key, tries = keys.renamed(key, row, tries), tries + 1
        seen.add(key)
        found.append(Link(key, picture.name, picture.labels, row))
    return found
