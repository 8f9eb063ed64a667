"""Clients of remote stores, and how long calls are retried.

Endpoint, region and keys of S3 come from the standard AWS variables or the instance's role, never from arguments.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Other schemes of fsspec may overwrite when two writers put the same name: datasets and runs would lose units there.
# (Paths of this machine: see `is_local` in shards/local_files.py.)
SCHEMES = ("s3", "http", "https")
SUPPORTED = "give s3://BUCKET/NAME or a folder; http:// and https:// only to read from"

PATIENCE = 120.0  # seconds for which a remote call is retried, so that a store may be down for a minute
FIRST_PATIENCE = 10.0  # the same until this process has reached the store: its name may be misspelt
LONGEST_WAIT = 8.0  # seconds between two tries
# Bytes; larger bodies are uploaded multipart, unless put if absent: some stores ignore that condition for multipart.
SINGLE_PUT = 64 << 20
LARGEST_PUT = 4 << 30  # bytes of one request; S3 takes 5 GiB


class StoreError(ValueError):
    """A storage call failed, and retries did not help."""


class Missing(StoreError):
    """The named object does not exist."""


_filesystems: dict[tuple[int, str], Any] = {}
_filesystems_lock = threading.Lock()


def client(url: str) -> tuple[Any, str]:
    """(fsspec file system, path) of a remote URL; each process makes its own client, as they do not survive a fork.

    Raises StoreError for an unsupported scheme or a client that cannot be made.
    """
    scheme, path = url.split("://", 1)
    if scheme not in SCHEMES:
        raise StoreError(f"{url}: {scheme}:// is not supported: {SUPPORTED}")
    if scheme in ("http", "https"):
        path = url
    with _filesystems_lock:
        here = (os.getpid(), scheme)
        if here not in _filesystems:
            _filesystems[here] = _open_filesystem(scheme, url)
        return _filesystems[here], path


def _open_filesystem(scheme: str, url: str) -> Any:
    import fsspec  # 0.1 s that only remote stores are worth

    try:
        if scheme != "s3":
            return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        fs = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            skip_instance_cache=True,
            default_block_size=SINGLE_PUT,
            max_concurrency=1,  # with more, fsspec would request the size before every read
            config_kwargs={
                "signature_version": "s3v4",  # also for signed URLs, whose default is version 2
                "connect_timeout": 5,
                "read_timeout": 60,
                "max_pool_connections": 32,
                "retries": {"total_max_attempts": 3, "mode": "standard"},  # of a request; `call` retries whole calls
                # Stores other than AWS (Ceph, rclone) refuse or store the trailing checksums of newer SDKs.
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
_PASSING = (408, 409, 425, 429)  # temporary statuses below 500
_PASSING_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "NoSuchUpload")  # S3's, with status 400 or 404
_OURS = (TypeError, AttributeError, NameError, AssertionError, MemoryError)


def _final(error: BaseException) -> bool:
    """Whether a retry is useless: the store understood the request and refused it."""
    if any(mark in f"{type(error).__name__}: {error}" for mark in _FINAL):
        return True
    status, code = _answer(error)
    if status in (200, 206):  # yet an error: the server does not serve ranges
        return True
    return 400 <= status < 500 and status not in _PASSING and code not in _PASSING_CODES


def _answer(error: BaseException) -> tuple[int, str]:
    """The HTTP status and S3's error code of the store's answer behind an error; (0, "") if there was none."""
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


_NEVER = threading.Event()
_reached: set[tuple[int, str]] = set()  # (process, scheme) of stores that have answered


def call(verb: str, url: str, action: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Run a remote action, and retry it while its failure may be temporary and patience lasts. The action must be safe
    to repeat. `stop`, once set, ends the retries. Raises Missing, and StoreError naming the object."""
    begun, wait, tries = time.monotonic(), 0.25, 0
    here = (os.getpid(), url.split("://", 1)[0])
    while True:
        tries += 1
        try:
            done = action()
        except _OURS:
            raise
        except Exception as error:
            # fsspec and botocore raise many unrelated types; only those that `_final` recognises are permanent.
            if isinstance(error, FileNotFoundError):
                _reached.add(here)
                if "bucket" in f"{error} {_answer(error)[1]}".lower():
                    raise _explain(verb, url, error) from None
                if verb != "write":  # when writing, the upload is missing: it was completed, but the reply was lost
                    raise Missing(f"{url}: there is no such object") from None
            elif _final(error):
                raise _explain(verb, url, error) from None
            spent = time.monotonic() - begun
            if spent + wait > (PATIENCE if here in _reached else FIRST_PATIENCE):
                tried = f" ({tries} tries in {spent:.0f} s)" if tries > 1 else ""
                raise _explain(verb, url, error, tried) from None
            if (stop or _NEVER).wait(wait * random.uniform(0.7, 1.0)):
                raise _explain(verb, url, error, f" ({tries} tries)") from None
            wait = min(2 * wait, LONGEST_WAIT)
        else:
            _reached.add(here)
            return done
