"""URL lists -> links, one pass, tolerant of what real lists hold.

Formats: text (a URL a line, or `id<TAB>url`, as the headerless fall11 list of ImageNet: latin-1, CRLF, broken lines),
CSV and TSV with or without a header, Parquet; each but Parquet also gzipped. A line that holds no usable link becomes a
`BadLine` with its line number, never an exception; an empty line is no link at all.

Memory: constant, apart from 8 bytes a link that find repeated ids (16 while its sorted runs are merged): at most 16 MB
a million links, 220 MB for the 14 million of fall11.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.record import BadLine, Link
from shards import store

FORMATS = ("auto", "text", "csv", "tsv", "parquet")
MAX_LINE = 64 << 10  # bytes; a longer line is bad, and is skipped without being held
MAX_URL = 4096  # bytes after quoting
KEY_LENGTH = 90

_URL_NAMES = ("url", "urls", "image_url", "image", "link")
_WNID = re.compile(r"n\d{8}_\d+")


@dataclass(frozen=True, slots=True)
class _Row:
    """One entry of a list as read, before it has a key. Text holds undecodable bytes as surrogates."""

    line: int
    name: str | None  # its id; None where the list has none
    url: str
    labels: tuple[str, ...]
    why: str | None = None  # it is bad even before its URL is looked at


def read_links(
    urls: str,
    format: str = "auto",  # noqa: A002 the name that a user sees
    url_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[Link | BadLine]:
    """The links of a list in order, with unique keys. Columns are header names, or numbers from 0 where there is none.

    Raises ValueError when the list is missing, is not what its name says, or lacks a column.
    """
    if format not in FORMATS:
        raise ValueError(f"list format {format!r} is unknown: use one of {', '.join(FORMATS)}")
    kind = _kind(urls) if format == "auto" else format
    columns = (url_column, id_column, label_column)
    if kind == "parquet":
        rows = _parquet_rows(urls, columns)
    elif kind == "text":
        rows = _text_rows(urls)
    else:
        rows = _table_rows(urls, "," if kind == "csv" else "\t", columns)
    return _with_keys(rows)


def list_name(urls: str) -> str:
    return urls.rstrip("/").rsplit("/", 1)[-1]


def list_sha256(urls: str) -> str:
    """Of the list's bytes as stored. Raises ValueError when it cannot be read."""
    digest = hashlib.sha256()
    with _open(urls) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_url(url: str) -> str | None:
    """Why we would never ask for this URL, or None. The one rule for lists, plans and redirects."""
    if len(url) > MAX_URL:
        return f"url of {len(url)} bytes, more than {MAX_URL}"
    if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        return "url with unquoted characters"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"not a url: {error}"
    if parts.scheme not in ("http", "https"):
        return f"scheme {parts.scheme[:20]!r} is not http or https" if parts.scheme else "url without scheme"
    if not host:
        return "url without host"
    if "@" in parts.netloc or "\\" in parts.netloc:
        return "url with user name"
    return None


# --- bytes -> rows -------------------------------------------------------------------------------------------------


def _kind(urls: str) -> str:
    name = list_name(urls).lower().removesuffix(".gz")
    if name.endswith((".zst", ".zip", ".bz2", ".xz")):
        raise ValueError(f"{urls}: this compression is not read: unpack the list, or use .gz")
    return {"csv": "csv", "tsv": "tsv", "parquet": "parquet", "pq": "parquet"}.get(name.rsplit(".", 1)[-1], "text")


def _open(urls: str) -> BinaryIO:
    try:
        return store.open_read(urls)
    except store.Missing:
        raise ValueError(f"{urls}: there is no such list: check --urls") from None


def _lines(urls: str) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line without its end), None for a line longer than MAX_LINE."""
    with _open(urls) as raw:
        file = gzip.GzipFile(fileobj=raw) if urls.endswith(".gz") else raw
        number = 0
        try:
            while line := file.readline(MAX_LINE):
                number += 1
                if line[-1:] == b"\n" or len(line) < MAX_LINE:
                    yield number, line.rstrip(b"\r\n")
                    continue
                while line and line[-1:] != b"\n":
                    line = file.readline(MAX_LINE)
                yield number, None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{urls}: damaged gzip after line {number} ({error}): fetch the list again") from None


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _text_rows(urls: str) -> Iterator[_Row]:
    lines = _lines(urls)
    head = list(islice(lines, 1000))
    ids = [line.split(b"\t")[0] for _, line in head if line and b"\t" in line]
    fall11 = 2 * sum(bool(_WNID.fullmatch(_text(name))) for name in ids) > len(ids)
    for number, line in chain(head, lines):
        if line is None:
            yield _Row(number, None, "", (), f"line longer than {MAX_LINE} bytes")
            continue
        text = _text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if not text.strip():
            continue
        name, tab, url = text.partition("\t")
        if not tab or _is_url(name):
            yield _Row(number, None, name, (), None if _is_url(name) else "no tab between id and url")
        else:
            yield _text_row(number, name, url.split("\t")[0], fall11)


def _text_row(number: int, name: str, url: str, fall11: bool) -> _Row:
    why = None
    if not name.strip():
        why = "empty id"
    elif "\0" in name:
        why = "NUL byte"
    elif fall11 and not _WNID.fullmatch(name):
        why = "id is not wnid_number"
    elif not url.strip():
        why = "no url"
    return _Row(number, name, url, (name.split("_")[0],) if fall11 and why is None else (), why)


def _is_url(text: str) -> bool:
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


def _table_rows(urls: str, delimiter: str, columns: tuple[str | None, str | None, str | None]) -> Iterator[_Row]:
    long: list[int] = []

    def lines() -> Iterator[str]:
        for _, line in _lines(urls):
            if line is None:
                long.append(1)
            yield "" if line is None else _text(line) + "\n"

    csv.field_size_limit(min(sys.maxsize, 2 * MAX_LINE))
    reader = csv.reader(lines(), delimiter=delimiter)
    places: tuple[int, int | None, int | None] | None = None
    while True:
        before = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Row(before + 1, None, "", (), f"lines {before + 1} to {reader.line_num} cannot be read: {error}")
            continue
        if long:
            long.clear()
            yield _Row(reader.line_num, None, "", (), f"line longer than {MAX_LINE} bytes")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if places is None:
            cells[0] = cells[0].removeprefix("\ufeff")
            header = not any(_is_url(cell) for cell in cells)
            places = _places(urls, cells if header else None, cells, columns)
            if header:
                continue
        yield _table_row(reader.line_num, cells, places)


def _table_row(number: int, cells: list[str], places: tuple[int, int | None, int | None]) -> _Row:
    url, name, label = (cells[at] if at is not None and at < len(cells) else None for at in places)
    labels = (label,) if label else ()
    if places[1] is not None and not (name and name.strip()):
        return _Row(number, None, url or "", labels, "empty id")
    return _Row(number, name, url or "", labels, None if url and url.strip() else "no url")


def _places(
    urls: str, header: list[str] | None, first: list[str], columns: tuple[str | None, str | None, str | None]
) -> tuple[int, int | None, int | None]:
    """Where the URL, id and label are: by name with a header, by number without one."""
    names = [cell.strip() for cell in header] if header is not None else [str(at) for at in range(len(first))]

    def find(wanted: str | None, usual: tuple[str, ...]) -> int | None:
        if wanted is not None:
            if wanted not in names:
                raise ValueError(f"{urls}: has no column {wanted!r}: it has {', '.join(names)[:300]}")
            return names.index(wanted)
        return next((at for at, name in enumerate(names) if name.lower() in usual), None)

    url = find(columns[0], _URL_NAMES)
    if url is None and header is None:
        url = next(at for at, cell in enumerate(first) if _is_url(cell))
    if url is None:
        raise ValueError(f"{urls}: which column holds the URLs? It has {', '.join(names)[:300]}: set --url-column")
    return url, find(columns[1], ("id", "key")), find(columns[2], ("label", "labels", "class"))


def _parquet_rows(urls: str, columns: tuple[str | None, str | None, str | None]) -> Iterator[_Row]:
    with _open(urls) as raw:
        try:
            file = pq.ParquetFile(raw)
        except pa.ArrowException as error:
            raise ValueError(f"{urls}: is not a Parquet file ({str(error)[:100]}): check --urls") from None
        names = file.schema_arrow.names
        url, name, label = _places(urls, names, names, columns)
        wanted = [names[at] for at in (url, name, label) if at is not None]
        number = 0
        for batch in file.iter_batches(batch_size=4096, columns=wanted):
            table = pa.Table.from_batches([batch])
            cells = [
                table[names[at]].to_pylist() if at is not None else [None] * len(table) for at in (url, name, label)
            ]
            for link, key, labels in zip(*cells):
                number += 1
                text = _cell(link)
                if name is not None and key in (None, ""):
                    yield _Row(number, None, text, _labels(labels), "empty id")
                else:
                    key = None if key is None else _cell(key)
                    yield _Row(number, key, text, _labels(labels), None if text.strip() else "no url")


def _cell(value: object) -> str:
    return "" if value is None else _text(value) if isinstance(value, bytes) else str(value)


def _labels(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_cell(label) for label in values if label is not None and label != "")


# --- rows -> links -------------------------------------------------------------------------------------------------


def _with_keys(rows: Iterable[_Row]) -> Iterator[Link | BadLine]:
    seen = _Seen()
    row = 0
    rows = iter(rows)
    while batch := list(islice(rows, 4096)):
        keys = seen.unique([_key(entry.name, row + at) for at, entry in enumerate(batch)], row)
        for key, entry in zip(keys, batch):
            url = quote(entry.url)
            why = entry.why or ("NUL byte" if "\0" in url else check_url(url))
            if why is None:
                yield Link(key, url, tuple(_printable(label, 200) for label in entry.labels), row)
            else:
                yield BadLine(key, row, entry.line, why, _printable(entry.url or entry.name or "", 200))
            row += 1


def _key(name: str | None, row: int) -> str:
    clean = re.sub(r"[^A-Za-z0-9_-]", "_", name.strip()) if name else ""
    return clean[:KEY_LENGTH] or f"{row:09d}"


def quote(url: str) -> str:
    """Percent-encode what may not stand in a URL, byte for byte: a list in latin-1 asks for the bytes it was made with.
    Host names are the exception: they are IDNA-encoded."""
    url = url.strip(" \t\r\n")
    if url.isascii() and "#" not in url and " " not in url:
        return url
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if mark and not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return url  # check_url says why
    raw = f"{scheme}{mark}{host}{slash}{path}".encode("utf-8", "surrogateescape").partition(b"#")[0]
    return "".join(chr(b) if b < 0x80 and b != 0x20 else f"%{b:02X}" for b in raw)


def _printable(text: str, length: int) -> str:
    cut = text[:length].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in cut)


class _Seen:
    """Which keys have been given out: their 64-bit hashes in sorted runs, each at least twice as long as the next.

    Two different keys share a hash with probability n^2 / 2^65 (5e-6 for 14 million); the cost is a needless suffix.
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def unique(self, keys: list[str], row: int) -> list[str]:
        """The keys with `_r<row>` appended where they were given out before; `row` is the first one's."""
        hashes = np.array([_hash(key) for key in keys], np.uint64)
        old = np.zeros(len(keys), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            old |= run[at] == hashes
        fresh: set[int] = set()
        result = []
        for at, key in enumerate(keys):
            value, known, tries = int(hashes[at]), bool(old[at]), 0
            while known or value in fresh:
                suffix = f"_r{row + at}" + (f"_{tries}" if tries else "")
                key = keys[at][: KEY_LENGTH - len(suffix)] + suffix
                value, tries = _hash(key), tries + 1
                known = self._holds(value)
            fresh.add(value)
            result.append(key)
        self._add(np.sort(np.fromiter(fresh, np.uint64, len(fresh))))
        return result

    def _holds(self, value: int) -> bool:
        return any(run[min(int(np.searchsorted(run, np.uint64(value))), len(run) - 1)] == value for run in self._runs)

    def _add(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
