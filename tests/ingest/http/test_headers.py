"""Encodings that are true, false or unknown, and cookies of one link's redirects."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from fetching import Run
from origin import Origin, picture

from ingest.http.headers import TooLarge, cookies, decoded, remember_cookie
from ingest.record import Reason

BODY = picture("/a", "png", 60)
TEXT = b"User-agent: *" * 99


@pytest.mark.parametrize("body", [BODY, TEXT])
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
        ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
        ("zstd", lambda body: pa.compress(body, "zstd", asbytes=True)),
        ("br", lambda body: pa.compress(body, "brotli", asbytes=True)),
        ("identity", bytes),
        ("none", bytes),
        ("utf-8", bytes),
        ("image/png", bytes),
        ("aws-chunked", bytes),
        ("aws-chunked, gzip", gzip.compress),
    ],
)
def test_an_encoding_is_undone(encoding: str, pack, body: bytes) -> None:
    assert decoded(pack(body), encoding, 1 << 20) == body


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_picture_that_is_only_said_to_be_encoded_is_one(encoding: str) -> None:
    assert decoded(BODY, encoding, 1 << 20) == BODY


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_what_is_cut_or_damaged_or_a_bomb(pack) -> None:
    packed, name = pack(bytes(1 << 20)), "gzip" if pack is gzip.compress else "deflate"
    with pytest.raises(ValueError, match="cut short"):
        decoded(packed[:-20], name, 1 << 21)
    with pytest.raises(TooLarge):
        decoded(packed, name, (1 << 20) - 1)
    with pytest.raises(ValueError, match="damaged"):
        decoded(packed[:40] + b"\xff" * 40 + packed[80:], name, 1 << 21)


def test_a_jar() -> None:
    jar: dict[str, str] = {}
    lines = ["a=1; Path=/", "b = two words ; Secure", "=x", "noise", "c=3", "c=; Max-Age=0", "a=9", "d=\x01"]
    for line in [*lines, "e=" + "x" * 5000]:
        remember_cookie(jar, line)
    assert cookies(jar) == "a=9; b=two words"
    for at in range(99):
        remember_cookie(jar, f"k{at}=1")
    assert len(jar) == 20


@pytest.mark.parametrize("encoding", ["gzip", "none", "br", "zstd", "utf-8"])
def test_a_server_that_says_an_encoding_that_is_not_true(origin: Origin, encoding: str, tmp_path: Path) -> None:
    url = origin.url(f"/named/{encoding}")
    with Run(retries=0) as run:
        (found,) = run.get(url)
    assert (found.reason, found.body) == (None, picture(f"/named/{encoding}"))
    with Run(retries=0, max_bytes=1000) as run:
        assert run.get(url)[0].reason is Reason.TOO_LARGE


def test_a_redirect_that_wants_the_cookie_that_it_sets(origin: Origin) -> None:
    other = origin.url("/ok/2.jpg").replace("127.0.0.1", "localhost")
    with Run(retries=0, connections=1, robots=False) as run:
        found = run.get(origin.url("/gate/1"), origin.url("/ok/1.jpg"), origin.url("/gate/2"), origin.url("/loop"))
    assert [f.reason for f in found] == [None, None, None, Reason.TOO_MANY_REDIRECTS]
    sent = dict(zip(origin.paths, (headers.get("Cookie") for headers in origin.headers)))
    assert (sent["/gate/1"], sent["/gate/2"]) == ("seen=1", "seen=1")
    assert sent["/ok/1.jpg"] is None, "a jar is for one link"
    assert [headers.get("Cookie") for headers in origin.headers].count("seen=1") == 2
    with Run(retries=0, robots=False) as run:
        (away,) = run.get(origin.url(f"/leave?{other}"))
    assert (away.reason, away.final_url, origin.paths[-1]) == (None, other, "/ok/2.jpg")
    assert "Cookie" not in origin.headers[-1], "nor for another host"
