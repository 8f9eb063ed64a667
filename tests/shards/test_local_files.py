"""What the local disk may be made of: regular files and folders with names that are UTF-8; the rest is named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from shards import store


@pytest.mark.parametrize("write", ["file://{}", "FILE://{}", "file://localhost{}", "File://LOCALHOST{}", "{}"])
def test_all_ways_to_write_a_local_path_are_one_place(tmp_path: Path, write: str) -> None:
    url = write.format(tmp_path / "a.txt")
    store.put(url, b"body")
    assert (tmp_path / "a.txt").read_bytes() == b"body"
    assert store.read(url) == b"body"
    assert store.absolute(url) == str(tmp_path / "a.txt")


def special(folder: Path, kind: str) -> Path:
    path = folder / "odd.jpg"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(folder, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{here}/odd.jpg")  # a path of its own may be too long for a socket
            os.close(here)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_may_never_end_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    url = str(special(tmp_path, kind))
    for read in (
        store.read,
        store.open_read,
        lambda url: store.read_range(url, 0, 1),
        lambda url: store.read_into(url, 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(store.StoreError, match=f"odd.jpg: is {kind}, not a regular file"):
            read(url)


def test_a_link_to_nothing_and_a_file_in_the_way_are_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    for name, why in (
        ("link", "is a link to .*gone, which does not exist"),
        ("file", "is a file, but must be a folder"),
    ):
        for place in (tmp_path / name, tmp_path / name / "below"):
            with pytest.raises(store.StoreError, match=why) as refused:
                store.check_writable(str(place))
            assert ".write-test-" not in str(refused.value)
            with pytest.raises(store.StoreError, match=why):
                store.put(f"{place}/a.json", b"{}")


def test_a_folder_that_cannot_be_written_is_named_without_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError) as refused:
        store.check_writable("/proc/xtra")
    assert str(refused.value).startswith("/proc/xtra: cannot write")


def test_a_name_that_is_not_utf8_is_refused_in_words(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"out .*caf\\xe9: is a name that is not UTF-8"):
        store.require(out=name)
