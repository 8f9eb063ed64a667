"""Ranged reads of remote objects into the caller's memory: how samples are read in bulk.

fsspec's clients build each request in Python, some 300 us, and return every body as a new object whose pages the
kernel must clear first. Here fsspec only signs a URL of each bucket, every 40 minutes, and others are signed like that
one; the bytes come through libcurl, with one handle and one kept-alive connection a thread, into memory that is reused.
If the client cannot sign (for example while keys are being renewed), objects are read through fsspec.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pycurl

from shards import store_remote

if TYPE_CHECKING:  # a bucket's client has loaded it; other remote stores do not need it
    from botocore.auth import S3SigV4QueryAuth

SIGNED_FOR = 3600  # seconds
_SIGNED_AGAIN = 2400  # seconds after which a signature is renewed
_BLOCK = 512 << 10  # bytes that libcurl hands over at once
_KEPT = 8 << 20  # bytes of memory for whole objects that a thread keeps at most
_SLOW, _SILENCE = 1024, 20  # a transfer slower than so many bytes a second is ended after so many seconds

_signatures: dict[str, tuple[str | None, float]] = {}  # url -> (signed URL, when signed); None: read by fsspec
_local = threading.local()
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]+")  # names that stand in a URL as they are


T = TypeVar("T")


class _Refused(Exception):
    """An HTTP answer that is not the requested range, in the form of botocore's errors, which `store_remote` reads."""

    def __init__(self, status: int, body: bytes) -> None:
        code = re.search(rb"<Code>(\w+)</Code>", body)
        name = code[1].decode() if code else ""
        ignored = "the server did not send the requested range; it must serve ranges"
        super().__init__(ignored if status in (200, 206) else f"HTTP {status} {name}".strip())
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": name}}


def read_into(url: str, offset: int, view: memoryview, stop: threading.Event | None = None) -> None:
    """Fill `view` with the object's bytes from `offset`. Raises Missing, and StoreError, also if the object ends
    before."""
    where = _signed(url)
    if where is None:
        fs, path = store_remote.client(url)
        end = offset + len(view)
        body = store_remote.call("read", url, lambda: fs.cat_file(path, start=offset, end=end), stop)
        view[: len(body)] = body
        length = len(body)
    else:
        length = store_remote.call(
            "read", url, lambda: _again(url, lambda where: _get(where, offset, view, stop)), stop
        )
    if length != len(view):
        raise store_remote.StoreError(
            f"{url}: ends {len(view) - length} bytes before {offset}+{len(view)}: run xtra check"
        )


def read(url: str) -> memoryview:
    """A whole object of unknown size, in a fifth of the CPU time that fsspec's client takes for an index. What is
    returned is valid until the next call in this thread, which uses its memory again. Raises Missing, StoreError."""
    if _signed(url) is None:
        fs, path = store_remote.client(url)
        return memoryview(store_remote.call("read", url, lambda: fs.cat_file(path)))
    return store_remote.call("read", url, lambda: _again(url, _get_whole))


def _signed(url: str) -> str | None:
    scheme = url.split("://", 1)[0]
    if scheme in ("http", "https"):
        return url
    where, when = _signatures.get(url, (None, -1e9))
    if time.monotonic() - when > _SIGNED_AGAIN:
        where, when = _signatures[url] = _sign(url)
    return where


def _sign(url: str) -> tuple[str | None, float]:
    """(signed URL, when signed): as the client has signed a URL of its bucket, or by the client."""
    fs, path = store_remote.client(url)
    bucket, _, name = path.partition("/")
    with _signers_lock:
        signer, when = _signers.get(bucket), time.monotonic()
        new = signer is not None and signer.client is fs and when - signer.since <= _SIGNED_AGAIN
        if signer and new and _PLAIN.fullmatch(name):
            return signer.signed(name), when
        try:
            where = fs.sign(path, expiration=SIGNED_FOR)
        except Exception:
            # A failure to sign (not supported, no key) is not final: reading through fsspec, the fallback, reports what
            # is wrong with the credentials.
            return None, when
        if signer := _signer(fs, name, where, when):
            _signers[bucket] = signer
    return where, when


@dataclass(frozen=True)
class _Signer:
    """What signs as the client signed one URL of a bucket: botocore's signer alone, in a quarter of the time that the
    client takes with all around it."""

    client: Any
    before: str  # what precedes a name
    auth: S3SigV4QueryAuth
    since: float

    def signed(self, name: str) -> str:
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("GET", self.before + name)
        self.auth.add_auth(request)
        return str(request.url)


_signers: dict[str, _Signer] = {}  # by bucket
_signers_lock = threading.Lock()


def _signer(fs: Any, name: str, signed: str, when: float) -> _Signer | None:
    """What signs as `signed` was signed just now; None unless it signs this name in the same way, or if a second has
    begun since, which is part of a signature."""
    parts, query = urlsplit(signed), dict(parse_qsl(urlsplit(signed).query))
    if not (_PLAIN.fullmatch(name) and parts.path.endswith(f"/{name}")):
        return None
    try:
        secret = fs.s3._request_signer._credentials.secret_key
        key, _, region, service, _ = query["X-Amz-Credential"].split("/")
    except (AttributeError, KeyError, ValueError):  # another version of the client, or of signatures
        return None
    from botocore.auth import S3SigV4QueryAuth
    from botocore.credentials import Credentials

    auth = S3SigV4QueryAuth(Credentials(key, secret, query.get("X-Amz-Security-Token")), service, region, SIGNED_FOR)
    before = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(name)}"
    found = _Signer(fs, before, auth, when)
    return found if dict(parse_qsl(urlsplit(found.signed(name)).query)) == query else None


def _again(url: str, get: Callable[[str], T]) -> T:
    """One GET of an object's signed URL, and a second one with a new signature if the first was refused."""
    where = _signed(url)
    if where is None:  # signing worked before: perhaps the keys are being renewed
        raise ConnectionError("its URL could not be signed again")
    try:
        return get(where)
    except _Refused as refused:
        if refused.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise FileNotFoundError(str(refused)) from None
        if not url.startswith("http"):
            _signatures.pop(url, None)  # the keys may have changed, or a clock is wrong: sign again before giving up
            with _signers_lock:
                _signers.clear()
            # AWS answers 400 for expired keys.
            if refused.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 401, 403) and (again := _signed(url)):
                return get(again)
        raise


def _get(where: str, offset: int, view: memoryview, stop: threading.Event | None) -> int:
    """One ranged GET (RFC 9110, 14.2); returns the bytes received. 416 means that the object ends before the range."""
    body = _Body(view)
    curl = _handle()
    curl.setopt(pycurl.RANGE, f"{offset}-{offset + len(view) - 1}")
    try:
        _perform(curl, where, body.write, stop)
    except pycurl.error as error:
        if not body.too_long:
            raise ConnectionError(f"curl: {error}") from None
    finally:
        curl.unsetopt(pycurl.RANGE)
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    if status == 416:
        return 0
    # Some servers (rclone) send the requested range with status 200; others ignore ranges and send the whole object.
    if status not in (200, 206) or body.too_long or (status == 200 and offset and body.at != len(view)):
        raise _Refused(status, bytes(view[: min(body.at, 4096)]))
    return body.at


def _get_whole(where: str) -> memoryview:
    body = _Growing(getattr(_local, "whole", None) or bytearray(_BLOCK))
    curl = _handle()
    try:
        _perform(curl, where, body.write, None)
    except pycurl.error as error:
        raise ConnectionError(f"curl: {error}") from None
    status, found = curl.getinfo(pycurl.RESPONSE_CODE), memoryview(body.memory)[: body.at]
    if status != 200:
        raise _Refused(status, bytes(found[:4096]))
    # Fresh memory for each of a thousand indexes would cost more than all else of reading them.
    _local.whole = body.memory if len(body.memory) <= _KEPT else None
    return found


def _perform(curl: Any, where: str, write: Callable[[bytes], Any], stop: threading.Event | None) -> None:
    curl.setopt(pycurl.URL, where)
    curl.setopt(pycurl.WRITEFUNCTION, write)
    if stop is not None:  # libcurl calls this at least once a second, even without data
        curl.setopt(pycurl.XFERINFOFUNCTION, lambda *_: stop.is_set())
    curl.setopt(pycurl.NOPROGRESS, stop is None)
    try:
        curl.perform()
    finally:
        curl.unsetopt(pycurl.WRITEFUNCTION)  # the handle outlives the buffer


class _Body:
    """Receives a body into the view; ends the transfer if it does not fit."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0
        self.too_long = False

    def write(self, piece: bytes) -> int | None:
        end = self.at + len(piece)
        if end > len(self.view):
            self.too_long = True
            return 0  # makes libcurl end the transfer
        self.view[self.at : end] = piece
        self.at = end
        return None


class _Growing:
    """Receives a body of unknown size into memory that is replaced by twice as much where it is too small."""

    def __init__(self, memory: bytearray) -> None:
        self.memory = memory
        self.at = 0

    def write(self, piece: bytes) -> None:
        end = self.at + len(piece)
        if end > len(self.memory):
            self.memory = self.memory[: self.at] + bytes(2 * end - self.at)
        self.memory[self.at : end] = piece
        self.at = end


def _handle() -> Any:
    """This thread's libcurl handle; a forked process makes its own."""
    curl, process = getattr(_local, "handle", (None, 0))
    if curl is None or process != os.getpid():
        curl = pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.BUFFERSIZE, _BLOCK)
        curl.setopt(pycurl.CONNECTTIMEOUT, 5)
        curl.setopt(pycurl.LOW_SPEED_LIMIT, _SLOW)
        curl.setopt(pycurl.LOW_SPEED_TIME, _SILENCE)
        curl.setopt(pycurl.FOLLOWLOCATION, 1)
        curl.setopt(pycurl.MAXREDIRS, 5)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)  # a connection a thread: one is no faster
        for option, value in _certificates():
            curl.setopt(option, value)
        _local.handle = (curl, os.getpid())
    return curl


def _certificates() -> list[tuple[int, str]]:
    """The certificates that AWS's variable names, else this system's: libcurl in a wheel looks for them where the
    build system has them."""
    paths = ssl.get_default_verify_paths()
    bundle = os.environ.get("AWS_CA_BUNDLE") or paths.cafile
    if bundle and os.path.isfile(bundle):
        return [(pycurl.CAINFO, bundle)]
    return [(pycurl.CAPATH, paths.capath)] if paths.capath else []
