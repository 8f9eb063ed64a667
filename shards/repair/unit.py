"""Rebuild the objects of one unit: its commit, its plan and its index, each from the other two and the tar.

A manifest, whose name is the digest of its content, proves the commit's sizes and digests; the commit proves the bytes
of index and tar; the index proves the plan. Nothing is made up. For a lost index, the tar and the plan have the links
and the pictures, but nothing else has how a link was fetched or why it was rejected. So those columns become null, and
a unit whose links were rejected for several reasons is not rebuilt at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import store, tar, typed_json
from shards.dataset import (
    DAMAGE,
    INDEX_SCHEMA,
    KEPT,
    PLAIN,
    PLAN_SCHEMA,
    Commit,
    commit_bytes,
    in_one_line,
    table_bytes,
    unit_name,
)
from shards.manifest import Shard

_BAD_LINE = re.compile(r"line (\d+): (.*)", re.DOTALL)  # the detail of a link whose reason is bad_url
_PLANNED = ["key", "url", "labels", "row"]
_OF_A_PICTURE = ["sha256", "width", "height", "member", "offset", "length"]
_REBUILT = [*_PLANNED, "reason", *_OF_A_PICTURE]  # columns that the plan, the tar and the commit also have
LOST_COLUMNS = [name for name in INDEX_SCHEMA.names if name not in _REBUILT]


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt object, to be written."""

    name: str  # below the dataset's folder
    how: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Line:
    """A line about one object: how it was rebuilt, or what is lost."""

    name: str  # below the dataset's folder
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass
class Unit:
    """The result for one unit; `rebuilt` is in the order of writing."""

    commit: Commit | None = None
    rebuilt: list[Rebuilt] = field(default_factory=list)
    lost: list[Line] = field(default_factory=list)


class Unusable(ValueError):
    """An object is gone or damaged, or something cannot be rebuilt from it; the message says why."""


def read(dataset: str, name: str) -> bytes:
    """The object's bytes. Raises Unusable if it does not exist, and StoreError if the store does not answer."""
    try:
        return store.read(store.join(dataset, name))
    except store.Missing:
        raise Unusable("is gone") from None


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises Unusable."""
    try:
        value = typed_json.parse(body, "")
    except store.StoreError:
        raise Unusable("is not JSON") from None
    if not isinstance(value, dict):
        raise Unusable("is not a JSON object")
    return value


def table_of(body: bytes, schema: pa.Schema) -> pa.Table:
    """The Parquet table in `body`. Raises Unusable, also for another schema."""
    try:
        table = pq.read_table(io.BytesIO(body))
        table.validate(full=True)
    except DAMAGE as error:
        raise Unusable(f"is damaged ({in_one_line(error)})") from None
    if not table.schema.equals(schema):
        raise Unusable("has other columns")
    return table


Older = Callable[[set[int]], Mapping[int, str]]  # rows -> their verdicts before the retry


def repair(dataset: str, unit: int, format_: int, named: Shard | None, older: Older | None) -> Unit:
    """Check one unit and rebuild what can be; nothing is written. `format_` is the dataset's, `named` the unit's entry
    in a sound manifest; `older` is given for the units of a retry.

    Raises StoreError if the store does not answer.
    """
    done = Unit()
    plan_name, commit_name = f"links/{unit_name(unit)}.parquet", f"commits/{unit_name(unit)}.json"
    plan: pa.Table | None = None
    plan_problem = ""
    try:
        plan = table_of(read(dataset, plan_name), PLAN_SCHEMA)
    except Unusable as error:
        plan_problem = str(error)
    try:
        done.commit = _read_commit(dataset, commit_name, unit, format_, named)
    except Unusable as error:
        _repair_commit(dataset, commit_name, format_, named, plan, str(error), done)
    if done.commit is None:
        return done
    index = _repair_index(dataset, done.commit, plan, done)
    if index is None:
        if plan is None:
            done.lost.append(Line(plan_name, f"{plan_problem}, and so is the index: restore them from a copy"))
        return done
    try:
        if plan is not None and not index.select(_PLANNED).equals(plan.select(_PLANNED)):
            plan_problem = "has other links"
        elif plan is not None and older and _asked(plan) != Counter(done.commit.supersedes):
            plan_problem = _who_miscounts(plan, older, commit_name, done)
        if plan_problem:
            body = table_bytes(_plan_from(index, done.commit, older))
            done.rebuilt.append(Rebuilt(plan_name, f"{plan_problem}: rebuilt from the index", body))
    except Unusable as error:
        done.lost.append(Line(plan_name, f"{plan_problem or 'may be wrong'}, and the index {error}"))
    return done


def _asked(plan: pa.Table) -> Counter[str]:
    """The older verdicts of a retry's links, counted; empty for other units."""
    whys, lines = plan["why"].to_pylist(), plan["line"].to_pylist()
    return Counter(why for why, line in zip(whys, lines) if why and line is None)


def _who_miscounts(plan: pa.Table, older: Older, commit_name: str, done: Unit) -> str:
    """For a retry whose plan and commit disagree on the older verdicts: repairs the commit, or returns what is wrong
    with the plan."""
    assert done.commit is not None
    if _asked(plan) != Counter(older(set(plan["row"].to_pylist())).values()):
        return "has other older verdicts"
    done.commit = dataclasses.replace(done.commit, supersedes=dict(sorted(_asked(plan).items())))
    value = commit_bytes(done.commit)
    done.rebuilt.append(Rebuilt(commit_name, "miscounts the older verdicts: recounted from the older indexes", value))
    return ""


# --- the commit ----------------------------------------------------------------------------------------------------


def _read_commit(dataset: str, name: str, unit: int, format_: int, named: Shard | None) -> Commit:
    value = parsed(read(dataset, name))
    try:
        found = typed_json.checked(Commit, value, "it")
    except store.StoreError as error:
        raise Unusable(f"is damaged ({error})") from None
    if found.unit != unit:
        raise Unusable(f"belongs to unit {found.unit}")
    if found.format != format_:
        raise Unusable(f"has format {found.format}, its dataset {format_}")
    if "/" in str(found.index):  # the index is written: a hostile dataset must not make that happen outside its folder
        raise Unusable("names an index outside shards/")
    for what in ("tar", "index", "tar_bytes", "tar_sha256", "links", "kept") if named else ():
        if getattr(found, what) != getattr(named, what):
            raise Unusable(f"has another {what} than the manifest")
    if named and _attempt(named) not in ("", found.attempt):
        raise Unusable(f"belongs to attempt {found.attempt}, its index to {_attempt(named)}")
    return found


def _attempt(named: Shard) -> str:
    """The attempt in the index's name; "" if the name has none."""
    head, tail = f"{unit_name(named.unit)}-", ".parquet"
    return named.index[len(head) : -len(tail)] if named.index.startswith(head) and named.index.endswith(tail) else ""


def _repair_commit(
    dataset: str, name: str, format_: int, named: Shard | None, plan: pa.Table | None, problem: str, done: Unit
) -> None:
    if named is None:
        done.lost.append(
            Line(name, f"{problem}, and no version names the unit: delete it and rerun what made the dataset")
        )
        return
    try:
        if plan is None:
            raise Unusable("its plan is gone or damaged, too")
        if "/" in named.index:
            raise Unusable("it is outside shards/")
        body = read(dataset, f"shards/{named.index}")
        done.commit = _commit_from(named, format_, body, plan)
    except Unusable as error:
        done.lost.append(Line(name, f"{problem}, and cannot be rebuilt from {named.index}: {error}"))
        return
    how = f"{problem}: rebuilt from the manifest, the index and the plan"
    done.rebuilt.append(Rebuilt(name, how, commit_bytes(done.commit)))


def _commit_from(named: Shard, format_: int, index_body: bytes, plan: pa.Table) -> Commit:
    index = table_of(index_body, INDEX_SCHEMA)
    if not index.select(_PLANNED).equals(plan.select(_PLANNED)):
        raise Unusable("it has other links than the plan")
    counts = Counter(index["reason"].to_pylist())
    if (len(index), counts[KEPT]) != (named.links, named.kept):
        raise Unusable(f"it keeps {counts[KEPT]} of {len(index)} links, the manifest {named.kept} of {named.links}")
    if not _attempt(named):
        raise Unusable("its name has no attempt")
    del counts[KEPT]
    return Commit(
        unit=named.unit,
        attempt=_attempt(named),
        tar=named.tar,
        tar_bytes=named.tar_bytes,
        tar_sha256=named.tar_sha256,
        index=named.index,
        index_sha256=hashlib.sha256(index_body).hexdigest(),
        links=named.links,
        kept=named.kept,
        reasons=dict(sorted(counts.items())),
        supersedes=dict(sorted(_asked(plan).items())),
        format=format_,
    )


# --- the index -----------------------------------------------------------------------------------------------------


def _repair_index(dataset: str, commit: Commit, plan: pa.Table | None, done: Unit) -> pa.Table | None:
    """The index that the commit names, rebuilt if needed; None if it is lost."""
    name = f"shards/{commit.index}"
    body, index, problem = None, None, "does not have the sha256 of its commit"
    try:
        body = read(dataset, name)
        index = table_of(body, INDEX_SCHEMA)
        if hashlib.sha256(body).hexdigest() == commit.index_sha256:
            _repair_reasons(index, commit, done)
            return index
    except Unusable as error:
        problem = str(error)
    try:
        made = _index_from(dataset, commit, plan)
    except Unusable as error:
        done.lost.append(Line(name, f"{problem}, and cannot be rebuilt: {error}"))
        return None
    except ValueError as error:  # of the tar
        if isinstance(error, store.StoreError) and not isinstance(error, store.Missing):
            raise
        done.lost.append(Line(name, f"{problem}, and cannot be rebuilt: {error}"))
        return None
    if index is not None and not index.equals(made) and index.select(_REBUILT).equals(made.select(_REBUILT)):
        why = f"{problem}; tar and plan agree with it in all they hold, so whether it or the commit is wrong is unknown"
        done.lost.append(Line(name, f"{why}: restore one of them from a copy, or delete the index and repair again"))
        return None
    made_body = body if body is not None and index is not None and index.equals(made) else table_bytes(made)
    digest = hashlib.sha256(made_body).hexdigest()
    how = f"{problem}: rebuilt from the tar and the plan"
    if body is not None and made_body != body:
        done.rebuilt.append(Rebuilt(name + ".damaged", "the damaged index, kept", body))
    if made_body != body:
        done.rebuilt.append(Rebuilt(name, how, made_body))
    if digest != commit.index_sha256:  # written after the index: a repair killed in between finds the rebuilt index
        done.lost.append(Line(name, f"rebuilt, but these columns are lost and are null: {_words(LOST_COLUMNS)}"))
        done.commit = dataclasses.replace(commit, index_sha256=digest)
        commit_name = f"commits/{unit_name(commit.unit)}.json"
        done.rebuilt = [made for made in done.rebuilt if made.name != commit_name]
        value = commit_bytes(done.commit)
        done.rebuilt.append(Rebuilt(commit_name, "names the rebuilt index", value))
    return made


def _repair_reasons(index: pa.Table, commit: Commit, done: Unit) -> None:
    """Correct the commit's counts by reason if they differ from those of its proven index."""
    counts = Counter(index["reason"].to_pylist())
    kept = counts.pop(KEPT, 0)
    if counts != Counter(commit.reasons) and (len(index), kept) == (commit.links, commit.kept):
        done.commit = dataclasses.replace(commit, reasons=dict(sorted(counts.items())))
        value = commit_bytes(done.commit)
        done.rebuilt.append(
            Rebuilt(f"commits/{unit_name(commit.unit)}.json", "miscounts the reasons: recounted from the index", value)
        )


def _index_from(dataset: str, commit: Commit, plan: pa.Table | None) -> pa.Table:
    """The index of a tar of ours, from the tar and the plan. Raises Unusable if that is not enough, and ValueError as
    `tar.walk`."""
    if plan is None:
        raise Unusable("its plan is gone or damaged, too")
    if "://" in commit.tar or commit.tar.startswith("/"):
        raise Unusable("its tar is foreign, and which of its pictures were kept is not known: restore it from a copy")
    if len(plan) != commit.links:
        raise Unusable(f"its plan has {len(plan)} links, its commit {commit.links}")
    pictures = _pictures(store.join(dataset, "shards", commit.tar), commit)
    rows = [_row(link, pictures.pop(link["key"], None)) for link in plan.to_pylist()]
    if pictures:
        raise Unusable(f"its tar holds {min(pictures)}, which was not planned")
    open_rows = [row for row in rows if row["reason"] is None]
    left = Counter(commit.reasons)
    left.subtract(row["reason"] for row in rows if row["reason"] not in (None, KEPT))
    left = Counter({reason: n for reason, n in left.items() if n})
    if sum(row["reason"] == KEPT for row in rows) != commit.kept or sum(left.values()) != len(open_rows):
        raise Unusable("its tar keeps other links than its commit says")
    if len(left) > 1:
        which = _words([f"{reason} ({n:,})" for reason, n in sorted(left.items())])
        raise Unusable(f"which of its links ended as {which} is not known: restore it from a copy")
    for row in open_rows:
        (row["reason"],) = left
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)


def _pictures(url: str, commit: Commit) -> dict[str, dict[str, Any]]:
    """Key -> columns of each picture in a tar of ours. Raises Unusable if it is not the committed tar."""
    found: dict[str, dict[str, Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    with closing(tar.pieces(url)) as body:
        source = tar.Source(body)
        for member in tar.walk(source):
            key = member.name.rpartition(".")[0]
            if not tar.is_picture(member.name):
                about[key] = parsed(source.take(member.length))
                continue
            found[key] = {"member": member.name, "offset": member.offset, "length": member.length}
            if commit.format > PLAIN:
                source.picture(member.length)
        source.drain()
    if source.sha256.hexdigest() != commit.tar_sha256:
        raise Unusable("its tar does not have the sha256 of its commit either")
    if found.keys() != about.keys():
        raise Unusable("its tar does not have one json member for each picture")
    return {key: place | about[key] for key, place in found.items()}


def _row(link: Mapping[str, Any], picture: Mapping[str, Any] | None) -> dict[str, Any]:
    row = {name: link[name] for name in _PLANNED} | {"reason": None}
    if picture is not None:
        for name in ("url", "labels"):
            if (picture.get(name) or None) != (link[name] or None):
                raise Unusable(f"its tar and its plan have different {name} of {link['key']}")
        return row | {"reason": KEPT} | {name: picture.get(name) for name in _OF_A_PICTURE}
    if link["line"] is not None:
        row |= {"reason": "bad_url", "detail": f"line {link['line']}: {link['why'] or ''}"}
    return row


def _words(names: list[str]) -> str:
    return ", ".join(names)


# --- the plan ------------------------------------------------------------------------------------------------------


def _plan_from(index: pa.Table, commit: Commit, older: Older | None) -> pa.Table:
    """The plan, from an index that its commit proves. Raises Unusable."""
    rows = index.select([*_PLANNED, "reason", "detail"]).to_pylist()
    before = older({row["row"] for row in rows}) if older else {}
    lines: list[int | None] = []
    whys: list[str | None] = []
    for row in rows:
        line, why = None, before.get(row["row"])
        if row["reason"] == "bad_url":
            match = _BAD_LINE.fullmatch(row["detail"] or "")
            if not match:
                raise Unusable(f"does not have the line number of {row['key']}")
            line, why = int(match[1]), match[2]
        lines.append(line)
        whys.append(why)
    asked = Counter(why for why, line in zip(whys, lines) if why and line is None)
    if asked != Counter(commit.supersedes):
        raise Unusable(f"and older ones have the older verdicts {dict(asked)}, the commit {commit.supersedes}")
    plan = index.select(_PLANNED)
    for name, values in (("line", lines), ("why", whys)):
        plan = plan.append_column(name, pa.array(values, PLAN_SCHEMA.field(name).type))
    return plan.cast(PLAN_SCHEMA)
