"""One tar: deterministic writing, and reading that names what is torn.

POSIX ustar (IEEE 1003.1-1988), uid = gid = mtime = 0, mode 0644: the same members give the same bytes. Any WebDataset
reader can read the result; ours reads members by offset from the index.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
_END = 2 * BLOCK  # two zero blocks close a tar


@dataclass(frozen=True)
class Member:
    """A file to be written: its name (at most 100 ASCII characters) and its bytes, in memory or spooled to a path."""

    name: str
    body: bytes | Path


@dataclass(frozen=True)
class Placed:
    """Where a member's data (not its header) lies in the tar, in bytes."""

    name: str
    offset: int
    length: int


def header(name: str, length: int) -> bytes:
    """The 512-byte ustar header of a regular file."""
    info = tarfile.TarInfo(name)
    info.size = length
    info.mode = 0o644
    info.mtime = 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def write_tar(out: BinaryIO, members: Iterable[Member]) -> Iterator[Placed]:
    """Write members in the order given; yields each one's place once it is written. The end mark follows the last."""
    at = 0
    for member in members:
        body = member.body if isinstance(member.body, bytes) else member.body.read_bytes()
        head = header(member.name, len(body))
        out.write(head)
        out.write(body)
        out.write(b"\0" * (-len(body) % BLOCK))
        yield Placed(member.name, at + len(head), len(body))
        at += len(head) + len(body) + -len(body) % BLOCK
    out.write(b"\0" * _END)


def read_tar(file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """(name, data offset, body) of each regular file. Raises ValueError naming the offset where a tar is torn."""
    at = 0
    while True:
        head = file.read(BLOCK)
        if head == b"\0" * BLOCK:
            return
        if len(head) < BLOCK:
            raise ValueError(f"the tar ends at byte {at + len(head)} without its end mark: it was cut short")
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"the tar has no valid header at byte {at}: {error}") from None
        body = file.read(info.size)
        if len(body) < info.size:
            raise ValueError(f"the tar ends inside {info.name} at byte {at + BLOCK + len(body)}: it was cut short")
        file.read(-info.size % BLOCK)
        if info.isreg():
            yield info.name, at + BLOCK, body
        at += BLOCK + info.size + -info.size % BLOCK
