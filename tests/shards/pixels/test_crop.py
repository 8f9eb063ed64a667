"""The accelerator of training's crops: the pixels it gives are the reference decoder's; and it may always refuse."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from origin import unpacked
from PIL import Image

from shards.pixels import crop, image, native
from shards.pixels.image import View

TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
UPRIGHT = TURNED.replace(b"\x06", b"\x01")


def built(folder: Path, *flags: str, source: Path = crop.SOURCE, own_huffman: bool = True) -> crop.Cropper:
    why = native.build(source, folder / "crop.so", (*crop.FLAGS, *flags), crop.LIBRARIES)
    if why:
        pytest.skip(f"crop.c is not built here: {why}")
    return crop.Cropper(folder / "crop.so", own_huffman)


@pytest.fixture(scope="module")
def cropper(tmp_path_factory):
    return built(tmp_path_factory.mktemp("crop"))


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (9.0 + 5 * k) + y / (17.0 - 3 * k) + seed) for k in range(3)]
    pixels = np.stack(waves, -1) + 25 * generator.standard_normal((height, width, 3))
    out = io.BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    picture.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def reference(body: bytes, view: View, size: int) -> np.ndarray:
    out = np.empty((3, size, size), np.uint8)
    image.show(image.decode(body), view, out)
    return out


def shown(cropper: crop.Cropper, body: bytes, view: View, size: int) -> np.ndarray | None:
    out = np.full((1, 3, size, size), 7, np.uint8)
    return None if cropper.decode_batch([body], [view], size, out) else out[0]


def assert_same(ours: np.ndarray | None, wanted: np.ndarray, what: object) -> None:
    """To the bit where Pillow is as it was read for crop.c. Others round in another order, or to fewer bits."""
    assert ours is not None, what
    if image.IMAGE_BUILD.startswith("pillow 13."):
        assert np.array_equal(ours, wanted), what
    else:
        error = np.mean((ours.astype(float) - wanted) ** 2)
        assert error < 255**2 / 10**5, (what, error)  # 50 dB


def views(width: int, height: int, count: int, seed: int) -> list[tuple[View, int]]:
    """Boxes anywhere and of any size, to sizes below and above theirs, mirrored or not."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        w, h, size = rng.randint(1, width), rng.randint(1, height), rng.choice([1, 2, 7, 16, 33, 64])
        box = (rng.randint(0, width - w), rng.randint(0, height - h), w, h)
        out.append((image.crop_view(box, size, rng.random() < 0.5), size))
    return out


PLAIN = [
    {"size": (97, 61)},
    {"size": (61, 97), "subsampling": 0},
    {"size": (64, 48), "subsampling": 1, "quality": 98},
    {"size": (90, 90), "mode": "L"},
    {"size": (130, 40), "restart_marker_blocks": 2},
    {"size": (33, 80), "optimize": True, "quality": 30, "exif": UPRIGHT},
    {"size": (17, 9), "comment": b"hello \xff\xd9 world", "icc_profile": b"profile"},
    {"size": (1, 1)},
]


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_any_view_has_the_pixels_of_the_reference(cropper, options):
    options = dict(options)
    width, height = options.pop("size")
    body = photo(width, height, **options)
    assert cropper.sizes([body]) == [(width, height)]
    for view, size in views(width, height, 60, width):
        assert_same(shown(cropper, body, view, size), reference(body, view, size), view)
    for resize, size in ((40, 40), (64, 33), (16, 9)):
        view = image.centre_view(width, height, resize, size)
        assert_same(shown(cropper, body, view, size), reference(body, view, size), view)


def test_extremes(cropper):
    body = photo(600, 500)
    for view, size in [
        (image.crop_view((0, 0, 600, 500), 224), 224),
        (image.crop_view((599, 499, 1, 1), 64), 64),
        (image.crop_view((299, 0, 1, 500), 16), 16),
        (image.crop_view((0, 250, 600, 1), 16), 16),
        (image.crop_view((100, 100, 20, 20), 400), 400),
        (image.crop_view((3, 5, 590, 480), 1), 1),
    ]:
        assert_same(shown(cropper, body, view, size), reference(body, view, size), view)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_boxes_so_narrow_that_hardly_any_chroma_is_left(cropper, subsampling):
    colours = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize((40, 32)).save(out, "JPEG", quality=95, subsampling=subsampling)
    for width in range(1, 9):
        for x in range(41 - width):
            view = image.crop_view((x, 0, width, 32), 8)
            assert_same(shown(cropper, out.getvalue(), view, 8), reference(out.getvalue(), view, 8), view)


def test_without_vector_instructions_the_pixels_are_the_same(cropper, tmp_path):
    plain = built(tmp_path, "-DPLAIN")
    body = photo(150, 110)
    for view, size in views(150, 110, 60, 1):
        one, other = (shown(build, body, view, size) for build in (cropper, plain))
        assert one is not None
        assert np.array_equal(one, other)


def test_what_is_not_plain_is_refused(cropper):
    png = io.BytesIO()
    Image.new("RGB", (40, 30)).save(png, "PNG")
    bodies = [
        photo(40, 30, progressive=True),
        photo(40, 30, mode="CMYK"),
        photo(40, 30, exif=TURNED),
        png.getvalue(),
        b"",
        b"\xff\xd8",
        photo(40, 30)[2:],
    ]
    assert cropper.sizes(bodies) == [None] * len(bodies)
    some = [bodies[0], photo(40, 30), *bodies[1:], photo(40, 30)]
    out = np.empty((len(some), 3, 8, 8), np.uint8)
    view = image.crop_view((0, 0, 40, 30), 8)
    assert cropper.decode_batch(some, [view] * len(some), 8, out) == [0, 2, 3, 4, 5, 6, 7]
    assert np.array_equal(out[1], out[8])
    assert cropper.decode_batch(some[1:2], [None], 8, out[:1]) == [0]


@pytest.mark.parametrize("box", [(0, 0, 41, 30), (-1, 0, 5, 5), (0, 30, 5, 1), (0, 0, 0, 5), (2**31 - 1, 0, 5, 5)])
def test_a_view_beyond_the_picture_is_refused(cropper, box):
    assert shown(cropper, photo(40, 30), image.crop_view(box, 8), 8) is None


def test_what_the_reference_refuses_to_resize_is_refused(cropper):
    assert shown(cropper, photo(40, 30), View(0, 0, 40, 30, 20_000, 10_000, 0, 0), 8) is None


def test_damage_outside_the_box_is_damage(cropper):
    body = photo(200, 300)
    view = image.crop_view((50, 20, 100, 60), 32)  # its last row is far above the end of the data
    assert shown(cropper, body, view, 32) is not None
    half = len(body) * 3 // 4
    for bad in (body[:half], body[:-2], body[:half] + b"\xff\xd9", body[:-2] + bytes(40) + b"\xff\xd9"):
        assert shown(cropper, bad, view, 32) is None


def test_whatever_it_answers_the_reference_says_too(cropper):
    rng = random.Random(5)
    sources = [photo(60, 50, k, **{k: v for k, v in o.items() if k != "size"}) for k, o in enumerate(PLAIN)]
    answered = 0
    for turn in range(600):
        body = bytearray(sources[turn % len(sources)])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(2, len(body))
            kind = rng.random()
            if kind < 0.7:
                body[at] = rng.choice([rng.randrange(256), 0, 0xFF, body[at] ^ 1])
            elif kind < 0.85:
                del body[at : at + rng.randint(1, 12)]
            else:
                body[at:at] = rng.randbytes(rng.randint(1, 12))
        view = image.crop_view((5, 5, 30, 20), 16)
        ours = shown(cropper, bytes(body), view, 16)
        if ours is not None:
            answered += 1
            assert_same(ours, reference(bytes(body), view, 16), turn)
    assert 50 < answered < 500


@pytest.fixture(scope="module")
def dirty(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(shared, "dirty", tmp_path_factory.mktemp("dirty"))


def test_every_dirty_file_gets_the_verdict_of_the_reference(cropper, dirty):
    answered = []
    for entry in json.loads((dirty / "verdicts.json").read_text())["files"]:
        body = (dirty / "files" / entry["file"]).read_bytes()
        (size,) = cropper.sizes([body])
        if size is None:
            continue
        view = image.crop_view((size[0] // 4, size[1] // 4, size[0] // 2 + 1, size[1] // 2 + 1), 48)
        ours = shown(cropper, body, view, 48)
        if ours is not None:
            answered.append(entry["file"])
            assert_same(ours, reference(body, view, 48), entry["file"])  # raises where the reference says bad
    assert len(answered) > 5


def shrunk_by_reference(body: bytes, short: int) -> np.ndarray:
    return np.asarray(image.shrink(image.upright(image.read(body), short), short))


@pytest.mark.parametrize("options", PLAIN[:-1], ids=str)
def test_a_shrunk_picture_has_the_pixels_of_the_reference(cropper, options):
    options = dict(options)
    width, height = options.pop("size")
    body = photo(width, height, **options)
    for short in {1, 2, 3, min(width, height) // 2, min(width, height) // 2 + 1, min(width, height) - 1}:
        ours = cropper.shrink(body, short)
        assert ours is not None, short
        assert_same(np.asarray(ours), shrunk_by_reference(body, short), short)
    assert cropper.shrink(body, min(width, height)) is None


@pytest.mark.parametrize("size", [(641, 480), (480, 641), (1500, 90), (90, 1500), (1031, 777)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_shapes_and_scales_of_shrunk_pictures(cropper, size, subsampling):
    body = photo(*size, subsampling=subsampling)
    for short in (11, 22, 23, 45, 60, 89):
        assert_same(np.asarray(cropper.shrink(body, short)), shrunk_by_reference(body, short), short)


def test_a_damaged_picture_is_not_shrunk(cropper):
    body = photo(200, 300)
    half = len(body) * 3 // 4
    for bad in (body[:half], body[:-2], body[:half] + b"\xff\xd9", body[:-2] + bytes(40) + b"\xff\xd9", b"", body[2:]):
        for short in (20, 150):
            assert cropper.shrink(bad, short) is None


def test_what_is_shrunk_does_not_depend_on_the_library(cropper, monkeypatch):
    monkeypatch.setattr(crop, "loaded", lambda: cropper)
    crop._shrinks_as_pillow.cache_clear()
    try:
        assert (crop.shrink(photo(97, 61), 30) is not None) == image.IMAGE_BUILD.startswith("pillow 13.")
        monkeypatch.setattr(crop.Cropper, "shrink", lambda self, body, short: Image.new("RGB", (49, 30)))
        crop._shrinks_as_pillow.cache_clear()
        assert crop.shrink(photo(97, 61), 30) is None  # it would not be what Pillow makes
    finally:
        crop._shrinks_as_pillow.cache_clear()


def test_bodies_may_be_lent_and_are_given_back(cropper):
    buffer = bytearray(b"junk" + photo(40, 30))
    body = memoryview(buffer)[4:].toreadonly()
    view = image.crop_view((0, 0, 40, 30), 8)
    ours = shown(cropper, body, view, 8)
    body.release()
    buffer.clear()  # BufferError while anyone still holds the memory
    assert ours is not None
    assert np.array_equal(ours, shown(cropper, photo(40, 30), view, 8))


def test_without_the_library_all_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(crop.native, "library", lambda source: tmp_path / "none.so")
    crop.loaded.cache_clear()
    try:
        assert crop.sizes([photo(40, 30)]) == [None]
        view = image.crop_view((0, 0, 8, 8), 8)
        assert crop.decode_batch([photo(40, 30)] * 2, [view] * 2, 8, np.empty((2, 3, 8, 8), np.uint8)) == [0, 1]
        assert crop.build_name() == image.IMAGE_BUILD
        assert crop.shrink(photo(40, 30), 8) is None
    finally:
        crop.loaded.cache_clear()


def test_a_build_that_fails_says_why(tmp_path):
    (tmp_path / "made.c").write_text("#include <no_such_header.h>\n")
    assert "no_such_header.h" in native.build(tmp_path / "made.c", tmp_path / "made.so", ())
    assert list(tmp_path.glob("*.so")) == []
