"""Damaged pictures, as far as they can be shown: never more than there is, and nothing where there is nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shards.pixels import image, salvaged

SIDE = 96


def photo(width: int = 200, height: int = 160) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([np.sin(x / 17), np.cos(y / 13), np.sin((x + y) / 23)], -1)
    return Image.fromarray((127.5 + 127 * pixels).astype(np.uint8))


def encoded(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def difference(shown: Image.Image, part: slice) -> float:
    whole = photo().copy()
    whole.thumbnail((SIDE, SIDE))
    a, b = (np.asarray(picture.convert("RGB"), float)[part] for picture in (shown, whole))
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_of_a_truncated_picture_the_part_that_came_is_shown_and_the_rest_is_gray(form: str) -> None:
    body = encoded(photo(), form)
    cut = body[: len(body) * 6 // 10]
    with pytest.raises(image.Undecodable):
        image.decode(cut)
    shown = salvaged(cut, SIDE)
    assert shown is not None
    assert max(shown.size) == SIDE
    assert difference(shown, np.s_[:20]) < 12, "the upper rows are the picture's"
    assert np.abs(np.asarray(shown, float)[-4:] - 128).mean() < 6


@pytest.mark.parametrize("form", ["L", "P", "RGBA", "1", "LA"])
def test_truncated_png_of_every_colour_type_is_shown(form: str) -> None:
    body = encoded(photo().convert(form), "PNG")
    shown = salvaged(body[: len(body) * 6 // 10], SIDE)
    assert shown is not None
    assert np.asarray(shown, float)[:20].std() > 5


def test_a_progressive_jpeg_without_its_last_scans_is_whole_but_coarse() -> None:
    body = encoded(photo(), progressive=True)
    shown = salvaged(body[: len(body) // 2], SIDE)
    assert shown is not None
    assert difference(shown, np.s_[:]) < 30


def test_a_picture_is_shown_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = encoded(photo(), exif=exif.tobytes())
    shown = salvaged(body[: len(body) * 9 // 10], SIDE)
    assert shown is not None
    assert shown.height > shown.width


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        encoded(photo())[:300],  # tables alone
        encoded(photo(), "PNG")[:60],
        encoded(photo(), "WEBP")[:-500],
        encoded(photo(), "GIF")[:-500],
        encoded(Image.new("RGB", (6000, 3000)), "PNG")[:-40],  # more pixels than are worth a look
    ],
    ids=["nothing", "page", "jpeg", "png", "tables", "header", "webp", "gif", "large"],
)
def test_where_there_is_nothing_to_show_nothing_is_shown(body: bytes) -> None:
    assert salvaged(body, SIDE) is None


def test_whatever_is_damaged_raises_nothing() -> None:
    rng = np.random.default_rng(5)
    for whole in (encoded(photo()), encoded(photo(), "PNG"), encoded(photo(), progressive=True)):
        for _ in range(60):
            body = bytearray(whole)
            for at in rng.integers(0, len(body), 4):
                body[at] = int(rng.integers(0, 256))
            shown = salvaged(bytes(body[: int(rng.integers(20, len(body)))]), SIDE)
            assert shown is None or (shown.mode == "RGB" and max(shown.size) <= SIDE)
