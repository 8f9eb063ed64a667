"""Exclusion lists: lines that name URLs, keys, hosts or pictures (by hash) to remove for good.

Each list is stored in the dataset (`excluded/`) and applied by every later selection, so that withdrawn pictures do not
come back with the next version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.lists import quote
from shards import store
from shards.dataset import KEPT, read_table
from shards.manifest import Manifest

FOLDER = "excluded"
COLUMNS = ["key", "url", "final_url", "sha256", "fetched_sha256", "phash", "reason"]
FARTHEST = 16  # bits of 64
FORMS = "a URL, a key, a host name, a sha256, or phash:16 HEX DIGITS, perhaps with /BITS that may differ"
_PHASH = re.compile(r"phash:([0-9a-f]{16})(?:/(\d{1,2}))?")
_HOST = re.compile(r"(?:host:)?([a-z0-9_-]+(?:\.[a-z0-9_-]+)+)")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")


@dataclass(frozen=True)
class Exclusion:
    """What the lines name, each with the index of its line in `lines`."""

    lines: tuple[str, ...]
    urls: dict[str, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    digests: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)  # with their subdomains
    looks: list[tuple[int, int, int]] = field(default_factory=list)  # (hash, bits, line)


def parse(url: str, text: str) -> Exclusion:
    """The exclusions in the text of a list; `url` names the list in errors. Raises ValueError for a line that names
    nothing."""
    lines = dict.fromkeys(line.strip() for line in text.splitlines())
    found = Exclusion(tuple(line for line in lines if line and line[0] != "#"))
    for number, line in enumerate(found.lines):
        small = line.lower()
        if look := _PHASH.fullmatch(small):
            bits = int(look[2] or 0)
            if bits > FARTHEST:
                raise ValueError(f"{url}: {line!r}: at most {FARTHEST} of 64 bits may differ")
            found.looks.append((int(look[1], 16), bits, number))
        elif re.fullmatch("[0-9a-f]{64}", small):
            found.digests.setdefault(small, number)
        elif "://" in line:
            found.urls.setdefault(quote(line), number)
        elif host := _HOST.fullmatch(small):
            found.hosts.setdefault(host[1], number)
        elif _KEY.fullmatch(line):
            found.keys.setdefault(line, number)
        else:
            raise ValueError(f"{url}: {line[:80]!r} names no sample: give {FORMS} a line")
    return found


@dataclass(frozen=True)
class Given:
    """An exclusion list: its name in the dataset and its bytes."""

    name: str
    body: bytes


def read(url: str) -> Given:
    """The list at `url`. Raises ValueError if it is missing or empty, or has a line that names nothing."""
    try:
        body = store.read(url)
    except store.Missing:
        raise ValueError(f"{url}: there is no such file: check --exclude") from None
    if not parse(url, body.decode("utf-8", "replace")).lines:
        raise ValueError(f"{url}: names nothing: give {FORMS} a line")
    return Given(hashlib.sha256(body).hexdigest()[:16] + ".txt", body)


def all_of(dataset: str, given: Given | None = None) -> tuple[list[str], Exclusion]:
    """The names of the dataset's exclusion lists, including `given`, and all their exclusions."""
    folder = store.join(dataset, FOLDER)
    bodies = {name: b"" for name in store.names(folder) if name.endswith(".txt")}
    bodies |= {given.name: given.body} if given is not None else {}
    texts = [body or store.read(store.join(folder, name)) for name, body in sorted(bodies.items())]
    return sorted(bodies), parse(folder, "\n".join(text.decode("utf-8", "replace") for text in texts))


def remember(dataset: str, given: Given) -> None:
    store.put_if_absent(store.join(dataset, FOLDER, given.name), given.body)


def counts(manifest: Manifest, url: str) -> list[tuple[str, int]]:
    """How many kept pictures of a version's units each line of a list names."""
    what = parse(url, read(url).body.decode("utf-8", "replace"))
    total = np.zeros(len(what.lines), np.int64)
    for _, count in matches(manifest, what):
        total += count
    return list(zip(what.lines, total.tolist()))


def matches(manifest: Manifest, what: Exclusion) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each shard: whether a line names each of its kept rows, bool [kept], and how many each line names, int
    [lines]."""
    for shard in manifest.shards:
        table = read_table(store.join(manifest.dataset, "shards", shard.index), COLUMNS)
        table = table.filter(pc.equal(table["reason"], KEPT)).combine_chunks()
        out = np.zeros(len(table), bool)
        rows, lines = named_rows(table, what)
        out[rows] = True
        yield out, np.bincount(lines, minlength=len(what.lines))


def named_columns(what: Exclusion) -> list[str]:
    """The columns of an index that `named_rows` needs for these lines."""
    wanted = {
        "key": what.keys,
        "url": what.urls or what.hosts,
        "final_url": what.urls,
        "sha256": what.digests,
        "fetched_sha256": what.digests,
        "phash": what.looks,
    }
    return [name for name, lines in wanted.items() if lines]


def named_rows(table: pa.Table, what: Exclusion) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an index or a plan that lines name, as pairs: int64 [n] row, int64 [n] line. Columns that the table lacks
    match nothing."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for names, columns in (
        (what.urls, ("url", "final_url")),
        (what.keys, ("key",)),
        (what.digests, ("sha256", "fetched_sha256")),
    ):
        lines = np.full(len(table), -1)
        for column in columns if names else ():
            if column in table.column_names:
                at = pc.index_in(table[column], pa.array(list(names), pa.string())).fill_null(-1).to_numpy()
                lines = np.where(at >= 0, np.array(list(names.values()))[at], lines)
        pairs.append(_pairs(lines))
    if what.hosts:
        pairs.append(_pairs(_host_lines(table["url"], what.hosts)))
    if what.looks and "phash" in table.column_names:
        hashes = table["phash"].fill_null(0).to_numpy()
        for look, bits, line in what.looks:
            near = np.flatnonzero((np.bitwise_count(hashes ^ np.uint64(look)) <= bits) & (hashes != 0))
            pairs.append((near, np.full(len(near), line)))
    rows, lines = (np.concatenate(part) for part in zip(*pairs))
    return rows, lines


def _pairs(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(lines >= 0)
    return rows, lines[rows]


def _host_lines(urls: pa.ChunkedArray, hosts: dict[str, int]) -> np.ndarray:
    """The line that names each URL's host or a parent domain; -1 where none does."""
    starts = pc.struct_field(pc.extract_regex(urls, r"^(?P<start>[A-Za-z]+://[^/?#]*)"), "start").combine_chunks()
    coded = starts.dictionary_encode()
    found = [_line_of(start, hosts) for start in coded.dictionary.to_pylist()]
    return np.array([*found, -1])[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]


def _line_of(start: str | None, hosts: dict[str, int]) -> int:
    parts = (urlsplit(start or "").hostname or "").split(".")
    names: Sequence[str] = [".".join(parts[at:]) for at in range(len(parts))]
    return next((hosts[name] for name in names if name in hosts), -1)
