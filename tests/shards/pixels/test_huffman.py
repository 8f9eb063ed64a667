"""The Huffman decoder of training's crops: what it gives is what libjpeg's own gives, and what is odd it refuses."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_crop import PLAIN, built, photo, reference, shown, views

from shards.pixels import crop, image, jpeg


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    cropper = built(tmp_path_factory.mktemp("ours"))
    if not cropper.own_huffman:
        assert not cropper.codec.startswith("libjpeg-turbo 2.1."), "refused by a libjpeg that it is known to fit"
        pytest.skip(f"{cropper.codec} keeps its own Huffman decoder")
    return cropper


@pytest.fixture(scope="module")
def libjpegs(tmp_path_factory):
    return built(tmp_path_factory.mktemp("libjpegs"), own_huffman=False)


def twice(cropper: crop.Cropper, body: bytes, view: image.View, size: int) -> np.ndarray | None:
    """As our decoder gives it: for a small picture it makes no tables before the same ones come again."""
    shown(cropper, body, view, size)
    return shown(cropper, body, view, size)


NOISY = [
    {"quality": 100, "subsampling": 0},
    {"quality": 100, "subsampling": 2, "optimize": True},
    {"quality": 3},
    {"quality": 100, "mode": "L", "restart_marker_blocks": 1},
    {"restart_marker_rows": 1, "optimize": True, "subsampling": 1},
]


@pytest.mark.parametrize("options", [*PLAIN, *({"size": (83, 117), **options} for options in NOISY)], ids=str)
def test_every_view_is_the_same_with_either_huffman_decoder(ours, libjpegs, options):
    options = dict(options)
    width, height = options.pop("size")
    body = photo(width, height, 3, **options)
    for view, size in views(width, height, 40, height):
        pixels, wanted = twice(ours, body, view, size), shown(libjpegs, body, view, size)
        assert pixels is not None, view
        assert np.array_equal(pixels, wanted), view


def test_pictures_of_every_table_one_after_the_other(ours, libjpegs):
    bodies = [photo(70, 50, n, quality=20 + 9 * n, optimize=n % 3 > 0) for n in range(9)]
    view = image.crop_view((5, 7, 60, 40), 32)
    for number in [*range(9), 3, 3, 4, 4, *range(9)]:
        pixels = shown(ours, bodies[number], view, 32)
        assert np.array_equal(pixels, shown(libjpegs, bodies[number], view, 32)), number


def test_bytes_left_over_are_for_the_reference_to_judge(ours, libjpegs):
    """libjpeg has already read them, and never says so: this is how one sees which of the two is at work."""
    body, view = photo(64, 48), image.crop_view((0, 0, 64, 48), 32)
    longer = body[:-2] + b"\0\0\0" + jpeg.END
    assert shown(libjpegs, longer, view, 32) is not None
    assert twice(ours, longer, view, 32) is None
    assert twice(ours, body, view, 32) is not None


def test_a_byte_lost_far_below_the_box_is_found_as_libjpeg_finds_it(ours, libjpegs):
    body, view = photo(300, 300), image.crop_view((100, 8, 40, 30), 16)
    start = jpeg.scans_of(body)[0][0].start
    places = range(start + (len(body) - start) // 2, len(body) - 100, 997)
    damaged = [body[:at] + body[at + 1 :] for at in places]
    found = [twice(ours, bad, view, 16) is None for bad in damaged]
    known = [shown(libjpegs, bad, view, 16) is None for bad in damaged]
    assert all(ours_too for ours_too, theirs in zip(found, known) if theirs)
    assert sum(found) > len(places) // 2


def test_restart_markers_are_needed_in_order(ours):
    body, view = photo(64, 64, restart_marker_rows=1), image.crop_view((0, 0, 64, 64), 16)
    at = body.index(b"\xff\xd1")
    assert twice(ours, body, view, 16) is not None
    for other in (b"\xff\xd2", b"\xff\xd0", b"\xff\x00", b"\0\0", b"", b"\xff\xff\xd1", b"\xff\xd9"):
        assert twice(ours, body[:at] + other + body[at + 2 :], view, 16) is None


def test_what_it_takes_of_damaged_files_libjpeg_takes_with_the_same_pixels(ours, libjpegs):
    rng = random.Random(8)
    sources = [photo(60, 50, k, **{k: v for k, v in o.items() if k != "size"}) for k, o in enumerate([*PLAIN, *NOISY])]
    taken = left = 0
    for turn in range(1500):
        body = bytearray(sources[turn % len(sources)])
        low = 2 if turn % 3 else body.index(b"\xff\xda")
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(low, len(body))
            if rng.random() < 0.8:
                body[at] ^= 1 << rng.randrange(8)
            else:
                del body[at : at + rng.randint(1, 3)]
        view = image.crop_view((8, 8, 30, 20), 16)
        pixels, wanted = twice(ours, bytes(body), view, 16), shown(libjpegs, bytes(body), view, 16)
        taken += pixels is not None
        left += wanted is not None and pixels is None
        if pixels is not None:
            assert np.array_equal(pixels, wanted), turn
    assert taken > 150
    assert left < taken // 4


def test_where_the_trial_fails_libjpegs_own_decoder_is_used(tmp_path: Path):
    folder = tmp_path / "wrong"
    shutil.copytree(crop.SOURCE.parent, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    header = folder / "huffman.h"
    right = header.read_text()
    for was, now in (
        ("0,  1,  8,", "0,  8,  1,"),
        ("s->column < s->to", "s->column < s->to - 1"),
        ("0xD0 +", "0xD1 +"),
    ):
        assert was in right
        header.write_text(right.replace(was, now))
        cropper = built(tmp_path, source=folder / "crop.c")
        (tmp_path / "crop.so").unlink()  # the next one is another file
        assert not cropper.own_huffman
        body, view = photo(97, 61), image.crop_view((20, 10, 50, 40), 32)
        assert np.array_equal(shown(cropper, body, view, 32), reference(body, view, 32))
