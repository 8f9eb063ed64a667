"""The other columns of a list: carried along with the plan, split into their own table, and written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import pyarrow as pa

from ingest import checksum
from ingest.lists.columns import KEPT
from shards.dataset import PLAN_SCHEMA

CLASSES = "classes"  # the name under which the choice of classes counts the lines it left out


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows in one table. A column that a table does not have is null there; one of several types becomes text."""
    if all(table.schema.equals(tables[0].schema) for table in tables[1:]):
        return pa.concat_tables(tables)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.concat_tables(map(_as_text, tables), promote_options="permissive")


def _as_text(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if field.name.startswith(KEPT) and not pa.types.is_string(field.type):
            text = [None if value is None else _text(value) for value in table.column(at).to_pylist()]
            table = table.set_column(at, field.name, pa.array(text, pa.string()))
    return table


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def names(table: pa.Table) -> list[str]:
    """The names that `columns/` gives to the list's other columns in a plan; key and row become list_key, list_row."""
    own = [name.removeprefix(KEPT) for name in table.schema.names[len(PLAN_SCHEMA) :]]
    return [f"list_{name}" if name in ("key", "row") else name for name in own]


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The plan, and a table of key, row and the list's other columns, named as in the list."""
    plan = table.select(PLAN_SCHEMA.names)
    others = table.select(["key", "row", *table.schema.names[len(PLAN_SCHEMA) :]])
    return plan, others.rename_columns(["key", "row", *names(table)])


def unsplit(plan: pa.Table, others: pa.Table) -> pa.Table:
    """The inverse of `split`."""
    for at in range(2, others.num_columns):
        plan = plan.append_column(KEPT + others.schema.names[at], others.column(at))
    return plan


# --- JSON ----------------------------------------------------------------------------------------------------------


def json_objects(columns: pa.Table) -> Iterator[str]:
    """A JSON object for each row of the second table of `split`: its columns sorted by name, without nulls."""
    fields = sorted((name, at) for at, name in enumerate(columns.schema.names) if at > 1)
    cells = [_written(columns.schema.field(at).type, columns.column(at)) for _, at in fields]
    heads = [f"{quoted(name)}: " for name, _ in fields]
    if not cells:
        return iter([""] * len(columns))
    return (
        "{" + ", ".join([head + cell for head, cell in zip(heads, row) if cell is not None]) + "}"
        for row in zip(*cells)
    )


def _written(kind: pa.DataType, column: pa.ChunkedArray) -> list[str | None]:
    write: Callable[[Any], str] = quoted if pa.types.is_string(kind) else _json
    if pa.types.is_integer(kind):
        write = str
    return [None if value is None else write(value) for value in column.to_pylist()]


def _json(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """A Parquet value as a JSON value: NaN and infinities become null, bytes become text or hexadecimal."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, bool | int | str | None) else str(value)


# --- hashes --------------------------------------------------------------------------------------------------------


def check_hashes(urls: str, table: pa.Table, hashed: str | None) -> None:
    """Raises ValueError where the hash column `hashed` has values, but no hashes; `table` holds rows of a plan."""
    found = [text for text in expected(split(table)[1], hashed) if text is not None]
    if found and all(text.startswith("?") for text in found):
        raise ValueError(
            f"{urls}: its column {hashed!r} holds no md5, sha1 or sha256, but {found[0][1:40]!r}: check it"
        )


def expected(columns: pa.Table, hashed: str | None) -> Iterator[str | None]:
    """The hash that each row's bytes must have, as `ingest.checksum.parse` returns it; None where the cell is empty."""
    if hashed is None or hashed not in columns.schema.names[2:]:
        return repeat(None, len(columns))
    cells = columns.column(columns.schema.names.index(hashed, 2)).to_pylist()
    return (checksum.parse(None if cell is None else _text(_plain(cell)), hashed) for cell in cells)
