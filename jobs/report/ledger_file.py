"""Ledger rows -> Parquet and CSV."""

from __future__ import annotations

import csv
import io
import typing
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from jobs.report.ledger import LedgerRow
from shards import store


def write_ledger(root: str, rows: Sequence[LedgerRow]) -> tuple[str, str]:
    """Write root/ledger.parquet and root/ledger.csv; return their URLs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pa.BufferOutputStream()
    pq.write_table(_table(rows), parquet)
    urls = store.join(root, "ledger.parquet"), store.join(root, "ledger.csv")
    store.put(urls[0], parquet.getvalue().to_pybytes())
    store.put(urls[1], ledger_csv(rows).encode())
    return urls


def ledger_csv(rows: Sequence[LedgerRow]) -> str:
    table, text = _table(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows([[_cell(v) for v in row.values()] for row in table.to_pylist()])
    return text.getvalue()


def without_places(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """The rows without machine-specific folders, which mean nothing elsewhere."""
    return [replace(row, run=row.name, dataset=row.dataset.rstrip("/").rpartition("/")[2]) for row in rows]


def _table(rows: Sequence[LedgerRow]) -> Any:
    import pyarrow as pa

    return pa.table(
        {f.name: pa.array([getattr(r, f.name) for r in rows], type=_arrow(f.name)) for f in fields(LedgerRow)}
    )


def _cell(value: Any) -> Any:
    """A cell for a spreadsheet: text that would be read as a formula is quoted."""
    if value is None:
        return ""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _arrow(name: str) -> Any:
    import pyarrow as pa

    kind = typing.get_type_hints(LedgerRow)[name]
    kinds = [k for k in typing.get_args(kind) or (kind,) if k is not type(None)]
    return {str: pa.string(), int: pa.int64(), float: pa.float64()}[kinds[0]]
