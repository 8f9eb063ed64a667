"""URL lists as Parquet -> rows, whole columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.lists.columns import NOWHERE, SAMPLE, Columns, NoColumn, carried, places
from ingest.lists.files import open_list
from ingest.lists.rows import BATCH, HELD, MAX_CELL, ROWS, id_of, lists_of, shortened
from shards import store
from shards.dataset import DAMAGE

GROUPS = 100  # row groups whose column sizes are read


def parquet_rows(url: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    with closing(open_list(url)) as raw:
        number = 0
        try:
            # Row groups may be gigabytes: their columns are read a buffer at a time.
            file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
            names = file.schema_arrow.names
            found = places(url, names, _sample(file), columns)
            chosen = [names[at] if at != NOWHERE else None for at in found]
            carry = carried(url, names, found.url, columns)
            others = [names[at] for at, _ in carry]
            wanted = list(dict.fromkeys([*(name for name in chosen if name is not None), *others]))
            at_once = _rows_at_once(url, file, others) if carry else BATCH
            for batch in file.iter_batches(batch_size=at_once, columns=wanted):
                rows = _parquet_batch(url, batch, number + 1, chosen)
                for place, name in carry:
                    rows = rows.append_column(name, _plain(batch.column(names[place])))
                yield rows
                number += len(batch)
        except DAMAGE as error:
            if type(error) in (ValueError, NoColumn, store.StoreError):  # ours, with a clear message
                raise
            why = " ".join(str(error).split())[:100]
            where = f"damaged Parquet after row {number}" if number else "is not a Parquet file"
            raise ValueError(f"{url}: {where} ({why}): check --urls") from None


def _rows_at_once(url: str, file: pq.ParquetFile, others: list[str]) -> int:
    """How many rows to read at once, so that the other columns fit in HELD bytes. Raises ValueError for a column of
    large objects."""
    size = dict.fromkeys(others, 0)
    rows = 0
    for number in range(min(file.num_row_groups, GROUPS)):
        group = file.metadata.row_group(number)
        rows += group.num_rows
        for at in range(group.num_columns):
            name = group.column(at).path_in_schema.partition(".")[0]
            if name in size:
                size[name] += group.column(at).total_uncompressed_size
    for name, total in size.items():
        kind = file.schema_arrow.field(name).type
        if rows and total > MAX_CELL * rows and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(
                f"{url}: its column {name!r} holds {total // rows:,} bytes a row: name smaller ones to keep with "
                "--keep-columns, or none"
            )
    return max(64, min(BATCH, HELD * rows // max(1, sum(size.values()))))


def _plain(column: pa.Array) -> pa.Array:
    """A column to carry along: dictionaries decoded, NaN (pandas' missing value) as null, long text cut."""
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return shortened(column) if pa.types.is_string(column.type) else column


def _sample(file: pq.ParquetFile) -> list[list[bytes]]:
    """The cells of the first rows, empty in columns that are not text. No rows if a column is called `url`."""
    schema = file.schema_arrow
    if [name.strip().lower() for name in schema.names].count("url") == 1:
        return []
    texts = [kind.name for kind in schema if _is_text(kind.type)]
    batch = next(file.iter_batches(batch_size=SAMPLE, columns=texts), None)
    if batch is None:
        return []
    empty = [b""] * len(batch)
    cells = {name: pc.fill_null(_binary("", batch.column(name)), b"").to_pylist() for name in texts}
    return [list(row) for row in zip(*(cells.get(name, empty) for name in schema.names))]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _parquet_batch(url: str, batch: pa.RecordBatch, first: int, names: list[str | None]) -> pa.RecordBatch:
    link, name, labels = (None if column is None else batch.column(column) for column in names)
    n = len(batch)
    line = pa.array(np.arange(first, first + n))
    text = pc.fill_null(_binary(url, link), b"")
    why = pc.if_else(_blank(text), "no url", pa.scalar(None, pa.string()))
    key = pa.nulls(n, pa.binary())
    if name is not None:
        key = _binary(url, _whole(name))
        nameless = _blank(pc.fill_null(key, b""))
        key = pc.if_else(nameless, pa.scalar(None, pa.binary()), key)
        why = pc.if_else(nameless, "empty id", why)
    return pa.record_batch([line, key, text, _label_lists(url, labels, n), why], schema=ROWS)


def _whole(column: pa.Array) -> pa.Array:
    """Ids that became floats, because of one null among integers, as their original digits."""
    if not pa.types.is_floating(column.type):
        return column
    values = column.to_pylist()
    return pa.array([value if value is None else id_of(value) for value in values], pa.string())


def _blank(cells: pa.BinaryArray) -> pa.BooleanArray:
    if pc.all(pc.starts_with(cells, b"http")).as_py():  # nearly always true, and ten times as fast
        return pa.repeat(pa.scalar(False), len(cells))
    return pc.match_substring_regex(cells, r"^\s*$")


def _binary(url: str, column: pa.Array) -> pa.BinaryArray:
    """Text or numbers as bytes. Raises ValueError for other types."""
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
    filled = pc.greater(pc.fill_null(pc.binary_length(flat), 0), 0)
    return lists_of(np.bincount(rows.filter(filled).to_numpy(), minlength=n), flat.filter(filled))
