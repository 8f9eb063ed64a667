"""URLs on the local disk: checks of what is there (regular files, folders, UTF-8 names), and atomic writing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.store_remote import StoreError

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_local(url: str) -> bool:
    """Whether it is a path of this machine; for all other schemes see `shards.store_remote.SCHEMES`."""
    return "://" not in url or url[:7].lower() == "file://"


def local_path(url: str) -> Path:
    """The path of a plain path or a file URL, whose host may be empty or localhost (RFC 8089)."""
    if url[:7].lower() != "file://":
        return Path(url)
    path = url[7:]
    return Path(path[9:] if path[:10].lower() == "localhost/" else path)


def refuse_special(path: str | os.PathLike[str], url: str = "", mode: int | None = None) -> None:
    """Raises StoreError for a FIFO, a socket or a device, calling it `url`: opening or reading it may never end.

    `mode` is that of an earlier stat. A missing file is not an error here; opening it will be.
    """
    if mode is None:
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            return
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
    raise StoreError(f"{url or path}: is {kind}, not a regular file: save what it gives to a file, or remove it")


def refuse_no_folder(folder: Path, url: str) -> None:
    """Raises StoreError if a folder cannot be made because it or a parent is a file or a broken link."""
    for path in (folder, *folder.parents):
        try:
            mode = path.stat().st_mode  # one call: another thread may make the folder meanwhile
        except OSError:
            if path.is_symlink() and not path.exists():
                gone = os.readlink(path)
                raise StoreError(
                    f"{url}: cannot write: {path} is a link to {gone}, which does not exist: make it, or give another"
                ) from None
            continue
        if stat.S_ISDIR(mode):
            return
        raise StoreError(f"{url}: cannot write: {path} is a file, but must be a folder: move it, or give another")


def require_utf8(where: str, names: Iterable[str]) -> None:
    """Raises ValueError for a name that is not UTF-8: no table, JSON or page can hold it."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise ValueError(f"{where} {shown}: is a name that is not UTF-8: rename it") from None


def require_place(where: str, url: str) -> None:
    """Raises ValueError for a name that is not UTF-8, and for `s3:/bucket`, which would name a local folder `s3:`."""
    require_utf8(where, [url])
    scheme, colon, rest = url.partition(":/")
    if colon and scheme.lower() in ("s3", "file", "http", "https") and not rest.startswith("/"):
        raise ValueError(f"{where} {url}: is missing a slash: give {scheme}://{'/' if scheme == 'file' else ''}{rest}")


def in_words(error: OSError) -> str:
    """The system's message; a clearer one for a link that leads to itself."""
    if error.errno == errno.ELOOP:
        return "a link that leads to itself"
    return error.strerror or str(error)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, and sync each: unsynced new names may be lost in a power cut."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    if not folder.is_dir():
        refuse_no_folder(folder, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- writing -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A temporary name next to the target, gone afterwards, and locked until then: a lock ends with its process."""
    handle, name = _named_beside(target)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: what is left there goes by age alone
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.chmod(name, 0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _named_beside(target: Path, tries: int = 3) -> tuple[int, str]:
    try:
        make_folder(target.parent)
        return tempfile.mkstemp(prefix=".aside-", dir=target.parent)
    except FileNotFoundError:  # another process has just removed the empty folder
        if tries == 1:
            raise
    return _named_beside(target, tries - 1)


def renamed(path: str | os.PathLike[str], to: Path) -> bool:
    """Whether the file could be given this name; not across disks."""
    try:
        os.chmod(path, 0o644)
        os.replace(path, to)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def publish(written: Path, target: Path, exclusive: bool = False) -> None:
    """fsync, then give the file its name in one step, then fsync the folder. Raises FileExistsError if `exclusive` and
    the name is taken."""
    with written.open("rb") as file:
        os.fsync(file.fileno())
    if exclusive:
        os.link(written, target)
    else:
        os.replace(written, target)
    sync(target.parent)
