"""A damaged remark in a PNG does not cost its picture, and a damaged picture is not made one."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from shards.pixels import image, png


def chunk(kind: bytes, body: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", crc)


def picture() -> tuple[bytes, bytes, bytes]:
    """What is before the data, the data, and the end."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(out, "PNG")
    body = out.getvalue()
    return body[:33], body[33:-12], body[-12:]


HEAD, DATA, END = picture()
WHOLE = HEAD + DATA + END
PIXELS = image.decode(WHOLE).tobytes()
DAMAGE = [
    {"crc": 7},
    {"length": 3},
    {"length": 70},
    {"length": 1 << 31},
    {"length": 0},
    {"crc": 0, "length": 12},
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", [b"tEXt", b"gAMA", b"pHYs", b"zTXt", b"eXIf", b"iCCP", b"prVt"])
def test_a_damaged_remark_before_or_after_the_data(kind: bytes, damage: dict[str, int]) -> None:
    bad = chunk(kind, b"Comment\0a remark of no use", **damage)
    for body in (HEAD + bad + DATA + END, HEAD + DATA + bad + END, HEAD + bad + bad + DATA + bad + END):
        assert png.repaired(body) == WHOLE
        assert image.repaired(body) == WHOLE
    cut = HEAD + DATA + bad[:-6]
    assert image.decode(png.repaired(cut)).tobytes() == PIXELS


def test_a_sound_file_is_given_back_itself() -> None:
    for body in (WHOLE, HEAD + chunk(b"tEXt", b"a\0b") + DATA + END, WHOLE + b"trailing"):
        assert png.repaired(body) is body


@pytest.mark.parametrize("kind", [b"IDAT", b"PLTE", b"tRNS", b"ABCD"])
def test_what_counts_is_never_left_out(kind: bytes) -> None:
    body = HEAD + chunk(kind, b"1234", crc=7) + DATA + END
    assert png.repaired(body) is body


@settings(max_examples=300, deadline=None)
@given(at=st.integers(8, len(WHOLE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_no_damage_to_the_data_becomes_a_picture(at: int, byte: int, cut: bool) -> None:
    body = WHOLE[:at] if cut else WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :]
    try:
        assert image.decode(png.repaired(body)).tobytes() == PIXELS
    except image.Undecodable:
        with pytest.raises(image.Undecodable):
            image.decode(body)
