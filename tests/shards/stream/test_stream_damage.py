"""What streaming says of data that is damaged, gone or not what its index says; and of a store that is away."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import bucket
from fault_proxy import FaultProxy
from made_datasets import jpeg, make_dataset

from shards import store, store_ranged, store_remote
from shards.manifest import Manifest, _canonical, _content, read_manifest
from shards.stream import ReadConfig
from shards.stream.order import Order, Sequence, batch
from shards.stream.stream import Stream
from xtra.data import Augment, train_batches

ORDER = Order(seed=3, lanes=2, chunk=4, window=2)
BATCH = 6


@pytest.fixture
def local(tmp_path: Path) -> Manifest:
    return make_dataset(str(tmp_path / "data"), [20, 20])


@pytest.fixture(params=["local", "moto"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    if request.param == "moto":
        request.getfixturevalue("on_moto")
    return make_dataset(str(tmp_path / "data") if request.param == "local" else bucket() + "/data", [20, 20])


def alter(url: str, change: Callable[[bytes], bytes]) -> None:
    store.put(url, change(store.read(url)))


def stream_all(manifest: Manifest) -> list[str]:
    stream, keys = Stream(manifest, ORDER, BATCH, stop_at=manifest.samples), []
    try:
        for samples in stream:
            keys += [sample.key for sample in samples]
            assert all(bytes(sample.body) == jpeg(sample.row) for sample in samples)
    finally:
        stream.close()
    return keys


def error_text(manifest: Manifest) -> str:
    """The error that the stream ends with; it names the place in the stream, and the shard has a sample there."""
    with pytest.raises(store.StoreError) as error:
        stream_all(manifest)
    text = str(error.value)
    assert text.isprintable()
    where = re.search(r"samples (\d+) to (\d+) of the stream", text)
    assert where, text
    place = batch(Sequence(manifest.counts, ORDER), int(where[1]), int(where[2]))
    assert any(text.startswith(manifest.tar_url(number // 20)) for number in place.sample.tolist())
    return text


def test_a_tar_that_is_cut_short_is_named_with_key_and_place(manifest: Manifest) -> None:
    tar = manifest.tar_url(1)
    alter(tar, lambda body: body[: len(body) // 2])
    text = error_text(manifest)
    assert text.startswith(tar)
    assert re.search(r"\bk0000[23]\d\b", text), text
    assert "xtra check" in text


def test_a_tar_that_is_gone_is_named_with_key_and_place(manifest: Manifest) -> None:
    store.delete(manifest.tar_url(0))
    text = error_text(manifest)
    assert text.startswith(manifest.tar_url(0))


def test_tars_that_were_swapped_are_found_before_their_pictures_pass_for_others(manifest: Manifest) -> None:
    one, two = map(store.read, (manifest.tar_url(0), manifest.tar_url(1)))
    store.put(manifest.tar_url(0), two)
    store.put(manifest.tar_url(1), one)
    text = error_text(manifest)
    assert text.startswith((manifest.tar_url(0), manifest.tar_url(1)))
    assert re.search(r"\bk0000\d\d\b", text), text
    assert "not what its index describes" in text


def test_an_index_of_another_attempt_does_not_match_its_tar(manifest: Manifest) -> None:
    """The tar was written again with one picture more at its front: all names are there, elsewhere."""
    tar = manifest.tar_url(0)
    alter(tar, lambda body: body[:2048] + body)
    text = error_text(manifest)
    assert text.startswith(tar)
    assert re.search(r"\bk0000[01]\d\b", text), text


def test_an_index_that_selects_another_number_is_named(local: Manifest) -> None:
    folder = store.join(local.dataset, "shards")
    make_dataset(store.join(local.dataset, "other"), [19, 20])
    shorter = store.join(local.dataset, "other", "shards", local.shards[0].index)
    store.put(store.join(folder, local.shards[0].index), store.read(shorter))
    with pytest.raises(store.StoreError, match=rf"{local.shards[0].index}: selects 19 samples, its manifest has 20"):
        stream_all(local)


def test_an_index_that_is_damaged_or_gone_is_named(local: Manifest) -> None:
    index = store.join(local.dataset, "shards", local.shards[1].index)
    alter(index, lambda body: body[:100])
    with pytest.raises(store.StoreError, match=local.shards[1].index):
        stream_all(local)
    store.delete(index)
    with pytest.raises(store.StoreError, match=local.shards[1].index):
        stream_all(local)


def test_a_corrupt_member_is_replaced_and_named(local: Manifest) -> None:
    tar, body = local.tar_url(1), jpeg(27)
    alter(tar, lambda whole: whole.replace(body, bytes(len(body))))
    stream = Stream(local, ORDER, BATCH, stop_at=local.samples)
    batches = list(train_batches(stream, 16, Augment(), 0))
    stream.close()
    (event,) = [event for batch in batches for event in batch.events]
    assert (event["event"], event["shard"], event["key"]) == ("substitute", tar, "k000027")
    assert event["why"]
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == 40
    assert "k000027" not in keys
    assert keys.count(event["shown"]) == 2


@pytest.mark.parametrize("named", ["newest", "digest"])
def test_a_manifest_from_the_future_is_refused(tmp_path: Path, named: str) -> None:
    """As a later build would write it, under the digest of its own content."""
    manifest = make_dataset(tmp_path, [5])
    content = _content(manifest) | {"format": 3, "weights": {"k000001": 2}}
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    folder = tmp_path / "manifests"
    head = store.read_json(str(folder / f"{manifest.digest}.json")) | {"format": 3, "weights": {"k000001": 2}}
    store.put_json(str(folder / f"{digest}.json"), head)
    shutil.copy(folder / f"{manifest.digest}.parquet", folder / f"{digest}.parquet")
    store.put_json(
        str(tmp_path / "versions" / "000002.json"), {"digest": digest, "parent": manifest.digest, "why": "x"}
    )
    with pytest.raises(ValueError, match=r"has format 3, this build reads 2: upgrade"):
        read_manifest(str(tmp_path) if named == "newest" else f"{tmp_path}@{digest}")
    assert read_manifest(manifest.address).digest == manifest.digest


# --- a store that is away --------------------------------------------------------------------------------------------


READ = ReadConfig(connections=2, memory=1 << 20)  # a fourth of the set, so that it must be asked again and again


def streamed(manifest: Manifest, after_two: Callable[[], None] = lambda: None) -> list[str]:
    stream, keys = Stream(manifest, ORDER, BATCH, stop_at=2 * manifest.samples, config=READ), []
    try:
        for number, samples in enumerate(stream):
            keys += [sample.key for sample in samples]
            assert all(bytes(sample.body) == jpeg(sample.row, 256) for sample in samples)
            samples.release()
            if number == 1:
                after_two()
    finally:
        stream.close()
    return keys


@pytest.mark.slow
@pytest.mark.usefixtures("on_moto")
def test_a_store_that_vanishes_for_a_while_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_dataset(bucket() + "/data", [60, 60], side=256)
    alone = streamed(manifest)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(store_remote, "_filesystems", {})
        monkeypatch.setattr(store_ranged, "_signatures", {})
        before = proxy.counts["requests"]
        assert streamed(manifest, lambda: proxy.outage(2)) == alone
        assert proxy.counts["requests"] > before
        monkeypatch.setattr(store_remote, "PATIENCE", 1.0)
        with pytest.raises(store.StoreError, match=r"/shards/.*tries in .*\(samples \d+ to \d+ of the stream\)"):
            streamed(manifest, lambda: proxy.outage(60))
        for thread in threading.enumerate():  # they give up too; left alone, they had a test's whole patience
            if thread.name.startswith("read"):
                thread.join(30)
