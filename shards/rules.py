"""The rules file of a manifest: what selecting did to single rows.

A row that a rule took out has the reason; a row that replaces others has the labels of all of them. 14 million links
have about two million such rows, so they are in a separate Parquet file next to the manifest, sorted by unit and row. A
unit's rules are in one row group, so that reading them costs one ranged read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import store
from shards.dataset import DAMAGE, in_one_line
from shards.typed_json import Count

SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("row", pa.int64()),
        ("reason", pa.string()),  # why the row is not selected; null where it is
        ("labels", pa.list_(pa.string())),  # its labels in this version; null where they are the index's
    ]
)
_GROUP = 16_384  # rows a row group: about 100 KB


@dataclass(frozen=True)
class Rules:
    """A rules file. `sha256` covers its content, not its bytes, so it does not depend on the Parquet writer."""

    sha256: str
    rows: Count
    how: dict[str, Any]  # the settings that made it
    file: str  # object name under manifests/: the sha256 of its bytes, and an ending
    bytes: Count


def write_rules(dataset: str, tables: Iterable[pa.Table], how: dict[str, Any], scratch: Path) -> Rules:
    """Write the rules: a table for each unit that has some, units and rows ascending. Memory holds one row group."""
    path, digest, rows = scratch / "rules.parquet", _Digest(), 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for group in _groups(digest.of(table.cast(SCHEMA)) for table in tables):
            writer.write_table(group, row_group_size=len(group))
            rows += len(group)
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest() + ".rules.parquet"
    store.put_file(store.join(dataset, "manifests", name), path)
    rules = Rules(digest.hexdigest(), rows, how, name, path.stat().st_size)
    path.unlink()
    return rules


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        if len(table):
            waiting.append(table)
        if sum(map(len, waiting)) >= _GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def read_rules(dataset: str, rules: Rules, unit: int) -> pa.Table:
    """The rules of one unit, rows ascending. Raises StoreError naming a damaged file."""
    url = store.join(dataset, "manifests", rules.file)
    first, last = _units_of_groups(url, rules.bytes)
    groups = np.flatnonzero((first <= unit) & (unit <= last)).tolist()
    tables = [_read_group(url, rules.bytes, group) for group in groups] or [SCHEMA.empty_table()]
    return pa.concat_tables([table.filter(pc.equal(table["unit"], unit)) for table in tables])


def verify(dataset: str, rules: Rules) -> Iterator[str]:
    """What is wrong with the file as a whole, in words; nothing if its content has the digest of the manifest."""
    url = store.join(dataset, "manifests", rules.file)
    digest, rows, before = _Digest(), 0, (-1, -1)
    try:
        for group in range(len(_units_of_groups(url, rules.bytes)[0])):
            table = digest.of(_read_group(url, rules.bytes, group))
            rows += len(table)
            for place in zip(table["unit"].to_pylist(), table["row"].to_pylist()):
                if place <= before:
                    yield f"the rules {rules.file} have row {place[1]} of unit {place[0]} out of order"
                    return
                before = place
    except store.StoreError as error:
        yield str(error)
        return
    if (rows, digest.hexdigest()) != (rules.rows, rules.sha256):
        yield f"the rules {rules.file} are not those that the manifest names"


def describe(dataset: str, file: str, how: dict[str, Any]) -> tuple[Rules, Counter[str], Counter[int]]:
    """(a rules file as a manifest would name it, rows it takes out by reason, by unit).

    Raises StoreError naming a damaged file.
    """
    url = store.join(dataset, "manifests", file)
    size = store.size(url)
    if size is None:
        raise store.Missing(f"{url}: there is no such object")
    digest, rows, reasons, units = _Digest(), 0, Counter[str](), Counter[int]()
    for group in range(len(_units_of_groups(url, size)[0])):
        table = digest.of(_read_group(url, size, group))
        rows += len(table)
        out = table.filter(pc.is_valid(table["reason"]))
        reasons.update(out["reason"].to_pylist())
        units.update(out["unit"].to_pylist())
    return Rules(digest.hexdigest(), rows, how, file, size), reasons, units


@functools.lru_cache(maxsize=64)
def _read_group(url: str, size: int, group: int) -> pa.Table:
    with _damage_named(url):
        file = pq.ParquetFile(_open(url, size), metadata=_footer(url, size), pre_buffer=True)
        return file.read_row_group(group).select(SCHEMA.names).cast(SCHEMA)


@functools.lru_cache(maxsize=16)
def _units_of_groups(url: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last unit of each row group, int64 [groups]."""
    footer = _footer(url, size)
    with _damage_named(url):
        units = [footer.row_group(group).column(0).statistics for group in range(footer.num_row_groups)]
        return np.array([unit.min for unit in units], np.int64), np.array([unit.max for unit in units], np.int64)


@functools.lru_cache(maxsize=16)
def _footer(url: str, size: int) -> pq.FileMetaData:
    with _damage_named(url):
        return pq.read_metadata(_open(url, size))


@contextlib.contextmanager
def _damage_named(url: str) -> Iterator[None]:
    """Turn Arrow's exceptions into a StoreError that names the file."""
    try:
        yield
    except store.StoreError:
        raise
    except (*DAMAGE, AttributeError) as error:  # AttributeError: no statistics
        raise store.StoreError(f"{url}: is damaged ({in_one_line(error)}): select again") from None


def _open(url: str, size: int) -> pa.PythonFile:
    return pa.PythonFile(_Ranged(url, size), mode="r")


class _Ranged(io.RawIOBase):
    """An object of known size as a file; each read is one ranged read."""

    def __init__(self, url: str, size: int):
        self.url, self.size, self.at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.at if size < 0 else max(0, min(size, self.size - self.at))
        body = store.read_range(self.url, self.at, size) if size else b""
        self.at += size
        return body


class _Digest:
    """The sha256 of rules, taken column by column, so that it does not depend on how rows are split into tables."""

    def __init__(self) -> None:
        self._columns = {
            name: hashlib.sha256() for name in ("unit", "row", "reason", "reasons", "lists", "labels", "text")
        }

    def of(self, table: pa.Table) -> pa.Table:
        """Add a table to the digest; returns the table."""
        table = table.combine_chunks()
        for name in ("unit", "row"):
            self._add(name, table[name].to_numpy().astype("<i8").tobytes())
        reasons, labels = _array(table["reason"]), _array(table["labels"])
        self._add("reason", _lengths(pc.binary_length(reasons)))
        self._add("reasons", _text(reasons))
        self._add("lists", _lengths(pc.list_value_length(labels)))
        flat = labels.flatten()
        self._add("labels", _lengths(pc.binary_length(flat)))
        self._add("text", _text(flat))
        return table

    def _add(self, name: str, value: bytes) -> None:
        self._columns[name].update(value)

    def hexdigest(self) -> str:
        return hashlib.sha256(b"".join(column.digest() for column in self._columns.values())).hexdigest()


def _array(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _lengths(lengths: pa.Array) -> bytes:
    """The lengths as bytes of int64; -1 for null."""
    return lengths.fill_null(-1).to_numpy(zero_copy_only=False).astype("<i8").tobytes()


def _text(strings: pa.StringArray) -> bytes:
    """All strings, concatenated, as UTF-8."""
    strings = strings.drop_null()
    _, ends, text = strings.buffers()
    if text is None or not len(strings):
        return b""
    ends = np.frombuffer(ends, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return text[int(ends[0]) : int(ends[-1])].to_pybytes()
