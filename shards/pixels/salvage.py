"""The part of a damaged picture that can be decoded: to show people what was refused, not for training.

A JPEG gets a missing end marker, and libjpeg fills missing data with gray. Of a PNG the data that can be inflated is
kept, the rest becomes gray, and the chunks are written again. Other formats are not shown: their decoders give all or
nothing. The caps of `image` also hold here, with a lower one for pixels.
"""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from shards.pixels import image, jpeg, png
from shards.pixels.cost import promises_too_much

MAX_PIXELS = 16_000_000  # of a picture that is shown
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types (PNG 3, 11.2.1)


def salvaged(body: bytes, side: int) -> Image.Image | None:
    """The decodable part of a damaged picture within side x side pixels, as upright RGB. None if there is none: only a
    header, a format that is all or nothing, or more than MAX_PIXELS."""
    kind = image.sniff(body)
    whole = {"jpeg": _jpeg, "png": _png}[kind](body) if kind in ("jpeg", "png") else None
    if whole is None:
        return None
    try:
        header = image.header(whole, MAX_PIXELS)
        if promises_too_much(header.width, header.height, len(body)):
            return None
        if kind == "png":
            small = image.thumbnail(whole, side, MAX_PIXELS)
        else:
            small = _lenient(whole, side, header)
    except Exception:  # for damaged bytes Pillow may raise anything; then there is nothing to show
        return None
    return None if small.getcolors(1) else small  # one colour: no part was decoded


def _lenient(whole: bytes, side: int, header: image.Header) -> Image.Image:
    photo = jpeg.opened(whole)
    photo.draft("RGB", (side, side))
    small = photo.convert("RGB")
    turn = image.turn(header)
    small = small if turn is None else small.transpose(turn)
    small.thumbnail((side, side))
    return small


def _jpeg(body: bytes) -> bytes | None:
    """The body with an end marker; None if it has no data."""
    try:
        scans, end = jpeg.scans_of(body)
    except jpeg.Damaged:
        return None
    if not scans or scans[0].stop - scans[0].start < 16:
        return None
    return body if end is not None else body + jpeg.END


def _png(body: bytes) -> bytes | None:
    """The same picture in sound chunks, with missing data as gray; None if it cannot be rebuilt."""
    chunks = list(_chunks(body))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if interlaced or colour not in _CHANNELS or not 0 < width * height <= MAX_PIXELS:
        return None
    row = b"\0".ljust(1 + (width * _CHANNELS[colour] * depth + 7) // 8, b"\x80" if colour != 3 else b"\0")
    size = height * len(row)
    data = _inflated(b"".join(data for kind, data in chunks if kind == b"IDAT"), size)
    if not data:
        return None
    palette = [chunk for chunk in chunks if chunk[0] in (b"PLTE", b"tRNS")]
    data += (row * height)[len(data) :]
    made = [chunks[0], *palette, (b"IDAT", zlib.compress(data, 1)), (b"IEND", b"")]
    return png.START + b"".join(map(_chunk, made))


def _chunks(body: bytes) -> list[tuple[bytes, bytes]]:
    """(type, data) of each chunk, without checking checksums; the last one may be cut short."""
    found, at = [], len(png.START)
    while at + 8 < len(body) and body[at + 4 : at + 8].isalpha():
        length = int.from_bytes(body[at : at + 4], "big")
        found.append((body[at + 4 : at + 8], body[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _inflated(data: bytes, size: int) -> bytes:
    """At most `size` bytes of the inflated data; of a damaged stream the part before the damage."""
    inflate, out = zlib.decompressobj(), bytearray()
    try:
        for at in range(0, len(data), 512):
            out += inflate.decompress(inflate.unconsumed_tail + data[at : at + 512], size - len(out) + 1)
            if len(out) >= size:
                break
    except zlib.error:
        pass
    return bytes(out[:size])
