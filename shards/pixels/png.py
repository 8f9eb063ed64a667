"""PNG files whose picture is whole while a remark in them is damaged: the remark goes, the picture stays.

A chunk is ancillary where its type begins with a small letter (PNG 3, 5.4): no decoder needs it. One whose CRC or
length is wrong is left out, before or after the data; what decides pixels (tRNS, transparency) is no such remark.
"""

from __future__ import annotations

import re
import struct
import zlib

START = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
_KINDS = re.compile(rb"IDAT|IEND|PLTE|tRNS|gAMA|pHYs|tEXt|zTXt|iTXt|iCCP|sRGB|cHRM|tIME|eXIf|bKGD|sBIT|hIST|sPLT")


def mended(body: bytes) -> bytes:
    """The same bytes; or those without damaged ancillary chunks, with the end mark if it is lost among these. Bytes
    that are damaged in another way are given back as they are: their decoder says why."""
    kept, at, data, bad = [START], len(START), False, False
    while at < len(body):
        kind, end = body[at + 4 : at + 8], at + 12 + int.from_bytes(body[at : at + 4], "big")
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"):
            if end > len(body):
                return body  # cut inside of what counts
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
            return body  # a critical chunk that nobody knows
    return b"".join([*kept, END]) if bad and data else body


def _is_sound(body: bytes, at: int, end: int) -> bool:
    if end > len(body) or not body[at + 4 : at + 8].isalpha():
        return False
    return zlib.crc32(memoryview(body)[at + 4 : end - 4]) == struct.unpack(">I", body[end - 4 : end])[0]


def _next(body: bytes, at: int, end: int) -> int:
    """Where the chunk after a damaged one begins: where its length says, if a sound one is there; else the next sound
    one of a known kind; else the end."""
    length = int.from_bytes(body[end : end + 4], "big")
    if end + 12 <= len(body) and _is_sound(body, end, end + 12 + length):
        return end
    for found in _KINDS.finditer(body, at + 8):
        begin = found.start() - 4
        if _is_sound(body, begin, begin + 12 + int.from_bytes(body[begin : begin + 4], "big")):
            return begin
    return len(body)
