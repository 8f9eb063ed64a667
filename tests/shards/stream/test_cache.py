"""The disk cache: what has a name is whole, the folder stays within its bound, and it may fail without harm."""

import os
import subprocess
import sys
import time

import pytest

from shards.stream.cache import FOLDER, DiskCache


def held(cache):
    return sum(file.stat().st_size for file in cache.folder.rglob("*") if file.is_file())


def read(cache, name, size):
    view = memoryview(bytearray(size))
    return bytes(view) if cache.read_into(name, view) else None


def test_what_was_written_is_read_by_another(tmp_path):
    DiskCache(tmp_path, 1000).write("ab-0", b"x" * 100)
    cache = DiskCache(tmp_path, 1000)
    assert read(cache, "ab-0", 100) == b"x" * 100
    assert read(cache, "ab-1", 100) is None
    assert read(cache, "ab-0", 99) is None, "an entry of another size is not it"
    assert (cache.hits, cache.misses) == (1, 2)


def test_it_stays_within_its_bound_and_evicts_what_no_run_uses(tmp_path):
    old = DiskCache(tmp_path, 10_000)
    for number in range(12):
        old.write(f"old-{number}", bytes(1000))
    assert held(old) <= 10_000
    kept = [number for number in range(12) if read(old, f"old-{number}", 1000)]
    for number in kept:
        os.utime(tmp_path / FOLDER / "ol" / f"old-{number}", (time.time() - 9000 + number,) * 2)
    new = DiskCache(tmp_path, 10_000)
    assert held(new) <= 8_750, "room was made at the start"
    left = [number for number in kept if (tmp_path / FOLDER / "ol" / f"old-{number}").exists()]
    assert left == kept[-len(left) :], "the longest unused went first"
    for number in left:
        assert read(new, f"old-{number}", 1000), "used by this run from now on"
    for number in range(30):
        new.write(f"new-{number}", bytes(1000))
    assert held(new) <= 10_000
    assert all(read(new, f"old-{number}", 1000) for number in left), "what this run uses is not evicted for more of it"
    assert read(new, "new-0", 1000), "what came while there was room has stayed"


def test_a_killed_writer_leaves_no_entry(tmp_path):
    script = "import os,sys; sys.path[:0]=[os.getcwd()]; "
    script += "from shards.stream.cache import DiskCache; import shards.stream.cache as c\n"
    script += "c.os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
    script += f"DiskCache({str(tmp_path)!r}, 1000).write('ab-0', b'x' * 100)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (aside,) = (tmp_path / FOLDER / "ab").iterdir()
    assert read(DiskCache(tmp_path, 1000), "ab-0", 100) is None
    assert aside.exists(), "its writer may be alive"
    os.utime(aside, (0, 0))
    DiskCache(tmp_path, 1000)
    assert not aside.exists(), "an abandoned one is cleared"


def test_a_disk_that_fails_costs_the_entry_alone(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 1000)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shards.stream.cache.os.fdatasync", full)
    cache.write("ab-0", b"x" * 100)
    assert cache.failures == 1
    assert read(cache, "ab-0", 100) is None
    assert list((tmp_path / FOLDER / "ab").iterdir()) == []


def test_what_else_lies_in_the_folder_is_not_ours(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.raw").write_bytes(bytes(1000))
    cache = DiskCache(tmp_path, 3000)
    cache.write("ab-0", bytes(1000))
    assert len(list((tmp_path / "photos").iterdir())) == 5
    assert read(cache, "ab-0", 1000), "nor does it count"


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"read\.cache: .*file cannot be used"):
        DiskCache(tmp_path / "file", 1000)
    with pytest.raises(ValueError, match=r"read\.cache_bytes is 0"):
        DiskCache(tmp_path, 0)
