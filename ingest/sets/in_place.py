"""Foreign WebDataset tars -> a dataset around them: each is indexed once, where it is, and never copied.

Each tar is one unit, read once from front to end; `ingest.sets.tars` finds its samples, this module the places of their
pictures. Commits name the tar by its absolute path or URL. Plan, index, commits and versions are as in any dataset, so
everything else (stream, subset, mixture, check) works. A tar that changes later is noticed by its headers at the next
read, or by check.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import hashlib
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest import readme
from ingest.filter import judge
from ingest.isolate import Judge
from ingest.lists import keys
from ingest.record import Link, Reason
from ingest.run import IngestResult, Progress
from ingest.sets import folders, sources, tars
from ingest.unit import judged_row
from shards import folder_kind, manifest, store
from shards.dataset import (
    INDEX_SCHEMA,
    KEPT,
    PLAIN,
    PLAN_SCHEMA,
    Commit,
    DatasetInfo,
    commit,
    committed_units,
    read_commit,
    read_plan,
    table_bytes,
    unit_name,
    write_info,
    write_plan,
)
from shards.parallel import map_in_order
from shards.pixels import IMAGE_BUILD
from shards.tar import Placed, Source, pieces

_KEY, _DETAIL, _ROW, _LABELS = (INDEX_SCHEMA.names.index(name) for name in ("key", "detail", "row", "labels"))


@dataclass
class Indexed:
    """A tar that was read. Its rows have no key and row number yet: these depend on the tars before it."""

    url: str
    bytes: int
    sha256: str
    names: list[str] = field(default_factory=list)  # the tar's own keys of its samples
    rows: list[list[Any]] = field(default_factory=list)  # in the order of manifest.INDEX_SCHEMA
    unused: tars.Unused = field(default_factory=tars.Unused)


def run(
    config: folders.Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestResult:
    """Index the tars that have no commit, then make a version. When `stop` returns True, it ends soon and cleanly, and
    a rerun does the remaining tars. Raises ValueError naming a tar that cannot be read or indexed."""
    if config.filter.resize is not None:
        raise ValueError(
            f"filter.resize is {config.filter.resize}: pictures indexed in place keep their size: leave it out"
        )
    store.require(source=config.source, out=config.out)
    begun = time.monotonic()
    folder_kind.require(config.out, "a dataset", "dataset")
    found = find(config.source)
    names = sources.class_names(config.classes) if config.classes else None
    _check_apart(found, config.out)
    store.check_writable(config.out)
    write_info(config.out, _info(config, found, names))
    done = {unit: read_commit(config.out, unit) for unit in committed_units(config.out)}
    seen, row, unused, classes = keys.Seen(), 0, tars.Unused(), set[str]()
    for unit in sorted(done):
        known = read_plan(config.out, unit)["key"]
        seen.unique(known.combine_chunks(), np.arange(row, row + len(known)), np.ones(len(known), bool))
        row += len(known)
        classes.update(pc.unique(pc.list_flatten(read_plan(config.out, unit)["labels"])).to_pylist())
    earlier = row
    left = [(unit, url) for unit, (url, _) in enumerate(found) if unit not in done]
    for unit, indexed in _indexed(config, left, names, stop):
        done[unit] = _commit(config.out, unit, indexed, row, seen)
        row += len(indexed.rows)
        unused.kinds.update(indexed.unused.kinds)
        classes.update(label for each in indexed.rows for label in each[_LABELS])
        if progress:
            progress(_progress(found, done, row - earlier))
    made = manifest.make_version(config.out, "import in place") if len(done) == len(found) else None
    said = [folders.classes_note(sorted(classes)), *sources.remarks(unused), readme.write(made) if made else ""]
    note = "; ".join(filter(None, said))
    return folders.result_of(config.out, done, len(found), row, made, time.monotonic() - begun, note)


def _info(config: folders.Config, tars: list[tuple[str, int]], names: dict[str, str] | None) -> DatasetInfo:
    settings = {"in_place": True, **folders.judged_by(config)}
    return DatasetInfo(
        list_name=config.name or folders.set_name(re.sub(r"\{.*", "", config.source)),
        list_sha256=hashlib.sha256(json.dumps(tars).encode()).hexdigest(),
        units=len(tars),
        unit=0,  # as many as the tar has
        config_digest=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        image_build=IMAGE_BUILD,
        classes=tuple(names.values()) if names else None,
        format=PLAIN,
    )


def _progress(tars: list[tuple[str, int]], done: dict[int, Commit], now: int) -> Progress:
    """The progress; the total number of samples is estimated from the bytes of the tars read so far."""
    links = sum(commit.links for commit in done.values())
    read, size = sum(commit.tar_bytes for commit in done.values()), sum(size for _, size in tars)
    kept = sum(commit.kept for commit in done.values())
    likely = links if len(done) == len(tars) else round(links * size / max(read, 1))
    reasons = dict(sorted(folders.reasons_of(done).items()))
    return Progress(likely, len(tars), links, len(done), kept, reasons, read, done_now=now)


# --- which tars ----------------------------------------------------------------------------------------------------


def find(source: str) -> list[tuple[str, int]]:
    """(absolute path or URL, bytes) of each tar in a folder, or named by wildcards in the last part of a path and by
    brace lists ({0000..0099}). Raises ValueError if there is none, or one cannot be read by ranges."""
    from braceexpand import braceexpand  # as in the webdataset library

    if store.is_local(source):
        urls = _local(source)
    else:
        urls = list(dict.fromkeys(url for pattern in braceexpand(source) for url in _expand(pattern)))
    if not urls:
        raise ValueError(f"{source}: there is no such folder or tar: check the source")
    return list(zip(urls, map_in_order(_size, urls)))


def _local(source: str) -> list[str]:
    path = store.local_path(source)
    names = [str(tar) for tar in sources.tars_of(path)] if path.is_dir() else sources.local_tars(source)
    sources.refuse_packed(source, [name.rpartition("/")[2] for name in names])
    return [store.absolute(name) for name in names]


def _expand(pattern: str) -> list[str]:
    if pattern.startswith(("http://", "https://")):
        return [pattern]  # web servers have no listings
    if not pattern.endswith(".tar"):
        pattern = pattern.rstrip("/") + ("" if glob.has_magic(pattern) else "/*.tar")
    folder, _, name = pattern.rpartition("/")
    if not glob.has_magic(name):
        return [pattern]
    return [store.join(folder, found) for found in fnmatch.filter(store.names(folder), name)]


def _check_apart(tars: list[tuple[str, int]], out: str) -> None:
    """Raises ValueError for a tar in a folder of the dataset `out` itself, where sweeping could remove it."""
    ours = {_place(store.join(store.absolute(out), folder)) for folder in ("shards", "thumbs")}
    parents = {url.rpartition("/")[0] for url, _ in tars}
    within = sorted(url for url in parents if any(f"{_place(url)}/".startswith(f"{own}/") for own in ours))
    if within:
        raise ValueError(f"{within[0]}: is in the dataset's own folder: give another --out, or move the tars")


def _place(url: str) -> str:
    return os.path.realpath(store.local_path(url)) if store.is_local(url) else url


def _size(url: str) -> int:
    with store.open_read(url) as file:
        if not file.seekable():
            raise ValueError(f"{url}: its server does not answer ranged reads: copy the tars to a disk or a bucket")
        return file.seek(0, os.SEEK_END)


# --- one tar -------------------------------------------------------------------------------------------------------


def _indexed(
    config: folders.Config, left: list[tuple[int, str]], names: dict[str, str] | None, stop: Callable[[], bool]
) -> Iterator[tuple[int, Indexed]]:
    """The tars in order, some read side by side; fewer when stopped."""
    with closing(Judge()) as judging:

        def read(one: tuple[int, str]) -> tuple[int, Indexed | None]:
            unit, url = one
            return unit, _index(config, url, names, stop, judging)

        with closing(map_in_order(read, left, config.threads, config.threads)) as tars_read:
            for unit, indexed in tars_read:
                if indexed is None:
                    return
                yield unit, indexed


def _index(
    config: folders.Config,
    url: str,
    names: dict[str, str] | None,
    stop: Callable[[], bool],
    judging: folders.JudgeFn = judge,
) -> Indexed | None:
    """Index one tar, reading it once; None when stopped before its end."""
    indexed = Indexed(url, 0, "")
    found: list[str | None] = []  # the pictures' names in the tar, and
    own: list[list[str]] = []  # the samples' own labels
    with closing(pieces(url)) as body:
        source = Source(body)

        def bodies(member: Placed) -> bytes:
            held = tars.is_wanted(member.name) and member.length <= config.max_bytes
            return source.take(member.length) if held else b""

        for sample in tars.samples(source, url, indexed.unused, bodies, adjacent=True):
            if stop():
                return None
            labels = tars.labels_of(sample) if config.labels and config.label_from == "auto" else []
            picture = tars.picture_of(sample, indexed.unused, bool(labels))
            indexed.names.append(sample.key)
            found.append(picture[0].name if isinstance(picture, tuple) else None)
            own.append([sources.named(label, names, url) for label in labels])
            indexed.rows.append(_row(sample, picture, own[-1], url, config, judging))
        source.drain()
    if config.labels and not any(own):
        _label_by_place(config, indexed, found, names)
    indexed.bytes, indexed.sha256 = source.size, source.sha256.hexdigest()
    return indexed


def _label_by_place(
    config: folders.Config, indexed: Indexed, found: list[str | None], names: dict[str, str] | None
) -> None:
    """Label the rows by their folders or by the tar, where these are classes."""
    members = [name for name in found if name is not None]
    labels = iter(tars.labels_by_place(indexed.url, members, config.label_from) or ())
    for row, name in zip(indexed.rows, found):
        label = next(labels, None) if name is not None else None
        if label is not None:
            row[_LABELS] = (sources.named(tars.utf8(label), names, indexed.url),)


def _row(
    sample: tars.Sample,
    found: tars.Field | str,
    labels: Sequence[str],
    url: str,
    config: folders.Config,
    judging: folders.JudgeFn,
) -> list[Any]:
    """A row of the index, without key and row number."""
    name = found[0].name if isinstance(found, tuple) else sample.key
    link = Link("", f"{url.rpartition('/')[2]}/{tars.utf8(name)}", tuple(labels), 0)
    if isinstance(found, tuple) and name != tars.utf8(name):
        found = f"its name in the tar is not UTF-8: {name!r}"
    if isinstance(found, str):
        return [*judged_row(folders.unread(link, found)), None, None, None]
    place, body = found
    if place.length > config.max_bytes:
        return [*judged_row(folders.too_large(link, place.length, config.max_bytes)), None, None, None]
    verdict = folders.judged(link, body, config.filter, judging)
    if verdict.picture is not None and verdict.picture.body is not body and verdict.picture.body != body:
        detail = f"{verdict.source_format} is only kept as another file: import it without --in-place"
        verdict = dataclasses.replace(verdict, picture=None, reason=Reason.UNSUPPORTED, detail=detail)
    if verdict.picture is None:
        return [*judged_row(verdict), None, None, None]
    return [*judged_row(verdict), place.name, place.offset, place.length]


def _commit(dataset: str, unit: int, indexed: Indexed, first_row: int, seen: keys.Seen) -> Commit:
    """Set the rows' keys and numbers, then write plan, index and commit; returns the winning commit."""
    numbers = np.arange(first_row, first_row + len(indexed.rows))
    written = pa.array([name.encode("utf-8", "surrogateescape") for name in indexed.names], pa.binary())
    made = seen.unique(keys.clean(written, numbers), numbers, np.ones(len(numbers), bool)).to_pylist()
    for row, number, key, name in zip(indexed.rows, numbers.tolist(), made, indexed.names):
        row[_KEY], row[_ROW] = key, number
        if key != name and row[-1] is not None:
            row[_DETAIL] = f"in the tar its key is {name!r}"
    columns = zip(*indexed.rows) if indexed.rows else ([] for _ in INDEX_SCHEMA)
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, INDEX_SCHEMA)]
    index = pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)
    plan = index.select(["key", "url", "labels", "row"])
    for name in ("line", "why"):
        plan = plan.append_column(name, pa.nulls(len(plan), PLAN_SCHEMA.field(name).type))
    write_plan(dataset, unit, plan)
    counts = Counter(index["reason"].to_pylist())
    attempt = secrets.token_hex(6)
    name = f"{unit_name(unit)}-{attempt}.parquet"
    body = table_bytes(index)
    store.put(store.join(dataset, "shards", name), body)
    ours = Commit(
        unit=unit,
        attempt=attempt,
        tar=indexed.url,
        tar_bytes=indexed.bytes,
        tar_sha256=indexed.sha256,
        index=name,
        index_sha256=hashlib.sha256(body).hexdigest(),
        links=len(indexed.rows),
        kept=counts.pop(KEPT, 0),
        reasons={str(reason): n for reason, n in sorted(counts.items())},
    )
    winner = commit(dataset, ours)
    if winner.attempt != attempt:
        store.delete(store.join(dataset, "shards", name))
    return winner
