"""The nouns of ingest: what each stage hands to the next, and the closed list of reasons to reject a link."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shards.typed_json import Moment


class Reason(StrEnum):
    """Why a link was not kept. Nothing is dropped, replaced or retried without one."""

    # Retryable: the same link may succeed later.
    DNS = "dns"
    CONNECT = "connect"
    TIMEOUT = "timeout"
    TLS = "tls"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    TRUNCATED_BODY = "truncated_body"
    # Final: asking again gives the same answer, or we must not ask.
    HTTP_404 = "http_404"
    HTTP_410 = "http_410"
    HTTP_4XX = "http_4xx"
    BLOCKED_ADDRESS = "blocked_address"
    BAD_URL = "bad_url"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    ROBOTS = "robots"
    OPT_OUT = "opt_out"
    TOO_LARGE = "too_large"
    # Content: bytes came, and they are not a picture we keep.
    NOT_AN_IMAGE = "not_an_image"
    UNDECODABLE = "undecodable"
    TOO_SMALL = "too_small"
    TOO_MANY_PIXELS = "too_many_pixels"
    BAD_ASPECT = "bad_aspect"
    UNSUPPORTED = "unsupported"
    PLACEHOLDER = "placeholder"
    DUPLICATE = "duplicate"  # given by selections only; datasets of older builds may have it as a verdict
    HASH_MISMATCH = "hash_mismatch"

    @property
    def retryable(self) -> bool:
        return self in RETRYABLE


RETRYABLE = frozenset(
    {
        Reason.DNS,
        Reason.CONNECT,
        Reason.TIMEOUT,
        Reason.TLS,
        Reason.HTTP_429,
        Reason.HTTP_5XX,
        Reason.TRUNCATED_BODY,
    }
)
FINAL = frozenset(
    {
        Reason.HTTP_404,
        Reason.HTTP_410,
        Reason.HTTP_4XX,
        Reason.BLOCKED_ADDRESS,
        Reason.BAD_URL,
        Reason.TOO_MANY_REDIRECTS,
        Reason.ROBOTS,
        Reason.OPT_OUT,
        Reason.TOO_LARGE,
    }
)
CONTENT = frozenset(set(Reason) - RETRYABLE - FINAL)
ASKABLE = tuple(str(reason) for reason in Reason if reason is not Reason.BAD_URL)  # those of links that have a URL


@dataclass(frozen=True, slots=True)
class Link:
    """One URL of the list. `key` is unique in the dataset; `row` counts links (bad lines too) from 0."""

    key: str
    url: str
    labels: tuple[str, ...]
    row: int
    columns: str = ""  # the list's other columns, a JSON object
    hash: str | None = None  # of the bytes, as `ingest.checksum.parse` returns it
    also: str = ""  # other rows with the same URL, a JSON array


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line without a usable link. It has a key and a row, so that counts balance; its reason is `bad_url`."""

    key: str
    row: int
    line: int  # in the list, from 1
    why: str
    url: str  # the line's text, cut and printable; never requested

    @property
    def labels(self) -> tuple[str, ...]:
        return ()


def from_plan(
    key: str,
    url: str,
    labels: list[str] | None,
    row: int,
    line: int | None = None,
    why: str | None = None,
    columns: str = "",
    expected: str | None = None,
) -> Link | BadLine:
    """The link of a row of the plan (`shards.dataset.PLAN_SCHEMA`) and of the list's other columns. It is a bad line
    only if it has a `line`: a retry's rows have a `why`, too."""
    if line is None:
        return Link(key, url, tuple(labels or ()), row, columns, expected)
    return BadLine(key, row, line, why or "", url)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of fetching a link: a body, or the reason why there is none."""

    link: Link
    body: bytes | Path | None  # a large body is a file on scratch
    reason: Reason | None  # None exactly when there is a body
    detail: str  # one line for people; empty when all is well
    status: int  # the last HTTP status, 0 if none came
    final_url: str
    attempts: int  # requests made, redirects not counted
    ms: int  # from the first request to the end, waits between attempts included
    at: float  # when it ended, seconds since 1970
    transfer_ms: int = 0  # the part of `ms` in transfer; waits hold neither a connection nor their host


@dataclass(frozen=True, slots=True)
class Picture:
    """The stored picture of a kept link, and its properties."""

    body: bytes
    suffix: str  # "jpg", "png" or "webp"
    sha256: str
    width: int  # as stored, before any EXIF orientation
    height: int
    mode: str
    orientation: int  # EXIF, 1..8
    progressive: bool | None
    subsampling: str | None
    icc: bool
    phash: int = 0  # perceptual hash, 64 bits; 0 if the picture was not decoded


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one link: a picture to keep, or a reason to reject it."""

    fetched: Fetched
    picture: Picture | None
    reason: Reason | None  # None exactly when there is a picture
    detail: str
    source_format: str | None = None  # of the fetched bytes, by content
    fetched_bytes: int | None = None
    fetched_sha256: str | None = None
    decode_checked: bool = False
    body: bytes | None = None  # of a content reject, so that it can be shown
    poison: bool = False  # it kills its decoder, or asks too much of it

    @property
    def keep(self) -> bool:
        return self.picture is not None


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth recording: a host was paused, a worker died, the network was down."""

    at: Moment  # seconds since 1970
    kind: str
    about: str  # the host, unit or link
    detail: str
