"""JPEG data that decodes although it is damaged: libjpeg only warns, and Pillow ignores the warnings.

libjpeg never refuses entropy-coded data: it fills gaps with gray and skips what is left over. What is checked here:

- One sequential scan (nearly every JPEG): that the decoder needs all of the data and nothing more. Damage shifts the
  code, so the decoder finishes before the data ends, or runs out of it (`_Gauge`).
- Several scans (progressive): that the file ends, that no scan is empty, that each scan follows from the ones before
  it, and that every component has data. Damaged bytes inside a progressive scan are found only where `entropy.c` is
  built, which walks its codes; of several sequential scans they are not found.
- Restart markers: that each is there, in order; for one sequential scan also, as above, that the decoder needs all of
  the data between each two of them (Photoshop writes one for each row of blocks: 7 % of pictures on the web).

Sources: ITU-T T.81 (B.1, B.2, G.1); libjpeg-turbo's jdhuff.c and jdmarker.c for what the decoder tolerates.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, JpegImagePlugin

from shards.pixels import entropy
from shards.pixels.jpeg_header import Plain

END = b"\xff\xd9"
MAX_SEGMENTS = 10_000  # of a file; a photograph has some 20, a profile of 16 MB some 250
MAX_JUNK = 65_536  # bytes between the segments of the header
LARGE = 1 << 20  # bytes
MAX_SCANS = 100  # each costs a pass over the whole picture, however short the scan; encoders write about ten

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # as libjpeg: junk between segments is skipped
_SCAN_STOP = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a stuffed zero, a fill byte or a restart
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
MAX_INTERVALS = 1024  # intervals between restart markers that are decoded one by one; with more, only order is checked

_RESTART_INTERVAL = b"\xff\xdd\x00\x04"
# Bytes that a decoder would read in place of missing data; no 0xff. Any two strings that differ in every byte would do.
_FILLERS = bytes(range(3, 195, 3)), bytes(range(194, 2, -3))


_DAMAGED = "damaged jpeg data: the picture is complete before its data ends"


class Damaged(ValueError):
    """The JPEG is not whole; the message says why."""


class Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's reader without reading the EXIF resolution: a hostile file can make that parser copy gigabytes."""

    def _read_dpi_from_exif(self) -> None:
        pass


@dataclass(frozen=True)
class Scan:
    """One scan: its components and coefficients, and the place of its data."""

    components: tuple[int, ...]
    first: int  # coefficients in zigzag order, T.81 G.1.1.1.1
    last: int
    high: int  # point transforms of the scan before, 0 if none, and of this one
    low: int
    start: int  # of the entropy-coded data
    stop: int
    restarts: int  # MCUs between restart markers, 0 if none are used


def opened(body: bytes) -> Jpeg:
    """Read the header. Raises Damaged if that would take long, and whatever Pillow raises."""
    if len(body) > LARGE:  # Pillow's reader looks at every byte of junk and every segment, in Python
        _check_head(body)
    return Jpeg(io.BytesIO(body))


def load(image: Jpeg, body: bytes, mode: str | None = None, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an opened JPEG, strictly. Returns the picture, which may be another object.

    With a size, decodes at the smallest of 1/1, 1/2, 1/4, 1/8 that is at least as large on both sides, and in `mode`
    ("RGB", "L") if that is a simplification (Pillow's `draft`).

    Raises Damaged, and whatever Pillow raises.
    """
    sound, _ = entropy.progressive(body, image.width, image.height) if _progressive(image) else (None, None)
    if sound:
        _drafted(image, mode, size).load()
        return image
    assert image.fp is not None
    start = image.fp.tell()  # Pillow stops reading where the data of the first scan begins
    if _plain(image, body, start):
        if _measured(_drafted(image, mode, size), body, start, len(body) - len(END)):
            return image
        image = Jpeg(io.BytesIO(body))  # the file may continue after the picture's end: check in detail
    scans, end = scans_of(body)
    _check_scans(image, scans, body)
    if end is None:
        raise Damaged("truncated: the jpeg has no end marker")
    if sound is False:
        raise Damaged(_DAMAGED)
    if len(scans) > 1 or _progressive(image):
        _drafted(image, mode, size).load()
        return image
    sound = _intervals_sound(image, scans[0], body)
    if not (sound and _measured(_drafted(image, mode, size), body, scans[0].start, end)):
        raise Damaged(_DAMAGED)
    return image


def walked(head: Plain, body: bytes, short: int) -> Image.Image | None:
    """The gray picture at an eighth of its size, if that has `short` pixels on both sides and the accelerator finds the
    body sound."""
    if min(head.width, head.height) < 8 * short or not head.gray_first:
        return None
    if head.progressive:
        _, plane = entropy.progressive(body, head.width, head.height)
    else:
        plane = entropy.plane(body, head.width, head.height)
    return Image.frombytes("L", *plane) if plane is not None else None


def repaired(body: bytes) -> bytes:
    """The body with its missing end marker, if nothing else is missing; else the body unchanged.

    If the data is whole, the decoder does not use bytes that follow it, so two different continuations give the same
    picture. Files of several scans are not repaired: a scan could be missing.
    """
    if body.endswith(END):
        return body
    scans, end = scans_of(body)
    image = Jpeg(io.BytesIO(body))
    if end is not None or len(scans) != 1 or _progressive(image):
        return body
    pictures = set()
    try:
        _check_scans(image, scans, body)
        for filler in _FILLERS:
            image = Jpeg(io.BytesIO(body + filler + END))
            image.load()
            pictures.add(image.tobytes())
    except (OSError, Damaged):  # the decoder needs more data
        return body
    return body + END if len(pictures) == 1 else body


def scans_of(body: bytes) -> tuple[list[Scan], int | None]:
    """The scans of the first JPEG in a body, and the offset of its end marker if it has one. Raises Damaged."""
    at, scans, restarts = 2, [], 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(body, at)
        if marker is None:
            return scans, None
        code, at = marker[1][0], marker.end()
        if code == 0xD9:
            return scans, at - 2
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        length = int.from_bytes(body[at : at + 2], "big")
        segment, at = body[at + 2 : at + length], at + length
        if code == 0xDD:
            restarts = int.from_bytes(segment[:2], "big")
        if code == 0xDA:
            if len(scans) == MAX_SCANS:
                raise Damaged(f"jpeg with more than {MAX_SCANS} scans")
            stop = _SCAN_STOP.search(body, at)
            end = stop.start() if stop else len(body)
            scans.append(_scan(segment, at, end, restarts))
            at = end
    raise Damaged(f"jpeg with more than {MAX_SEGMENTS} segments")


def _scan(segment: bytes, start: int, stop: int, restarts: int) -> Scan:
    count = segment[0] if segment else 0
    if count == 0 or len(segment) != 4 + 2 * count:
        raise Damaged("damaged jpeg: a scan without a header")
    first, last, shift = segment[-3:]
    return Scan(tuple(segment[1:-3:2]), first, last, shift >> 4, shift & 15, start, stop, restarts)


def _check_head(body: bytes) -> None:
    at, junk = 2, 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(body, at)
        if marker is None or marker[1][0] == 0xDA:
            return
        junk += marker.start() - at
        if junk > MAX_JUNK:
            raise Damaged(f"damaged jpeg: more than {MAX_JUNK} bytes between the segments of its header")
        at = marker.end()
        if marker[1][0] != 0x01 and not 0xD0 <= marker[1][0] <= 0xD9:
            at += int.from_bytes(body[at : at + 2], "big")
    raise Damaged(f"jpeg with more than {MAX_SEGMENTS} segments")


def _progressive(image: Jpeg) -> bool:
    return bool(image.info.get("progressive"))


def _drafted(image: Jpeg, mode: str | None, size: tuple[int, int] | None) -> Jpeg:
    if size is not None:
        image.draft(mode, size)
    return image


def _plain(image: Jpeg, body: bytes, start: int) -> bool:
    """Whether this looks like one scan of all components that ends with the file, so that no search is needed."""
    header = 6 + 2 * image.layers
    scan = body[start - header : start - header + 3]
    return (
        body.endswith(END)
        and scan == header.to_bytes(2, "big") + bytes([image.layers])
        and not _progressive(image)
        and "mp" not in image.info  # a second picture follows
        and body.find(_RESTART_INTERVAL, 0, start) < 0
    )


def _measured(image: Jpeg, body: bytes, start: int, end: int) -> bool:
    """Decode; returns whether all of the data was needed. Raises OSError if more was needed."""
    gauge = image.fp = _Gauge(body, start, end)
    image.load()
    return gauge.pieces == 2


class _Gauge(io.BytesIO):
    """A JPEG with one scan, as a file that measures how much of its data the decoder needs.

    It is read in two pieces: all but the last bytes of the scan, then these with a few zeros in place of the end
    marker. A sound picture needs the second piece and nothing after it (Pillow raises if it needs more).
    """

    LAST = 16  # bytes; some encoders leave a few unused, damage usually leaves more
    AHEAD = 8  # bytes that libjpeg reads beyond those it needs

    def __init__(self, body: bytes, start: int, end: int) -> None:
        super().__init__()
        cut = max(start, end - self.LAST)
        self._todo = [body[cut:end] + bytes(self.AHEAD), body[:cut]]
        self.pieces = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.pieces += 1
        return self._todo.pop() if self._todo else b""


def _check_scans(image: Jpeg, scans: Sequence[Scan], body: bytes) -> None:
    """Raises Damaged if scans are invalid or missing."""
    known = {layer[0]: layer for layer in image.layer}
    progress: dict[int, list[int | None]] = {component: [None] * 64 for component in known}  # bits not yet read
    for scan in scans:
        if not set(scan.components) <= set(known):
            raise Damaged("damaged jpeg: a scan refers to a component that does not exist")
        if scan.stop == scan.start:
            raise Damaged("damaged jpeg: an empty scan")
        if scan.restarts:
            _check_restarts(image, scan, body)
        if not _progressive(image):
            scan = Scan(scan.components, 0, 63, 0, 0, scan.start, scan.stop, 0)
        elif not 0 <= scan.first <= scan.last <= 63:
            raise Damaged("damaged jpeg: a scan refers to coefficients that do not exist")
        for component in scan.components:
            bits = progress[component]
            before = set(bits[scan.first : scan.last + 1])
            if before != ({scan.high} if scan.high else {None}) or (scan.high and scan.low != scan.high - 1):
                raise Damaged("damaged jpeg: its scans do not follow from one another")
            bits[scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
    if any(bits[0] is None for bits in progress.values()):
        raise Damaged("damaged jpeg: a component has no data")


def _check_restarts(image: Jpeg, scan: Scan, body: bytes) -> None:
    numbers = [marker[1][0] & 7 for marker in _RESTART.finditer(body, scan.start, scan.stop)]
    if numbers != [n & 7 for n in range(math.ceil(_blocks(image, scan) / scan.restarts) - 1)]:
        raise Damaged("damaged jpeg: restart markers are missing")


def _blocks(image: Jpeg, scan: Scan) -> int:
    """How many MCUs a scan has (T.81 A.2)."""
    across, down = (max(layer[k] for layer in image.layer) for k in (1, 2))
    width, height = image.size
    if len(scan.components) > 1:
        return math.ceil(width / (8 * across)) * math.ceil(height / (8 * down))
    own = next(layer for layer in image.layer if layer[0] == scan.components[0])
    wide, high = math.ceil(width * own[1] / across), math.ceil(height * own[2] / down)
    return math.ceil(wide / 8) * math.ceil(high / 8)


def _intervals_sound(image: Jpeg, scan: Scan, body: bytes) -> bool:
    """Whether the decoder needs all data between restart markers. It starts afresh after each marker, so each interval
    is decoded as a separate picture, one MCU high."""
    if not scan.restarts:
        return True
    cuts = [scan.start - 2, *(marker.start() for marker in _RESTART.finditer(body, scan.start, scan.stop)), scan.stop]
    if len(cuts) - 1 > MAX_INTERVALS:
        return True
    interleaved = len(scan.components) > 1
    width, height = (8 * max(layer[k] for layer in image.layer) if interleaved else 8 for k in (1, 2))
    blocks = _blocks(image, scan)
    for at, (start, stop) in enumerate(itertools.pairwise(cuts)):
        size = min(scan.restarts, blocks - at * scan.restarts) * width
        if size > 65_500:
            return True
        head = _head(body, scan.start, size, height)
        alone = head + body[start + 2 : stop] + END
        try:
            if not _measured(_drafted(Jpeg(io.BytesIO(alone)), "L", (1, 1)), alone, len(head), len(alone) - len(END)):
                return False
        except OSError:
            return False
    return True


def _head(body: bytes, end: int, width: int, height: int) -> bytes:
    """The segments of a header ending at `end` that the decoder needs, for a picture of another size."""
    pieces, at = [body[:2]], 2
    while marker := _MARKER.search(body, at, end):
        code, at = marker[1][0], marker.end()
        if code == 0x01 or 0xD0 <= code <= 0xD9:
            continue
        length = int.from_bytes(body[at : at + 2], "big")
        segment, at = body[at : at + length], at + length
        if 0xC0 <= code <= 0xC2:
            segment = segment[:3] + struct.pack(">HH", height, width) + segment[7:]
        if code not in (0xDD, 0xFE) and not 0xE0 <= code <= 0xEF:
            pieces.append(bytes((0xFF, code)) + segment)
    return b"".join(pieces)


def sampling(image: Jpeg) -> str | None:
    """The chroma subsampling: "4:2:0", or "HxV" of the first component if unusual; None for gray."""
    if image.layers < 2:
        return None
    named = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(JpegImagePlugin.get_sampling(image))
    return named or f"{image.layer[0][1]}x{image.layer[0][2]}"
