"""The list -> units of links, planned once; and a retry -> more units, of the links whose reason may have passed.

Both hold a few units in memory. A crash anywhere is harmless: plans are pure functions of their input and are put if
absent, and what makes them count (dataset.json, a generation) is written after them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest import wordnet
from ingest.config import Config
from ingest.http import is_named_host
from ingest.lists import (
    ACCEPTED,
    NoColumn,
    carry,
    digest,
    is_dataset,
    label_counts,
    list_name,
    list_sha256,
    plan_units,
    skipped,
)
from ingest.record import RETRYABLE
from shards import folder_kind, manifest, store
from shards.dataset import (
    PLAN_SCHEMA,
    DatasetInfo,
    Generation,
    committed_units,
    planned_units,
    read_columns,
    read_commit,
    read_generations,
    read_info,
    read_plan,
    read_table,
    unit_name,
    write_columns,
    write_generation,
    write_info,
    write_plan,
)
from shards.parallel import map_in_order
from shards.pixels import IMAGE_BUILD

CONTACT_FROM = 1000  # links; more need a contact
_HOST = r"^(?i:https?)://(?P<host>\[[^\]]*\]|[^/:?#]*)"
HELD = 64  # units in memory
NAMED = 8  # files named in a remark
AT_ONCE = 8  # plans being written, or indexes being read
_RETRYABLE = tuple(sorted(map(str, RETRYABLE)))
_RETRIED = ["key", "url", "labels", "row", "reason"]  # of the index


@dataclass(frozen=True)
class Plan:
    """The whole plan; a rerun finds the same."""

    info: DatasetInfo
    links: int
    units: int  # retries included
    note: str = ""  # a remark for people


def make(config: Config) -> Plan:
    """Plan the list if that is not done yet; and a retry, if requested and everything planned so far is done.

    Raises ValueError when the list is missing or empty, when the out folder cannot be written or holds a dataset of
    another list or other settings, and when more than 1,000 links would be fetched without a contact.
    """
    if not (config.urls or config.retry):
        raise ValueError("--urls is missing: xtra ingest --urls LIST --out FOLDER")
    if not config.out:
        raise ValueError("--out is missing: xtra ingest --urls LIST --out FOLDER")
    store.require(out=config.out, **({} if config.retry and not config.urls else {"urls": config.urls}))
    folder_kind.require(config.out, "a dataset", "dataset")
    if config.urls and not is_dataset(config.urls) and (held := _held(config.urls)):
        raise ValueError(f"{config.urls}: holds {held}, no list: check --urls")
    with _no_empty_folder(config.out):
        store.check_writable(config.out)
        info = _the_list(config)
    links = (info.units - 1) * info.unit + len(read_plan(config.out, info.units - 1))
    if links > CONTACT_FROM and not config.fetch.contact:
        need_contact(config, links if not config.fetch.allow_private else _strangers_of(config, info.units))
    generations = read_generations(config.out)
    units = info.units + sum(generation.units for generation in generations)
    note = left_out(config.urls) if config.urls and not is_dataset(config.urls) else ""
    if config.retry:
        if not set(committed_units(config.out)).issuperset(range(units)):
            note = f"{config.out}: unfinished units come first; use --retry again for the links that fail"
            note = "" if generations else note
        elif retry := _plan_retry(config.out, info, generations, reasons := config.retry_reasons or _RETRYABLE):
            units += retry.units
        else:
            note = f"{config.out}: nothing to retry: no link ended with {', '.join(reasons)}"
    return Plan(info, links, units, note)


def _held(urls: str) -> folder_kind.Held | None:
    """The kind of folder of ours that was given as a list, if it is one."""
    held = folder_kind.look(urls) if store.is_local(urls) and store.local_path(urls).is_dir() else None
    return held if held and held.kind in ("run", "export") else None


@contextlib.contextmanager
def _no_empty_folder(out: str) -> Iterator[None]:
    """A list or a setting that is refused leaves no new folder behind."""
    there = not store.is_local(out) or store.local_path(out).exists()
    try:
        yield
    except ValueError:
        if not there:
            with contextlib.suppress(OSError):  # it is not empty
                store.local_path(out).rmdir()
        raise


def asked_before(plan: pa.Table) -> Counter[str]:
    """How many links of a unit ended with which reason before; empty unless it is a retry's."""
    before = plan["why"].filter(pc.is_null(plan["line"])).drop_null()
    return Counter(before.to_pylist())


def asked_again(dataset: str, units: Iterable[int]) -> Counter[str]:
    """The sum over several units of retries."""
    asked = map_in_order(lambda unit: asked_before(read_plan(dataset, unit)), units, AT_ONCE, AT_ONCE)
    return sum(asked, Counter())


# --- the list ------------------------------------------------------------------------------------------------------


def _the_list(config: Config) -> DatasetInfo:
    """dataset.json, after planning the list where it has not been."""
    known = store.exists(store.join(config.out, "dataset.json"))
    if not config.urls:
        old = read_info(config.out)
        if old.config_digest[32:] != config.digest[32:]:
            raise ValueError(f"{config.out}: was made with other filter settings: a retry must use the same")
        return old
    info = DatasetInfo(
        list_name=list_name(config.urls),
        list_sha256=digest(config.urls) if is_dataset(config.urls) else list_sha256(config.urls),
        units=0,
        unit=config.unit,
        config_digest=config.digest,
        image_build=IMAGE_BUILD,
    )
    if known:
        old = read_info(config.out)
        # The number of units and the classes follow from the rest.
        write_info(config.out, replace(info, units=old.units, classes=old.classes))
        return old
    return _plan_list(config, info)


def _plan_list(config: Config, info: DatasetInfo) -> DatasetInfo:
    columns, rules = config.columns, config.rules
    classes = wordnet.chosen(config.classes, lambda: label_counts(config.urls, config.format, columns.plain))
    units = links = good = asked = 0
    left_out: Counter[str] = Counter()
    kept: dict[str, None] = {}  # names of columns
    bare: list[int] = []  # units without columns
    first_bad: dict[str, Any] = {}

    def plans() -> Iterator[tuple[int, pa.Table]]:
        nonlocal units, links, good, asked, first_bad
        held: list[tuple[int, pa.Table]] = []  # until it is known whether a contact is needed
        for part in plan_units(config.urls, config.unit, config.format, columns, classes, rules):
            left_out.update(part.left_out)
            if len(part.links):
                links += len(part.links)
                good += part.links["why"].null_count
                if not good and not first_bad:
                    first_bad = part.links.slice(0, 1).to_pylist()[0]
                asked += strangers(config, part.links["url"].filter(pc.is_null(part.links["why"])))
                need_contact(config, asked)
                if not units:
                    carry.check_hashes(config.urls, part.links, config.hash_column)
                names = carry.names(part.links)
                kept.update(dict.fromkeys(names))
                bare.extend([units] if not names else [])
                held.append((units, part.links))
                units += 1
            if config.fetch.contact or len(held) > HELD:
                yield from held
                held.clear()
        if good:
            yield from held

    try:
        for _ in map_in_order(lambda unit: _write(config.out, *unit), plans(), AT_ONCE, AT_ONCE):
            pass
    except NoColumn:
        _forget(config.out, range(units))
        raise
    if not links:
        raise ValueError(no_links(config.urls, left_out))
    if not good:
        _forget(config.out, range(units))
        raise ValueError(nothing_usable(config.urls, links, first_bad))
    for unit in bare if kept else ():
        write_columns(config.out, unit, carry.split(read_plan(config.out, unit))[1])
    if not store.exists(store.join(config.out, "dataset.json")):  # else they are another driver's, and valid
        _forget(config.out, [unit for unit in planned_units(config.out) if unit >= units])  # left from a longer list
    info = replace(
        info,
        units=units,
        classes=tuple(sorted(classes)) if classes is not None else None,
        not_chosen=left_out.total(),
        not_chosen_by=dict(left_out),
        columns=tuple(kept),
        hash_column=config.hash_column,
    )
    return write_info(config.out, info)


def _write(dataset: str, unit: int, table: pa.Table) -> None:
    """Write a unit's plan, after the list's other columns."""
    plan, columns = carry.split(table)
    if carry.names(table):
        write_columns(dataset, unit, columns)
    write_plan(dataset, unit, plan)


def _forget(dataset: str, units: Iterable[int]) -> None:
    """Remove the plans of an unfinished planning, unless another driver has finished it."""
    if store.exists(store.join(dataset, "dataset.json")):
        return
    for unit in set(planned_units(dataset)) & set(units):
        for folder in ("links", "columns"):
            store.delete(store.join(dataset, folder, unit_name(unit) + ".parquet"))


def no_links(urls: str, left_out: Counter[str]) -> str:
    """The error for a list of which no line is left."""
    if not left_out.total():
        return f"{urls}: holds no links: check --urls"
    classes, others = left_out[carry.CLASSES], left_out.total() - left_out[carry.CLASSES]
    if not others:
        return f"{urls}: holds no links: none of its {classes:,} lines has a chosen class: check --classes"
    return f"{urls}: holds no links: none of its {left_out.total():,} lines meets --where: check --where"


def nothing_usable(urls: str, links: int, first_bad: Mapping[str, Any]) -> str:
    """The error for a list without any usable line; `first_bad` is a row of the plan."""
    line = f"line {first_bad['line']}, {first_bad['url']!r}: {first_bad['why']}"
    return f"{urls}: none of its {links:,} lines can be used; the first, {line}: give {ACCEPTED}"


def left_out(urls: str) -> str:
    """A remark on files in a list's folder that are not lists."""
    names = skipped(urls)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"{urls}: ignored files that are no lists: {', '.join(names[:NAMED])}{more}" if names else ""


def strangers(config: Config, urls: pa.ChunkedArray | pa.Array) -> int:
    """How many of these good URLs have other hosts than the addresses that --fetch.allow-private names."""
    if not config.fetch.allow_private or config.fetch.contact:
        return len(urls)
    hosts = pc.value_counts(host_names(urls))
    return sum(
        each["counts"] for each in hosts.to_pylist() if not is_named_host(each["values"], config.fetch.allow_private)
    )


def _strangers_of(config: Config, units: int) -> int:
    """The same for a planned list; stops counting above CONTACT_FROM."""
    found = 0
    for unit in range(units):
        plan = read_plan(config.out, unit)
        found += strangers(config, plan["url"].filter(pc.is_null(plan["line"])))
        if found > CONTACT_FROM:
            break
    return found


def host_names(urls: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The lower-case host of every good URL."""
    return pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host"))


def need_contact(config: Config, links: int) -> None:
    """Raises ValueError if so many links need a contact that is not set."""
    if links > CONTACT_FROM and not config.fetch.contact:
        raise ValueError(
            f"{config.urls or config.out}: fetches more than {CONTACT_FROM} links without a contact: "
            "set --fetch.contact to your address or page"
        )


# --- a retry -------------------------------------------------------------------------------------------------------


def _plan_retry(
    dataset: str, info: DatasetInfo, generations: Sequence[Generation], reasons: Sequence[str]
) -> Generation | None:
    """New units of the links whose newest verdict has one of these reasons, with the same key and row; None if there
    are none. A plan's `why` is the reason that a link ended with before."""
    parent = manifest.make_version(dataset, "retry" if generations else "ingest").digest
    first = info.units + sum(generation.units for generation in generations)
    wanted, units = pa.array(reasons, pa.string()), 0

    def plans() -> Iterator[tuple[int, pa.Table]]:
        nonlocal units
        found = _newest_with(dataset, info.units, first, wanted, bool(info.columns))
        for table in _cut(found, info.unit):
            yield first + units, table
            units += 1

    try:
        for _ in map_in_order(lambda unit: _write(dataset, *unit), plans(), AT_ONCE, AT_ONCE):
            pass
    except ValueError as error:
        raise ValueError(f"{error}; or a retry with other reasons was interrupted: finish that one first") from None
    if not units:
        return None
    retry = Generation(len(generations) + 1, parent, first, units)
    write_generation(dataset, retry)
    return retry


def _newest_with(dataset: str, of_list: int, units: int, reasons: pa.Array, columns: bool) -> Iterator[pa.Table]:
    """Per unit, rows of a plan, with the list's other `columns`, for the links whose newest verdict is in that unit and
    has one of the reasons."""
    again: dict[int, np.ndarray] = {}  # rows that retries have fetched, by unit
    retried = range(of_list, units)
    again.update(zip(retried, map_in_order(lambda unit: _rows_of(dataset, unit), retried, AT_ONCE, AT_ONCE)))
    everything = np.concatenate([*again.values(), np.empty(0, np.int64)])
    ended = map_in_order(lambda unit: _ended(dataset, unit, reasons, columns), range(units), AT_ONCE, AT_ONCE)
    for unit, table in zip(range(units), ended):
        later = (
            everything if unit < of_list else np.concatenate([again[u] for u in again if u > unit] or [everything[:0]])
        )
        yield table.filter(pa.array(~np.isin(table["row"].to_numpy(), later)))


def _rows_of(dataset: str, unit: int) -> np.ndarray:
    return read_plan(dataset, unit)["row"].to_numpy()


def _ended(dataset: str, unit: int, reasons: pa.Array, columns: bool) -> pa.Table:
    """The links of a unit that ended with one of the reasons, as rows of a plan, with the list's other `columns`."""
    index = read_commit(dataset, unit).index
    rows = read_table(store.join(dataset, "shards", index), _RETRIED)
    again = pc.is_in(rows["reason"], value_set=reasons)
    rows, others = rows.filter(again), read_columns(dataset, unit).filter(again) if columns else None
    never = pa.nulls(len(rows), pa.int64())
    plan = pa.Table.from_arrays([*(rows[name] for name in _RETRIED[:-1]), never, rows["reason"]], schema=PLAN_SCHEMA)
    return carry.unsplit(plan, others) if others is not None else plan


def _cut(tables: Iterable[pa.Table], unit: int) -> Iterator[pa.Table]:
    """The rows of the tables in tables of `unit` rows; the last may be shorter."""
    held = PLAN_SCHEMA.empty_table()
    for table in tables:
        held = carry.joined([held, table]) if len(held) else table
        while len(held) >= unit:
            yield held.slice(0, unit)
            held = held.slice(unit)
    if len(held):
        yield held
