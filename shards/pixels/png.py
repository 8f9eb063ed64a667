"""Repair of PNG files whose picture is whole, but whose ancillary chunks are damaged: these chunks are removed.

A chunk is ancillary if its type begins with a small letter (PNG 3, 5.4): no decoder needs it. If its CRC or length is
wrong it is removed, before or after the data; except tRNS (transparency), which affects pixels.
"""

from __future__ import annotations

import re
import struct
import zlib

START = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
_KINDS = re.compile(rb"IDAT|IEND|PLTE|tRNS|gAMA|pHYs|tEXt|zTXt|iTXt|iCCP|sRGB|cHRM|tIME|eXIf|bKGD|sBIT|hIST|sPLT")


def repaired(body: bytes) -> bytes:
    """The body without damaged ancillary chunks, and with the end chunk if it was lost among them. A body that is sound
    or damaged in another way is returned unchanged: its decoder reports the damage."""
    kept, at, data, bad = [START], len(START), False, False
    while at < len(body):
        kind, end = body[at + 4 : at + 8], at + 12 + int.from_bytes(body[at : at + 4], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            if end > len(body):
                return body  # cut inside a chunk that affects pixels
            kept.append(body[at:end])
            data |= kind == b"IDAT"
            if kind == b"IEND":
                return b"".join(kept) if bad else body
            at = end
        elif _is_sound(body, at, end):
            kept.append(body[at:end])
            at = end
        elif len(kind) < 4 or not kind.isalpha() or 0x61 <= kind[0] <= 0x7A:
            bad, at = True, _next(body, at, end)
        else:
            return body  # an unknown critical chunk
    return b"".join([*kept, END]) if bad and data else body


def _is_sound(body: bytes, at: int, end: int) -> bool:
    if end > len(body) or not body[at + 4 : at + 8].isalpha():
        return False
    return zlib.crc32(memoryview(body)[at + 4 : end - 4]) == struct.unpack(">I", body[end - 4 : end])[0]


def _next(body: bytes, at: int, end: int) -> int:
    """The offset of the chunk after a damaged one: by its length, if a sound chunk is there; else the next sound chunk
    of a known kind; else the end."""
    length = int.from_bytes(body[end : end + 4], "big")
    if end + 12 <= len(body) and _is_sound(body, end, end + 12 + length):
        return end
    for found in _KINDS.finditer(body, at + 8):
        begin = found.start() - 4
        if _is_sound(body, begin, begin + 12 + int.from_bytes(body[begin : begin + 4], "big")):
            return begin
    return len(body)
