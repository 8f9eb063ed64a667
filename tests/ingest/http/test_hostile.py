"""Whatever a body holds, `judge` comes to a verdict, soon and in bounded memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from ingest.filter import FilterConfig, judge
from ingest.isolate import WORK, judge_apart
from ingest.record import CONTENT, Fetched, Link, Verdict
from shards.pixels.isolate import Child

CONFIGS = [
    FilterConfig(max_pixels=1_000_000),
    FilterConfig(max_pixels=1_000_000, resize=40),
    FilterConfig(max_pixels=1_000_000, decode_check=False),
]


def fetched(body: bytes) -> Fetched:
    return Fetched(Link("k", "http://a/1", (), 0), body, None, "", 200, "http://a/1", 1, 5, 1.5)


def encode(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    random = np.random.default_rng(0)
    pixels = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).resize((120, 90)).convert(mode)
    out = io.BytesIO()
    pixels.save(out, kind, **options)
    return out.getvalue()


SOUND = [
    encode("JPEG"),
    encode("JPEG", progressive=True),
    encode("JPEG", restart_marker_rows=1),
    encode("JPEG", "L"),
    encode("JPEG", "CMYK"),
    encode("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    encode("PNG"),
    encode("PNG", "RGBA"),
    encode("PNG", "P"),
    encode("WEBP"),
    encode("WEBP", "RGBA", lossless=True),
    encode("GIF"),
    encode("BMP"),
    encode("TIFF"),
    encode("TIFF", compression="tiff_lzw"),
    encode("TIFF", "CMYK", compression="jpeg"),
]


def check(body: bytes, config: FilterConfig) -> Verdict:
    found = judge(fetched(body), config)
    assert (found.reason in CONTENT) != found.keep
    assert found.keep or (found.detail and "\n" not in found.detail and found.body == body)
    return found


@pytest.mark.parametrize("body", SOUND, ids=range(len(SOUND)))
def test_the_seeds_are_kept(body: bytes) -> None:
    assert check(body, CONFIGS[0]).keep


@pytest.mark.parametrize("body", SOUND, ids=range(len(SOUND)))
def test_every_kind_of_mutilation_ends_in_a_verdict(body: bytes) -> None:
    random = np.random.default_rng(len(body))
    for turn in range(90):
        mutant = bytearray(body)
        for _ in range(int(random.integers(1, 6))):
            reach = len(mutant) if random.random() < 0.4 else min(len(mutant), 700)  # headers, mostly
            at = int(random.integers(0, max(1, reach)))
            how = random.integers(0, 6)
            if how == 0:
                mutant[at : at + 1] = random.bytes(1)
            elif how == 1:
                del mutant[at : at + int(random.choice([1, 4, 300]))]
            elif how == 2:
                mutant[at:at] = random.bytes(int(random.choice([1, 4, 300])))
            elif how == 3:
                mutant[at : at + 4] = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\xff\xff"][at % 4]
            elif how == 4:
                mutant[at : at + 2] = bytes(
                    (0xFF, int(random.choice([0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xD9, 0xD0])))
                )
            else:
                del mutant[at:]
        check(bytes(mutant), CONFIGS[turn % len(CONFIGS)])


STARTS = [body[:12] for body in SOUND] + [b"8BPS", b"\0\0\0\x20ftypavif", b"RIFF\x10\0\0\0WEBPVP8X"]


@given(st.sampled_from(STARTS), st.binary(max_size=300), st.sampled_from(CONFIGS))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_anything_after_a_known_beginning_ends_in_a_verdict(start: bytes, rest: bytes, config: FilterConfig) -> None:
    check(start + rest, config)


# --- made to be expensive ------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colour: int = 2, *more: bytes) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    rows = zlib.compressobj(9)
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bombs() -> bytes:
    packed = zlib.compress(bytes(1_000_000), 9)
    return png(64, 64, 2, *[chunk(b"zTXt", b"k%d\0\0" % n + packed) for n in range(500)])


def profile_bomb() -> bytes:
    return png(64, 64, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200_000_000), 9)))


def overlapping_tags() -> bytes:
    """Thousands of TIFF tags that all point at the same two megabytes."""
    count, length = 5000, 2_000_000
    head = struct.pack("<2sHIH", b"II", 42, 8, count)
    tags = b"".join(struct.pack("<HHII", 40_000 + n, 1, length, 100_000) for n in range(count))
    return head + tags + bytes(4) + bytes(length + 100_000)


def many_segments() -> bytes:
    return SOUND[0][:20] + b"\xff\xfe\0\2" * 2_000_000 + SOUND[0][20:]


def exif_bomb() -> bytes:
    """The same in the EXIF of a JPEG, over many segments."""
    data = overlapping_tags()
    step = 65_000
    pieces = (b"Exif\0\0" + data[at : at + step] for at in range(0, len(data), step))
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(piece) + 2) + piece for piece in pieces)
    return SOUND[0][:2] + segments + SOUND[0][20:]


def many_restarts() -> bytes:
    """A restart marker after each of 62,500 blocks."""
    out = io.BytesIO()
    Image.effect_noise((4000, 4000), 30).save(out, "JPEG", restart_marker_blocks=1, quality=10)
    return out.getvalue()


def gif_comments() -> bytes:
    body = encode("GIF")
    start = 13 + (3 << ((body[10] & 7) + 1) if body[10] & 0x80 else 0)
    return body[:start] + b"!\xfe" + (b"\xff" + b"a" * 255) * 60_000 + b"\0" + body[start:]


def many_strips() -> bytes:
    """A TIFF that lists eight million strips and needs a thousand."""
    count = 8_000_000
    short = {256: 1000, 257: 1000, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1, 279: 1000}
    tags = [(tag, 4, 1, value) for tag, value in short.items()] + [(273, 4, count, 8 + 2 + 12 * 9 + 4)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags)) + bytes(4 + 4 * count)


EXPENSIVE = [
    png(9_400, 9_400, 6),
    png(9_400, 9_400, 0),
    text_bombs(),
    profile_bomb(),
    overlapping_tags(),
    many_segments(),
    exif_bomb(),
    many_restarts(),
    gif_comments(),
    many_strips(),
]


@pytest.mark.slow
@pytest.mark.parametrize("body", EXPENSIVE, ids=range(len(EXPENSIVE)))
def test_what_is_made_to_be_expensive_is_not(body: bytes) -> None:
    """In a child, whose memory and time are bounded and whose death would show in the detail."""
    with Child(WORK, seconds=60) as child:
        found = judge_apart(child, fetched(body), FilterConfig())
    assert not any(word in found.detail for word in ("kills", "takes", "needs")), found.detail
