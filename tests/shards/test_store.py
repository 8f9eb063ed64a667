"""The door to storage, the same on a folder, on moto and on a real S3 store."""

import os
import tempfile
import threading

import pytest
from buckets import buckets_are_slow

from shards import store, store_remote


def test_put_read_list_delete(base):
    store.put(store.join(base, "a", "one"), b"1")
    store.put(store.join(base, "a", "one"), b"22")
    store.put(store.join(base, "a", "b", "two"), b"2")
    assert store.read(store.join(base, "a", "one")) == b"22"
    assert store.names(store.join(base, "a")) == ["b", "one"]
    assert store.names(store.join(base, "nothing")) == []
    assert store.exists(store.join(base, "a", "one"))
    store.delete(store.join(base, "a", "one"))
    store.delete(store.join(base, "a", "one"))
    assert not store.exists(store.join(base, "a", "one"))


def test_ranges(base):
    url = store.join(base, "x")
    store.put(url, bytes(range(100)))
    assert store.read_range(url, 10, 5) == bytes(range(10, 15))
    with pytest.raises(store.StoreError, match="ends 5 bytes before"):
        store.read_range(url, 90, 15)


def test_missing_objects_are_named(base):
    for call in (store.read, lambda u: store.read_range(u, 0, 1), store.read_json):
        with pytest.raises(store.Missing, match="nope: there is no such object"):
            call(store.join(base, "nope"))


def test_files_go_up_whole(base, tmp_path):
    (tmp_path / "f").write_bytes(b"z" * 100_000)
    store.put_file(store.join(base, "deep", "f"), tmp_path / "f")
    with store.open_read(store.join(base, "deep", "f")) as file:
        assert file.read() == b"z" * 100_000


@buckets_are_slow
def test_a_plan_of_more_than_64_mb_is_put_in_one_write(base):
    url, body = store.join(base, "links.parquet"), b"0123456789abcdef" * (114 << 16)
    assert store.put_if_absent(url, body)
    assert not store.put_if_absent(url, body[:-1])
    assert store.size(url) == len(body)


def test_put_if_absent_has_one_winner_among_many(base):
    url = store.join(base, "commit")
    barrier, wins = threading.Barrier(8), []

    def race(name: bytes) -> None:
        barrier.wait()
        if store.put_if_absent(url, name):
            wins.append(name)

    racers = [threading.Thread(target=race, args=(b"writer %d" % i,)) for i in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(wins) == 1
    assert store.read(url) == wins[0]
    assert not store.put_if_absent(url, b"late")


def test_a_good_store_passes_the_probe_and_keeps_nothing_of_it(base):
    store.check_writable(base)
    assert store.names(base) == []


def test_json_round_trip_and_damage(base):
    store.put_json(store.join(base, "j"), {"a": [1, None]})
    assert store.read_json(store.join(base, "j")) == {"a": [1, None]}
    store.put(store.join(base, "j"), b"{")
    with pytest.raises(store.StoreError, match="is not JSON"):
        store.read_json(store.join(base, "j"))


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(store.StoreError, match="cannot write"):
        store.put(str(tmp_path / "file" / "below"), b"x")
    with pytest.raises(FileNotFoundError):
        store.put_file(str(tmp_path / "new"), tmp_path / "no-such-source")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_credentials_and_no_bucket_are_one_line(on_moto, monkeypatch):
    with pytest.raises(store.StoreError, match="the bucket does not exist"):
        store.put("s3://no-such-bucket-here/x", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr(store_remote, "_filesystems", {})
    with pytest.raises(store.StoreError, match="no credentials: set AWS_ACCESS_KEY_ID") as caught:
        store.put("s3://bucket/x", b"1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["nosuch", "gs", "gcs", "az", "memory", "ftp"])
def test_a_scheme_that_no_test_vouches_for_is_refused_in_one_line(scheme):
    says = f"{scheme}://a/b: {scheme}:// is not supported: give s3://BUCKET/NAME or a folder"
    for verb in (store.read, store.exists, store.names, lambda url: store.put(url, b"")):
        with pytest.raises(store.StoreError, match=says) as caught:
            verb(f"{scheme}://a/b")
        assert "\n" not in str(caught.value)


def test_a_place_without_a_name_is_never_the_root_folder():
    with pytest.raises(ValueError, match="out is empty: give a folder or URL"):
        store.require(source="a", out=" ")
    with pytest.raises(AssertionError, match=r"dataset\.json would be in the root folder"):
        store.join("", "dataset.json")
    assert store.join("/", "a", "b") == "/a/b"


def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    """A probe that ends removes the folder of unfinished ones, just when another begins to save into it."""
    real = tempfile.mkstemp

    def late(*args, **words):
        monkeypatch.setattr("tempfile.mkstemp", real)
        (tmp_path / "unfinished").rmdir()
        return real(*args, **words)

    monkeypatch.setattr("tempfile.mkstemp", late)
    store.put(str(tmp_path / "unfinished" / "state.json"), b"{}")
    assert (tmp_path / "unfinished" / "state.json").read_bytes() == b"{}"


def test_a_file_that_is_moved_is_not_taken_for_one_that_was_left(tmp_path, monkeypatch):
    real = store.publish

    def swept(aside, target, exclusive=False):
        store.remove_left_aside(str(tmp_path / "out"))
        real(aside, target, exclusive)

    (tmp_path / "made").write_bytes(b"tensors")
    os.utime(tmp_path / "made", (1e9, 1e9))
    monkeypatch.setattr(store, "publish", swept)
    store.put_file(str(tmp_path / "out" / "state.safetensors"), tmp_path / "made", move=True)
    assert (tmp_path / "out" / "state.safetensors").read_bytes() == b"tensors"
