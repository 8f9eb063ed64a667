"""What ingest and import write into a dataset's folder: dataset.json, the plan, commits and generations.

A dataset is a folder (docs/design.md, "Dataset"): `dataset.json`, the plan in `links/`, the list's other columns in
`columns/`, the tars and indexes in `shards/`, and one commit a unit in `commits/` (written last, put if absent).
`generations/` records which units were planned by a retry. A unit without a commit counts as not done. For versions of
a dataset see `shards.manifest`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import store, typed_json
from shards.config import KEPT as KEPT
from shards.parallel import map_in_order
from shards.typed_json import Count

FORMAT = 2  # since 2, a tar's sha256 has each picture's own in its place: shards.tar.tar_sha256
PLAIN = 1  # until then it was that of the tar's bytes as they are, and is where others wrote the tars

PLAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("row", pa.int64()),
        ("line", pa.int64()),  # of the list, from 1, if the line is bad; else null
        ("why", pa.string()),  # the line is bad, or the older verdict of a link in a retry; else null
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("final_url", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("row", pa.int64()),
        ("reason", pa.string()),  # "kept" or a Reason
        ("detail", pa.string()),
        ("http_status", pa.int32()),
        ("attempts", pa.int32()),
        ("fetched_at", pa.timestamp("ms", "UTC")),
        ("elapsed_ms", pa.int32()),
        ("fetched_bytes", pa.int64()),
        ("fetched_sha256", pa.string()),
        ("source_format", pa.string()),
        ("decode_checked", pa.bool_()),
        ("sha256", pa.string()),  # of the member as stored
        ("phash", pa.uint64()),
        ("width", pa.int32()),  # as stored
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("orientation", pa.int8()),
        ("progressive", pa.bool_()),
        ("subsampling", pa.string()),
        ("icc", pa.bool_()),
        ("member", pa.string()),
        ("offset", pa.int64()),  # of the member's data in the tar, bytes
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`: what the dataset was made from; a rerun must have the same."""

    list_name: str
    list_sha256: str
    units: Count
    unit: Count  # links a unit
    config_digest: str
    image_build: str
    classes: tuple[str, ...] | None = None
    format: int = FORMAT
    not_chosen: int = 0  # lines of the list that were left out before any unit was planned,
    not_chosen_by: dict[str, int] = field(default_factory=dict)  # by rule: "classes", or a part of --where
    columns: tuple[str, ...] = ()  # other columns of the list that are kept, in columns/ for every unit
    hash_column: str | None = None  # the one of them with the hashes that the bytes must have

    @property
    def left_out(self) -> dict[str, int]:
        """`not_chosen_by`, also for datasets of older builds, whose only rule is the choice of classes."""
        return self.not_chosen_by or ({"classes": self.not_chosen} if self.not_chosen else {})


@dataclass(frozen=True)
class Commit:
    """`commits/000017.json`: which attempt at a unit counts."""

    unit: Count
    attempt: str
    tar: str  # object name under shards/, or the path or URL of a foreign tar
    tar_bytes: Count
    tar_sha256: str  # by the dataset's format: `shards.tar.tar_sha256`, or of the tar's bytes as they are
    index: str
    index_sha256: str
    links: Count
    kept: Count
    reasons: dict[str, Count]  # without "kept"
    supersedes: dict[str, Count] = field(default_factory=dict)  # older verdicts that rows of this unit replace
    format: Count = PLAIN  # of the dataset; older builds did not write it

    def __post_init__(self) -> None:
        assert self.links == self.kept + sum(self.reasons.values()), f"unit {self.unit}: links do not balance"
        assert KEPT not in self.supersedes, f"unit {self.unit}: a kept row is never fetched again"


@dataclass(frozen=True)
class Generation:
    """`generations/000001.json`: the units in which a retry fetches rows of an older version again.

    Their links keep their key and row; `supersedes` in their commits counts the verdicts that they replace.
    """

    number: int  # from 1; the units of dataset.json are generation 0
    parent: str  # digest of the version that has the rows
    first_unit: int
    units: int

    def __post_init__(self) -> None:
        assert min(self.number, self.first_unit, self.units) > 0, f"{self}: is not a retry"


def unit_name(unit: int) -> str:
    return f"{unit:06d}"


# --- dataset.json and the plan -------------------------------------------------------------------------------------


def read_info(dataset: str) -> DatasetInfo:
    """The dataset's `dataset.json`. Raises ValueError if there is no dataset or its format is newer."""
    store.require(dataset=dataset)
    url = store.join(dataset, "dataset.json")
    try:
        value = typed_json.parse(store.read(url), url)
    except store.Missing:
        raise ValueError(
            f"{dataset}: is not a dataset (no dataset.json): make one with xtra ingest or import"
        ) from None
    if not isinstance(value, dict) or "format" not in value or "units" not in value:
        raise ValueError(f"{url}: is not one of ours: give the folder of a dataset")
    if isinstance(value["format"], int) and value["format"] > FORMAT:
        raise ValueError(f"{dataset}: has format {value['format']}, this build reads {FORMAT}: upgrade to read it")
    return typed_json.checked(DatasetInfo, value, url)


def write_info(dataset: str, info: DatasetInfo) -> DatasetInfo:
    """Put if absent; returns what the dataset has, whose format may be older. Raises ValueError naming the first field
    in which a rerun differs."""
    url = store.join(dataset, "dataset.json")
    if not store.exists(url) and (units := committed_units(dataset)):  # it was lost
        info = dataclasses.replace(info, format=read_commit(dataset, units[0]).format)
    if store.put_json_if_absent(url, dataclasses.asdict(info)):
        return info
    old = read_info(dataset)
    for name in ("list_sha256", "list_name", "unit", "config_digest", "units", "classes"):
        if getattr(old, name) != getattr(info, name):
            raise ValueError(
                f"{dataset}: was made with another {name} ({_short(getattr(old, name))}, now "
                f"{_short(getattr(info, name))}): use the same list and settings, or another --out"
            )
    return old


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:16] + "…"


def write_plan(dataset: str, unit: int, plan: pa.Table) -> None:
    """Put if absent. Raises ValueError if another list was planned here, by an earlier or a concurrent driver."""
    url = store.join(dataset, "links", unit_name(unit) + ".parquet")
    plan = plan.cast(PLAN_SCHEMA)
    if not store.put_if_absent(url, table_bytes(plan)) and not read_table(url).equals(plan):
        raise ValueError(f"{url}: plans other links than this list gives: use the same list, or another --out")


def read_plan(dataset: str, unit: int) -> pa.Table:
    return read_table(store.join(dataset, "links", unit_name(unit) + ".parquet"), PLAN_SCHEMA.names)


def write_columns(dataset: str, unit: int, columns: pa.Table) -> None:
    """Put if absent, before the plan: key, row and the list's other columns, with the rows of the plan. Raises
    ValueError if other columns were planned here."""
    url = store.join(dataset, "columns", unit_name(unit) + ".parquet")
    if not store.put_if_absent(url, table_bytes(columns)) and not read_table(url).equals(columns):
        raise ValueError(f"{url}: keeps other columns than this list gives: use the same list, or another --out")


def read_columns(dataset: str, unit: int) -> pa.Table:
    """key, row and the list's other columns, of any types. Raises as `read_table`."""
    own = {name: _KINDS[name] for name in ("key", "row")}  # the list may have columns with names of ours
    return read_table(store.join(dataset, "columns", unit_name(unit) + ".parquet"), kinds=own)


def planned_units(dataset: str) -> list[int]:
    return numbers(dataset, "links", ".parquet")


def numbers(dataset: str, folder: str, suffix: str) -> list[int]:
    """The numbers of the objects `000017<suffix>` in a folder; others (.DS_Store, .nfs0001) are ignored."""
    ours = re.compile(r"(\d+)" + re.escape(suffix))
    names = store.names(store.join(dataset, folder))
    return sorted(int(found[1]) for found in map(ours.fullmatch, names) if found)


def table_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


DAMAGE = (  # what Arrow raises for a damaged Parquet file: its own errors, and Python's
    *(pa.ArrowException, OSError, ValueError, TypeError, LookupError),
    *(OverflowError, MemoryError, NotImplementedError, RecursionError),
)


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_table(
    url: str, columns: list[str] | None = None, kinds: Mapping[str, tuple[pa.DataType, ...]] | None = None
) -> pa.Table:
    """A Parquet object, or some of its columns, with the types in `kinds`; by default the types of our own columns.

    Raises Missing, and StoreError naming an object that is damaged, lacks a column or has one of another type.
    """
    body = store.read_bulk(url)

    def parsed() -> pa.Table:
        # Without threads: an index takes 2 ms, and many are read in parallel.
        return pq.ParquetFile(pa.BufferReader(body)).read(columns=columns, use_threads=False)  # copies what it reads

    try:
        table = parsed() if store.is_local(url) else _parsers(os.getpid()).submit(parsed).result()
        table.validate(full=True)
        if lacking := set(columns or ()) - set(table.column_names):  # Arrow silently leaves them out
            raise LookupError(f"it lacks the column {min(lacking)!r}")
        for at, column in enumerate(table.schema):
            known = (_KINDS if kinds is None else kinds).get(column.name, (column.type,))
            if column.type not in known:
                table = table.set_column(at, column.name, table[at].cast(known[0]))
    except DAMAGE as error:
        raise store.StoreError(f"{url}: is damaged ({in_one_line(error)}): run xtra check on the dataset") from None
    return table


@lru_cache(maxsize=1)
def _parsers(process: int) -> ThreadPoolExecutor:
    """The threads of this process that parse remote tables, a few for all that fetch them: Arrow keeps memory by
    thread, and to clear fresh memory in each of many costs more than the parsing."""
    return ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 4), thread_name_prefix="parquet")


# The types of the columns that we write, by name.
_KINDS = {column.name: (column.type,) for schema in (PLAN_SCHEMA, INDEX_SCHEMA) for column in schema}


# --- commits -------------------------------------------------------------------------------------------------------


def committed_units(dataset: str) -> list[int]:
    return numbers(dataset, "commits", ".json")


def read_commit(dataset: str, unit: int) -> Commit:
    """The commit of a unit. Raises Missing, and StoreError for one that is damaged or belongs to another unit."""
    url = store.join(dataset, "commits", unit_name(unit) + ".json")
    found = typed_json.read(Commit, url)
    if found.unit != unit:
        raise store.StoreError(f"{url}: field 'unit': is {found.unit}: the file is damaged or belongs to another unit")
    return found


def read_commits(dataset: str, units: Sequence[int]) -> list[Commit]:
    """The commits of these units, in their order; many small objects, so they are read in parallel."""
    return list(map_in_order(lambda unit: read_commit(dataset, unit), units))


def commit(dataset: str, ours: Commit) -> Commit:
    """Put the commit if the unit has none yet; returns the winning commit, as read back from the store."""
    store.put_if_absent(store.join(dataset, "commits", unit_name(ours.unit) + ".json"), commit_bytes(ours))
    return read_commit(dataset, ours.unit)


def commit_bytes(commit: Commit) -> bytes:
    """The object of a commit: in a dataset of an older build, byte for byte as that build writes it."""
    value: dict[str, Any] = dataclasses.asdict(commit)
    if commit.format == PLAIN:
        del value["format"]
    return store.json_bytes(value)


# --- generations ---------------------------------------------------------------------------------------------------


def write_generation(dataset: str, generation: Generation) -> None:
    """Put if absent, LAST, after the plans of its units: a retry without it does not exist.

    Raises ValueError if another driver has meanwhile planned another retry with this number.
    """
    url = store.join(dataset, "generations", f"{generation.number:06d}.json")
    if store.put_json_if_absent(url, dataclasses.asdict(generation)):
        return
    if typed_json.read(Generation, url) != generation:
        raise ValueError(f"{url}: another retry was planned here meanwhile: rerun to join it")


def read_generations(dataset: str) -> list[Generation]:
    """The retries planned so far, oldest first."""
    found = numbers(dataset, "generations", ".json")
    return [typed_json.read(Generation, store.join(dataset, "generations", f"{n:06d}.json")) for n in found]
