"""A few links of a dataset to look at: rows on the terminal, or a contact sheet as one HTML page.

The choice is a pure function of the version, the seed and the reason: random shards, then random rows of these, so a
look at a dataset of any size reads a handful of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import PeekConfig as Config
from jobs.ingest_display import clean
from jobs.report import dataset_page
from jobs.report.html import document, safe
from jobs.report.survey import COLUMNS, READERS, Thumb, member_thumb, read_rows, replaced_rows, thumb_rows
from shards import manifest, store
from shards.dataset import KEPT
from shards.manifest import Manifest, Shard
from shards.selection import selected_index

SHARDS = 16  # read at most
UNFOLLOWED = frozenset({"blocked_address", "bad_url"})  # never shown as clickable links


@dataclass(frozen=True)
class Row:
    key: str
    url: str
    labels: tuple[str, ...]
    reason: str
    detail: str
    width: int | None
    height: int | None
    format: str | None
    shard: str  # the tar's name


@dataclass(frozen=True)
class PeekResult:
    dataset: str  # the version that was looked at
    reason: str
    rows: tuple[Row, ...]
    page: str | None


def run(config: Config) -> PeekResult:
    """Raises ValueError for a reason that is none, and when the dataset has no version, or no such links."""
    reasons = [reason for reason in dataset_page.MEANINGS if reason != "subset"]  # not recorded for each link
    if config.reason not in reasons:
        raise ValueError(f"reason is {config.reason!r}: it must be one of {', '.join(reasons)}")
    version = manifest.read_manifest(config.dataset)
    found = _choose(version, config)
    if not found:
        what = f"{config.reason} links" + (f" labelled {config.label}" if config.label else "")
        there = ", ".join([KEPT, *sorted({*version.reasons, *version.deselected})])
        raise ValueError(
            f"{version.address}: no {what} in the shards that were read: it has {there}; another --seed reads other "
            "shards"
        )
    rows = tuple(_row(shard, row) for shard, row in found)
    if config.out:
        store.put(config.out, sheet(version, config, rows, _thumbs(version, found)).encode())
    return PeekResult(version.address, config.reason, rows, config.out)


def text(rows: Sequence[Row], width: int = 80) -> str:
    """Two lines for each link: what it is, and where it came from."""
    lines = []
    for r in rows:
        about = [f"{r.width}x{r.height}" if r.width else "", r.format or "", " ".join(r.labels), r.detail]
        lines += [clean(f"{r.key}  {'  '.join(filter(None, about))}", width), clean(f"    {r.url}", width)]
    return "\n".join(lines)


def sheet(version: Manifest, config: Config, rows: Sequence[Row], thumbs: Sequence[bytes | None]) -> str:
    """The contact sheet; links without a picture are listed below it."""
    shown = [(row, jpeg) for row, jpeg in zip(rows, thumbs) if jpeg]
    figures = "".join(
        dataset_page.thumb(Thumb(r.key, r.url, r.reason, r.detail, jpeg), _caption(r)) for r, jpeg in shown
    )
    blind = [row for row, jpeg in zip(rows, thumbs) if not jpeg]
    items = "".join(dataset_page.example(r.key, r.url, r.detail, linked=r.reason not in UNFOLLOWED) for r in blind)
    nearly = dataset_page.NEARLY.get(config.reason, "") if shown else ""
    meaning = dataset_page.MEANINGS.get(config.reason, "")
    return document(
        f"{config.reason} in {version.list_name}",
        f"<header><p>{len(rows)} of the links that are</p><h1>{safe(config.reason)}</h1><p>{safe(meaning)}{nearly}</p>"
        f"<p><code>{safe(version.address)}</code>, seed {config.seed}</p></header>"
        + (f'<div class="thumbs large">{figures}</div>' if figures else "")
        + (f'<div class="reasons"><ul>{items}</ul></div>' if items else ""),
    )


def _caption(r: Row) -> str:
    """What it is, then its key and its URL."""
    what = " ".join(r.labels) if r.reason == KEPT else r.detail
    words = [f"<b>{safe(what, 80)}</b>"] if what else []
    words.append(safe(r.key, 100))
    if r.url:
        shown = r.url.partition("://")[2] or r.url
        words.append(dataset_page.link(r.url, shown, 60) if r.reason not in UNFOLLOWED else safe(shown, 60))
    return "<br>".join(words)


# ---- choosing ----


def _choose(version: Manifest, config: Config) -> list[tuple[Shard, dict[str, Any]]]:
    """Random rows of a few random shards, in the dataset's order. A contact sheet prefers rows with a picture: of
    rejected links, each shard has only a few thumbnails."""
    draw = np.random.default_rng([config.seed, int(version.digest[:8], 16)])
    order = draw.permutation(np.flatnonzero(_weights(version, config.reason)))[:SHARDS]
    replaced = [] if config.reason == KEPT else replaced_rows(version)

    def rows(number: int) -> pa.Table:
        if config.reason == KEPT:
            table = selected_index(version, number, COLUMNS)
        else:
            table = read_rows(version, version.shards[number], replaced)
            table = table.filter(pc.equal(table["reason"], config.reason))
        if config.label is not None:
            has = [config.label in (labels or ()) for labels in table["labels"].to_pylist()]
            table = table.filter(pa.array(has, pa.bool_()))
        return table

    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(rows, order))
    sizes = np.array([len(table) for table in tables], np.int64)
    if not sizes.sum():
        return []
    mixed = draw.permutation(int(sizes.sum()))
    if config.out and config.reason != KEPT:
        mixed = mixed[np.argsort(~np.concatenate(_visible(version, order, tables))[mixed], kind="stable")]
    picked = np.sort(mixed[: config.samples])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = []
    for place, table in enumerate(tables):
        mine = picked[(picked >= starts[place]) & (picked < starts[place + 1])] - starts[place]
        found += [(version.shards[order[place]], row) for row in table.take(pa.array(mine, pa.int64())).to_pylist()]
    return sorted(found, key=lambda f: f[1]["row"])


def _visible(version: Manifest, order: np.ndarray, tables: Sequence[pa.Table]) -> list[np.ndarray]:
    """For each table's rows, whether there is a picture: a stored one, or a thumbnail that the ingest kept."""

    def one(number: int, table: pa.Table) -> np.ndarray:
        left = thumb_rows(version, version.shards[number]) if len(table) else {}
        rows = np.isin(table["row"].to_numpy(), np.array(sorted(left), np.int64))
        return rows | table["member"].is_valid().to_numpy()

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(one, order, tables))


def _weights(version: Manifest, reason: str) -> np.ndarray:
    """For each shard, above 0 if it may have links with this reason."""
    if reason == KEPT:
        return version.counts
    return np.array([shard.links - shard.kept for shard in version.shards], np.int64) + bool(version.rules)


def _row(shard: Shard, row: dict[str, Any]) -> Row:
    return Row(
        key=row["key"],
        url=row["url"] or "",
        labels=tuple(row["labels"] or ()),
        reason=row["reason"],
        detail=row["detail"] or "",
        width=row["width"],
        height=row["height"],
        format=row["source_format"],
        shard=shard.tar,
    )


def _thumbs(version: Manifest, found: Sequence[tuple[Shard, dict[str, Any]]]) -> list[bytes | None]:
    """A JPEG of each: decoded from its stored member, or the thumbnail that the ingest kept."""
    small = {shard.unit: thumb_rows(version, shard) for shard in {s.unit: s for s, _ in found}.values()}

    def one(entry: tuple[Shard, dict[str, Any]]) -> bytes | None:
        shard, row = entry
        return member_thumb(version, shard, row) if row["member"] else small[shard.unit].get(row["row"])

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(one, found))
