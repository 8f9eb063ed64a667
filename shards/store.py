"""The one door to storage: whole objects, ranges, atomic puts and put-if-absent on disk and S3.

A URL is `s3://bucket/key`, `file:///path` or a plain path; `http://` and `https://` are read only. Endpoint, region
and keys of S3 come from the standard AWS variables or the instance's role and are never arguments. Errors are
`StoreError`s (a `ValueError`) that name the object and the next step.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from shards import store_remote
from shards.local_files import (
    aside,
    in_words,
    is_local,
    local_path,
    publish,
    refuse_no_folder,
    refuse_special,
    renamed,
    require_place,
)
from shards.store_remote import Missing, StoreError
from shards.url_secrets import refuse_secrets

PART = 16 << 20  # bytes of a file's part; PARTS of them are in memory at once
PARTS = 4
READ_AHEAD = 8 << 20


def require(**places: str) -> None:
    """Raises ValueError for a place without a name (an unset shell variable must not become the root folder), and for
    a URL that carries a secret or is not UTF-8."""
    refuse_secrets(**places)
    for name, url in places.items():
        require_place(name, url)
        if not url.strip():
            raise ValueError(f"{name} is empty: give a folder or URL (was a shell variable not set?)")


def join(base: str, *names: str) -> str:
    assert base, f"{'/'.join(names)} would be in the root folder: `require` should have refused the empty name"
    return "/".join([base.rstrip("/"), *names]) if base != "/" else "/" + "/".join(names)


def absolute(url: str) -> str:
    """The same place for another process: plain paths made absolute."""
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


@contextlib.contextmanager
def _local_errors(verb: str, url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb != "write":
            raise Missing(f"{url}: there is no such object") from None
        raise StoreError(f"{url}: cannot {verb}: {in_words(error)}") from None


@contextlib.contextmanager
def _open(url: str, buffering: int = -1) -> Iterator[BinaryIO]:
    path = local_path(url)
    refuse_special(path, url)
    with _local_errors("read", url), path.open("rb", buffering=buffering) as file:
        yield file  # type: ignore[misc]


def read(url: str) -> bytes:
    """The whole object. Raises Missing, StoreError."""
    if is_local(url):
        with _open(url) as file:
            return file.read()
    fs, path = store_remote.client(url)
    return store_remote.call("read", url, lambda: fs.cat_file(path))


def read_bulk(url: str) -> bytes | memoryview:
    """The whole object, for less CPU time than `read` where it is remote: for objects of which many are read. It is
    valid until this thread's next call."""
    if is_local(url):
        return read(url)
    from shards import store_ranged

    return store_ranged.read(url)


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`. Raises Missing; StoreError also when the object is shorter than that."""
    if is_local(url):
        with _open(url) as file:
            file.seek(offset)
            body = file.read(length)
    else:
        fs, path = store_remote.client(url)
        body = store_remote.call("read", url, lambda: fs.cat_file(path, start=offset, end=offset + length))
    if len(body) != length:
        raise StoreError(f"{url}: ends {length - len(body)} bytes before {offset}+{length}: run xtra check on it")
    return body


def read_into(url: str, offset: int, view: memoryview, stop: threading.Event | None = None) -> None:
    """Fill memory with an object's bytes from `offset`: `read_range` for bulk reading, without a new object each time.

    Raises Missing; StoreError also when the object is shorter than that, and when `stop` is set while a remote store
    does not answer.
    """
    if not is_local(url):
        from shards import store_ranged

        store_ranged.read_into(url, offset, view, stop)
        return
    with _open(url, buffering=0) as file:
        length = fill(file.fileno(), [view], offset)
    if length != len(view):
        raise StoreError(f"{url}: ends {len(view) - length} bytes before {offset}+{len(view)}: run xtra check on it")


def fill(file: int, views: Sequence[memoryview], offset: int) -> int:
    """Fill memory with a local file's bytes from `offset`; returns how many there were. Some file systems return
    less than there is in one call."""
    need = sum(map(len, views))
    got = os.preadv(file, views, offset)
    while got < need:
        rest, skip = [], got
        for view in views:
            rest.append(view[skip:])
            skip = max(0, skip - len(view))
        more = os.preadv(file, [view for view in rest if len(view)], offset + got)
        if not more:
            break
        got += more
    return got


def open_read(url: str) -> BinaryIO:
    """A streaming reader for a large object; a read that breaks is resumed where it broke."""
    if is_local(url):
        refuse_special(local_path(url), url)
        with _local_errors("read", url):
            return local_path(url).open("rb")
    fs, path = store_remote.client(url)
    if url.startswith(("http://", "https://")):  # their servers may not support ranges
        return store_remote.call("read", url, lambda: fs.open(path, "rb", block_size=READ_AHEAD))
    size = store_remote.call("read", url, lambda: fs.info(path))["size"]
    return io.BufferedReader(_Ranges(url, size), READ_AHEAD)


class _Ranges(io.RawIOBase):
    """A remote object as a file that is read by ranges."""

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self.size = size
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(READ_AHEAD), b""))

    def readinto(self, buffer: Any, /) -> int:
        length = max(0, min(len(buffer), self.size - self.at))
        if length:
            buffer[:length] = read_range(self.url, self.at, length)
            self.at += length
        return length


def put(url: str, body: bytes) -> None:
    """Write the object whole or not at all; replaces what was there."""
    if is_local(url):
        target = local_path(url)
        with _local_errors("write", url), aside(target) as written:
            written.write_bytes(body)
            publish(written, target)
        return
    fs, path = store_remote.client(url)
    store_remote.call("write", url, lambda: fs.pipe_file(path, body))


def put_file(url: str, path: str | os.PathLike[str], move: bool = False) -> None:
    """Upload a local file whole or not at all; replaces what was there. With `move` the file may be gone afterwards:
    on the same local disk it is renamed, not copied."""
    with open(path, "rb") as source:  # a missing source is not the store's fault
        if is_local(url):
            target = local_path(url)
            with _local_errors("write", url), aside(target) as written:
                with contextlib.suppress(OSError):  # a moved file replaces the locked one
                    fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not (move and renamed(path, written)):
                    shutil.copyfile(path, written)
                publish(written, target)
            return
    fs, remote_path = store_remote.client(url)
    parts = {"chunksize": PART, "max_concurrency": PARTS} if url.startswith("s3://") else {}
    store_remote.call("write", url, lambda: fs.put_file(os.fspath(path), remote_path, **parts))


def put_if_absent(url: str, body: bytes) -> bool:
    """Write the object only if nothing has its name. True: ours was written. False: another was there first.

    Local: `link()`, which fails on an existing name. S3: one single-part PUT with `If-None-Match: *` (RFC 9110
    section 13.1.2). A reply can be lost after the store has applied the write, so a refusal is settled by reading the
    object back: equal bytes count as ours, so callers that must distinguish writers put a name into the body.
    """
    if is_local(url):
        target = local_path(url)
        with _local_errors("write", url), aside(target) as written:
            written.write_bytes(body)
            try:
                publish(written, target, exclusive=True)
            except FileExistsError:
                return False
            return True
    if len(body) > store_remote.LARGEST_PUT:
        raise StoreError(f"{url}: has {len(body):,} bytes, more than one write allows: use a smaller --unit")
    fs, path = store_remote.client(url)

    def create() -> bool:
        try:
            fs.pipe_file(path, body, mode="create", chunksize=max(store_remote.SINGLE_PUT, len(body)))
        except Exception as error:
            # The answer 412 arrives here in several shapes. The client may have retried a PUT
            # whose reply was lost, so even the first refusal we see can be of our own object: read it back.
            if isinstance(error, FileExistsError) or "PreconditionFailed" in f"{error} {error.__cause__}":
                return fs.cat_file(path) == body
            raise
        return True

    return store_remote.call("write", url, create)


def put_json(url: str, value: Any) -> None:
    put(url, json_bytes(value))


def put_json_if_absent(url: str, value: Any) -> bool:
    return put_if_absent(url, json_bytes(value))


def read_json(url: str) -> Any:
    """Any JSON of others; our own is read by `shards.typed_json`. Raises Missing, and StoreError when the object
    is not JSON."""
    body = read(url)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{url}: is not JSON ({error}): it was not written by this program or is damaged") from None


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def exists(url: str) -> bool:
    if is_local(url):
        return local_path(url).exists()
    fs, path = store_remote.client(url)
    return store_remote.call("look up", url, lambda: fs.exists(path))


def names(url: str) -> list[str]:
    """Names directly under a folder, sorted; [] if nothing is there."""
    if is_local(url):
        try:
            with _local_errors("list", url):
                return sorted(name for name in os.listdir(local_path(url)) if not name.startswith(".aside-"))
        except Missing:
            return []
    fs, path = store_remote.client(url)
    try:
        found = store_remote.call("list", url, lambda: fs.ls(path, detail=False))
    except Missing:
        return []
    return sorted({name.rstrip("/").rsplit("/", 1)[1] for name in found if name.rstrip("/") != path.rstrip("/")})


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    name: str
    bytes: int
    modified: float  # seconds since 1970, by the store's clock; infinity if the store does not give it


def entries(url: str) -> list[Entry]:
    """The objects directly under a folder by name, including those that a dead writer left half-written."""
    if is_local(url):
        found = []
        with contextlib.suppress(Missing), _local_errors("list", url):
            for entry in os.scandir(local_path(url)):
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    if entry.is_file():
                        found.append(Entry(entry.name, entry.stat().st_size, entry.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.name)
    fs, path = store_remote.client(url)
    try:
        infos = store_remote.call("list", url, lambda: fs.ls(path, detail=True))
    except Missing:
        return []
    return sorted(
        (
            Entry(info["name"].rsplit("/", 1)[1], info["size"] or 0, _modified(info))
            for info in infos
            if info["type"] == "file" and info["name"].rstrip("/") != path.rstrip("/")
        ),
        key=lambda entry: entry.name,
    )


def _modified(info: dict[str, Any]) -> float:
    """S3 gives a datetime, other clients of fsspec text or nothing."""
    value = next((info[key] for key in ("LastModified", "mtime") if info.get(key)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float("inf") if value is None else float(value)


def size(url: str) -> int | None:
    """Bytes of one object; None if it is not there."""
    if is_local(url):
        try:
            return local_path(url).stat().st_size
        except OSError:
            return None
    fs, path = store_remote.client(url)
    with contextlib.suppress(Missing):
        fs.invalidate_cache()
        return store_remote.call("look up", url, lambda: fs.info(path))["size"]
    return None


def clock(url: str) -> float:
    """The store's clock, in seconds since 1970: when an object put into the folder now was modified."""
    name = f".write-test-{os.getpid()}-{time.time_ns():x}"
    try:
        put(join(url, name), b"")
    except StoreError as error:
        raise StoreError(str(error).replace(join(url, name), url)) from None
    try:
        for entry in entries(url):
            if entry.name == name:
                return entry.modified
        raise StoreError(f"{url}: does not list an object that was just put there: its clock cannot be read")
    finally:
        delete(join(url, name))


def delete(url: str) -> None:
    """Remove one object; no error if it is not there."""
    if is_local(url):
        with _local_errors("delete", url):
            local_path(url).unlink(missing_ok=True)
        return
    fs, path = store_remote.client(url)
    with contextlib.suppress(Missing):
        store_remote.call("delete", url, lambda: fs.rm_file(path))


def check_writable(url: str) -> None:
    """Fail early, in one line, when a folder cannot be written or its store overwrites on put-if-absent.

    Two concurrent conditional puts of one key must have exactly one winner (rclone overwrites silently, Swift lets
    several through); commits depend on it.
    """
    if is_local(url):
        refuse_no_folder(local_path(url), url)
    probe = join(url, f".write-test-{os.getpid()}-{time.time_ns():x}")
    wins: list[bool] = []
    errors: list[StoreError] = []

    def race(body: bytes) -> None:
        try:
            wins.append(put_if_absent(probe, body))
        except StoreError as error:
            errors.append(error)

    racers = [threading.Thread(target=race, args=(body,)) for body in (b"a", b"b")]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    if errors:
        raise StoreError(str(errors[0]).replace(probe, url))
    delete(probe)
    if sum(wins) != 1:
        raise StoreError(
            f"{url}: this store let {sum(wins)} of 2 writers create one key; use one with atomic put-if-absent"
        )


def remove_left_aside(url: str) -> None:
    """Remove half-written files of killed writers directly under a local folder."""
    for path in local_path(url).glob(".aside-*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > 1:  # a younger one may not be locked yet
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
