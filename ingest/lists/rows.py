"""The rows of a URL list as columns, and the reader of text lists.

A text line is a URL, `id<TAB>url` as in ImageNet's headerless fall11 list, or `url<TAB>label:confidence<TAB>…`.
Any other text after a URL and a tab becomes a column called `rest`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.lists.files import MAX_LINE, blocks
from ingest.wordnet import WNID

REST = "rest"  # the column of what follows the URL in text lines
BATCH = 8192  # rows of a batch
HELD = 16 << 20  # bytes of a batch
CHUNK = 512  # rows that are converted by the column, if all are plain
MAX_CELL = 8192  # characters of a cell that is carried along

T = TypeVar("T")

ROWS = pa.schema(
    [
        ("line", pa.int64()),  # in its file, from 1
        ("name", pa.binary()),  # its id as written; null where the list has none
        ("url", pa.binary()),  # as written
        ("labels", pa.list_(pa.binary())),
        ("why", pa.string()),  # why the row is bad, before its URL is checked; null: nothing wrong so far
    ]
)


Cells = Sequence[bytes | None] | Mapping[str, bytes | None]  # of other columns: in order, or by their prefixed names


class Row(NamedTuple):
    """One entry as read: the columns of ROWS, and the cells of columns that are carried along."""

    line: int
    name: bytes | None
    url: bytes
    labels: tuple[bytes, ...] = ()
    why: str | None = None
    cells: Cells = ()


def id_of(number: float) -> str:
    """The text of an id that was stored as a float: its digits if it is whole, never 1.571717e+18."""
    return str(int(number)) if number.is_integer() else repr(number)


def row_batch(rows: Sequence[Row], names: Sequence[str] | None = ()) -> pa.RecordBatch:
    """The rows as the columns of ROWS, then their cells as text columns with these names. If `names` is None, each
    row's cells map names to values."""
    batch = _batch(rows)
    if names is None:
        maps: list[Mapping[str, bytes | None]] = [row.cells if isinstance(row.cells, dict) else {} for row in rows]
        names = list(dict.fromkeys(name for cells in maps for name in cells))
        columns: list[Sequence[bytes | None]] = [[cells.get(name) for cells in maps] for name in names]
    else:
        blank = (None,) * len(names)
        columns = list(zip(*(row.cells or blank for row in rows))) or [()] * len(names)
    return with_texts(batch, dict(zip(names, (pa.array(column, pa.binary()) for column in columns))))


def with_texts(batch: pa.RecordBatch, cells: Mapping[str, pa.BinaryArray]) -> pa.RecordBatch:
    """The rows with more text columns."""
    fields = [*batch.schema, *(pa.field(name, pa.string()) for name in cells)]
    return pa.record_batch([*batch.columns, *map(texts, cells.values())], schema=pa.schema(fields))


def chunked(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


def grouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Consecutive batches with the same columns joined into one of at least BATCH rows or HELD bytes."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if held and batch.schema != held[0].schema:
            yield _one(held)
            held, rows, size = [], 0, 0
        held.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= BATCH or size > HELD:
            yield _one(held)
            held, rows, size = [], 0, 0
    if held:
        yield _one(held)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if len(batches) > 1 else batches[0]


def texts(cells: pa.BinaryArray) -> pa.StringArray:
    """The cells as text: invalid UTF-8 is replaced; cells longer than MAX_CELL are cut and end with an ellipsis."""
    try:
        text = cells.cast(pa.string())
    except pa.ArrowInvalid:
        decoded = [None if cell is None else cell.decode("utf-8", "replace") for cell in cells.to_pylist()]
        text = pa.array(decoded, pa.string())
    return shortened(text)


def shortened(text: pa.Array) -> pa.Array:
    if (pc.max(pc.binary_length(text)).as_py() or 0) <= MAX_CELL:
        return text
    long = pc.greater(pc.utf8_length(text), MAX_CELL)
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(text, 0, MAX_CELL - 1), "…", "")
    return pc.if_else(long, cut, text)


def _batch(rows: Sequence[Row]) -> pa.RecordBatch:
    line, name, url, labels, why, _ = zip(*rows) if rows else [()] * (len(ROWS) + 1)
    counts = np.fromiter(map(len, labels), np.int32, len(rows))
    flat = pa.array(list(chain.from_iterable(labels)), pa.binary())
    columns = [pa.array(line, pa.int64()), pa.array(name, pa.binary()), pa.array(url, pa.binary())]
    return pa.record_batch([*columns, lists_of(counts, flat), pa.array(why, pa.string())], schema=ROWS)


def columns_batch(
    lines: Sequence[int],
    names: pa.BinaryArray | None,
    urls: pa.BinaryArray,
    labels: Sequence[object] = (),
    label_cells: pa.BinaryArray | None = None,
    cells: Mapping[str, pa.BinaryArray] = MappingProxyType({}),
) -> pa.RecordBatch:
    """Good rows as `row_batch` makes them, from whole columns. `label_cells` has one item for each non-empty item of
    `labels`."""
    n = len(lines)
    counts = np.fromiter(map(bool, labels), np.int32, n) if labels else np.zeros(n, np.int32)
    flat = pa.array([], pa.binary()) if label_cells is None else label_cells
    columns = [pa.array(lines, pa.int64()), pa.nulls(n, pa.binary()) if names is None else names, urls]
    batch = pa.record_batch([*columns, lists_of(counts, flat), pa.nulls(n, pa.string())], schema=ROWS)
    return with_texts(batch, cells) if cells else batch


def lists_of(counts: np.ndarray, flat: pa.Array) -> pa.ListArray:
    """`flat` as one list a row; row k has counts[k] items."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def row_of(number: int, name: bytes, url: bytes, labels: tuple[bytes, ...], named: bool, cells: Cells = ()) -> Row:
    """A row of a table; `named` says whether the table has a column of ids."""
    if named and not name.strip():
        return Row(number, None, url, labels, "empty id", cells)
    return Row(number, name if named else None, url, labels, None if url.strip() else "no url", cells)


def is_url(text: bytes) -> bool:
    return text.lstrip()[:8].lower().startswith((b"http://", b"https://"))


# --- text ----------------------------------------------------------------------------------------------------------

_PLAIN_ID = {"fall11": r"^n[0-9]{8}_[0-9]+$", "ids": "^[A-Za-z0-9_-]+$"}
_WNID_NUMBER = re.compile(WNID.pattern.encode() + rb"_\d+")
# 4097:1<TAB>865:0.9, as in the URL lists of Tencent's ML-Images. A confidence is 0 to 1: 12:30 and 16:9 do not match.
_CONFIDENCES = re.compile(rb"(?:\t[^\s:]+:(?:0?\.[0-9]+|0|1(?:\.0+)?))+")


def text_rows(url: str, rest: str | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a text list; what follows the URLs becomes a column of the name `rest`. Raises ValueError when the
    list is missing or damaged."""
    style = None
    for line, block in blocks(url):
        if style is None:
            style = _style(block)
            _check_one_url(url, block)
        yield _text_batch(line, block, style, rest)


def _style(block: bytes) -> str:
    """The style of most of the first 1,000 lines: fall11 (`wnid_number<TAB>url`, the wnid is the label),
    ids (`id<TAB>url`), labelled (`url<TAB>label:confidence…`) or urls."""
    head = [line.rstrip(b"\r") for line in block.split(b"\n", 1000)[:1000]]
    tabbed = [line for line in head if b"\t" in line]
    after = [line for line in tabbed if is_url(line)]
    wnids = sum(_WNID_NUMBER.fullmatch(line.split(b"\t")[0]) is not None for line in tabbed)
    if 2 * wnids > len(tabbed):
        return "fall11"
    if 2 * sum(is_url(line) for line in head) <= sum(bool(line.strip()) for line in head):
        return "ids"
    labelled = sum(_CONFIDENCES.fullmatch(line[line.index(b"\t") :]) is not None for line in after)
    return "labelled" if 2 * labelled > len(after) else "urls"


def _check_one_url(url: str, block: bytes) -> None:
    """Raises ValueError if most lines have several URLs, of which only one is the picture's."""
    lines = [line for line in block.split(b"\n", 1000)[:1000] if line.strip()]
    columns = Counter(at for line in lines for at, field in enumerate(line.split(b"\t")) if is_url(field))
    both = [str(at) for at, count in sorted(columns.items()) if 2 * count > len(lines)]
    if len(both) > 1:
        raise ValueError(
            f"{url}: which column holds the pictures' URLs? URLs are in {', '.join(both)}: "
            "set --format tsv and --url-column"
        )


def _text_batch(first: int, block: bytes, style: str, rest: str | None) -> pa.RecordBatch:
    """The rows of whole lines. Lines in the list's own style are parsed all at once, the others one by one."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == 10)
    starts = np.concatenate([[0], ends[:-1] + 1])
    stops = ends - (data[ends - 1] == 13) * (ends > starts)  # CRLF
    tabs = np.concatenate([np.flatnonzero(data == 9), [len(data)] * 2])
    at = np.searchsorted(tabs, starts)
    tab = np.minimum(tabs[at], stops)
    field, after = _cut(block, starts, tab), np.minimum(tab + 1, stops)
    if style in _PLAIN_ID:
        end = np.minimum(tabs[at + 1], stops)
        url = _cut(block, after, end)
        fine = pc.and_(pc.match_substring_regex(field, _PLAIN_ID[style]), pc.starts_with(url, b"http"))
    else:
        url, end = field, tab
        fine = pc.or_(pc.starts_with(url, b"http://"), pc.starts_with(url, b"https://"))
    short = stops - starts <= MAX_LINE
    if b"\r" in block:
        short &= data[stops - 1] != 13
    fine = pc.and_(fine, pa.array(short))
    line = np.arange(first, first + len(ends))
    name = field if style in _PLAIN_ID else pa.nulls(len(ends), pa.binary())
    if style == "fall11":
        labels = lists_of(np.ones(len(ends), np.int32), pc.binary_slice(field, 0, 9))
    elif style == "labelled":
        labels = pa.array(map(_confident, _cut(block, tab, stops).to_pylist()), pa.list_(pa.binary()))
        end = np.where(pc.list_value_length(labels).to_numpy() > 0, stops, end)
    else:
        labels = lists_of(np.zeros(len(ends), np.int32), pa.array([], pa.binary()))
    plain = fine.to_numpy(zero_copy_only=False)
    others = [_text_row(int(line[k]), block[starts[k] : ends[k]], style) for k in np.flatnonzero(~plain)]
    odd = [row for row in others if row is not None]
    more = rest is not None and (bool((plain & (end < stops)).any()) or any(any(row.cells) for row in odd))
    names = [rest] if rest is not None and more else []
    rows = pa.record_batch([pa.array(line), name, url, labels, pa.nulls(len(ends), pa.string())], schema=ROWS)
    if names:
        cells = _cut(block, np.minimum(end + 1, stops), stops)
        rows = with_texts(rows, {names[0]: pc.if_else(pc.equal(pc.binary_length(cells), 0), None, cells)})
    if plain.all():
        return rows
    table = pa.Table.from_batches([rows.filter(fine), row_batch(odd, names)])
    return table.sort_by("line").combine_chunks().to_batches()[0] if len(table) else rows.slice(0, 0)


def _cut(block: bytes, starts: np.ndarray, stops: np.ndarray) -> pa.BinaryArray:
    """block[starts[k]:stops[k]] for every k; the pieces are in order and do not overlap."""
    offsets = np.empty(2 * len(starts) + 1, np.int32)
    offsets[:-1:2], offsets[1::2], offsets[-1:] = starts, stops, stops[-1:]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(block)]
    pieces = pa.Array.from_buffers(pa.binary(), 2 * len(starts), buffers)  # each piece, then the gap after it
    return pieces.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def _text_row(number: int, line: bytes, style: str) -> Row | None:
    """The row of any line; None for an empty one."""
    if len(line) > MAX_LINE:
        return Row(number, None, b"", (), f"line longer than {MAX_LINE} bytes")
    line = line.rstrip(b"\r")
    if not line.strip():
        return None
    name, tab, rest = line.partition(b"\t")
    if is_url(name):
        labels = _confident(tab + rest) if style == "labelled" else ()
        return Row(number, None, name, labels, None, (None if labels else rest or None,))
    if not tab:
        return Row(number, None, name, (), "no tab between id and url")
    url, _, rest = rest.partition(b"\t")
    why = None
    labels = (name.partition(b"_")[0],) if style == "fall11" and _WNID_NUMBER.fullmatch(name) else ()
    if not name.strip():
        why = "empty id"
    elif b"\0" in name:
        why = "NUL byte"
    elif style == "fall11" and not labels:
        why = "id is not wnid_number"
    elif not url.strip():
        why = "no url"
    return Row(number, name, url, labels, why, (rest or None,))


def _confident(rest: bytes) -> tuple[bytes, ...]:
    """`<TAB>4097:1<TAB>865:0.9` -> 4097, 865; () for any other text."""
    if not _CONFIDENCES.fullmatch(rest):
        return ()
    return tuple(pair.partition(b":")[0] for pair in rest[1:].split(b"\t"))
