"""Pictures that claim too much or need too much memory get a verdict, and the run goes on."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from ingesting import FETCH, rows_of, write_list
from origin import Origin, picture
from PIL import Image
from places import ROOT

from ingest.config import Config
from ingest.filter import FilterConfig, judge
from ingest.isolate import Judge, costly
from ingest.record import Fetched, Link, Reason
from ingest.run import run
from shards.pixels import isolate

SIDE = 9459  # squared it is just below the cap of pixels


def fetched(body: bytes) -> Fetched:
    return Fetched(Link("k", "http://a/1", (), 7), body, None, "", 200, "http://a/1", 1, 5, 1.5)


def png(side: int, depth: int, colour: int, tail: bytes = b"") -> bytes:
    """A PNG of zeros; `tail` goes into a chunk of its own, which no decoder needs."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = 1 + (side * channels * depth + 7) // 8
    pack = zlib.compressobj(9)
    data = b"".join([*(pack.compress(bytes(row)) for _ in range(side)), pack.flush()])
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("make", [False, True])
def test_a_header_that_promises_1000_pixels_a_byte_is_not_decoded(make: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 9000
    body = png(side, 1, 0) if make else b"RIFF" + struct.pack("<I", 32) + b"WEBPVP8L" + struct.pack("<I", 20) + b"\x2f"
    if not make:
        body += struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(15)
    assert side * side > 1000 * len(body)
    monkeypatch.setattr("shards.pixels.image._load", lambda *_: pytest.fail("it was decoded"))
    found = judge(fetched(body), FilterConfig())
    assert found.reason in (Reason.PLACEHOLDER, Reason.UNDECODABLE)
    if make:
        assert found.reason is Reason.PLACEHOLDER
        assert found.detail == f"9000x9000 in {len(body)} bytes: not decoded"
    assert not found.decode_checked


def test_what_takes_long_is_judged_in_the_child_with_the_same_verdict() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 4200, 3), np.uint8)
    large = Image.fromarray(np.tile(noise, (140, 1, 1)))
    for body in (encode(large, "PNG", compress_level=1), encode(large, "WEBP", lossless=True, method=0)):
        assert costly(fetched(body))
        judging = Judge()
        try:
            assert judging(fetched(body), FilterConfig()) == judge(fetched(body), FilterConfig())
        finally:
            judging.close()
    for kind in ("jpeg", "png", "webp", "gif"):
        assert not costly(fetched(picture("a", kind)))


def test_costly_pictures_of_a_list_are_kept_and_judged_beside_the_others(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.pixels.cost.LARGE", 1 << 10)
    origin.files["large.png"] = picture("a", "png")
    paths = [*(f"/ok/{n}.jpg" for n in range(12)), "/file/large.png"]
    assert costly(fetched(origin.files["large.png"]))
    config = Config(write_list(tmp_path / "l.txt", origin, paths), str(tmp_path / "out"), unit=7, fetch=FETCH)
    assert run(config).kept == len(paths)
    assert {row["reason"] for row in rows_of(config.out)} == {"kept"}


def test_a_picture_that_wants_more_memory_than_there_is_gets_a_verdict_in_the_child(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(found: Fetched, config: FilterConfig) -> object:
        if found.link.url.endswith("hungry.jpg"):
            raise MemoryError
        return judge(found, config)

    monkeypatch.setattr("ingest.judging.judge", short_of_memory)
    paths = ["/ok/1.jpg", "/ok/hungry.jpg", "/ok/2.jpg"]
    config = Config(write_list(tmp_path / "l.txt", origin, paths), str(tmp_path / "out"), fetch=FETCH)
    assert run(config).kept == 3  # the child had memory of its own


def test_marks_outlive_a_lack_of_memory(tmp_path: Path) -> None:
    marks = isolate.InFlight(tmp_path / "marks")
    with pytest.raises(MemoryError), marks.decoding(5):
        raise MemoryError
    with pytest.raises(KeyError), marks.decoding(6):
        raise KeyError
    with marks.decoding(7):
        pass
    marks.close()
    assert isolate.suspects(tmp_path / "marks") == {5}


@pytest.mark.slow
def test_an_ingest_in_1_1_gb_marks_the_picture_and_keeps_the_rest(origin: Origin, tmp_path: Path) -> None:
    origin.files["hungry.png"] = png(SIDE, 16, 6)
    assert len(origin.files["hungry.png"]) > SIDE * SIDE / 1000
    paths = ["/ok/1.jpg", "/file/hungry.png", "/ok/2.jpg"]
    urls, out = write_list(tmp_path / "l.txt", origin, paths), str(tmp_path / "out")
    words = ["ingest", "--urls", urls, "--out", out, "--fetch.allow-private", "127.0.0.1", "--fetch.retries", "0"]

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1_100_000 << 10, 1_100_000 << 10))

    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=small,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
    found = [row["reason"] for row in rows_of(out)]
    assert found == ["kept", "undecodable", "kept"]
