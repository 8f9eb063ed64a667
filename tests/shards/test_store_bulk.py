"""Whole objects that are read by libcurl, like ranges: the same bytes, and the same errors."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest
from buckets import bucket

from shards import store, store_ranged, store_remote


@pytest.mark.parametrize("where", ["local", "moto"])
def test_a_whole_object_is_read_in_bulk_as_it_is(where, tmp_path, request):
    if where == "moto":
        request.getfixturevalue("on_moto")
    url = f"{tmp_path if where == 'local' else bucket()}/one"
    for body in (b"", b"x", bytes(range(256)) * 9000):
        store.put(url, body)
        assert store.read_bulk(url) == body
    with pytest.raises(store.Missing, match="there is no such object"):
        store.read_bulk(url + "-gone")


def test_a_range_before_a_whole_object_does_not_shorten_it(on_moto):
    url = f"{bucket()}/one"
    store.put(url, bytes(range(200)))
    view = memoryview(bytearray(10))
    store.read_into(url, 20, view)
    assert (bytes(view), store_ranged.read(url)) == (bytes(range(20, 30)), bytes(range(200)))


def parts(signed):
    found = urlsplit(signed)
    return found.scheme, found.netloc, found.path, parse_qs(found.query)


@pytest.mark.parametrize("token", [None, "a/b+c=="])
def test_a_url_that_is_signed_after_another_is_the_one_that_the_client_signs(on_moto, monkeypatch, token):
    base = bucket()
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    monkeypatch.setattr(store_remote, "_filesystems", {})
    fs, path = store_remote.client(base)
    for _ in range(10):  # all in one second
        one = fs.sign(f"{path}/one", expiration=3600)
        signer = store_ranged._signer(fs, "one", one, 0.0)
        ours = signer.signed("a/b_2-c.tar") if signer else ""
        two = fs.sign(f"{path}/a/b_2-c.tar", expiration=3600)
        if parts(one)[3]["X-Amz-Date"] == parts(two)[3]["X-Amz-Date"]:
            break
    assert parts(ours) == parts(two)
    assert ("X-Amz-Security-Token" in parts(two)[3]) == bool(token)
    assert store_ranged._signer(fs, "one", one[:-8] + "00000000", 0.0) is None, "not as this client signs"


def test_the_client_signs_one_url_of_a_bucket_and_again_when_one_is_refused(on_moto, monkeypatch):
    base, signed = bucket(), []
    for name in ("one", "two", "three", "f\u00fcr"):
        store.put(f"{base}/{name}", name.encode())
    fs, _ = store_remote.client(base)
    sign = fs.sign
    monkeypatch.setattr(fs, "sign", lambda path, **more: signed.append(path) or sign(path, **more), raising=False)
    time.sleep(1 - time.time() % 1)  # a signature names its second, and two of one second are compared
    assert [bytes(store_ranged.read(f"{base}/{name}")) for name in ("one", "two", "one")] == [b"one", b"two", b"one"]
    assert len(signed) == 1
    assert bytes(store_ranged.read(f"{base}/f\u00fcr")) == "f\u00fcr".encode()
    assert len(signed) == 2, "a name that is written otherwise in a URL is left to the client"
    time.sleep(1 - time.time() % 1)
    get, refusals = store_ranged._get_whole, [store_ranged._Refused(403, b"")]
    monkeypatch.setattr(
        store_ranged, "_get_whole", lambda where: get(where) if not refusals else refuse(refusals.pop())
    )
    assert bytes(store_ranged.read(f"{base}/three")) == b"three"
    assert len(signed) == 3


def refuse(error):
    raise error
