"""One tar: deterministic writing, and reading with errors that name the damage.

POSIX ustar (IEEE 1003.1-1988), uid = gid = mtime = 0, mode 0644: the same members give the same bytes. Any WebDataset
reader can read the result; ours reads members by offset from the index.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from shards import store
from shards.parallel import map_in_order

BLOCK = 512
END = bytes(2 * BLOCK)  # two zero blocks close a tar
PIECE = 1 << 20  # bytes of a local tar read at once, few enough to be hashed in the processor's cache
RANGE = 8 << 20  # bytes of one read of a remote tar
AHEAD = 4  # such reads in flight for one tar


@dataclass(frozen=True)
class Member:
    """A file to write: its name (at most 100 ASCII characters) and its bytes, in memory or in a file."""

    name: str
    body: bytes | Path


class Placed(NamedTuple):
    """The place of a member's data (not its header) in the tar, in bytes."""

    name: str
    offset: int
    length: int
    link: str | None = None  # the target if it is a link; then it has no data


def header(name: str, length: int) -> bytes:
    """The 512-byte ustar header of a regular file. Raises UnicodeEncodeError or ValueError for a name that cannot be
    in one: more than 100 characters, or not ASCII."""
    raw = name.encode("ascii")
    if len(raw) > 100 or length > _LARGEST:
        return _rare_header(name, length)
    size = b"%011o" % length
    # The checksum is the sum of all bytes, with its own field as spaces; all but name and size is fixed.
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
_ALWAYS = (_MODE_TO_GID, _MTIME, _FROM_TYPE)
_OWN = struct.Struct("100s24s11s13s6s358s")  # name, _MODE_TO_GID, size, _MTIME, checksum, _FROM_TYPE
_FIXED_SUM = sum(_PLAIN[:124]) + sum(_PLAIN[135:148]) + 8 * ord(" ") + sum(_PLAIN[156:])


def segment(name: str, body: bytes) -> tuple[bytes, bytes, bytes]:
    """A member as it is stored: its header, its body, and the padding of the last block."""
    return header(name, len(body)), body, _ZEROS_OF_A_BLOCK[: -len(body) % BLOCK]


_ZEROS_OF_A_BLOCK = bytes(BLOCK)


def write_tar(out: BinaryIO, members: Iterable[Member]) -> Iterator[Placed]:
    """Write the members in order; yields each one's place after writing it. The end mark follows the last."""
    at = 0
    for member in members:
        body = member.body if isinstance(member.body, bytes) else member.body.read_bytes()
        for piece in segment(member.name, body):
            out.write(piece)
        yield Placed(member.name, at + BLOCK, len(body))
        at += BLOCK + len(body) + -len(body) % BLOCK
    out.write(END)


def pieces(url: str) -> Generator[memoryview]:
    """The object's bytes in order, each view valid until the next. Remote objects are read ahead by some ranges."""
    with store.open_read(url) as file:
        if store.is_local(url) or not file.seekable():
            buffer = memoryview(bytearray(PIECE))
            while length := file.readinto(buffer):  # type: ignore[attr-defined]
                yield buffer[:length]
            return
        size = file.seek(0, os.SEEK_END)
    ranges = ((start, min(RANGE, size - start)) for start in range(0, size, RANGE))
    with closing(map_in_order(lambda r: store.read_range(url, *r), ranges, AHEAD, AHEAD)) as bodies:
        for body in bodies:
            yield memoryview(body)


class Source:
    """A tar, or what claims to be one, read once from front to end; after `drain`, its size and sha256 are those of all
    its bytes. The sha256 has a picture's own sha256 in place of its bytes where these were taken by `picture`.

    `pieces` are its bytes in order, each valid until the next is requested, so that one buffer may be reused for all.
    """

    def __init__(self, pieces: Iterable[memoryview]):
        self.size, self.sha256 = 0, hashlib.sha256()
        self._pieces, self._piece, self._at = iter(pieces), memoryview(b""), 0
        self._hashed = 0  # bytes of the piece that the sha256 covers

    @property
    def at(self) -> int:
        """The next byte's offset in the tar."""
        return self.size - len(self._piece) + self._at

    def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end."""
        begin, end = self._at, self._at + length
        if end <= len(self._piece):
            self._at = end
            return self._piece[begin:end].tobytes()
        return b"".join(map(bytes, self.views(length)))

    def views(self, length: int) -> Iterator[memoryview]:
        """The next `length` bytes without copying, each view valid until the next."""
        while length > 0 and (self._at < len(self._piece) or self._next()):
            view = self._piece[self._at : self._at + length]
            self._at += len(view)
            length -= len(view)
            yield view

    def picture(self, length: int, keep: bool = False) -> tuple[bytes, str]:
        """The next `length` bytes, fewer at the end, and their sha256, which the tar's sha256 takes in their place, so
        that each byte is hashed once. Without `keep` no bytes are returned."""
        begin, end = self._at, self._at + length
        self.sha256.update(self._piece[self._hashed : begin])
        if end <= len(self._piece):  # as most are: a piece holds many pictures
            view = self._piece[begin:end]
            digest, body = hashlib.sha256(view).digest(), view.tobytes() if keep else b""
            self._at = self._hashed = end
        else:
            self._hashed, hashed, bodies = begin, hashlib.sha256(), []
            for view in self.views(length):
                hashed.update(view)
                self._hashed = self._at
                if keep:
                    bodies.append(bytes(view))
            digest, body = hashed.digest(), b"".join(bodies)
        self.sha256.update(digest)
        return body, digest.hex()

    def pass_to(self, place: int) -> int:
        """Skip to this offset in the tar, or to its end; returns the offset reached."""
        before = self.size - len(self._piece)
        self._at = place - before
        while self._at > len(self._piece):
            before = self.size
            self._at = place - before if self._next() else 0
        return before + self._at

    def drain(self) -> None:
        """Skip the rest."""
        while self._next():
            pass
        self._at = 0

    def _next(self) -> bool:
        self.sha256.update(self._piece[self._hashed :])
        self._piece, self._at, self._hashed = next(self._pieces, memoryview(b"")), 0, 0
        self.size += len(self._piece)
        return len(self._piece) > 0


def is_picture(name: str) -> bool:
    """Whether a member of a tar of ours is a picture; the others describe one."""
    return not name.endswith(".json")


def tar_sha256(pieces: Iterable[memoryview]) -> str:
    """The sha256 of a tar of ours since format 2: of its bytes in order, with each picture's own sha256 (32 bytes) in
    place of the picture's bytes. Raises ValueError as `walk`."""
    source = Source(pieces)
    for member in walk(source):
        if is_picture(member.name):
            source.picture(member.length)
    source.drain()
    return source.sha256.hexdigest()


class Walkable(Protocol):
    """What `walk` reads: a Source, or Headers if only some members' bytes are needed."""

    @property
    def at(self) -> int: ...

    def take(self, length: int) -> bytes: ...

    def pass_to(self, place: int) -> int: ...


class Headers:
    """A local tar of which only headers, and the bytes that are taken, are read."""

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, file.seek(0, os.SEEK_END)
        self.at = file.seek(0)

    def take(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the end."""
        body = self._file.read(length)
        self.at += len(body)
        return body

    def pass_to(self, place: int) -> int:
        """Go to this offset in the tar, or to its end; returns the offset reached."""
        self.at = self._file.seek(min(place, self._size))
        return self.at


def walk(source: Walkable, links: bool = False) -> Iterator[Placed]:
    """Each regular file in turn, also with long names of GNU tar and POSIX.1-2001 (pax). With `links`, hard and
    symbolic links, too.

    Until the next is requested, the caller may take the body from the source; the rest of it is skipped. Raises
    ValueError naming the offset where the tar is torn or damaged.
    """
    long_name, long_size = None, None  # from extended headers before the file's own
    at = source.at
    while True:
        head = source.take(BLOCK)
        if head == _ZEROS_OF_A_BLOCK:
            return
        if len(head) < BLOCK:
            raise ValueError(f"the tar ends at byte {at + len(head)} without its end mark: it was cut short")
        name, length, kind = _parse(head, at)
        if length < 0:  # following it would loop forever
            raise ValueError(f"the tar has no valid header at byte {at}: its member's size is {length}")
        if kind in _ABOUT_THE_NEXT and length > PIECE:  # no name is that long: the header is damaged
            raise ValueError(f"the tar has no valid extended header at byte {at}")
        if kind == tarfile.GNUTYPE_LONGNAME:
            long_name = source.take(length).partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind == tarfile.XHDTYPE:
            records = _pax(source.take(length), at)
            if any(name.startswith("GNU.sparse.") for name in records):
                raise ValueError(f"the tar holds a sparse file at byte {at}: pack it again without --sparse")
            long_name, long_size = records.get("path", long_name), _pax_size(records, at)
        elif kind in _META:
            pass
        else:
            name, length = long_name or name, length if long_size is None else long_size
            long_name, long_size = None, None
            if kind in _REGULAR:
                yield Placed(name, at + BLOCK, length)
            elif kind in _BODILESS:
                length = 0
                if links and kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
                    target = head[157:257].partition(b"\0")[0].decode("utf-8", "surrogateescape")
                    yield Placed(name, at + BLOCK, 0, target)
        end = at + BLOCK + length
        at = source.pass_to(end + -length % BLOCK)
        if at < end:
            raise ValueError(f"the tar ends inside {_shown(name)} at byte {at}: it was cut short")


def _shown(name: str) -> str:
    """A member's name for a one-line message."""
    return name[:200] if name.isprintable() else ascii(name[:200])


_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_ABOUT_THE_NEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
_META = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)
_BODILESS = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def _parse(head: bytes, at: int) -> tuple[str, int, bytes]:
    """(name, length, type) of the header at this byte."""
    # Most headers are our own, and equal what `header` makes.
    raw, mode_to_gid, size, mtime, total, from_type = _OWN.unpack(head)
    if (mode_to_gid, mtime, from_type) == _ALWAYS and size.isdigit():
        try:
            raw = raw.rstrip(b"\0")
            name, length = raw.decode("ascii"), int(size, 8)
            if b"%06o" % (_FIXED_SUM + sum(raw) + sum(size)) == total:
                return name, length, tarfile.REGTYPE
        except ValueError:
            pass
    try:
        info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ValueError(f"the tar has no valid header at byte {at}: {error}") from None
    if info.type == tarfile.GNUTYPE_SPARSE:
        raise ValueError(
            f"the tar holds {_shown(info.name)} at byte {at} as a sparse file: pack it again without --sparse"
        )
    return info.name, info.size, info.type


def _pax(body: bytes, at: int) -> dict[str, str]:
    """The records of an extended header, each "LENGTH KEY=VALUE\\n"; LENGTH counts the whole record (POSIX.1-2001)."""
    records = {}
    while body.strip(b"\0"):
        length, _, rest = body.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 10 else 0
        key, equals, value = rest[: max(0, size - len(length) - 1)].partition(b"=")
        if not equals:
            raise ValueError(f"the tar has no valid extended header at byte {at}")
        records[key.decode("utf-8", "replace")] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        body = body[size:]
    return records


def _pax_size(records: dict[str, str], at: int) -> int | None:
    size = records.get("size")
    if size is not None and not re.fullmatch("[0-9]{1,19}", size):
        raise ValueError(f"the tar has no valid extended header at byte {at}: its member's size is {size[:40]!r}")
    return None if size is None else int(size)


def read_tar(file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """(name, data offset, body) of each regular file. Raises ValueError naming the offset where the tar is torn."""
    source = Source(map(memoryview, iter(lambda: file.read(PIECE), b"")))
    for member in walk(source):
        body = source.take(member.length)
        if len(body) == member.length:
            yield member.name, member.offset, body
