"""Local folders for what is needed only while a process lives: locked meanwhile, removed afterwards, or by the next
process if this one was killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shards.pixels import own_file
from shards.store_remote import StoreError

LOCK = "lock"
UNLOCKED = 86_400.0  # seconds; a folder without a lock that is older was left by a process that was killed


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A private folder among the system's temporary files; also removes those with this prefix that killed processes
    left. Raises StoreError if it cannot be made, and if the disk becomes full inside the block."""
    root = Path(tempfile.gettempdir())
    made: Path | None = None
    try:
        for _ in dead(prefix, root):
            pass
        with locked(prefix, root) as made:
            yield made
    except OSError as error:
        if made is not None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = error.strerror or str(error)
        raise StoreError(f"{root}: cannot hold scratch files ({why}): free space, or set TMPDIR") from error


@contextlib.contextmanager
def locked(prefix: str, root: Path) -> Iterator[Path]:
    """A new folder below `root`, locked until the block ends (flock ends with the process, however it ends) and then
    removed. Raises OSError."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        with (made / f"{LOCK}.new").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (made / f"{LOCK}.new").rename(made / LOCK)  # so that others never see an unlocked lock file
            yield made
    finally:
        with contextlib.suppress(OSError):
            _remove(made)


def dead(prefix: str, root: Path) -> Iterator[Path]:
    """Our folders below `root` whose processes were killed; each is removed when the iteration moves on."""
    for path in root.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            about = path.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue  # a link, or another user's folder
            try:
                with own_file(path / LOCK) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not path.is_dir():  # another process removed it while we opened its lock
                        continue
                    yield path
                    _remove(path)
            except FileNotFoundError:
                if time.time() - about.st_mtime > UNLOCKED:
                    _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, its lock last: if we are killed before, others still recognise it."""
    for entry in list(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)
    (path / LOCK).unlink(missing_ok=True)
    path.rmdir()
