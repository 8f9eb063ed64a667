"""The benches' file server: what S3 clients and plain HTTP ones ask of it."""

import http.client
import time
import urllib.error
import urllib.request

import pytest

from jobs.bench import bucket
from shards import store, store_remote

BODY = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for name in ("b/set/one.tar", "b/set/deep/two.tar", "b/top with space"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(BODY)
    for k in range(1005):
        (root / "b" / "many").mkdir(exist_ok=True)
        (root / "b" / "many" / f"{k:04}").touch()
    (root.parent / "outside").write_bytes(b"secret")
    with bucket.serving(root) as server:
        yield server


@pytest.fixture
def as_s3(served, monkeypatch):
    for name, value in served.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_remote, "_filesystems", {})


def get(served, name, wanted=None):
    request = urllib.request.Request(served.url(name), headers={"Range": wanted} if wanted else {})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.status, reply.headers, reply.read()


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=10000-", 10000, len(BODY)),
        ("bytes=-7", len(BODY) - 7, len(BODY)),
        ("bytes=10000-99999", 10000, len(BODY)),
    ],
)
def test_a_range_is_answered_with_206_and_its_place(served, wanted, start, stop):
    status, headers, body = get(served, "b/set/one.tar", wanted)
    assert (status, body) == (206, BODY[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BODY)}"


def test_whole_files_and_what_is_not_there(served):
    assert get(served, "b/set/one.tar")[::2] == (200, BODY)
    assert get(served, "b/top with space")[2] == BODY
    asked = [("b/none", None), ("b/set", None), ("b/../../outside", None), ("b/set/one.tar", f"bytes={len(BODY)}-")]
    for (name, wanted), status in zip(asked, (404, 404, 400, 416)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(served, name, wanted)
        error.value.close()
        assert error.value.code == status


def test_a_connection_serves_request_after_request(served):
    connection = http.client.HTTPConnection(served.endpoint.removeprefix("http://"), timeout=30)
    before = served.counts()
    for _ in range(3):
        connection.request("GET", "/b/set/one.tar?X-Amz-Signature=0", headers={"Authorization": "AWS4 whatever"})
        assert connection.getresponse().read() == BODY
    connection.request("HEAD", "/b/set/one.tar")
    reply = connection.getresponse()
    assert (reply.read(), reply.headers["Content-Length"]) == (b"", str(len(BODY)))
    connection.close()
    spent = served.counts().since(before)
    assert spent.bytes - 3 * len(BODY) in range(1, 200)  # and what /.counts itself said
    assert spent.requests == 5
    assert spent.connections == 2  # the second asked for the counts


def test_our_store_reads_and_lists_it_as_s3(as_s3):
    assert store.read("s3://b/set/one.tar") == BODY
    assert store.read_range("s3://b/set/one.tar", 5, 300) == BODY[5:305]
    assert store.names("s3://b/set") == ["deep", "one.tar"]
    assert len(store.names("s3://b/many")) == 1005  # more than one page
    assert store.exists("s3://b/set/one.tar")
    assert not store.exists("s3://b/set/none")
    with pytest.raises(store.Missing, match="s3://b/set/none"):
        store.read("s3://b/set/none")


def test_a_distant_one_keeps_clients_waiting(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one").write_bytes(bytes(200_000))
    with bucket.serving(tmp_path, latency=0.1, rate=1e6) as server:
        begun = time.monotonic()
        with urllib.request.urlopen(server.url("b/one"), timeout=30) as reply:
            assert time.monotonic() - begun >= 0.1
            assert len(reply.read()) == 200_000
        assert time.monotonic() - begun >= 0.25  # 0.1 and nearly 0.2 for the bytes
