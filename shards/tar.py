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
END = bytes(2 * BLOCK)  # two zero blocks close a tar


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
    """The 512-byte ustar header of a regular file. Raises UnicodeEncodeError or ValueError for a name that has no place
    in one: more than 100 characters, or not ASCII."""
    raw = name.encode("ascii")
    if len(raw) > 100 or length > _LARGEST:
        return _rare_header(name, length)
    size = b"%011o" % length
    # The checksum is the sum of all bytes, its own field counted as spaces; all but name and size is fixed.
    total = _FIXED_SUM + sum(raw) + sum(size)
    return b"".join((raw, _ZEROS[len(raw) :], _MODE_TO_GID, size, _MTIME, b"%06o" % total, _FROM_TYPE))


def _rare_header(name: str, length: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = length
    info.mode = 0o644
    info.mtime = 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


_LARGEST = 8**11 - 1
_ZEROS = bytes(100)  # of the name's field
_PLAIN = _rare_header("", 0)
_MODE_TO_GID, _MTIME, _FROM_TYPE = _PLAIN[100:124], _PLAIN[135:148], _PLAIN[154:]
_FIXED_SUM = sum(_PLAIN[:124]) + sum(_PLAIN[135:148]) + 8 * ord(" ") + sum(_PLAIN[156:])


def segment(name: str, body: bytes) -> tuple[bytes, bytes, bytes]:
    """A member as it lies in a tar: its header, its body, and what fills the last block."""
    return header(name, len(body)), body, _ZEROS_OF_A_BLOCK[: -len(body) % BLOCK]


_ZEROS_OF_A_BLOCK = bytes(BLOCK)


def write_tar(out: BinaryIO, members: Iterable[Member]) -> Iterator[Placed]:
    """Write members in the order given; yields each one's place once it is written. The end mark follows the last."""
    at = 0
    for member in members:
        body = member.body if isinstance(member.body, bytes) else member.body.read_bytes()
        for piece in segment(member.name, body):
            out.write(piece)
        yield Placed(member.name, at + BLOCK, len(body))
        at += BLOCK + len(body) + -len(body) % BLOCK
    out.write(END)


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
