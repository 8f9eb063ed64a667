"""Bytes -> verdict."""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from origin import picture
from PIL import Image

from ingest.filter import FilterConfig, judge
from ingest.record import Fetched, Link, Reason, Verdict
from shards.pixels import crop, image


def fetched(body: bytes | Path | None, reason: Reason | None = None) -> Fetched:
    link = Link("k", "http://a/1.jpg", ("n00000001",), 0)
    return Fetched(link, body, reason, "why" if reason else "", 200, link.url, 1, 5, time.time())


def verdict(body: bytes | Path | None, **options: Any) -> Verdict:
    found = judge(fetched(body), FilterConfig(**options))
    assert (found.picture is None) == (found.reason is not None)
    return found


def encode(pixels: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    pixels.save(out, kind, **options)
    return out.getvalue()


def photo(width: int, height: int) -> Image.Image:
    return Image.open(io.BytesIO(picture("photo", "png", 64))).resize((width, height))


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp")])
def test_these_keep_their_bytes(kind: str, suffix: str) -> None:
    body = picture("a", kind)
    found = verdict(body)
    assert found.picture is not None
    assert found.picture.body == body
    assert found.picture.suffix == suffix
    assert found.picture.sha256 == found.fetched_sha256 == hashlib.sha256(body).hexdigest()
    assert (found.picture.width, found.picture.height) == (64, 48)
    assert (found.source_format, found.fetched_bytes, found.decode_checked) == (kind, len(body), True)


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff"])
def test_these_become_png(kind: str) -> None:
    body = picture("a", kind)
    found = verdict(body)
    assert found.picture is not None
    assert (found.picture.suffix, found.source_format) == ("png", kind)
    assert found.picture.sha256 == hashlib.sha256(found.picture.body).hexdigest() != found.fetched_sha256
    np.testing.assert_array_equal(np.asarray(image.decode(found.picture.body)), np.asarray(image.decode(body)))


def test_a_stereo_picture_becomes_its_first_frame_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = encode(photo(64, 40), "MPO", save_all=True, append_images=[photo(64, 40)], exif=exif.tobytes())
    found = verdict(body)
    assert found.picture is not None
    assert (found.source_format, found.picture.suffix) == ("mpo", "png")
    assert (found.picture.width, found.picture.height, found.picture.orientation) == (40, 64, 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><p>gone", Reason.NOT_AN_IMAGE),
        (b'{"error": 404}', Reason.NOT_AN_IMAGE),
        (picture("a")[:400], Reason.UNDECODABLE),
        (picture("a", "png")[:-20], Reason.UNDECODABLE),
        (b"8BPS" + bytes(100), Reason.UNSUPPORTED),
        (encode(Image.new("F", (64, 64), 0.5), "TIFF"), Reason.UNSUPPORTED),
        (encode(photo(31, 200), "JPEG"), Reason.TOO_SMALL),
        (encode(photo(32, 641), "JPEG"), Reason.BAD_ASPECT),
        (encode(Image.new("1", (10_000, 9_000)), "PNG"), Reason.TOO_MANY_PIXELS),
        (encode(Image.new("RGB", (64, 64), "gray"), "JPEG"), Reason.PLACEHOLDER),
        (encode(Image.new("RGBA", (64, 64), (1, 2, 3, 0)), "PNG"), Reason.PLACEHOLDER),
    ],
)
def test_each_content_reason(body: bytes, reason: Reason) -> None:
    found = verdict(body)
    assert (found.reason, found.picture) == (reason, None)
    assert found.detail
    assert found.fetched_bytes == len(body)


def test_limits_are_inclusive() -> None:
    assert verdict(encode(photo(32, 640), "JPEG")).keep
    assert verdict(encode(photo(100, 80), "JPEG"), max_pixels=8000, min_side=80).keep
    assert verdict(encode(photo(100, 80), "JPEG"), max_pixels=7999).reason is Reason.TOO_MANY_PIXELS


def test_without_the_decode_check_damage_passes_and_is_marked() -> None:
    found = verdict(picture("a")[:-2], decode_check=False)
    assert found.keep
    assert not found.decode_checked


def test_what_the_network_refused_stays_refused() -> None:
    found = judge(fetched(None, Reason.DNS), FilterConfig())
    assert (found.reason, found.detail, found.fetched_sha256) == (Reason.DNS, "why", None)


def test_a_body_on_scratch_is_judged_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "body-0"
    path.write_bytes(picture("a"))
    found = verdict(path)
    assert found.picture is not None
    assert found.picture.body == picture("a")
    assert list(tmp_path.iterdir()) == []


def test_resize_reduces_what_is_larger_and_keeps_the_rest() -> None:
    found = verdict(encode(photo(300, 200), "PNG"), resize=64)
    assert found.picture is not None
    assert (found.picture.width, found.picture.height, found.picture.suffix) == (96, 64, "jpg")
    small = encode(photo(90, 64), "PNG")
    kept = verdict(small, resize=64)
    assert kept.picture is not None
    assert kept.picture.body == small


def test_resize_bakes_the_orientation_in_and_keeps_an_rgb_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"\0" * 36 + b"acsp" + b"\0" * 200
    found = verdict(encode(photo(300, 200), "JPEG", exif=exif.tobytes(), icc_profile=profile), resize=64)
    assert found.picture is not None
    assert (found.picture.width, found.picture.height, found.picture.orientation) == (64, 96, 1)
    assert found.picture.icc
    gray = verdict(encode(photo(300, 200).convert("L"), "JPEG", icc_profile=profile), resize=64)
    assert gray.picture is not None
    assert not gray.picture.icc


def test_what_is_resized_does_not_depend_on_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grain = Image.effect_noise((420, 260), 60).convert("RGB")
    notice = Image.new("RGB", (800, 600), "white")
    notice.paste(grain.crop((0, 0, 40, 8)), (300, 300))
    checks = Image.fromarray(np.tile(np.array([[0, 255], [255, 0]], np.uint8), (128, 128)))
    whole = encode(grain, "JPEG", quality=92)
    bodies = [
        whole,
        encode(grain.convert("L"), "JPEG", icc_profile=b"\0" * 36 + b"acsp" + b"\0" * 200),
        encode(grain, "JPEG", icc_profile=b"\0" * 36 + b"acsp" + b"\0" * 200, exif=exif.tobytes()),
        encode(grain, "JPEG", progressive=True),
        encode(grain.convert("CMYK"), "JPEG"),
        encode(notice, "JPEG"),
        encode(Image.new("RGB", (90, 80), "red"), "JPEG"),
        encode(checks, "JPEG", quality=100),  # not flat, but flat once it is made smaller
        whole[: len(whole) // 2],
        whole[:-2],
        whole[:-500] + b"\xff\xd9",
        encode(grain, "PNG"),
    ]
    known = fetched(b"")  # so that the times are equal
    quick = [replace(verdict(body, resize=64), fetched=known) for body in bodies]
    monkeypatch.setattr(crop, "shrink", lambda body, short: None)
    assert quick == [replace(verdict(body, resize=64), fetched=known) for body in bodies]
    assert [found.reason is None for found in quick] == [True] * 5 + [False, False, True, False, True, False, True]


@pytest.mark.parametrize(
    "options", [{"min_side": 0}, {"max_pixels": 200_000_000}, {"max_aspect": 0.5}, {"resize": 16}, {"quality": 0}]
)
def test_a_config_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=rf"filter\.{name} is "):
        FilterConfig(**options)


def test_fine_texture_is_not_one_flat_colour() -> None:
    """At an eighth of its size, where the decode check looks, a fine pattern is flat; the picture is not."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert verdict(encode(Image.fromarray(stripes), "jpeg", quality=95, subsampling=0)).keep
    assert verdict(encode(Image.new("RGB", (64, 64), "gray"), "jpeg")).reason is Reason.PLACEHOLDER


@pytest.mark.parametrize(
    ("asked", "came_from", "placeholder"),
    [
        ("http://i.imgur.com/x1.jpg", "http://i.imgur.com/removed.png", True),
        ("http://f/1.jpg", "https://s.yimg.com/pw/images/en-us/photo_unavailable.png", True),
        ("http://f/1.jpg", "https://s.yimg.com/pw/images/en-us/photo_unavailable_l.png?x=1", True),
        ("http://p/1.jpg", "http://p/img/bwe.png", True),
        ("http://p/1.jpg", "http://p/404.gif", True),
        ("http://p/1.jpg", "http://p/Image-Not-Found.JPG", True),
        ("http://p/1.jpg", "http://p/albums/removed-stones.png", False),
        ("http://p/1.jpg", "http://p/1404.png", False),
        ("http://p/removed.png", "http://q/removed.png", False),
        ("http://p/removed.png", "http://p/removed.png", False),
        ("http://p/1.jpg", "http://p/removed.png/2.jpg", False),
    ],
)
def test_where_servers_send_who_asks_for_what_is_gone(asked: str, came_from: str, placeholder: bool) -> None:
    link = Link("k", asked, (), 0)
    found = judge(Fetched(link, picture("a", "png"), None, "", 200, came_from, 1, 5, time.time()), FilterConfig())
    assert found.reason is (Reason.PLACEHOLDER if placeholder else None)


def test_a_damaged_remark_in_a_png_does_not_cost_it_and_is_not_kept() -> None:
    body = picture("a", "png")
    damaged = body[:33] + b"\0\0\0\4tEXta\0bc1234" + body[33:]
    found = verdict(damaged)
    assert found.picture is not None
    assert found.picture.body == body
    assert found.picture.sha256 == hashlib.sha256(body).hexdigest() != found.fetched_sha256
