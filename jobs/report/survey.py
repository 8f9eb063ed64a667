"""A bounded sample of a dataset's indexes: examples of every reason, hosts, sizes and thumbnails.

However large the dataset is, at most SHARDS evenly spaced shards are read; the survey records how many rows they had.
Its texts and pictures are untrusted: escape them before showing them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.record import FINAL, RETRYABLE
from ingest.thumbs import encoded
from jobs.laws import grouped
from shards import store
from shards.dataset import KEPT, read_generations, read_table
from shards.manifest import Manifest, Shard
from shards.pixels import image
from shards.rules import read_rules

SHARDS = 48
READERS = 8
EXAMPLES = 6  # per reason
THUMBS = {KEPT: 24}  # kept pictures shown where there are no classes
THUMBS_A_REASON = 8
CLASSES = 12  # shown with pictures
THUMBS_A_CLASS = 4
THUMB_SIDE = 160
THUMB_PIXELS = 40_000_000  # larger pictures have no thumbnail: decoding one takes seconds
THUMB_BYTES = 8 << 20
HOSTS = 10  # per list
FAILED = frozenset(map(str, RETRYABLE | FINAL))
COLUMNS = [
    *("key", "url", "labels", "row", "reason", "detail", "http_status", "elapsed_ms", "fetched_bytes"),
    *("source_format", "width", "height", "orientation", "member", "offset", "length"),
]
HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"

SIDES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)  # px
BYTES = tuple(digit * 10**power for power in (3, 4, 5, 6) for digit in (1, 2, 5))  # 1 kB to 5 MB
ASPECTS = (1 / 3, 1 / 2, 2 / 3, 3 / 4, 0.95, 1.05, 4 / 3, 3 / 2, 2, 3)  # width / height as shown

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A link and its outcome."""

    key: str
    url: str
    detail: str
    status: int | None


@dataclass(frozen=True)
class Host:
    name: str
    links: int
    kept: int
    failed: int  # because of the host or the network, not the picture
    seconds: float  # mean over the links that were fetched
    bytes: int


@dataclass(frozen=True)
class Thumb:
    key: str
    url: str
    reason: str
    detail: str
    jpeg: bytes


@dataclass(frozen=True)
class Class:
    """A class, the number of its kept pictures in the sample, and some of them."""

    name: str
    pictures: int
    thumbs: tuple[Thumb, ...]


@dataclass(frozen=True)
class Histogram:
    """counts[i] is the number of values in [edges[i - 1], edges[i]); the first and the last bin are open."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    shards: int  # in the version
    shards_read: int
    rows: int  # read
    examples: dict[str, tuple[Example, ...]]
    largest: tuple[Host, ...]
    failing: tuple[Host, ...]
    slowest: tuple[Host, ...]
    formats: dict[str, int]  # kept links by the format that was fetched
    sides: Histogram  # shorter sides of kept pictures
    aspects: Histogram
    sizes: Histogram  # bytes
    thumbs: dict[str, tuple[Thumb, ...]]  # by reason; kept pictures only where there are no classes
    classes: dict[str, int] = field(default_factory=dict)  # kept pictures in the sample, the largest class first
    shown: tuple[Class, ...] = ()  # some classes, the most common first

    @property
    def whole(self) -> bool:
        return self.shards_read == self.shards


@dataclass
class _Part:
    """One shard's contribution."""

    rows: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)
    hosts: pa.Table | None = None
    formats: dict[str, int] = field(default_factory=dict)
    sides: np.ndarray = field(default_factory=lambda: np.zeros(0))
    aspects: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    thumbs: dict[str, list[Thumb]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)


def survey(version: Manifest, shards: int = SHARDS) -> Survey:
    """Sample at most `shards` shards. Raises StoreError naming an index or tar that is missing or damaged."""
    chosen = spaced(version.shards, shards)
    # Twice as many, because some shards have none.
    thumbs = [-(-2 * most // max(1, len(chosen))) for most in (THUMBS[KEPT], THUMBS_A_REASON)]
    replaced = replaced_rows(version)
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda shard: _part(version, shard, replaced, *thumbs), chosen))
    classes = _summed(part.classes for part in parts)
    hosts = _merged([part.hosts for part in parts if part.hosts is not None])
    asked = [
        host for host in hosts if host.links >= 0.0005 * sum(h.links for h in hosts)
    ]  # ignore hosts with very few links
    return Survey(
        shards=len(version.shards),
        shards_read=len(chosen),
        rows=sum(part.rows for part in parts),
        examples={r: _apart(e)[:EXAMPLES] for r, e in _joined(part.examples for part in parts).items()},
        largest=tuple(sorted(hosts, key=lambda h: (-h.links, h.name))[:HOSTS]),
        failing=tuple(h for h in sorted(hosts, key=lambda h: (-h.failed, h.name))[:HOSTS] if h.failed),
        slowest=tuple(h for h in sorted(asked, key=lambda h: (-h.seconds, h.name))[:HOSTS] if h.seconds),
        formats=_summed(part.formats for part in parts),
        sides=_histogram(SIDES, [part.sides for part in parts]),
        aspects=_histogram(ASPECTS, [part.aspects for part in parts]),
        sizes=_histogram(BYTES, [part.sizes for part in parts]),
        thumbs={
            reason: tuple(found[: THUMBS.get(reason, THUMBS_A_REASON)])
            for reason, found in _joined(part.thumbs for part in parts).items()
            if reason != KEPT or not classes
        },
        classes=classes,
        shown=_shown(version, replaced, classes, dict(zip(chosen, (part.classes for part in parts)))),
    )


def spaced(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, including the first."""
    count = min(most, len(items))
    return [items[at * len(items) // count] for at in range(count)]


# ---- one shard ----


def replaced_rows(version: Manifest) -> list[tuple[int, np.ndarray]]:
    """(first unit, rows) of every retry: these rows were fetched again, so earlier units' outcomes are out of date."""
    found = []
    for retry in read_generations(version.dataset):
        units = range(retry.first_unit, retry.first_unit + retry.units)
        indexes = [store.join(version.dataset, "shards", s.index) for s in version.shards if s.unit in units]
        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(lambda url: read_table(url, ["row"]), indexes))
        found.append((retry.first_unit, np.concatenate([t["row"].to_numpy() for t in tables] or [np.zeros(0)])))
    return found


def read_rows(version: Manifest, shard: Shard, replaced: Sequence[tuple[int, np.ndarray]]) -> pa.Table:
    """The shard's index rows that no retry has replaced. Deselected rows have their reason in place of `kept`; rows
    that took over duplicates' labels have all of them."""
    table = read_table(store.join(version.dataset, "shards", shard.index), COLUMNS)
    for first_unit, rows in replaced:
        if shard.unit < first_unit:
            table = table.filter(pa.array(~np.isin(table["row"].to_numpy(), rows)))
    if version.rules is None:
        return table
    ruled = read_rules(version.dataset, version.rules, shard.unit)
    at = pc.index_in(table["row"], ruled["row"].combine_chunks())
    for name in ("reason", "labels"):
        table = table.set_column(table.column_names.index(name), name, pc.coalesce(ruled[name].take(at), table[name]))
    return table


def _part(
    version: Manifest, shard: Shard, replaced: Sequence[tuple[int, np.ndarray]], thumbs_kept: int, thumbs_reason: int
) -> _Part:
    table = read_rows(version, shard, replaced)
    kept = table.filter(pc.equal(table["reason"], KEPT))
    width, height = (_numbers(kept[name]) for name in ("width", "height"))
    turned = _numbers(kept["orientation"]) >= 5  # EXIF 5 to 8: rotated by 90 degrees
    known = (width > 0) & (height > 0)
    part = _Part(
        rows=len(table),
        hosts=_hosts(table),
        formats={str(f): n for f, n in _counts(kept["source_format"]).items()},
        sides=np.minimum(width, height)[known],
        aspects=(np.where(turned, height, width)[known] / np.where(turned, width, height)[known]),
        sizes=_numbers(kept["length"]),
        classes={str(label): n for label, n in _counts(pc.list_flatten(kept["labels"])).items() if label is not None},
    )
    small = thumb_rows(version, shard)
    for reason in sorted(_counts(table["reason"])):
        rows = table.filter(pc.equal(table["reason"], reason))
        if reason != KEPT:
            part.examples[reason] = [
                Example(row["key"], row["url"] or "", row["detail"] or "", row["http_status"])
                for row in _varied(rows, EXAMPLES)
            ]
        wanted = thumbs_reason if reason != KEPT else 0 if part.classes else thumbs_kept
        part.thumbs[reason] = list(_thumbs(version, shard, rows, small, wanted))
    return part


def _varied(rows: pa.Table, most: int) -> list[dict[str, Any]]:
    """At most `most` rows, those with different details first."""
    details: dict[str, int] = {}
    for at, detail in enumerate(rows["detail"].to_pylist()):
        details.setdefault(detail or "", at)
    first = spaced(sorted(details.values()), most)
    more = [at for at in spaced(range(len(rows)), most) if at not in first]
    return rows.take(pa.array([*first, *more][:most], pa.int64())).to_pylist()


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column.cast(pa.int64()), 0).to_numpy()


def _counts(column: pa.ChunkedArray) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


# ---- classes ----


def _shown(
    version: Manifest,
    replaced: Sequence[tuple[int, np.ndarray]],
    classes: Mapping[str, int],
    counts: Mapping[Shard, Mapping[str, int]],
) -> tuple[Class, ...]:
    """Classes from the most common to the rarest, each with pictures from the shard that has most of it."""
    names = spaced(list(classes), CLASSES)
    if len(classes) > 1:
        names = [*names[:-1], list(classes)[-1]]  # include the rarest
    at = grouped(names, lambda name: max(counts, key=lambda shard: (counts[shard].get(name, 0), -shard.unit)))

    def of_shard(shard: Shard) -> dict[str, tuple[Thumb, ...]]:
        table = read_rows(version, shard, replaced)
        kept = table.filter(pc.equal(table["reason"], KEPT))
        labels = kept["labels"].to_pylist()
        found = {}
        for name in at[shard]:
            rows = [row for row, own in enumerate(labels) if own and name in own]
            some = kept.take(pa.array(spaced(rows, THUMBS_A_CLASS), pa.int64()))
            found[name] = tuple(_thumbs(version, shard, some, {}, THUMBS_A_CLASS))
        return found

    with ThreadPoolExecutor(READERS) as pool:
        thumbs = {name: some for found in pool.map(of_shard, at) for name, some in found.items()}
    return tuple(Class(name, classes[name], thumbs[name]) for name in names)


# ---- hosts ----


def _hosts(table: pa.Table) -> pa.Table:
    """links, kept, failed, asked, ms and bytes for each host in the shard."""
    host = pc.struct_field(pc.extract_regex(table["url"], HOST), "host")
    reason = table["reason"]
    rows = pa.table(
        {
            "host": pc.utf8_lower(host),
            "links": pa.repeat(1, len(table)),
            "kept": pc.equal(reason, KEPT).cast(pa.int64()),
            "failed": pc.is_in(reason, pa.array(sorted(FAILED))).cast(pa.int64()),
            "asked": pc.is_valid(table["elapsed_ms"]).cast(pa.int64()),
            "ms": pc.fill_null(table["elapsed_ms"].cast(pa.int64()), 0),
            "bytes": pc.fill_null(table["fetched_bytes"], 0),
        }
    )
    return _by_host(rows.filter(pc.is_valid(rows["host"])))


def _by_host(rows: pa.Table) -> pa.Table:
    names = ["links", "kept", "failed", "asked", "ms", "bytes"]
    summed = rows.group_by("host").aggregate([(name, "sum") for name in names])
    return summed.select(["host", *(f"{name}_sum" for name in names)]).rename_columns(["host", *names])


def _merged(tables: list[pa.Table]) -> list[Host]:
    if not tables:
        return []
    rows = _by_host(pa.concat_tables(tables)).to_pylist()
    return [
        Host(r["host"], r["links"], r["kept"], r["failed"], r["ms"] / 1000 / max(1, r["asked"]), r["bytes"])
        for r in rows
    ]


# ---- thumbnails ----


def thumb_rows(version: Manifest, shard: Shard) -> dict[int, bytes]:
    """row -> JPEG of the thumbnails that the ingest kept, if any."""
    try:
        table = read_table(store.join(version.dataset, "thumbs", shard.index), ["row", "jpeg"])
    except store.Missing:
        return {}
    return {row: jpeg for row, jpeg in zip(table["row"].to_pylist(), table["jpeg"].to_pylist()) if jpeg}


def _thumbs(version: Manifest, shard: Shard, rows: pa.Table, small: Mapping[int, bytes], most: int) -> Iterator[Thumb]:
    """Thumbnails of stored pictures, by decoding them; of rejected ones, those that the ingest kept."""
    stored = rows.filter(pc.less(rows["length"], THUMB_BYTES))  # null where nothing is stored
    found = stored if len(stored) else rows.filter(pc.is_in(rows["row"], pa.array(sorted(small), pa.int64())))
    for row in found.take(pa.array(spaced(range(len(found)), most), pa.int64())).to_pylist():
        jpeg = member_thumb(version, shard, row) if row["member"] else small[row["row"]]
        if jpeg is not None:
            yield Thumb(row["key"], row["url"] or "", row["reason"], row["detail"] or "", jpeg)


def member_thumb(version: Manifest, shard: Shard, row: dict[str, Any]) -> bytes | None:
    """A thumbnail of one stored picture; None where it cannot be decoded."""
    return thumbnail(store.read_range(shard.tar_url(version.dataset), row["offset"], row["length"]))


def thumbnail(body: bytes, side: int = THUMB_SIDE) -> bytes | None:
    """A JPEG of at most `side` by `side`, or None if `body` cannot be decoded or has too many pixels."""
    try:
        picture = image.thumbnail(body, side, THUMB_PIXELS)
    except image.Undecodable:
        return None
    return encoded(picture)


# ---- putting parts together ----


def _joined(parts: Iterable[Mapping[str, list[T]]]) -> dict[str, list[T]]:
    """A list for every name, taking items from the parts in turn."""
    lists: dict[str, list[list[T]]] = defaultdict(list)
    for part in parts:
        for name, items in part.items():
            lists[name].append(items)
    return {
        name: [item for turn in zip_longest(*several) for item in turn if item is not None]
        for name, several in sorted(lists.items())
    }


def _apart(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples with different details first."""
    seen: set[str] = set()
    first = [e for e in examples if e.detail not in seen and not seen.add(e.detail)]
    return (*first, *(e for e in examples if e not in first))


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for part in parts:
        for name, n in part.items():
            total[name] += n
    return dict(sorted(total.items(), key=lambda t: (-t[1], t[0])))


def _histogram(edges: tuple[float, ...], parts: Sequence[np.ndarray]) -> Histogram:
    places = np.searchsorted(np.array(edges), np.concatenate(parts) if parts else np.zeros(0), side="right")
    return Histogram(edges, tuple(int(n) for n in np.bincount(places, minlength=len(edges) + 1)))
