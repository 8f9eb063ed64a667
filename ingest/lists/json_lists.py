"""URL lists as JSON -> rows: an entry a line, or one array of entries; an entry is an object or the URL itself.

Each entry may have other columns than the first.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from types import NoneType
from typing import Any, NamedTuple

import pyarrow as pa

from ingest.lists.columns import ID_NAMES, LABEL_NAMES, SAMPLE, URL_NAMES, Columns, places, require
from ingest.lists.files import MAX_LINE, blocks, pieces
from ingest.lists.rows import Row, chunked, columns_batch, grouped, id_of, row_batch, row_of

LARGEST = 1 << 20  # characters of one entry of an array
SHAPES = 1000  # shapes (sets of names) that are cached
_NESTED = (list, dict)
_BETWEEN = re.compile(r"[\s,]*")
_raw = json.JSONDecoder().raw_decode
_from_json = json.JSONDecoder().decode

Entry = tuple[int, Any, str | None]  # its first line, its value, and why it has no value


class _Names(NamedTuple):
    """The names of the URL, id and labels in objects of one shape, and (name, prefixed name) of columns to carry."""

    url: str | None
    id: str | None = None
    label: str | None = None
    carry: tuple[tuple[str, str], ...] = ()


def json_rows(url: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The rows of a JSON list. Raises ValueError for a column that no entry has, and for a damaged array."""
    entries = _array(url) if _is_array(url) else _lines(url)
    first = list(islice(entries, SAMPLE))
    objects = [value for _, value, _ in first if isinstance(value, dict)]
    found = _Shapes(url, _url_name(url, [*dict.fromkeys(chain.from_iterable(objects))], objects, columns), columns)
    yield from grouped(_batches(chain(first, entries), found))
    for wanted in (columns.id, columns.label):
        if found.seen and wanted is not None and wanted not in found.seen:
            raise ValueError(f"{url}: has no column {wanted!r}: it has {', '.join(found.seen)[:300]}")
    require(url, found.seen, columns)


class _Shapes:
    """The `_Names` of each shape (a tuple of names), and all names seen so far."""

    def __init__(self, url: str, url_name: str | None, columns: Columns) -> None:
        self.seen: dict[str, None] = {}
        self.url_name = url_name
        self._url, self._columns = url, columns
        self._names: dict[tuple[str, ...], _Names] = {}

    def names(self, shape: tuple[str, ...]) -> _Names:
        """Raises ValueError once there are too many columns."""
        found = self._names.get(shape)
        if found is None:
            found = _names(shape, self.url_name, self._columns)
            self.seen.update(dict.fromkeys(shape))
            # Checks only the number of columns: whether one is missing is known after the last entry.
            require(self._url, self.seen, Columns(keep=self._columns.keep and ()))
            if len(self._names) >= SHAPES:
                self._names.clear()
            self._names[shape] = found
        return found


def _batches(entries: Iterable[Entry], shapes: _Shapes) -> Iterator[pa.RecordBatch]:
    """Batches of rows: made by the column if the entries are plain and have one shape, else one by one."""
    for some in chunked(entries):
        batch = _by_column(some, shapes)
        yield row_batch(list(_rows(some, shapes)), None) if batch is None else batch


def _by_column(entries: Sequence[Entry], shapes: _Shapes) -> pa.RecordBatch | None:
    """The rows of objects of one shape whose URL and id are text; None if any entry is different."""
    lines, values, _ = zip(*entries)
    if set(map(type, values)) != {dict} or len(alike := set(map(tuple, values))) != 1:
        return None
    (shape,) = alike
    url, key, label, carry = shapes.names(shape)
    cells = dict(zip(shape, zip(*map(dict.values, values))))
    if url not in cells:
        return None
    for name in (url, key, label):
        if name is not None and set(map(type, cells[name])) != {str}:
            return None
    if not all(map(str.strip, cells[url])) or (key is not None and not all(map(str.strip, cells[key]))):
        return None
    try:
        text = {name: _texts(cells[name]) for name in {url, key, *(name for name, _ in carry)} if name is not None}
        labels = cells[label] if label is not None else ()
        flat = text[label] if label in text and all(labels) else _texts([cell for cell in labels if cell])
    except UnicodeEncodeError:  # invalid UTF-8, or a lone surrogate
        return None
    others = {mark: text[name] for name, mark in carry}
    return columns_batch(lines, None if key is None else text[key], text[url], labels, flat, others)


def _texts(cells: Sequence[Any]) -> pa.BinaryArray:
    """The bytes that `_cell` gives for each; nulls stay null."""
    if not set(map(type, cells)) <= {str, NoneType}:
        cells = [value if value is None or isinstance(value, str) else json.dumps(value) for value in cells]
    return pa.array(cells, pa.string()).cast(pa.binary())


def _rows(entries: Iterable[Entry], shapes: _Shapes) -> Iterator[Row]:
    for number, value, why in entries:
        if type(value) is not dict:
            if isinstance(value, str):
                yield row_of(number, b"", _cell(value), (), False)
            else:
                yield Row(number, None, b"", (), why or "not a JSON object")
            continue
        url_key, id_key, label_key, carry = shapes.names(tuple(value))
        link, name, labels = value.get(url_key), value.get(id_key), value.get(label_key)
        labels = labels if isinstance(labels, list) else [labels] if labels is not None else []
        label_cells = tuple(filter(None, map(_cell, labels))) if labels else ()
        others = _others(value, carry) if carry else ()
        if isinstance(link, _NESTED):
            kind = "a list" if isinstance(link, list) else "an object"
            why = f"the url is {kind}: give one URL a row"
            yield Row(number, _id(name) or None, _cell(link), label_cells, why, others)
            continue
        yield row_of(number, _id(name), _cell(link), label_cells, id_key is not None, others)


def _names(shape: tuple[str, ...], url_name: str | None, columns: Columns) -> _Names:
    link = url_name or _name(shape, None, URL_NAMES)
    marks = [(name, columns.mark(name, name == link)) for name in shape]
    carry = tuple((name, mark) for name, mark in marks if mark is not None)
    return _Names(link, _name(shape, columns.id, ID_NAMES), _name(shape, columns.label, LABEL_NAMES), carry)


def _others(value: dict[str, Any], carry: tuple[tuple[str, str], ...]) -> dict[str, bytes | None]:
    """The cells of an entry that are carried along; numbers and lists as their JSON, null as None."""
    return {mark: None if value[name] is None else _cell(value[name]) for name, mark in carry}


def _url_name(url: str, names: list[str], objects: list[dict[str, Any]], columns: Columns) -> str | None:
    """The name of the URL in objects; None, or the name the user gave, if none of the first entries is an object."""
    if not objects:
        return columns.url
    sample = [[_cell(value.get(name)) for name in names] for value in objects]
    return names[places(url, names, sample, Columns(columns.url)).url]


def _name(names: tuple[str, ...], wanted: str | None, usual: tuple[str, ...]) -> str | None:
    if wanted is not None:
        return wanted if wanted in names else None
    return next((name for name in names if name.strip().lower() in usual), None)


# --- entries -------------------------------------------------------------------------------------------------------


def _lines(url: str) -> Iterator[Entry]:
    """An entry for each line that is not empty."""
    for first, block in blocks(url):
        for number, line in enumerate(block.split(b"\n")[:-1], first):
            if not line.strip():
                continue
            if len(line) > MAX_LINE:
                yield number, None, f"line longer than {MAX_LINE} bytes"
                continue
            try:
                yield number, _from_json(line.decode("utf-8", "surrogateescape")), None
            except RecursionError:
                yield number, None, "not JSON: nested too deep"
            except ValueError as error:
                yield number, None, f"not JSON: {error}"


def _is_array(url: str) -> bool:
    return next((piece for piece in map(bytes.lstrip, pieces(url, lambda: 0)) if piece), b"").startswith(b"[")


def _array(url: str) -> Iterator[Entry]:
    """The entries of an array (or of several, one after the other), in constant memory."""
    text, at, line, depth = "", 0, 1, 0
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    for piece in chain(pieces(url, lambda: line - 1), [b""]):  # noqa: B023 only called inside this loop
        text, at = text[at:] + decode(piece, not piece), 0
        while True:
            between = _BETWEEN.match(text, at)
            assert between is not None
            line, at = line + text.count("\n", at, between.end()), between.end()
            if at == len(text):
                break
            if (text[at] == "[" and depth == 0) or (text[at] == "]" and depth == 1):
                depth, at = 1 - depth, at + 1
                continue
            try:
                value, end = _raw(text, at)
            except (ValueError, RecursionError) as error:
                if piece and len(text) - at < LARGEST and not isinstance(error, RecursionError):
                    break  # the rest of the entry is in the next piece
                why = " ".join(str(error).split())[:100]
                raise ValueError(f"{url}: damaged JSON at line {line} ({why}): repair it or give JSON lines") from None
            if end == len(text) and piece and text[at] not in '{["':
                break  # a number may continue in the next piece
            yield line, value, None if isinstance(value, dict | str) else "not a JSON object"
            line, at = line + text.count("\n", at, end), end
    if depth:
        raise ValueError(f"{url}: damaged JSON: its array does not end: fetch it again")


def _id(value: object) -> bytes:
    return _cell(id_of(value) if isinstance(value, float) else value)


def _cell(value: object) -> bytes:
    """A JSON value as the bytes that a text list would have."""
    if value is None:
        return b""
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate such as "\ud800", which has no encoding
        return text.encode("utf-8", "replace")
