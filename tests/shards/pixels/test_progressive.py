"""Damage inside the scans of progressive JPEGs is found; sound ones of every kind keep their verdict and pixels."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from test_entropy import photo, reference, size_of

from shards.pixels import entropy, image, jpeg


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    library = tmp_path_factory.mktemp("progressive") / "entropy.so"
    why = entropy.build(library)
    if why:
        pytest.skip(f"entropy.c is not built here: {why}")
    return entropy.Walker(library)


@pytest.fixture
def walked(walker, monkeypatch):
    """Judging with it."""
    monkeypatch.setattr(entropy, "progressive", walker.progressive)


def refused(body: bytes) -> bool:
    try:
        image.check(body)
    except image.Undecodable:
        return True
    return False


KINDS = [
    {"quality": 90},
    {"quality": 95, "subsampling": 0, "grain": 20.0},
    {"quality": 3, "subsampling": 1},
    {"quality": 85, "mode": "L"},
    {"quality": 85, "restart_marker_blocks": 1},
    {"quality": 85, "restart_marker_blocks": 9, "subsampling": 1},
    {"quality": 85, "restart_marker_rows": 1},
    {"quality": 95, "grain": 0.0},
]


@pytest.mark.parametrize("options", KINDS, ids=lambda o: "-".join(map(str, o)))
@pytest.mark.parametrize("size", [(256, 256), (333, 271), (8, 8), (257, 1000), (9, 300)])
def test_sound_scans_are_known_to_the_pixel(walker, size, options):
    body = photo(*size, progressive=True, **options)
    assert walker.progressive(body, *size) == (True, reference(body))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (77, 61)])
def test_colours_without_a_gray_picture_have_a_verdict_all_the_same(walker, size):
    body = photo(*size, mode="CMYK", progressive=True)
    assert walker.progressive(body, *size)[0] is True
    assert not refused(body)


def bits_of(codes: list[str]) -> bytes:
    """A scan's data: codes, padded with ones; a 0xff is followed by a 0."""
    text = "".join(codes)
    text += "1" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)).replace(b"\xff", b"\xff\0")


def segment(code: int, data: bytes) -> bytes:
    return bytes((0xFF, code)) + struct.pack(">H", len(data) + 2) + data


def made(*scans: tuple[int, int, int, int, bytes], size: int = 8) -> bytes:
    """A gray progressive file of (first, last, high, low, data). Codes of a table: 00 to 10 for its three symbols."""
    tables = b"".join(segment(0xC4, bytes((kind, 0, 3)) + bytes(14) + symbols) for kind, symbols in SYMBOLS)
    frame = segment(0xC2, struct.pack(">BHHB", 8, size, size, 1) + bytes((1, 0x11, 0)))
    passes = b"".join(
        segment(0xDA, bytes((1, 1, 0, first, last, high << 4 | low))) + data for first, last, high, low, data in scans
    )
    return b"\xff\xd8" + segment(0xDB, bytes(1) + b"\x01" * 64) + frame + tables + passes + b"\xff\xd9"


SYMBOLS = ((0x00, bytes((0, 1, 3))), (0x10, bytes((0x01, 0x00, 0xF0))))  # sizes; a 1 at once, the block's end, 16 zeros
ONE, STOP, ZEROS = "00", "01", "10"
MEANS = (0, 0, 0, 0, bits_of(["00"]))


@pytest.mark.parametrize(
    ("scans", "sound"),
    [
        ([MEANS], True),
        ([(0, 0, 0, 13, bits_of(["00"])), *((0, 0, n + 1, n, bits_of(["1"])) for n in reversed(range(13)))], True),
        ([MEANS, (1, 63, 0, 1, bits_of([ONE + "1", STOP])), (1, 63, 1, 0, bits_of([ONE + "0" + "1", STOP]))], True),
        ([MEANS, (1, 63, 0, 0, bits_of([(ONE + "1") * 63]))], True),  # the block is full: no end
        ([MEANS, (1, 63, 0, 0, bits_of([ZEROS * 3, (ONE + "1") * 15]))], True),
        ([MEANS, (1, 63, 0, 0, bits_of([ZEROS * 4]))], False),  # 64 zeros do not fit
        ([MEANS, (1, 5, 0, 0, bits_of([ZEROS]))], False),
        ([MEANS, (1, 63, 0, 0, bits_of(["11", STOP]))], False),  # a code that there is not
        ([MEANS, (1, 63, 0, 0, b"")], False),
        ([MEANS, (1, 63, 0, 0, bits_of([STOP]) + bytes(15))], True),  # some encoders leave bytes unused
        ([MEANS, (1, 63, 0, 0, bits_of([STOP]) + bytes(16))], False),
        ([(0, 0, 0, 0, bits_of(["01"]))], True),
        ([(0, 0, 0, 0, bits_of(["01"]) + bytes(16))], False),
    ],
)
def test_scans_of_which_every_bit_is_known(walker, scans, sound):
    assert walker.progressive(made(*scans), 8, 8)[0] is sound


def test_a_run_of_blocks_may_not_lead_beyond_the_last(walker, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SYMBOLS", (SYMBOLS[0], (0x10, bytes((0x01, 0x10, 0xF0)))))  # 01 and a bit: 2 or 3
    means = (0, 0, 0, 0, bits_of(["00"] * 4))
    for codes, sound in ((["010", "010"], True), (["011", ONE + "1"], True), (["010", "011"], False)):
        body = made(means, (1, 1, 0, 0, bits_of(codes)), size=16)
        assert walker.progressive(body, 16, 16)[0] is sound, codes


FIRST = (1, 63, 0, 2, bits_of([ONE + "1", STOP]))
GOOD, BAD = bits_of([ONE + "0" + "1", STOP]), bits_of(["11"])  # one more coefficient; a code that there is not


@pytest.mark.parametrize("end", [b"\xff\xd9", b"\xff\xf1\0\2\xff\xd9", b"\xff\xda\0\2\xff\xd9", b"\0"])
def test_a_refinement_that_waits_for_the_next_has_its_verdict_whatever_follows(walker, end):
    """Two refinements are walked together, so the first is walked late; or alone, if no second comes."""
    last = bits_of([STOP]) + bits_of(["0" * 8])  # bits for two coefficients, and a few to spare
    for data, rest in ((GOOD, ()), (GOOD, ((1, 63, 1, 0, last),)), (BAD, ()), (BAD, ((1, 63, 1, 0, last),))):
        body = made(MEANS, FIRST, (1, 63, 2, 1, data), *rest)[:-2] + end
        whole = True if end == b"\xff\xd9" else None
        assert walker.progressive(body, 8, 8)[0] is (whole if data is GOOD else False)


def test_a_refinement_sees_what_the_one_before_added_though_they_are_walked_together(walker, monkeypatch):
    """Four blocks of one coefficient; the first refinement adds another in the last of them, the second has bits for
    both there and passes over runs of blocks before."""
    monkeypatch.setattr(f"{__name__}.SYMBOLS", (SYMBOLS[0], (0x10, bytes((0x01, 0x10, 0x00)))))  # 01 and a bit: 2 or 3
    run, stop = "01", "10"
    means = (0, 0, 0, 0, bits_of(["00"] * 4))
    first = (1, 63, 0, 2, bits_of([(ONE + "1" + stop) * 4]))
    adds = (1, 63, 2, 1, bits_of([run + "1" + "1" * 3, ONE + "1" + "1" + stop]))
    for bits, sound in (("01", True), ("01" + "0" * 8 * 16, False)):
        sees = (1, 63, 1, 0, bits_of([run + "1" + "010", stop + bits]))
        assert walker.progressive(made(means, first, adds, sees, size=16), 16, 16)[0] is sound
    short = (1, 63, 1, 0, bits_of([run + "1" + "010", ONE + "1" + "01" + ONE + "1" + stop]))
    assert walker.progressive(made(means, first, adds, short, size=16), 16, 16)[0] is True
    assert walker.progressive(made(means, first, adds, adds, size=16), 16, 16)[0] is None  # they do not follow


def test_what_it_does_not_know_is_left_to_the_reference(walker):
    body = photo(256, 256, progressive=True)
    for other in (
        photo(256, 256),
        body[:-2],
        body[:-1],
        body.replace(b"\xff\xc2\0\x11\x08", b"\xff\xc2\0\x11\x0c"),
        made(MEANS, (1, 63, 1, 0, bits_of([STOP]))),  # refines what has not begun
        made((1, 63, 0, 0, bits_of([STOP]))),  # without means
        b"\xff\xd8\xff\xd9",
    ):
        assert walker.progressive(other, 256, 256) == (None, None)


def test_files_that_are_not_refined_to_the_end_are_decoded_by_the_reference(walker, walked):
    """libjpeg smooths them."""
    body = photo(300, 300, progressive=True)
    scans, _ = jpeg.scans_of(body)
    last = body.rfind(b"\xff\xda")
    (tables,) = [at for at in [body.rfind(b"\xff\xc4", 0, last)] if at > scans[-2].stop - 1]
    coarse = body[:tables] + b"\xff\xd9"
    assert walker.progressive(coarse, 300, 300) == (True, None)
    found = image.check(coarse)
    assert (found.size, found.tobytes()) == reference(coarse)


DAMAGE = {
    "60 bytes changed": lambda body, at, rng: body[:at] + rng.randbytes(60).replace(b"\xff", b"") + body[at + 60 :],
    "a lost block": lambda body, at, _: body[:at] + bytes(512) + body[at + 512 :],
    "bytes left out": lambda body, at, _: body[:at] + body[at + 100 :],
    "cut": lambda body, at, _: body[:at] + b"\xff\xd9",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_inside_a_scan_is_refused(walked, how):
    rng = random.Random(1)
    bodies = [photo(400, 300, seed, progressive=True, quality=80) for seed in range(4)]
    damaged = []
    for turn in range(40):
        body = bodies[turn % 4]
        damaged.append(DAMAGE[how](body, rng.randrange(jpeg.scans_of(body)[0][0].start, len(body) - 600), rng))
    assert sum(map(refused, damaged)) >= 36


def test_damage_is_refused_with_the_words_of_a_baseline_file(walked):
    body = photo(300, 300, progressive=True)
    start = jpeg.scans_of(body)[0][1].start
    for judge in (image.check, image.decode):
        with pytest.raises(image.Undecodable, match="the picture is complete before its data ends"):
            judge(body[:start] + bytes(200) + body[start + 200 :])


def test_what_it_calls_sound_of_damaged_files_has_the_pixels_of_the_reference(walker):
    rng = random.Random(4)
    sources = [photo(64, 72, n, progressive=True, **options) for n, options in enumerate(KINDS)]
    known = {True: 0, False: 0, None: 0}
    for turn in range(1200):
        body = bytearray(sources[turn % len(sources)])
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(2, len(body))
            if rng.random() < 0.8:
                body[at] ^= 1 << rng.randrange(8)
            else:
                del body[at : at + rng.randint(1, 3)]
        sound, plane = walker.progressive(bytes(body), 64, 72)
        known[sound] += 1
        if plane is not None:
            assert size_of(bytes(body)) == (64, 72)
            assert plane == reference(bytes(body)), turn
    assert min(known.values()) > 50


def test_a_check_is_the_same_without_the_library_where_nothing_is_damaged(walker, monkeypatch):
    for options in KINDS:
        body = photo(300, 270, progressive=True, **options)
        monkeypatch.setattr(entropy, "progressive", walker.progressive)
        fast = image.check(body)
        monkeypatch.setattr(entropy, "progressive", lambda *_: (None, None))
        slow = image.check(body)
        assert (fast.size, fast.mode, fast.tobytes()) == (slow.size, slow.mode, slow.tobytes())
        assert np.asarray(fast).any()
