"""A unit's tar as it is built on scratch: members come in any order, the tar has input order."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from ingest.journal import BODIES
from shards.dataset import PLAIN
from shards.tar import BLOCK, END

PIECE = 4 << 20  # bytes of the spool read at once
TOGETHER = 512 << 10  # bytes written at once: the page cache has less work with larger writes, up to a megabyte
PIECES = 512  # written at once, fewer than the system takes


class Place(NamedTuple):
    """Where the two members of a kept link are."""

    suffix: str  # of the picture
    length: int  # of the picture, bytes
    sha256: bytes  # of the picture
    span: int  # of both members with their headers, bytes
    offset: int  # of the first header in the spool; -1: in memory only


class UnitTar:
    """The members of `links` links. What comes in its turn, or waits for it among at most `hold` bytes in memory, goes
    to scratch as the tar that it will be. When more than that is early (one slow host is enough), the rest goes to
    scratch as it comes, and `finish` copies it into order. `format_` is the dataset's: what the tar's sha256 covers."""

    def __init__(self, scratch: Path, links: int, hold: int, format_: int) -> None:
        self._scratch, self._hold, self._plain = scratch, hold, format_ == PLAIN
        self._spool = Spool(scratch / BODIES)
        self._ordered = True  # all members in the spool came in input order
        self._digest = hashlib.sha256()  # of them, while that is so
        self._settled = bytearray(links)  # whether a link has its place, or needs none
        self.places: list[Place | None] = [None] * links  # of kept links
        self._turn = 0  # all links before this one are in the spool, or have no members
        self._early: dict[int, tuple[bytes, bytes, bytes]] = {}  # members of links whose turn has not come
        self._held = 0  # bytes of those

    @property
    def size(self) -> int:
        """Bytes on scratch."""
        return self._spool.size

    def keep(self, at: int, suffix: str, sha256: str, members: tuple[bytes, bytes, bytes]) -> None:
        """Take the two members of the at-th link: the header of a picture with this suffix and sha256, its body, and
        all that follows it."""
        size = sum(map(len, members))
        self.places[at] = Place(suffix, len(members[1]), bytes.fromhex(sha256), size, -1)
        if at != self._turn and self._held + size > self._hold:
            self._ordered = False
            self._put(at, members)
        else:
            self._early[at] = members
            self._held += size

    def settle(self, at: int) -> None:
        """The at-th link is done: members whose turn has come are written."""
        self._settled[at] = True
        while self._turn < len(self._settled) and self._settled[self._turn]:
            members = self._early.pop(self._turn, None)
            if members is not None:
                self._put(self._turn, members)
                self._held -= sum(map(len, members))
            self._turn += 1

    def _put(self, at: int, members: tuple[bytes, bytes, bytes]) -> None:
        place = self.places[at]
        assert place is not None
        suffix, length, sha256, span, _ = place
        self.places[at] = Place(suffix, length, sha256, span, self._spool.size)
        self._spool.write(*members)
        if self._ordered:
            for piece in members if self._plain else (members[0], sha256, members[2]):
                self._digest.update(piece)

    def body_at(self, at: int) -> tuple[int, int] | None:
        """Offset and length in the spool of the at-th link's body; None if it is not there."""
        place = self.places[at]
        return (place.offset + BLOCK, place.length) if place is not None and place.offset >= 0 else None

    def spill(self) -> None:
        """Write what waits in memory to the spool, out of order: for a rerun, as this unit ends here."""
        self._ordered = False
        for at in sorted(self._early):
            self._put(at, self._early.pop(at))
        self.flush()

    def flush(self) -> None:
        """Write what was put into the spool and waits to be written together."""
        self._spool.flush()

    def close(self) -> None:
        self._spool.close()

    def finish(self) -> tuple[Path, int, str]:
        """The file, size and sha256 of the tar: the spool itself, or its members copied into order."""
        assert not self._early
        if self._ordered:
            self._spool.write(END)
            self._spool.flush()
            self._digest.update(END)
            return self._spool.path, self._spool.size, self._digest.hexdigest()
        path = self._scratch / "unit.tar"
        return path, self._copy(path), self._hashed()

    def _copy(self, path: Path) -> int:
        """Copy the spooled members into a tar in input order; returns its size. All that takes long here (reading,
        writing) runs without the interpreter's lock."""
        size, buffer = 0, memoryview(bytearray(PIECE))
        with path.open("wb", buffering=0) as out:
            for offset, length in self._runs():
                for at in range(offset, offset + length, PIECE):
                    piece = buffer[: min(PIECE, offset + length - at)]
                    self._spool.read_into(piece, at)
                    _write_all(out.fileno(), piece)
                size += length
            _write_all(out.fileno(), memoryview(END))
        return size + len(END)

    def _hashed(self) -> str:
        """The sha256 of that tar."""
        digest = hashlib.sha256()
        for place in self.places:
            if place is None:
                continue
            body = place.offset + BLOCK
            digest.update(self._spool.read(place.offset, BLOCK))
            digest.update(self._spool.read(body, place.length) if self._plain else place.sha256)
            digest.update(self._spool.read(body + place.length, place.span - BLOCK - place.length))
        digest.update(END)
        return digest.hexdigest()

    def _runs(self) -> list[tuple[int, int]]:
        """(offset, length) in the spool of the members in input order; neighbours are one run."""
        runs: list[tuple[int, int]] = []
        for place in self.places:
            if place is None:
                continue
            if runs and sum(runs[-1]) == place.offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + place.span)
            else:
                runs.append((place.offset, place.span))
        return runs


class Spool:
    """An append-only file on scratch that is read at any offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # with what waits to be written
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, *pieces: bytes) -> None:
        """Take the pieces; they may wait to be written with later ones."""
        size = sum(map(len, pieces))
        self.size += size
        self._waiting += pieces
        self._waiting_size += size
        if self._waiting_size >= TOGETHER or len(self._waiting) >= PIECES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        pieces, size = self._waiting, self._waiting_size
        self._waiting, self._waiting_size = [], 0
        if (written := os.writev(self._fd, pieces)) != size:
            # A full disk first shows as a short write; writing the rest raises its error.
            _write_all(self._fd, memoryview(b"".join(pieces))[written:])

    def read(self, offset: int, length: int) -> bytes:
        self.flush()
        return os.pread(self._fd, length, offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.flush()
        read = os.preadv(self._fd, [buffer], offset)
        assert read == len(buffer), f"{self.path} is shorter than what was written"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]
