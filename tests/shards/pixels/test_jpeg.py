"""Damage that libjpeg forgives and Pillow is silent about."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.pixels import image, jpeg


def photo(width: int = 320, height: int = 240, mode: str = "RGB") -> Image.Image:
    """Coarse colours with a little noise, as a camera gives."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height))
    noisy = np.asarray(coarse) + random.normal(0, 6, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(pixels: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels.save(out, "JPEG", **{"quality": 90} | options)
    return out.getvalue()


def refused(body: bytes) -> bool:
    """Whether the decoder and the check refuse a body; they must agree."""
    said = []
    for judge in (image.decode, image.check):
        try:
            judge(body)
            said.append(False)
        except image.Undecodable:
            said.append(True)
    assert said[0] == said[1]
    return said[0]


def silent(body: bytes) -> bool:
    """Whether Pillow by itself decodes a body as if nothing were wrong."""
    try:
        Image.open(io.BytesIO(body)).load()
    except OSError:
        return False
    return True


SOUND: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 7},
    {"restart_marker_blocks": 1},
    {"progressive": True, "restart_marker_rows": 2},
    {"subsampling": 0, "restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", SOUND)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(320, 240), (333, 251), (16, 9)])
def test_sound_files_are_sound(options: dict[str, Any], mode: str, size: tuple[int, int]) -> None:
    body = encode(photo(*size, mode), **options)
    assert not refused(body)
    assert not refused(body + b"<html>")
    assert jpeg.repaired(body) is body


DAMAGE: dict[str, Callable[[bytes, int, np.random.Generator], bytes]] = {
    "60 bytes changed": lambda body, at, random: body[:at] + random.bytes(60).replace(b"\xff", b"") + body[at + 60 :],
    "a lost block": lambda body, at, _: body[:at] + bytes(4096) + body[at + 4096 :],
    "bytes left out": lambda body, at, _: body[:at] + body[at + 700 :],
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_damaged_data_is_refused(how: str, options: dict[str, Any], mode: str) -> None:
    body = encode(photo(800, 600, mode), **options)
    start = jpeg.scans_of(body)[0][0].start
    random = np.random.default_rng(1)
    damaged = [DAMAGE[how](body, int(at), random) for at in random.integers(start, len(body) - 5000, 20)]
    assert sum(map(silent, damaged)) >= 15
    assert sum(map(refused, damaged)) >= 16


def test_a_progressive_file_must_have_all_of_its_scans_in_order() -> None:
    body = encode(photo(), progressive=True)
    scans, end = jpeg.scans_of(body)
    assert end == len(body) - 2
    starts = [body.rfind(b"\xff\xda", 0, scan.start) for scan in scans]
    without_dc = body[: starts[0]] + body[scans[0].stop :]
    without_one = body[: starts[4]] + body[scans[4].stop :]
    empty = body[: scans[3].start] + body[scans[3].stop :]
    for damaged in (without_dc, without_one, empty):
        assert silent(damaged)
        assert refused(damaged)


def test_restart_markers_must_all_be_there() -> None:
    for options in ({"restart_marker_rows": 1}, {"restart_marker_rows": 1, "progressive": True}):
        body = encode(photo(), **options)
        at = body.index(b"\xff\xd3", jpeg.scans_of(body)[0][0].start)
        for damaged in (body[:at] + body[at + 2 :], body[:at] + b"\xff\xd5" + body[at + 2 :]):
            assert silent(damaged)
            assert refused(damaged)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_missing_end_marker_is_repaired_if_nothing_else_is_missing(options: dict[str, Any], mode: str) -> None:
    body = encode(photo(mode=mode), **options)
    cut = body[:-2]
    assert refused(cut)
    assert jpeg.repaired(cut) == body
    for missing in (1, 2, 3, 5, 10, 40, 200, 2000, len(body) - 1000):
        shorter = cut[:-missing]
        assert jpeg.repaired(shorter) is shorter
    smooth = encode(photo(mode=mode).resize((8, 6)).resize((320, 240)), quality=30, **options)
    for missing in range(1, 60):
        shorter = smooth[: -2 - missing]
        assert jpeg.repaired(shorter) is shorter


def test_a_progressive_file_without_end_is_not_repaired() -> None:
    body = encode(photo(), progressive=True)[:-2]
    assert jpeg.repaired(body) is body
    assert refused(body)


def test_what_would_take_long_is_refused() -> None:
    body = encode(photo(), progressive=True)
    (scan, *_), end = jpeg.scans_of(body)
    again = body[body.rfind(b"\xff\xda", 0, scan.start) : scan.stop]
    with pytest.raises(image.Undecodable, match="more than 100 scans"):
        image.check(body[:end] + again * 200 + jpeg.END)
    for junk, why in ((b"\xff\xfe\0\2" * 500_000, "segments"), (b"\0" * 2_000_000, "bytes between")):
        with pytest.raises(image.Undecodable, match=why):
            image.header(body[:20] + junk + body[20:])  # after the first segment


def test_scans_are_listed() -> None:
    body = encode(photo(), progressive=True)
    scans, _ = jpeg.scans_of(body)
    assert (scans[0].components, scans[0].first, scans[0].last, scans[0].high) == ((1, 2, 3), 0, 0, 0)
    assert scans[-1].low == 0
    assert all(scan.start < scan.stop for scan in scans)
    gray, end = jpeg.scans_of(encode(photo(mode="L"), restart_marker_blocks=5)[:-2])
    assert ([scan.restarts for scan in gray], end) == ([5], None)
