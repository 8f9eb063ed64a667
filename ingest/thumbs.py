"""A few thumbnails of each unit, so that people can see what was kept and what was rejected, and why."""

from __future__ import annotations

import heapq
import io
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from ingest.record import CONTENT, Reason, Verdict
from shards.dataset import table_bytes
from shards.pixels import HEAD, image, is_costly, salvaged

if TYPE_CHECKING:
    from PIL.Image import Image

EACH = 4  # thumbnails for each reason in a unit
DAMAGED = 8  # for `undecodable`, some of which show nothing
SIDE = 96  # pixels
QUALITY = 80
TINY = 32  # pixels: pictures of at most this side are stored for an enlarged view, without blur
LARGEST = 8 << 20  # bytes; larger bodies are listed, but not shown
# Not to be decoded for a thumbnail: not pictures, or too large.
_BLIND = frozenset({Reason.UNSUPPORTED, Reason.NOT_AN_IMAGE, Reason.TOO_MANY_PIXELS})

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),  # as in the index
        ("detail", pa.string()),
        ("jpeg", pa.binary()),  # null if there is nothing to show
    ]
)


@dataclass(frozen=True, order=True, slots=True)
class Sample:
    """A chosen link, and the place of its bytes: (offset, length) in a file of the unit."""

    rank: int
    key: str
    row: int
    reason: str
    detail: str
    body: tuple[int, int] | None


class Choice:
    """The samples of one unit: for each reason, the links with the lowest key hashes, so that every attempt with the
    same verdicts chooses the same links."""

    def __init__(self, each: int = EACH, damaged: int = DAMAGED) -> None:
        self._each, self._damaged = each, damaged
        self._heaps: dict[str, list[tuple[int, Sample]]] = {}  # largest rank first

    def rank(self, key: str, reason: str) -> int | None:
        """The link's rank if it is among the lowest so far, else None."""
        rank = zlib.crc32(key.encode())
        heap = self._heaps.get(reason)
        return None if heap is not None and len(heap) == self._most(reason) and rank >= -heap[0][0] else rank

    def _most(self, reason: str) -> int:
        return self._damaged if reason == Reason.UNDECODABLE else self._each

    def take(self, sample: Sample) -> None:
        heap = self._heaps.setdefault(sample.reason, [])
        heapq.heappush(heap, (-sample.rank, sample))
        if len(heap) > self._most(sample.reason):
            heapq.heappop(heap)

    def samples(self) -> list[Sample]:
        """By reason, then by rank."""
        found = [sample for heap in self._heaps.values() for _, sample in heap]
        return sorted(found, key=lambda sample: (sample.reason, sample.rank, sample.row))


def shown(verdict: Verdict) -> bytes | None:
    """The bytes to make a thumbnail of, or None. Damaged bodies that were judged in a child process, or would have
    been, are not decoded here: they may kill their decoder."""
    if verdict.picture is not None:
        return verdict.picture.body
    body = verdict.body
    if verdict.reason in _BLIND or not body:
        return None
    return None if verdict.reason is Reason.UNDECODABLE and is_costly(body[:HEAD], len(body)) else body


def wanted(reason: Reason | None) -> bool:
    """Whether a link has something to show: kept links and content rejects do."""
    return reason is None or reason in CONTENT


def table(
    samples: Iterable[Sample],
    body: Callable[[Sample], bytes | None],
    judging: Callable[[int], AbstractContextManager[object]],
    max_pixels: int,
) -> bytes:
    """The unit's thumbnails as a Parquet file."""
    rows = []
    for sample in samples:
        with judging(sample.row):
            jpeg = thumbnail(body(sample), max_pixels, sample.reason == Reason.UNDECODABLE)
        rows.append((sample.key, sample.row, sample.reason, sample.detail, jpeg))
    columns = [list(column) for column in zip(*rows)] or [[] for _ in SCHEMA]
    return table_bytes(pa.table(columns, schema=SCHEMA))


def thumbnail(body: bytes | None, max_pixels: int, damaged: bool = False) -> bytes | None:
    """An upright JPEG within SIDE x SIDE pixels; None if the bytes cannot be shown. If `damaged`, as much as can be
    decoded."""
    if not body or len(body) > LARGEST:
        return None
    try:
        small = salvaged(body, SIDE) if damaged else image.thumbnail(body, SIDE, max_pixels)
    except (image.Undecodable, MemoryError):
        return None
    return encoded(small) if small is not None else None


def encoded(small: Image) -> bytes:
    """The JPEG of a thumbnail. A tiny one is shown enlarged, so its chroma is not subsampled."""
    out = io.BytesIO()
    tiny = max(small.size) <= TINY
    small.save(out, "JPEG", quality=95 if tiny else QUALITY, subsampling=0 if tiny else -1)
    return out.getvalue()
