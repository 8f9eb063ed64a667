"""The benches' origin: what it says a path is worth is what an ingest makes of it."""

import hashlib
import ssl
import urllib.request
from collections import Counter

import pytest

from ingest.config import Config
from ingest.http.fetcher import FetchConfig
from ingest.run import run
from jobs.bench import origin

LOOPBACK = ("127.0.0.0/8",)
KINDS = ("ok", "404", "410", "403", "500", "html", "cut", "truncated", "reset", "redirect", "flaky", "retry-after/0")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "hello").write_bytes(b"hello")
    with origin.serving(bodies=8, bytes=1500, hosts=2, folder=folder) as served:
        yield served


def get(url: str, **more: object) -> bytes:
    with urllib.request.urlopen(url, timeout=30, **more) as reply:
        return reply.read()


def test_an_ingest_ends_every_path_as_the_origin_says(small, tmp_path):
    paths = [f"/{kind}/{n}" for kind in KINDS for n in range(4)]
    (tmp_path / "list.txt").write_text("".join(f"{small.url(path, n)}\n" for n, path in enumerate(paths)))
    fetching = FetchConfig(LOOPBACK, backoff=0.01, retries=1)
    result = run(Config(str(tmp_path / "list.txt"), str(tmp_path / "out"), fetch=fetching))
    expected = Counter(map(origin.verdict, paths))
    assert result.kept == expected.pop("kept")
    assert result.reasons == expected


def test_every_path_has_its_own_picture_and_the_same_one_again(small):
    assert get(small.url("/ok/1.jpg")) != get(small.url("/ok/2.jpg"))
    assert get(small.url("/ok/1.jpg")) == get(small.url("/ok/1.jpg", 1))
    assert get(small.url("/same/7/1.jpg")) == get(small.url("/same/7/2.jpg")) != get(small.url("/same/8/1.jpg"))
    assert get(small.url("/file/hello")) == b"hello"


def test_pictures_have_about_the_asked_size():
    for wanted in (1500, 30_000):
        sizes = [len(body) for body in origin.photographs(12, wanted)]
        assert 0.7 * wanted < sum(sizes) / len(sizes) < 1.4 * wanted
        assert len(set(sizes)) > 1


def test_tls_clients_can_trust_it(tmp_path):
    with origin.serving(bodies=2, bytes=1500, hosts=2, tls=tmp_path) as served:
        context = ssl.create_default_context(cafile=served.authorities)
        bodies = [get(served.url("/ok/1.jpg", host), context=context) for host in (0, 1)]
        assert hashlib.sha256(bodies[0]).digest() == hashlib.sha256(bodies[1]).digest()
