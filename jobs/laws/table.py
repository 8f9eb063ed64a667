"""A ledger, ours or another's, as curves: Parquet or CSV, a row for each probe of a trunk at one sample count."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jobs.flags import nearest
from jobs.laws.law import Curve
from shards import store

NEEDED = ("arm", "samples_seen", "accuracy")
AXES = ("samples_seen", "unique_images", "flops")
Row = Mapping[str, Any]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their keys, both in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


@dataclass(frozen=True)
class Table:
    """The rows of a ledger that measure a trained encoder, checked."""

    where: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def axes(self) -> list[str]:
        """The x axes that every row has."""
        return [axis for axis in AXES if axis in self.columns and all(row[axis] is not None for row in self.rows)]


def read(where: str, by: str = "", only: Mapping[str, str] | None = None) -> Table:
    """The measurements in a ledger; `only` keeps rows by column and value.

    by: a column that names the arms instead of `arm`; ignored if it is an arm's name or no column. Raises ValueError,
    in one line, for a file that cannot be read and for impossible values.
    """
    columns, raw = _rows(where)
    column = by if by in columns and by not in {str(row.get("arm")) for row in raw} else "arm"
    for name in (column, *NEEDED[1:]):
        if name not in columns:
            raise ValueError(f"{where}: has no column {name}{nearest(name, columns)}: it has {', '.join(columns)}")
    for name, value in (only or {}).items():
        if name not in columns:
            raise ValueError(f"--{name} {value}: {where} has no column {name}")
    # Our ledgers also have untrained baselines, and runs without a probe.
    numbered = [(number, row) for number, row in enumerate(raw, 1) if row.get("encoder", "trained") == "trained"]
    for name, value in (only or {}).items():
        numbered = [(number, row) for number, row in numbered if str(row[name]) == value]
        if not numbered:
            found = sorted({str(row[name]) for row in raw if row[name] is not None})
            raise ValueError(f"--{name} {value}: {where} has {', '.join(found) or 'none'}")
    if not numbered:
        raise ValueError(f"{where}: has no accuracy of a trained encoder: give a ledger with probes")
    rows = tuple(_checked(f"{where}, row {number}", row, column) for number, row in numbered)
    for name in ("set", "head"):  # whose curves must not be mixed
        if name in columns and len(found := sorted({str(row[name]) for row in rows})) > 1:
            raise ValueError(f"{where}: has probes of {len(found)} {name}s ({', '.join(found)}): choose with --{name}")
    return Table(where, tuple(columns), rows)


def _rows(where: str) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        data = bytes(store.read(where))
    except (store.StoreError, OSError) as error:
        raise ValueError(f"{where}: cannot be read ({error}): give a ledger, Parquet or CSV") from None
    try:
        if data[:4] == b"PAR1":
            import pyarrow.parquet as pq

            table = pq.read_table(io.BytesIO(data))
            columns, rows = table.column_names, table.to_pylist()
        else:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
            columns = list(reader.fieldnames or ())
            rows = [{k: _plain(v) for k, v in row.items() if k is not None} for row in reader]
    except Exception as error:  # Arrow's errors share no class with the others
        raise ValueError(f"{where}: is neither Parquet nor CSV in UTF-8 ({error}): give a ledger") from None
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"{where}: {'has a column twice' if columns else 'is empty'}: give a ledger")
    return columns, rows


def _plain(cell: str | None) -> str | None:
    """A CSV cell: empty is absent; an apostrophe before text that a spreadsheet would compute is removed."""
    return cell[1:] if cell and cell[0] == "'" and cell[1:2] in tuple("=+-@\t\r") else cell or None


def _checked(where: str, row: Row, by: str) -> dict[str, Any]:
    arm = row[by]
    if arm is None or str(arm).strip() == "":
        raise ValueError(f"{where}: {by} is empty: name the arm of every row")
    found: dict[str, Any] = {**row, "arm": str(arm) if by == "arm" else f"{by} {arm}"}
    for name in (*AXES, "accuracy", "params", "total"):
        found[name] = _number(where, name, row.get(name), name in NEEDED)
    for name in (*AXES, "params", "total"):
        if found[name] is not None and found[name] <= 0:
            raise ValueError(f"{where}: {name} is {found[name]:g}; it must be above 0")
    accuracy = found["accuracy"]
    if not 0 <= accuracy <= 1:
        hint = "is it in percent? divide it by 100" if 1 < accuracy <= 100 else "correct the row"
        raise ValueError(f"{where}: accuracy is {accuracy:g}; it must be a share between 0 and 1 ({hint})")
    return found


def _number(where: str, name: str, value: Any, needed: bool) -> float | None:
    if value is None and not needed:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        said = "empty" if value is None else repr(value) if isinstance(value, str) else value
        raise ValueError(f"{where}: {name} is {said}; it must be a number: correct or remove the row")
    return number


def curves(table: Table, axis: str) -> tuple[list[Curve], list[str]]:
    """One curve for each arm (for each size, if an arm has several), and remarks on what the table does not have.

    Raises ValueError if the axis is absent, or a trunk has two rows for one count.
    """
    lacking = axis not in table.columns or next((r for r in table.rows if r[axis] is None), None)
    if lacking:
        what = f"has no column {axis}" if lacking is True else f"{axis} is empty for arm {lacking['arm']}"
        raise ValueError(f"{table.where}: {what}: choose another --x, of {', '.join(table.axes())}")
    sized = all(row["params"] is not None for row in table.rows)
    seeded = "seed" in table.columns and all(row["seed"] is not None for row in table.rows)
    if "seed" in table.columns and not seeded and any(row["seed"] is not None for row in table.rows):
        raise ValueError(f"{table.where}: some rows have a seed and some do not: give all or none")
    no_seeds = "The table has no seeds: points count as independent, and intervals come from residuals."
    remarks = [] if seeded else [no_seeds]
    groups = grouped(table.rows, lambda row: (row["arm"], row["params"] if sized else None))
    found = [_curve(table.where, arm, size, rows, axis, seeded) for (arm, size), rows in groups.items()]
    if single := [curve.name for curve in found if len(curve.seeds) == 1]:
        remarks.append(f"One trunk only ({', '.join(single)}): intervals come from residuals, not from seeds.")
    return found, remarks


def _curve(where: str, arm: str, size: float | None, rows: Sequence[Row], axis: str, seeded: bool) -> Curve:
    count = np.array([round(row["samples_seen"]) for row in rows])
    seeds = tuple(sorted({_seed(row["seed"]) for row in rows})) if seeded else ()
    trunk = np.array([seeds.index(_seed(row["seed"])) for row in rows]) if seeded else np.zeros(len(rows), int)
    if seeded and len(set(zip(trunk.tolist(), count.tolist()))) < len(rows):
        pairs = list(zip(trunk.tolist(), count.tolist()))
        k, n = next(pair for pair in pairs if pairs.count(pair) > 1)
        raise ValueError(f"{where}: arm {arm}, seed {seeds[k]}, has two rows of {n:,} samples: keep one")
    x = np.array([row[axis] for row in rows], float)
    error = 1 - np.array([row["accuracy"] for row in rows], float)
    order = np.lexsort((count, trunk))
    return Curve(arm, x[order], error[order], count[order], trunk[order], seeds, size)


def _seed(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
