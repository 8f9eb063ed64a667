"""URL lists as tables -> rows: CSV and TSV with or without a header, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.lists.files import MAX_LINE, blocks, open_list
from ingest.lists.rows import BATCH, ROWS, Row, is_url, lists_of

_URL_NAMES = ("url", "urls", "image_url", "image", "link")
_ID_NAMES = ("id", "key")
_LABEL_NAMES = ("label", "labels", "class")


@dataclass(frozen=True)
class Columns:
    """Which columns a table's URL, id and labels are in: names, or numbers from 0 where it has none. None: guess."""

    url: str | None = None
    id: str | None = None
    label: str | None = None


# --- tables --------------------------------------------------------------------------------------------------------


NOWHERE = sys.maxsize  # the place of a column that a table does not have


class _Places(NamedTuple):
    url: int
    id: int
    label: int


def _places(urls: str, header: list[str] | None, first: list[str], columns: Columns) -> _Places:
    """Where the URL, id and label are: by name with a header, by number without one."""
    names = [cell.strip() for cell in header] if header is not None else [str(at) for at in range(len(first))]

    def find(wanted: str | None, usual: tuple[str, ...]) -> int:
        if wanted is not None:
            if wanted not in names:
                raise ValueError(f"{urls}: has no column {wanted!r}: it has {', '.join(names)[:300]}")
            return names.index(wanted)
        return next((at for at, name in enumerate(names) if name.lower() in usual), NOWHERE)

    url = find(columns.url, _URL_NAMES)
    if url == NOWHERE and header is None:
        url = next(at for at, cell in enumerate(first) if is_url(cell.encode("latin-1")))
    if url == NOWHERE:
        raise ValueError(f"{urls}: which column holds the URLs? It has {', '.join(names)[:300]}: set --url-column")
    return _Places(url, find(columns.id, _ID_NAMES), find(columns.label, _LABEL_NAMES))


def table_rows(url: str, delimiter: str, columns: Columns) -> Iterator[Row]:
    long = False

    def lines() -> Iterator[str]:
        nonlocal long
        for _, block in blocks(url):
            for line in io.StringIO(block.decode("latin-1"), newline="\n"):  # byte for byte: cells are encoded back
                if len(line) > MAX_LINE + 1:
                    long = True
                    line = "\n"
                yield line

    csv.field_size_limit(min(sys.maxsize, 2 * MAX_LINE))
    reader = csv.reader(lines(), delimiter=delimiter)
    places: _Places | None = None
    while True:
        before = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(before + 1, None, b"", (), f"lines {before + 1} to {reader.line_num} cannot be read: {error}")
            continue
        if long:
            long = False
            yield Row(reader.line_num, None, b"", (), f"line longer than {MAX_LINE} bytes")
            continue
        if not any(cell and not cell.isspace() for cell in cells):
            continue
        if places is None:
            header = not any(is_url(cell.encode("latin-1")) for cell in cells)
            names = [cell.encode("latin-1").decode("utf-8", "replace") for cell in cells] if header else None
            places = _places(url, names, cells, columns)
            if header:
                continue
        link, name, label = [cells[at].encode("latin-1") if at < len(cells) else b"" for at in places]
        yield _row(reader.line_num, name, link, (label,) if label else (), places.id != NOWHERE)


def _row(number: int, name: bytes, url: bytes, labels: tuple[bytes, ...], named: bool) -> Row:
    """A row of a table; `named` says whether it has a column of ids."""
    if named and not name.strip():
        return Row(number, None, url, labels, "empty id")
    return Row(number, name if named else None, url, labels, None if url.strip() else "no url")


_from_json = json.JSONDecoder().decode


def json_rows(url: str, columns: Columns) -> Iterator[Row]:
    keys: list[str | None] = []
    for first, block in blocks(url):
        for number, line in enumerate(block.split(b"\n")[:-1], first):
            if not line.strip():
                continue
            entry = _json_object(line)
            if isinstance(entry, str):
                yield Row(number, None, b"", (), entry)
                continue
            if not keys:
                names = list(entry)
                keys = [names[at] if at != NOWHERE else None for at in _places(url, names, names, columns)]
            link, name, labels = map(entry.get, keys)
            labels = labels if isinstance(labels, list) else [labels] if labels is not None else []
            yield _row(number, _cell(name), _cell(link), tuple(filter(None, map(_cell, labels))), keys[1] is not None)


def _json_object(line: bytes) -> dict[Any, Any] | str:
    """The object of a line, or why there is none."""
    if len(line) > MAX_LINE:
        return f"line longer than {MAX_LINE} bytes"
    try:
        entry = _from_json(line.decode("utf-8", "surrogateescape"))
    except RecursionError:
        return "not JSON: nested too deep"
    except ValueError as error:
        return f"not JSON: {error}"
    return entry if isinstance(entry, dict) else "not a JSON object"


def _cell(value: object) -> bytes:
    """A value of JSON as the bytes that a list in text would have."""
    if value is None:
        return b""
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # "\ud800": half of a character, which no bytes can say
        return text.encode("utf-8", "replace")


def parquet_rows(url: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    with closing(open_list(url)) as raw:
        number = 0
        try:
            # Row groups may be gigabytes: their columns are read a buffer at a time.
            file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
            names = file.schema_arrow.names
            places = [names[at] if at != NOWHERE else None for at in _places(url, names, names, columns)]
            wanted = [name for name in places if name is not None]
            for batch in file.iter_batches(batch_size=BATCH, columns=wanted):
                yield _parquet_batch(url, batch, number + 1, places)
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())[:100]
            where = f"damaged Parquet after row {number}" if number else "is not a Parquet file"
            raise ValueError(f"{url}: {where} ({why}): check --urls") from None


def _parquet_batch(url: str, batch: pa.RecordBatch, first: int, names: list[str | None]) -> pa.RecordBatch:
    link, name, labels = (None if column is None else batch.column(column) for column in names)
    n = len(batch)
    line = pa.array(np.arange(first, first + n))
    text = pc.fill_null(_binary(url, link), b"")
    why = pc.if_else(_blank(text), "no url", pa.scalar(None, pa.string()))
    key = pa.nulls(n, pa.binary())
    if name is not None:
        key = _binary(url, name)
        nameless = _blank(pc.fill_null(key, b""))
        key = pc.if_else(nameless, pa.scalar(None, pa.binary()), key)
        why = pc.if_else(nameless, "empty id", why)
    return pa.record_batch([line, key, text, _label_lists(url, labels, n), why], schema=ROWS)


def _blank(cells: pa.BinaryArray) -> pa.BooleanArray:
    return pc.match_substring_regex(cells, r"^\s*$")


def _binary(url: str, column: pa.Array) -> pa.BinaryArray:
    """Text or numbers as the bytes that are written."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        plain = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        return (column if plain else column.cast(pa.string())).cast(pa.binary())
    except pa.ArrowNotImplementedError:
        raise ValueError(f"{url}: a column is {column.type}: name one of text, with --url-column and such") from None


def _label_lists(url: str, column: pa.Array | None, n: int) -> pa.ListArray:
    if column is None:
        return lists_of(np.zeros(n, np.int32), pa.array([], pa.binary()))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        flat, rows = _binary(url, pc.list_flatten(column)), pc.list_parent_indices(column)
    else:
        flat, rows = _binary(url, column), pa.array(np.arange(n))
    said = pc.greater(pc.fill_null(pc.binary_length(flat), 0), 0)
    return lists_of(np.bincount(rows.filter(said).to_numpy(), minlength=n), flat.filter(said))
