"""The one door to storage: whole objects, ranges, atomic puts and put-if-absent on anything fsspec opens.

A URL is `s3://bucket/key`, `file:///path`, a plain path, or any scheme fsspec knows. Endpoint, region and keys of S3
come from the standard AWS variables or the instance's role and are never arguments. Errors are `StoreError`s (a
`ValueError`) that name the object and the next step.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

T = TypeVar("T")

PATIENCE = 120.0  # seconds that a remote call is tried again for, so that a store may go away for a minute
FIRST_PATIENCE = 10.0  # ... while this process has never reached the store: it may be a slip in its name
LONGEST_WAIT = 8.0  # seconds between two tries
SINGLE_PUT = 64 << 20  # larger bodies go multipart; commits never do (some stores ignore the condition there)
PART = 16 << 20  # bytes of a file's part; PARTS of them are in memory at once
PARTS = 4
READ_AHEAD = 8 << 20


class StoreError(ValueError):
    """A storage call failed for a reason that a retry did not mend."""


class Missing(StoreError):
    """The named object does not exist."""


def join(base: str, *names: str) -> str:
    return "/".join([base.rstrip("/"), *names]) if base != "/" else "/" + "/".join(names)


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def absolute(url: str) -> str:
    """The same place for another process: plain paths made absolute."""
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


_filesystems: dict[tuple[int, str], Any] = {}
_filesystems_lock = threading.Lock()


def _remote(url: str) -> tuple[Any, str]:
    """The fsspec file system of a remote URL, made in the process that uses it (clients do not survive a fork)."""
    scheme, path = url.split("://", 1)
    with _filesystems_lock:
        here = (os.getpid(), scheme)
        if here not in _filesystems:
            _filesystems[here] = _open_filesystem(scheme, url)
        return _filesystems[here], path


def _open_filesystem(scheme: str, url: str) -> Any:
    try:
        if scheme != "s3":
            return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        fs = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            skip_instance_cache=True,
            default_block_size=SINGLE_PUT,
            max_concurrency=1,  # more would ask for the size before every read
            config_kwargs={
                "connect_timeout": 5,
                "read_timeout": 60,
                "max_pool_connections": 32,
                "retries": {"total_max_attempts": 3, "mode": "standard"},  # of a request; `_call` retries whole calls
                # Stores that are not AWS (Ceph, rclone) refuse or store the newer SDKs' trailing checksums.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        fs.retries = 1  # its own, which would multiply with the other two
        return fs
    except (ValueError, ImportError) as error:
        raise StoreError(f"{url}: no storage client for {scheme}://: {error}") from None


_HINTS = (
    ("NoCredentials", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance role"),
    ("Unable to locate credentials", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("PartialCredentials", "half of the credentials: set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ("InvalidAccessKeyId", "the store does not know this access key: check AWS_ACCESS_KEY_ID"),
    ("SignatureDoesNotMatch", "the store refuses this secret: check AWS_SECRET_ACCESS_KEY"),
    ("NoSuchBucket", "the bucket does not exist: make it first"),
    ("bucket does not exist", "the bucket does not exist: make it first"),
    ("EndpointConnectionError", "the store does not answer: check AWS_ENDPOINT_URL and the network"),
    ("Could not connect", "the store does not answer: check AWS_ENDPOINT_URL and the network"),
    ("AccessDenied", "access denied: check the permissions of these credentials on the bucket"),
    ("Forbidden", "access denied: check the credentials and their permissions on the bucket"),
)
_FINAL = (
    *("Credentials", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "AccessDenied", "Forbidden"),
    *("ParamValidation", "Invalid endpoint", "Invalid bucket"),
)
_PASSING = (408, 409, 425, 429)  # statuses below 500 that may be another one the next time
_PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "NoSuchUpload")  # S3's, with status 400 or 404
_OURS = (TypeError, AttributeError, NameError, AssertionError, MemoryError)


def _final(error: BaseException) -> bool:
    """Whether trying again is useless: the store has understood, and said no."""
    if any(mark in f"{type(error).__name__}: {error}" for mark in _FINAL):
        return True
    status, code = _answer(error)
    return 400 <= status < 500 and status not in _PASSING and code not in _PASSING_CODES


def _answer(error: BaseException) -> tuple[int, str]:
    """The HTTP status and S3's code, where a store's answer is behind the error; (0, "") elsewise."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return 0, ""
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), response.get("Error", {}).get("Code", "")


def _explain(verb: str, url: str, error: BaseException, tried: str = "") -> StoreError:
    text = f"{type(error).__name__}: {error} {_answer(error)[1]}"
    cause = f"{error.__cause__}" if error.__cause__ else ""
    for mark, hint in _HINTS:
        if mark in text or mark in cause:
            return StoreError(f"{url}: cannot {verb}{tried}: {hint}")
    return StoreError(f"{url}: cannot {verb}{tried}: {' '.join(text.split())}")


_reached: set[tuple[int, str]] = set()  # (process, scheme) of stores that have answered


def _call(verb: str, url: str, action: Callable[[], T]) -> T:
    """Run one remote action, again and again while its failure may pass and patience lasts; what is left becomes an
    error that names the object. The action must be harmless when repeated."""
    begun, wait, tries = time.monotonic(), 0.25, 0
    here = (os.getpid(), url.split("://", 1)[0])
    while True:
        tries += 1
        try:
            done = action()
        except _OURS:
            raise
        except Exception as error:
            # fsspec and botocore raise many unrelated types here; only the kinds that `_final` knows are known to last.
            if isinstance(error, FileNotFoundError):
                _reached.add(here)
                if "bucket" in f"{error} {_answer(error)[1]}".lower():
                    raise _explain(verb, url, error) from None
                if verb != "write":  # there, what is missing is the upload: it was completed, and the reply lost
                    raise Missing(f"{url}: there is no such object") from None
            elif _final(error):
                raise _explain(verb, url, error) from None
            spent = time.monotonic() - begun
            if spent + wait > (PATIENCE if here in _reached else FIRST_PATIENCE):
                tried = f" ({tries} tries in {spent:.0f} s)" if tries > 1 else ""
                raise _explain(verb, url, error, tried) from None
            time.sleep(wait * random.uniform(0.7, 1.0))
            wait = min(2 * wait, LONGEST_WAIT)
        else:
            _reached.add(here)
            return done


@contextlib.contextmanager
def _local_errors(verb: str, url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb != "write":
            raise Missing(f"{url}: there is no such object") from None
        raise StoreError(f"{url}: cannot {verb}: {error.strerror or error}") from None


def read(url: str) -> bytes:
    """The whole object. Raises Missing, StoreError."""
    if is_local(url):
        with _local_errors("read", url):
            return local_path(url).read_bytes()
    fs, path = _remote(url)
    return _call("read", url, lambda: fs.cat_file(path))


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`. Raises Missing; StoreError also when the object is shorter than that."""
    if is_local(url):
        with _local_errors("read", url), local_path(url).open("rb") as file:
            file.seek(offset)
            body = file.read(length)
    else:
        fs, path = _remote(url)
        body = _call("read", url, lambda: fs.cat_file(path, start=offset, end=offset + length))
    if len(body) != length:
        raise StoreError(f"{url}: ends {length - len(body)} bytes before {offset}+{length}: run xtra check on it")
    return body


def open_read(url: str) -> BinaryIO:
    """A streaming reader for a large object; what breaks on the way is asked for again, from where it broke."""
    if is_local(url):
        with _local_errors("read", url):
            return local_path(url).open("rb")
    fs, path = _remote(url)
    if url.startswith(("http://", "https://")):  # whose servers need not know ranges
        return _call("read", url, lambda: fs.open(path, "rb", block_size=READ_AHEAD))
    size = _call("read", url, lambda: fs.info(path))["size"]
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
        with _local_errors("write", url), _aside(url) as (aside, target):
            aside.write_bytes(body)
            _publish(aside, target)
        return
    fs, path = _remote(url)
    _call("write", url, lambda: fs.pipe_file(path, body))


def put_file(url: str, path: str | os.PathLike[str], move: bool = False) -> None:
    """Upload a local file whole or not at all; replaces what was there. With `move` the file may be gone afterwards:
    on the same local disk it then gets its new name without being copied."""
    with open(path, "rb"):  # a missing source is no fault of the store
        pass
    if is_local(url):
        with _local_errors("write", url), _aside(url) as (aside, target):
            if not (move and _renamed(path, aside)):
                shutil.copyfile(path, aside)
            _publish(aside, target)
        return
    fs, remote_path = _remote(url)
    parts = {"chunksize": PART, "max_concurrency": PARTS} if url.startswith("s3://") else {}
    _call("write", url, lambda: fs.put_file(os.fspath(path), remote_path, **parts))


def _renamed(path: str | os.PathLike[str], to: Path) -> bool:
    """Whether the file could be given this name; not across disks."""
    try:
        os.chmod(path, 0o644)
        os.replace(path, to)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    return True


def put_if_absent(url: str, body: bytes) -> bool:
    """Write the object only if nothing has its name. True: ours was written. False: another was there first.

    Local: `link()`, which fails on an existing name. S3: one single-part PUT with `If-None-Match: *` (RFC 9110
    section 13.1.2). A reply can be lost after the store has applied the write, so a refusal is settled by reading the
    object back: equal bytes count as ours, so callers who must tell writers apart put a name into the body.
    """
    assert len(body) < SINGLE_PUT, "a commit is one small single-part PUT"
    if is_local(url):
        with _local_errors("write", url), _aside(url) as (aside, target):
            aside.write_bytes(body)
            try:
                _publish(aside, target, exclusive=True)
            except FileExistsError:
                return False
            return True
    fs, path = _remote(url)

    def create() -> bool:
        try:
            fs.pipe_file(path, body, mode="create")
        except Exception as error:
            # The same answer, 412, has several shapes by the time it arrives here. The client may have retried a PUT
            # whose reply was lost, so even the first refusal we see can be of our own object: read it back.
            if isinstance(error, FileExistsError) or "PreconditionFailed" in f"{error} {error.__cause__}":
                return fs.cat_file(path) == body
            raise
        return True

    return _call("write", url, create)


def put_json(url: str, value: Any) -> None:
    put(url, _json(value))


def put_json_if_absent(url: str, value: Any) -> bool:
    return put_if_absent(url, _json(value))


def read_json(url: str) -> Any:
    """Raises Missing, and StoreError when the object is not JSON."""
    try:
        return json.loads(read(url))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{url}: is not JSON ({error}): it was not written by this program or is damaged") from None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def exists(url: str) -> bool:
    if is_local(url):
        return local_path(url).exists()
    fs, path = _remote(url)
    return _call("look up", url, lambda: fs.exists(path))


def names(url: str) -> list[str]:
    """Names directly under a folder, sorted; [] if nothing is there."""
    if is_local(url):
        try:
            with _local_errors("list", url):
                return sorted(name for name in os.listdir(local_path(url)) if not name.startswith(".aside-"))
        except Missing:
            return []
    fs, path = _remote(url)
    try:
        found = _call("list", url, lambda: fs.ls(path, detail=False))
    except Missing:
        return []
    return sorted({name.rstrip("/").rsplit("/", 1)[1] for name in found if name.rstrip("/") != path.rstrip("/")})


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    name: str
    bytes: int
    modified: float  # seconds since 1970, by the store's clock; infinity where the store does not say


def entries(url: str) -> list[Entry]:
    """The objects directly under a folder by name, also those that were being put when their writer died."""
    if is_local(url):
        found = []
        with contextlib.suppress(Missing), _local_errors("list", url):
            for entry in os.scandir(local_path(url)):
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    if entry.is_file():
                        found.append(Entry(entry.name, entry.stat().st_size, entry.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.name)
    fs, path = _remote(url)
    try:
        infos = _call("list", url, lambda: fs.ls(path, detail=True))
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
    """Every fsspec file system has its own name and type for it."""
    value = next((info[key] for key in ("LastModified", "mtime", "updated", "modified") if info.get(key)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float("inf") if value is None else float(value)


def delete(url: str) -> None:
    """Remove one object; no error if it is not there."""
    if is_local(url):
        with _local_errors("delete", url):
            local_path(url).unlink(missing_ok=True)
        return
    fs, path = _remote(url)
    with contextlib.suppress(Missing):
        _call("delete", url, lambda: fs.rm_file(path))


def check_writable(url: str) -> None:
    """Fail early, in one line, when a folder cannot be written or its store overwrites on put-if-absent.

    Two concurrent conditional puts of one key must have exactly one winner (rclone overwrites silently, Swift lets
    several through); commits rest on it.
    """
    probe = join(url, f".probe-{os.getpid()}-{time.time_ns():x}")
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
        raise errors[0]
    delete(probe)
    if sum(wins) != 1:
        raise StoreError(
            f"{url}: this store let {sum(wins)} of 2 writers create one key; use one with atomic put-if-absent"
        )


@contextlib.contextmanager
def _aside(url: str) -> Iterator[tuple[Path, Path]]:
    """A temporary name beside the target, gone afterwards whatever happens."""
    target = local_path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".aside-", dir=target.parent)
    os.close(handle)
    os.chmod(name, 0o644)
    try:
        yield Path(name), target
    finally:
        Path(name).unlink(missing_ok=True)


def _publish(aside: Path, target: Path, exclusive: bool = False) -> None:
    """fsync, then give the file its name in one step, then fsync the folder."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    if exclusive:
        os.link(aside, target)
    else:
        os.replace(aside, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
