"""Sources that hold what is no picture's file, and pictures that are too large: named or counted, never held."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from test_class_folders import picture

from ingest.lists import list_sha256
from ingest.sets import folders, in_place
from shards.dataset import read_commit, read_info


def labelled(root: Path) -> Path:
    (root / "cat").mkdir(parents=True)
    (root / "cat/1.jpg").write_bytes(picture(1))
    return root


@pytest.mark.timeout(20)
def test_a_fifo_in_a_folder_of_pictures_is_named(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set")
    os.mkfifo(source / "cat/z.jpg")
    with pytest.raises(ValueError, match=r"cat/z\.jpg: is a FIFO"):
        folders.run(folders.Config(str(source), str(tmp_path / "out")))


@pytest.mark.timeout(20)
def test_a_fifo_as_a_list_or_a_tar_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"x\.tar: is a FIFO"):
        list_sha256(str(tmp_path / "x.tar"))
    for run in (folders.run, in_place.run):
        with pytest.raises(ValueError, match=r"x\.tar: is a FIFO"):
            run(folders.Config(str(tmp_path / "x.tar"), str(tmp_path / "out")))


def test_a_sparse_file_of_20_gb_is_too_large_and_not_read(tmp_path: Path) -> None:
    source = labelled(tmp_path / "set")
    with (source / "cat/huge.jpg").open("wb") as file:
        file.truncate(20 << 30)
    tracemalloc.start()
    try:
        result = folders.run(folders.Config(str(source), str(tmp_path / "out")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.reasons == {"too_large": 1}
    assert result.kept == 1
    assert peak < 200 << 20


def tar_with_a_large_member(path: Path, size: int) -> Path:
    path.parent.mkdir()
    with path.open("wb") as out:
        for name, length in (("x.jpg", size), ("x.cls", 1), ("y.jpg", len(picture(2))), ("y.cls", 1)):
            info = tarfile.TarInfo(name)
            info.size = length
            out.write(info.tobuf(tarfile.GNU_FORMAT))
            body = picture(2) if name == "y.jpg" else b"3"
            out.seek(length, os.SEEK_CUR) if name == "x.jpg" else out.write(body)
            out.seek(-length % 512, os.SEEK_CUR)
        out.write(bytes(1024))
    return path


@pytest.mark.parametrize("run", [folders.run, in_place.run])
def test_a_large_member_of_a_tar_is_too_large_and_not_held(tmp_path: Path, run: object) -> None:
    size = 200 << 20
    tar = tar_with_a_large_member(tmp_path / "tars/a.tar", size)
    tracemalloc.start()
    try:
        result = run(folders.Config(str(tar.parent), str(tmp_path / "out")))  # type: ignore[operator]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.reasons == {"too_large": 1}
    assert result.kept == 1
    assert peak < size
    assert read_commit(str(tmp_path / "out"), 0).links == 2


def test_the_cap_can_be_moved_and_a_rerun_must_agree_with_it(tmp_path: Path) -> None:
    source, out = str(labelled(tmp_path / "set")), str(tmp_path / "out")
    assert folders.run(folders.Config(source, out, max_bytes=10)).reasons == {"too_large": 1}
    with pytest.raises(ValueError, match="made with another config_digest"):
        folders.run(folders.Config(source, out))
    other = str(tmp_path / "other")
    folders.run(folders.Config(source, other))
    # What all builds have written so far: with another digest every rerun of an older import would be refused.
    assert read_info(other).config_digest == "23292f9e0f49bca98b4808fbb85f5dc37c2a8c83b5d43cceab001f0b303a9aee"
    with pytest.raises(ValueError, match="max_bytes is 0"):
        folders.Config(source, out, max_bytes=0)
