"""What a picture would cost to decode, from its first bytes only: no decoder runs, nothing is allocated."""

from __future__ import annotations

import struct

HEAD = 64  # bytes of a body that are read
LARGE = 1 << 24  # pixels
PIXELS_A_BYTE = 1_000  # more is a bomb; the emptiest of 121,000 photographs has 12.5


def is_costly(head: bytes, size: int) -> bool:
    """Whether decoding may take seconds or hundreds of megabytes: more than LARGE pixels in a format that must be
    decoded whole. A JPEG is never costly: an eighth of its side is enough.

    `head` are at least the first HEAD bytes of a body of `size` bytes. A TIFF does not have its size there; it is
    costly if it is large enough to hold LARGE pixels. Smaller files are refused as bombs, see `promises_too_much`.
    """
    if size * PIXELS_A_BYTE < LARGE:
        return False
    if head.startswith((b"II", b"MM")):
        return True
    width, height = _sides(head)
    return width * height > LARGE


def promises_too_much(width: int, height: int, size: int) -> bool:
    """Whether a header claims so many pixels for a file of `size` bytes that it must be a bomb."""
    return width * height > PIXELS_A_BYTE * size


def _sides(head: bytes) -> tuple[int, int]:
    """(width, height); (0, 0) if this format does not have them here."""
    if head.startswith(b"\x89PNG") and len(head) >= 24:
        return struct.unpack(">II", head[16:24])  # type: ignore[return-value]
    if head.startswith((b"GIF87a", b"GIF89a")) and len(head) >= 10:
        return struct.unpack("<HH", head[6:10])  # type: ignore[return-value]
    if head.startswith(b"BM") and len(head) >= 26:
        width, height = struct.unpack("<ii", head[18:26])
        return abs(width), abs(height)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp(head)
    return 0, 0


def _webp(head: bytes) -> tuple[int, int]:
    """(width, height) of a WebP (RFC 9649, 2.5 to 2.7)."""
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF
