"""URL lists as CSV and TSV, with or without a header -> rows.

Quotes are syntax only if they open and close a field. A quote that is never closed is text, and does not swallow the
rows after it: a field may span lines only while none of them is a row by itself.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import pyarrow as pa

from ingest.lists.columns import NOWHERE, SAMPLE, Columns, Places, carried, places
from ingest.lists.files import MAX_LINE, blocks
from ingest.lists.rows import CHUNK, Row, chunked, columns_batch, grouped, is_url, row_batch, row_of

MAX_LINES = 1000  # that one field may span
SIGNATURES = ("TsvHttpData-1.0",)  # first lines that are neither a header nor a row (Google Storage Transfer's lists)
_OTHERS = ";\t|"  # delimiters that a file called CSV may really have

csv.field_size_limit(min(sys.maxsize, 4 * MAX_LINE))

Record = tuple[int, list[str] | str]  # its first line, and its cells or why they cannot be read


def table_rows(url: str, delimiter: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The rows of a table. Raises ValueError for a column that is missing or ambiguous."""
    found = _records(url, delimiter, columns)
    first = list(islice(found, SAMPLE))
    readable = [cells for _, cells in first if not isinstance(cells, str) and _has_text(cells)]
    if not readable:
        bad = (Row(at, None, b"", (), why) for at, why in chain(first, found) if isinstance(why, str))
        yield from grouped(row_batch(rows) for rows in chunked(bad))
        return
    header = readable[0] if not any(is_url(cell.encode("latin-1")) for cell in readable[0]) else None
    if header is not None and len(header) == 1 and header[0].strip() in SIGNATURES:
        readable, header = readable[1:], None
        skipped: list[str] | None = first[0][1]  # type: ignore[assignment]
    else:
        skipped = header
    names = [cell.encode("latin-1").decode("utf-8", "replace") for cell in header] if header is not None else None
    sample = [[cell.encode("latin-1") for cell in cells] for cells in readable[header is not None :]]
    where = places(url, names, sample, columns)
    width = max(map(len, readable), default=0)
    carry = carried(url, names if names is not None else [str(at) for at in range(width)], where.url, columns)
    records = chain((record for record in first if record[1] is not skipped), found)
    yield from grouped(_batches(records, where, carry))


def _batches(records: Iterable[Record], where: Places, carry: Sequence[tuple[int, str]]) -> Iterator[pa.RecordBatch]:
    """Batches of rows: made by the column if the records are plain, as nearly all are, else one by one."""
    places, names = [at for at, _ in carry], [name for _, name in carry]
    for some in chunked(records):
        batch = _by_column(some, where, carry)
        if batch is None and (rows := list(_rows(some, where, places))):
            batch = row_batch(rows, names)
        if batch is not None:
            yield batch


def _by_column(records: Sequence[Record], where: Places, carry: Sequence[tuple[int, str]]) -> pa.RecordBatch | None:
    """The rows of records of equal width that all have a URL and an id; None if any differs."""
    lines, cells = zip(*records)
    if set(map(type, cells)) != {list} or len(set(map(len, cells))) != 1:
        return None
    columns = list(zip(*cells))
    url_at, id_at, label_at = where
    needed = [url_at] if id_at == NOWHERE else [url_at, id_at]
    if max(needed) >= len(columns) or not all(all(map(str.strip, columns[at])) for at in needed):
        return None
    labels = columns[label_at] if label_at < len(columns) else ()
    filled = [cell for cell in labels if cell]
    found = {at: _binary(columns[at]) for at in needed}
    flat = _binary(filled)
    if len(filled) == len(lines):
        found[label_at] = flat
    nothing = pa.nulls(len(lines), pa.binary())
    others: dict[str, pa.BinaryArray] = {}
    for at, name in carry:
        if at not in found:
            found[at] = _binary([cell or None for cell in columns[at]]) if at < len(columns) else nothing
        others[name] = found[at]
    return columns_batch(lines, None if id_at == NOWHERE else found[id_at], found[url_at], labels, flat, others)


def _binary(cells: Sequence[str | None]) -> pa.BinaryArray:
    """The cells encoded as latin-1."""
    if "".join(filter(None, cells)).isascii():
        return pa.array(cells, pa.string()).cast(pa.binary())
    return pa.array([None if cell is None else cell.encode("latin-1") for cell in cells], pa.binary())


def _rows(records: Iterable[Record], where: Places, carry: Sequence[int]) -> Iterator[Row]:
    """The rows, with their cells at the places to carry; an empty cell becomes None."""
    url_at, id_at, label_at = where
    for number, cells in records:
        if isinstance(cells, str):
            yield Row(number, None, b"", (), cells)
            continue
        if not _has_text(cells):
            continue
        width = len(cells)
        link = cells[url_at].encode("latin-1") if url_at < width else b""
        name = cells[id_at].encode("latin-1") if id_at < width else b""
        label = cells[label_at].encode("latin-1") if label_at < width else b""
        others = [cells[at].encode("latin-1") or None if at < width else None for at in carry] if carry else ()
        yield row_of(number, name, link, (label,) if label else (), id_at != NOWHERE, others)


def _has_text(cells: list[str]) -> bool:
    return any(map(str.strip, cells))


def _records(url: str, delimiter: str, columns: Columns) -> Iterator[Record]:
    """The records in order, decoded as latin-1, so that cells can be encoded back byte for byte."""
    held: list[str] = []  # the lines of a record that the last block cut off
    width, number = 0, 1
    for first, block in blocks(url):
        text = block.decode("latin-1")
        lines = text.split("\n")[:-1]
        if not width:
            head = next(filter(str.strip, lines), "")
            delimiter = _delimiter(head, delimiter, columns)
            width = len(next(csv.reader([head], delimiter=delimiter), [])) if '"' in head else head.count(delimiter) + 1
            width = 0 if head.strip() in SIGNATURES else width
        plain = '"' not in text and text.count("\r") == text.count("\r\n")
        if plain and not held and max(map(len, lines)) <= MAX_LINE:
            yield from enumerate(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE), first)
            continue
        number, lines, at = first - len(held), held + lines, 0
        while at < len(lines):
            if (many := _one_line_each(lines[at : at + CHUNK], delimiter)) is not None:
                yield from enumerate(many, number + at)
                at += len(many)
                continue
            for _ in range(CHUNK):
                if at == len(lines):
                    break
                cells, after = _record(lines, at, delimiter, width, whole=False)
                if cells is None:
                    break
                yield number + at, cells
                at = after
            else:
                continue
            break
        held, number = lines[at:], number + at
    at = 0
    while at < len(held):
        cells, after = _record(held, at, delimiter, width, whole=True)
        assert cells is not None
        yield number + at, cells
        at = after


def _delimiter(head: str, delimiter: str, columns: Columns) -> str:
    """The header's delimiter. Another than the given one only if the header then has the column that the user named."""
    if delimiter == "," and "," not in head and columns.url is not None:
        for other in filter(head.__contains__, _OTHERS):
            if columns.url in [cell.strip().strip('"') for cell in head.split(other)]:
                return other
    return delimiter


def _one_line_each(lines: Sequence[str], delimiter: str) -> list[list[str]] | None:
    """The cells of all lines if each has correct quotes and is a record by itself; else None."""
    if max(map(len, lines)) > MAX_LINE:
        return None
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        found = list(reader)
    except csv.Error:
        return None
    return found if len(found) == len(lines) else None


def _record(
    lines: Sequence[str], at: int, delimiter: str, width: int, whole: bool
) -> tuple[list[str] | str | None, int]:
    """The record that begins at line `at` (its cells, or why it cannot be read), and the line after it; None if it may
    end beyond these lines."""
    line = lines[at]
    if len(line) > MAX_LINE:
        return f"line longer than {MAX_LINE} bytes", at + 1
    if '"' not in line:
        try:
            return next(csv.reader([line], delimiter=delimiter, quoting=csv.QUOTE_NONE), []), at + 1
        except csv.Error as error:
            return f"cannot be read: {error}", at + 1
    text, end = line, at
    while True:
        cells = _strict(text, delimiter) if '"' in lines[end] else True
        if isinstance(cells, list):
            return cells, end + 1
        end += 1
        if cells is False or end - at > MAX_LINES:  # text after a closing quote: no further line makes it valid
            break
        if end == len(lines):
            if not whole:
                return None, at
            break
        if len(text) + len(lines[end]) > MAX_LINE or _is_row(lines[end], line, delimiter, width):
            break
        text += "\n" + lines[end]
    return _lenient(line, delimiter, width), at + 1


def _strict(text: str, delimiter: str) -> list[str] | bool:
    """The cells; True if a field is still open, False if the quotes are wrong."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)


def _is_row(line: str, before: str, delimiter: str, width: int) -> bool:
    """Whether a line is a row by itself: it has its first URL in the same place as the row before, or a URL and the
    right width."""
    places, first = _url_cells(line, delimiter), _url_cells(before, delimiter)[:1]
    return bool(places) and (places[:1] == first or not width or line.count(delimiter) + 1 == width)


def _url_cells(line: str, delimiter: str) -> list[int]:
    return [at for at, cell in enumerate(line.split(delimiter)) if is_url(cell.encode("latin-1"))]


def _lenient(line: str, delimiter: str, width: int) -> list[str] | str:
    """The cells of one line with wrong quotes: quotes that are not closed are text."""
    line = line.rstrip("\r")
    plain = [_unquoted(cell) for cell in line.split(delimiter)]
    if delimiter == "\t" or len(plain) == width:
        return plain
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        return f"cannot be read: {error}"


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell
