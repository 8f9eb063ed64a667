"""What a byte string is, whether it is sound, and its pixels."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from origin import unpacked
from PIL import Image

from shards.pixels import image


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 13) % 256], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encode(pixels: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"Exif\0\0" + mark + body


def colours(pixels: Image.Image) -> list[int]:
    assert pixels.mode == "RGB"
    return np.unique(np.asarray(pixels)).tolist()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_every_kept_format_is_detected_by_content_and_decodes(kind: str) -> None:
    body = encode(picture(), kind)
    assert image.sniff(body) == kind
    head = image.header(body)
    assert (head.format, head.width, head.height) == (kind, 64, 48)
    assert image.decode(body).mode == "RGB"
    assert image.decode(body).size == (64, 48)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", None),
        (b"<!DOCTYPE html>", None),
        (b"BM but text", None),
        (b"%PDF-1.4", None),
        (b"8BPS" + bytes(20), "psd"),
    ],
)
def test_sniff_knows_what_is_no_picture_and_what_we_do_not_take(body: bytes, name: str | None) -> None:
    assert image.sniff(body) == name
    with pytest.raises(image.Undecodable) as raised:
        image.header(body)
    assert isinstance(raised.value, image.Unsupported) == (name is not None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_applied(orientation: int, order: str) -> None:
    upright = Image.new("RGB", (64, 32), "blue")
    upright.paste("red", (0, 0, 32, 16))  # the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values that store what turns upright again
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    body = encode(stored, "JPEG", exif=exif(orientation, order), quality=95, subsampling=0)
    assert image.header(body).orientation == orientation
    pixels = np.asarray(image.decode(body)).astype(int)
    assert pixels.shape == (32, 64, 3)
    assert np.abs(pixels - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_out_of_range_is_ignored(orientation: int) -> None:
    body = encode(picture(), "JPEG", exif=exif(orientation))
    assert image.header(body).orientation == 1
    assert image.decode(body).size == (64, 48)


def test_a_turned_tiff_is_turned_once() -> None:
    body = encode(picture(64, 48), "TIFF", tiffinfo={0x0112: 6})
    assert image.decode(body).size == (48, 64)


def test_broken_exif_does_not_cost_the_picture() -> None:
    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-8], b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert image.decode(encode(picture(), "JPEG", exif=junk)).size == (64, 48)


def test_alpha_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert colours(image.decode(encode(clear, "PNG"))) == [255]
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([9] * 768)
    body = encode(palette, "PNG", transparency=3)
    assert colours(image.decode(body)) == [255]


def test_16_bit_gray_keeps_its_high_byte() -> None:
    deep = Image.fromarray(np.full((8, 8), 0x8011, np.uint16))
    assert colours(image.decode(encode(deep, "PNG"))) == [0x80]


def test_cmyk_and_gray_become_rgb() -> None:
    for mode in ("CMYK", "L"):
        body = encode(picture(mode=mode), "JPEG", quality=95)
        assert image.header(body).mode == mode
        off = np.asarray(image.decode(body)).astype(int) - np.asarray(picture(mode=mode).convert("RGB"))
        assert np.abs(off).mean() < 6


def test_header_says_how_a_jpeg_was_made() -> None:
    plain = image.header(encode(picture(), "JPEG", subsampling=2))
    assert (plain.progressive, plain.subsampling, plain.icc, plain.mode) == (False, "4:2:0", False, "RGB")
    fancy = image.header(encode(picture(), "JPEG", progressive=True, subsampling=0, icc_profile=b"x" * 200))
    assert (fancy.progressive, fancy.subsampling, fancy.icc) == (True, "4:4:4", True)
    gray = image.header(encode(picture(mode="L"), "JPEG"))
    assert (gray.subsampling, gray.mode) == (None, "L")
    assert image.header(encode(picture(), "PNG")).progressive is None


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_every_truncation_is_refused_by_decode_and_by_check(kind: str) -> None:
    body = encode(picture(200, 160), kind)
    for share in (0.1, 0.5, 0.9, 0.97):
        for judge in (image.decode, image.check):
            with pytest.raises(image.Undecodable):
                judge(body[: int(len(body) * share)])


def test_what_surrounds_a_sound_jpeg_does_not_matter() -> None:
    body = encode(picture(), "JPEG")
    wanted = np.asarray(image.decode(body))
    for tail in (bytes(5000), b"<html>", body):
        np.testing.assert_array_equal(np.asarray(image.decode(body + tail)), wanted)
    comment = b"\xff\xfe" + struct.pack(">H", 60_002) + b"\xff" * 60_000
    np.testing.assert_array_equal(np.asarray(image.decode(body[:2] + comment * 5 + body[2:])), wanted)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 3), (640, 480)])
def test_flat_and_tiny_jpegs_are_sound(size: tuple[int, int]) -> None:
    for mode in ("RGB", "L"):
        for options in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 2}):
            body = encode(Image.new(mode, size, 77), "JPEG", **options)
            assert image.decode(body).size == size
            image.check(body)


def test_a_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for judge in (image.header, image.check, image.decode):
        with pytest.raises(image.TooManyPixels):
            judge(body)
    with pytest.raises(image.TooManyPixels, match="64x48 is more than 3071"):
        image.decode(encode(picture(64, 48), "JPEG"), max_pixels=3071)


def shown(source: Image.Image, view: image.View, size: int) -> np.ndarray:
    out = np.empty((3, size, size), np.uint8)
    image.show(source, view, out)
    return out.transpose(1, 2, 0)


def test_a_view_is_cropped_then_resized_by_pillow_then_mirrored() -> None:
    source = picture(100, 80)
    wanted = np.asarray(source.crop((10, 5, 70, 45)).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown(source, image.crop_view((10, 5, 60, 40), 32), 32), wanted)
    np.testing.assert_array_equal(shown(source, image.crop_view((10, 5, 60, 40), 32, True), 32), wanted[:, ::-1])


def test_the_centre_view_is_resize_then_centre_crop() -> None:
    whole = np.asarray(picture(101, 80).resize((50, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shown(picture(101, 80), image.centre_view(101, 80, 40, 32), 32), whole[4:36, 9:41])
    shown(picture(20, 90), image.centre_view(20, 90, 32, 32), 32)
    with pytest.raises(ValueError, match="crop 48 is larger"):
        image.centre_view(64, 48, 32, 48)


def test_a_line_that_would_be_resized_beyond_all_measure_is_refused() -> None:
    with pytest.raises(image.TooManyPixels, match="resized to 15360000x256 it is more"):
        shown(Image.new("RGB", (60000, 1)), image.centre_view(60000, 1, 256, 224), 224)


@pytest.fixture(scope="session")
def dirty(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(shared, "dirty", tmp_path_factory.mktemp("dirty"))


# Not the decoder's to judge: sizes, placeholders and duplicates belong to the filter and to selection.
RULES = {"too-small", "aspect-ratio", "blank", "placeholder"}
WRONG = {"bad_exif_real.jpg"}  # see tests/ingest/test_dirty.py


def test_the_dirty_corpus_gets_its_verdicts(dirty: Path) -> None:
    wrong = []
    for entry in json.loads((dirty / "verdicts.json").read_text())["files"]:
        body = (dirty / "files" / entry["file"]).read_bytes()
        results = set()
        for judge in (image.check, image.decode):
            try:
                judge(body)
                results.add("keep")
            except image.Undecodable:
                results.add("reject")
        if entry["file"] in WRONG or entry["reason"] in RULES or entry["verdict"] == "keep-or-reject":
            continue
        wanted = "reject" if entry["verdict"] == "reject" else "keep"
        if results != {wanted}:
            wrong.append((entry["file"], entry["reason"], results))
    assert wrong == []


def test_the_dirty_corpus_colours(dirty: Path) -> None:
    def mean(name: str) -> np.ndarray:
        return np.asarray(image.decode((dirty / "files" / name).read_bytes())).mean((0, 1))

    assert abs(mean("png_16bit_gray.png").mean() - 136.67) < 1
    assert abs(mean("png_16bit_rgb.png").mean() - 132.55) < 1
    assert np.abs(mean("cmyk_adobe_real.jpg") - mean("cmyk_twin_rgb_real.jpg")).max() < 20
    turned = image.decode((dirty / "files" / "exif_orientation6_real.jpg").read_bytes())
    assert turned.size == (294, 392)
