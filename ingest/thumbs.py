"""A few small pictures of each unit, so that people can look at what was kept and what was rejected, and why."""

from __future__ import annotations

import heapq
import io
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa

from ingest.record import CONTENT, Reason, Verdict
from shards.dataset import table_bytes
from shards.pixels import image

EACH = 4  # a reason and unit
SIDE = 96  # pixels
QUALITY = 80
LARGEST = 8 << 20  # bytes; what is larger is named and not shown
# What must not be decoded for the sake of a picture: it is no sound one, or too large.
_BLIND = frozenset({Reason.UNDECODABLE, Reason.UNSUPPORTED, Reason.NOT_AN_IMAGE, Reason.TOO_MANY_PIXELS})

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),  # as in the index
        ("detail", pa.string()),
        ("jpeg", pa.binary()),  # null where there is nothing that can be shown
    ]
)


@dataclass(frozen=True, order=True, slots=True)
class Sample:
    """A link that was chosen, and where its bytes are: (offset, length) in a file of the unit's."""

    rank: int
    key: str
    row: int
    reason: str
    detail: str
    body: tuple[int, int] | None


class Choice:
    """The samples of one unit: of each reason those whose keys' hashes are lowest, so that every attempt at the unit
    chooses the same links if it meets the same verdicts."""

    def __init__(self, each: int = EACH) -> None:
        self._each = each
        self._heaps: dict[str, list[tuple[int, Sample]]] = {}  # largest rank first

    def rank(self, key: str, reason: str) -> int | None:
        """The link's rank if it is among the lowest so far, else None."""
        rank = zlib.crc32(key.encode())
        heap = self._heaps.get(reason)
        return None if heap is not None and len(heap) == self._each and rank >= -heap[0][0] else rank

    def take(self, sample: Sample) -> None:
        heap = self._heaps.setdefault(sample.reason, [])
        heapq.heappush(heap, (-sample.rank, sample))
        if len(heap) > self._each:
            heapq.heappop(heap)

    def samples(self) -> list[Sample]:
        """By reason, then by rank."""
        found = [sample for heap in self._heaps.values() for _, sample in heap]
        return sorted(found, key=lambda sample: (sample.reason, sample.rank, sample.row))


def shown(verdict: Verdict) -> bytes | None:
    """The bytes that a thumbnail of this verdict may be made of."""
    if verdict.picture is not None:
        return verdict.picture.body
    return None if verdict.reason in _BLIND or not verdict.body else verdict.body


def wanted(reason: Reason | None) -> bool:
    """Kept links and content rejects have something to show; of the others the reason says it all."""
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
            jpeg = thumbnail(body(sample), max_pixels)
        rows.append((sample.key, sample.row, sample.reason, sample.detail, jpeg))
    columns = [list(column) for column in zip(*rows)] or [[] for _ in SCHEMA]
    return table_bytes(pa.table(columns, schema=SCHEMA))


def thumbnail(body: bytes | None, max_pixels: int) -> bytes | None:
    """A JPEG of at most SIDE pixels a side, upright; None when the bytes do not give one."""
    if not body or len(body) > LARGEST:
        return None
    try:
        small = image.thumbnail(body, SIDE, max_pixels)
    except (image.Undecodable, MemoryError):
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
