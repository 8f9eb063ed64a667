"""Whole objects that are read by libcurl, like ranges: the same bytes, and the same errors."""

import pytest
from buckets import bucket

from shards import store, store_ranged


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
