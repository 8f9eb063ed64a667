"""Clients of remote stores, and how long they are asked again.

Endpoint, region and keys of S3 come from the standard AWS variables or the instance's role and are never arguments.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Others that fsspec knows may overwrite where two writers put one name: datasets and runs would lose units there.
SCHEMES = ("s3", "http", "https")
SUPPORTED = "give s3://BUCKET/NAME or a folder; http:// and https:// only to read from"

PATIENCE = 120.0  # seconds that a remote call is tried again for, so that a store may go away for a minute
FIRST_PATIENCE = 10.0  # ... while this process has never reached the store: it may be a slip in its name
LONGEST_WAIT = 8.0  # seconds between two tries
SINGLE_PUT = (
    64 << 20
)  # larger bodies go multipart, unless they are put if absent (some stores ignore the condition there)
LARGEST_PUT = 4 << 30  # of one request; S3 takes 5 GiB


class StoreError(ValueError):
    """A storage call failed for a reason that a retry did not mend."""


class Missing(StoreError):
    """The named object does not exist."""


_filesystems: dict[tuple[int, str], Any] = {}
_filesystems_lock = threading.Lock()


def client(url: str) -> tuple[Any, str]:
    """The fsspec file system of a remote URL, made in the process that uses it (clients do not survive a fork)."""
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
            max_concurrency=1,  # more would ask for the size before every read
            config_kwargs={
                "signature_version": "s3v4",  # also of URLs, which are signed by version 2 elsewise
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
    if status in (200, 206):  # an error all the same: a server that does not serve ranges
        return True
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


_NEVER = threading.Event()
_reached: set[tuple[int, str]] = set()  # (process, scheme) of stores that have answered


def call(verb: str, url: str, action: Callable[[], T], stop: threading.Event | None = None) -> T:
    """Run one remote action, again and again while its failure may pass and patience lasts; what is left becomes an
    error that names the object. The action must be harmless when repeated. `stop`, once set, ends the patience."""
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
            if (stop or _NEVER).wait(wait * random.uniform(0.7, 1.0)):
                raise _explain(verb, url, error, f" ({tries} tries)") from None
            wait = min(2 * wait, LONGEST_WAIT)
        else:
            _reached.add(here)
            return done
