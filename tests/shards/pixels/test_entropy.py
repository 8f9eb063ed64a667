"""The accelerator of the JPEG check: what it answers, the reference decoder says too; and it may always be silent."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from shards.pixels import entropy, image, jpeg


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    library = tmp_path_factory.mktemp("entropy") / "entropy.so"
    why = entropy.build(library)
    if why:
        pytest.skip(f"entropy.c is not built here: {why}")
    return entropy.Walker(library)


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB", grain: float = 12.0, **options: object) -> bytes:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (9.0 + 5 * k) + y / (17.0 - 3 * k) + seed) for k in range(3)]
    pixels = np.stack(waves, -1) + grain * generator.standard_normal((height, width, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def reference(body: bytes) -> tuple[tuple[int, int], bytes]:
    """Pillow's own gray picture at an eighth."""
    picture = Image.open(io.BytesIO(body))
    picture.draft("L", (max(1, picture.width // 8), max(1, picture.height // 8)))
    picture.load()
    return picture.size, picture.tobytes()


def size_of(body: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(body)).size


TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6

PLAIN = [
    {"quality": 90},
    {"quality": 100, "subsampling": 0, "grain": 60.0},
    {"quality": 30, "subsampling": 1},
    {"quality": 75, "optimize": True},
    {"quality": 85, "mode": "L"},
    {"quality": 85, "restart_marker_blocks": 1},
    {"quality": 85, "restart_marker_rows": 1, "optimize": True},
    {"quality": 85, "comment": b"hello \xff\xd9 world"},
    {"quality": 85, "exif": TURNED},
    {"quality": 95, "grain": 0.0},
]


@pytest.mark.parametrize("options", PLAIN, ids=lambda o: "-".join(map(str, o)))
@pytest.mark.parametrize("size", [(256, 256), (333, 271), (8, 8), (257, 1000), (9, 300)])
def test_sound_pictures_are_known_to_the_pixel(walker, size, options):
    body = photo(*size, **options)
    assert walker.plane(body, *size) == reference(body)


@pytest.mark.parametrize("where", ["nowhere", "above", "below"])
def test_pictures_of_little_detail_are_known_to_the_pixel(walker, where):
    """Blocks of a byte each, in part of the picture or all of it: more than the walks ahead have room to note."""
    generator = np.random.default_rng(3)
    pixels = np.full((800, 1600, 3), 90, np.uint8)
    rough = {"nowhere": slice(0, 0), "above": slice(0, 300), "below": slice(500, 800)}[where]
    pixels[rough] = generator.integers(0, 255, pixels[rough].shape)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=60)
    body = out.getvalue()
    assert walker.plane(body, 1600, 800) == reference(body)
    for at in range(700, len(body) - 8, len(body) // 12):
        known = walker.plane(body[:at] + body[at + 3 :], 1600, 800)
        assert known is None or known == reference(body[:at] + body[at + 3 :])


def test_tables_of_one_picture_do_not_serve_the_next(walker):
    bodies = [photo(264, 256, seed, optimize=bool(seed % 2), quality=40 + 7 * seed) for seed in range(8)]
    for body in [*bodies, *reversed(bodies)]:
        assert walker.plane(body, 264, 256) == reference(body)
    start = bodies[0].index(b"\xff\xc4")
    length = int.from_bytes(bodies[0][start + 2 : start + 4], "big")
    without = bodies[0][:start] + bodies[0][start + 2 + length :]
    assert walker.plane(without, 264, 256) is None


def test_what_is_not_plain_is_left_to_the_reference(walker):
    body = photo(256, 256)
    for other in (
        photo(256, 256, progressive=True),
        photo(256, 256, mode="CMYK"),
        body + b"\0",
        body + body,
        body[:-2],
        body[:-1],
        body[: len(body) // 2],
        body[: len(body) // 2] + b"\xff\xd9",
        body[:-2] + bytes(2) + b"\xff\xd9",
        body.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        body.replace(struct.pack(">BHH", 8, 256, 256), struct.pack(">BHH", 8, 264, 256), 1),
        body.replace(struct.pack(">BHH", 8, 256, 256), struct.pack(">BHH", 8, 240, 256), 1),
        body.replace(struct.pack(">BHH", 8, 256, 256), struct.pack(">BHH", 8, 0, 256), 1),
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\0\x02\xff\xd9",
    ):
        assert walker.plane(other, 256, 256) is None


def test_a_plane_is_never_written_beyond_what_the_caller_expects(walker):
    body = photo(512, 512)
    assert walker.plane(body, 512, 504) is None
    assert walker.plane(body, 8, 8) is None
    assert walker.plane(body[:-9], 0, 0) is None


def test_restart_markers_must_be_there_in_order(walker):
    body = photo(256, 256, restart_marker_rows=1)
    at = body.index(b"\xff\xd1")
    assert walker.plane(body, 256, 256) is not None
    for other in (b"\xff\xd2", b"\xff\xd0", b"\xff\x00", b"\0\0", b""):
        assert walker.plane(body[:at] + other + body[at + 2 :], 256, 256) is None
    between = body[: at + 2] + body[body.index(b"\xff\xd2") :]
    assert walker.plane(between, 256, 256) is None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(range(len(PLAIN))), st.integers(0, 2**32), st.integers(1, 4))
def test_what_it_knows_of_damaged_files_the_reference_confirms(walker_of_session, which, seed, hits):
    walker = walker_of_session
    chance = random.Random(seed)
    body = bytearray(photo(256, 264, **PLAIN[which]))
    for _ in range(hits):
        at = chance.randrange(2, len(body)) if chance.random() < 0.5 else chance.randrange(2, 700)
        kind = chance.randrange(3)
        if kind == 0:
            body[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del body[at : at + chance.randrange(1, 4)]
        else:
            body[at:at] = chance.randbytes(chance.randrange(1, 4))
    damaged = bytes(body)
    known = walker.plane(damaged, 256, 264)
    if known is None:
        return
    found = jpeg.load(jpeg.opened(damaged), damaged, "L", (32, 33))  # without the accelerator
    assert (found.size, found.tobytes()) == known


@pytest.fixture(scope="module")
def walker_of_session(walker):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "plane", lambda *_: None)
        yield walker


def test_a_check_gives_the_same_with_and_without_it(walker, monkeypatch):
    for options in (
        {"quality": 90},
        {"quality": 90, "mode": "L"},
        {"exif": TURNED},
    ):
        body = photo(300, 400, **options)
        asked = []

        def spy(*args, asked=asked):
            asked.append(args)
            return walker.plane(*args)

        monkeypatch.setattr(entropy, "plane", spy)
        fast = image.check(body)
        monkeypatch.setattr(entropy, "plane", lambda *_: None)
        slow = image.check(body)
        assert len(asked) == 1
        assert (fast.size, fast.mode, fast.tobytes()) == (slow.size, slow.mode, slow.tobytes())


def test_colours_that_are_not_luma_and_chroma_are_left_alone(walker, monkeypatch):
    monkeypatch.setattr(entropy, "plane", lambda *_: pytest.fail("asked"))
    rgb = io.BytesIO()
    Image.open(io.BytesIO(photo(300, 300))).save(rgb, "JPEG", keep_rgb=True)
    for body in (rgb.getvalue(), photo(300, 300, mode="CMYK"), photo(300, 300, progressive=True), photo(200, 300)):
        image.check(body)


def test_without_a_compiler_or_library_there_is_only_silence(monkeypatch, tmp_path):
    monkeypatch.setattr(entropy, "library", lambda: tmp_path / "none.so")
    assert entropy._load() is None
    (tmp_path / "none.so").write_bytes(b"no library")
    assert entropy._load() is None
    monkeypatch.setenv("CC", "false")
    assert "false failed" in entropy.build(tmp_path / "x.so")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert entropy.build(tmp_path / "x.so") == "no C compiler"
    assert [p.name for p in Path(tmp_path).iterdir()] == ["none.so"]
