"""Scratch folders go with their process, or with the next one; those of living ones and of others stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shards import scratch
from shards.store import StoreError

HOLD = """
import sys
from pathlib import Path
from shards import scratch
with scratch.locked("xtra-x-", Path(sys.argv[1])) as made:
    (made / "big").write_bytes(b"x" * 1000)
    print(made, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold(root: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_folder_is_ours_alone_and_goes(root: Path) -> None:
    with scratch.folder("xtra-x-") as made:
        assert made.parent == root
        assert made.stat().st_mode & 0o777 == 0o700
        (made / "deep").mkdir()
        (made / "deep" / "file").write_bytes(b"x")
    with pytest.raises(ZeroDivisionError), scratch.folder("xtra-x-"):
        raise ZeroDivisionError
    assert list(root.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(root: Path) -> None:
    killed, left = hold(root)
    living, kept = hold(root)
    try:
        end(killed)
        foreign = root / "xtra-y-1"
        foreign.mkdir()
        (root / "xtra-x-link").symlink_to(foreign)
        with scratch.folder("xtra-x-") as made:
            assert sorted(root.iterdir()) == sorted([kept, foreign, root / "xtra-x-link", made])
            assert (kept / "big").exists()
        assert not left.exists()
    finally:
        end(living)


def test_a_folder_without_a_lock_goes_by_age(root: Path) -> None:
    """Of a process that was killed before it had locked it, or while it removed it."""
    old, young = root / "xtra-x-old", root / "xtra-x-young"
    for path in (old, young):
        path.mkdir()
        (path / "lock.new").touch()
    os.utime(old, (1, 1))
    with scratch.folder("xtra-x-"):
        assert not old.exists()
        assert young.exists()


def test_the_lock_is_the_last_to_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, left = hold(root)
    end(killed)
    unlink = Path.unlink

    def die(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        list(scratch.dead("xtra-x-", root))
    assert [path.name for path in left.iterdir()] == ["lock"]


def test_a_full_disk_is_said_with_the_folder_and_other_errors_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(StoreError, match=f"^{tmp_path}: cannot hold scratch files .No space left"),
        scratch.folder("x-"),
    ):
        raise full
    with pytest.raises(FileNotFoundError), scratch.folder("x-"):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="none: cannot hold scratch files"), scratch.folder("x-"):
        pass
