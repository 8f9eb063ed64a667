"""The quick reader of a JPEG's header: it finds what Pillow finds, or leaves the body to Pillow."""

import io
import random
import struct

import pytest
from PIL import Image

from shards.pixels import image, jpeg, jpeg_header

EXIF = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


def picture(mode: str = "RGB", **how) -> bytes:
    pixels = Image.effect_noise((67, 45), 60).convert(mode)
    out = io.BytesIO()
    pixels.save(out, "JPEG", **how)
    return out.getvalue()


def with_segments(body: bytes, *segments: tuple[int, bytes]) -> bytes:
    """The body with more segments right after its start."""
    more = b"".join(bytes((0xFF, kind)) + struct.pack(">H", 2 + len(data)) + data for kind, data in segments)
    return body[:2] + more + body[2:]


SOUND = {
    "plain": picture(),
    "gray": picture("L"),
    "progressive": picture(progressive=True),
    "4:4:4": picture(subsampling=0),
    "4:2:2": picture(subsampling=1),
    "turned": picture(exif=EXIF),
    "with a profile": picture(icc_profile=bytes(500)),
    "Adobe's RGB": with_segments(picture(), (0xEE, b"Adobe\0\x64\0\0\0\0\0")),
    "Adobe's YCC": with_segments(picture(), (0xEE, b"Adobe\0\x64\0\0\0\0\1")),
    "Adobe, short": with_segments(picture(), (0xEE, b"Adobe\0\x64")),
    "Photoshop": with_segments(picture(), (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\3abc\0")),
    "comment": with_segments(picture(), (0xFE, b"a picture"), (0xE5, b"?")),
}
LEFT_TO_PILLOW = {
    "CMYK": picture("CMYK"),
    "two EXIF segments": with_segments(picture(exif=EXIF), (0xE1, EXIF)),
    "half a profile": with_segments(picture(), (0xE2, b"ICC_PROFILE\0\1\2half")),
    "other pictures": with_segments(picture(), (0xE2, b"MPF\0MM\0*")),
    "a fill byte": picture()[:2] + b"\xff" + picture()[2:],
    "junk": picture()[:2] + b"junk" + picture()[2:],
    "a short JFIF segment": with_segments(picture(), (0xE0, b"JFIF")),
    "torn tables": with_segments(picture(), (0xDB, bytes(64))),
    "Photoshop, torn": with_segments(picture(), (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4")),
    "cut": picture()[:200],
    "no frame": picture().replace(b"\xff\xc0", b"\xff\xe3", 1),
}


def by_pillow(body: bytes) -> image.Header:
    return image._header(jpeg.opened(body))


@pytest.mark.parametrize("name", SOUND)
def test_it_finds_what_pillow_finds(name):
    found = jpeg_header.plain(SOUND[name])
    assert found is not None
    assert image._plain_header(found) == by_pillow(SOUND[name])


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_what_is_unusual_is_left_to_pillow(name):
    assert jpeg_header.plain(LEFT_TO_PILLOW[name]) is None


def test_gray_comes_first_unless_adobe_or_the_components_say_otherwise():
    firsts = {name: found.gray_first for name in SOUND if (found := jpeg_header.plain(SOUND[name]))}
    assert {name for name, first in firsts.items() if not first} == {"Adobe's RGB", "Adobe, short"}
    at = SOUND["plain"].index(b"\xff\xc0")
    named_rgb = bytearray(SOUND["plain"])
    named_rgb[at + 10 : at + 19 : 3] = b"RGB"
    found = jpeg_header.plain(bytes(named_rgb))
    assert found is not None
    assert not found.gray_first


def test_damaged_headers_are_never_read_otherwise_than_by_pillow():
    draw = random.Random(0)
    seen = 0
    for body in SOUND.values():
        end = body.index(b"\xff\xda") + 16
        for _ in range(400):
            harmed = bytearray(body)
            for _ in range(draw.choice((1, 1, 2, 4))):
                harmed[draw.randrange(2, end)] = draw.choice(
                    (0, 1, 2, 3, 16, 17, 64, 65, 216, 255, draw.randrange(256))
                )
            cut = bytes(harmed[: draw.choice((len(harmed), draw.randrange(2, end)))])
            found = jpeg_header.plain(cut)
            if found is not None:
                seen += 1
                assert image._plain_header(found) == by_pillow(cut)
    assert seen > 500


def test_a_picture_is_opened_by_pillow_only_when_its_pixels_are_needed(monkeypatch):
    opened = image.read(SOUND["turned"])
    assert opened.header.orientation == 6
    assert image.upright(opened).size == (45, 67)
    monkeypatch.setattr(jpeg, "opened", None)
    assert image.header(SOUND["plain"]).subsampling == "4:2:0"
