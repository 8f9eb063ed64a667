"""The header of a plain JPEG, read at a fifth of the cost of Pillow's reader, with the same findings.

Whatever is unusual (junk or fill bytes between segments, a second frame, a profile in several pieces, other pictures in
the same file) and whatever is damaged is left to that reader: it decides what is accepted, and words the errors.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL.JpegImagePlugin import samplings

MOST = 1_000  # segments

_SOS, _DQT, _COM = 0xDA, 0xDB, 0xFE
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SKIPPED = frozenset({0xC4, 0xDD, _SOS, _COM, *range(0xE0, 0xF0)})
_NAMES = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


class Plain(NamedTuple):
    """What the header says."""

    width: int
    height: int
    mode: str  # Pillow's name: "L" or "RGB"
    progressive: bool
    subsampling: str | None  # as `jpeg.sampling`
    exif: bytes  # b"" if there is none
    icc: bool
    gray_first: bool  # whether the first component is the gray picture (libjpeg's jdapimin.c)


def plain(body: bytes) -> Plain | None:
    """The header of a body that begins like a JPEG; None if Pillow has to read it."""
    at, size = 2, len(body)
    frame = exif = b""
    icc = progressive = False
    adobe: int | None = None  # the colour transform that it names, -1 if none
    for _ in range(MOST):
        if at + 4 > size or body[at] != 0xFF:
            return None
        kind, length = body[at + 1], body[at + 2] << 8 | body[at + 3]
        start, at = at + 4, at + 2 + length
        if length < 2 or at > size:
            return None
        if kind in _FRAMES:
            if frame:
                return None
            frame, progressive = body[start:at], kind == 0xC2
        elif kind == _DQT:
            if not _tables(body, start, at):
                return None
        elif kind not in _SKIPPED:
            return None
        elif kind == _SOS:
            return _found(frame, progressive, exif, icc, adobe) if frame else None
        elif kind > 0xE0 and kind != _COM:  # of JFIF nothing is needed
            segment = body[start:at]
            if kind == 0xE1 and segment.startswith(b"Exif\0\0"):
                if exif:
                    return None
                exif = segment
            elif kind == 0xE2 and segment.startswith((b"ICC_PROFILE\0", b"MPF\0")):
                if frame or icc or len(segment) < 15 or segment[13] != 1 or segment[0] == 0x4D:
                    return None  # an odd profile, or an MPF: other pictures follow
                icc = True
            elif kind == 0xEE and segment.startswith(b"Adobe"):
                if len(segment) < 7:
                    return None
                adobe = segment[11] if len(segment) > 11 else adobe if adobe is not None else -1
            elif kind == 0xED and segment.startswith(b"Photoshop 3.0\0") and not _resources_end(segment):
                return None
        elif kind == 0xE0 and length < 9 and body.startswith(b"JFIF", start):
            return None
    return None


def _tables(body: bytes, at: int, end: int) -> bool:
    """Whether a segment holds whole quantisation tables."""
    while at < end:
        at += 65 if body[at] < 16 else 129
    return at == end


def _resources_end(segment: bytes) -> bool:
    """Whether a walk over Photoshop's resources stays inside their segment."""
    at = 14
    while segment[at : at + 4] == b"8BIM":
        if at + 6 >= len(segment):
            return False
        at += 7 + segment[at + 6]
        at += at & 1
        at += 4 + int.from_bytes(segment[at : at + 4], "big")
        at += at & 1
    return True


def _found(frame: bytes, progressive: bool, exif: bytes, icc: bool, adobe: int | None) -> Plain | None:
    layers = frame[5] if len(frame) > 5 else 0
    width, height = frame[3] << 8 | frame[4], frame[1] << 8 | frame[2]
    if layers not in (1, 3) or len(frame) != 6 + 3 * layers or frame[0] != 8 or not (width and height):
        return None
    factors = [(each >> 4, each & 15) for each in frame[7::3]]
    subsampling = None
    if layers == 3:
        number = samplings.get((*factors[0], *factors[1], *factors[2]), -1)
        subsampling = _NAMES.get(number) or f"{factors[0][0]}x{factors[0][1]}"
    gray_first = layers == 1 or (adobe in (None, 1) and frame[6::3] == b"\1\2\3")
    return Plain(width, height, "L" if layers == 1 else "RGB", progressive, subsampling, exif, icc, gray_first)
