"""WebDataset tars of others -> our dataset format around them: indexed once, where they lie, and never copied.

Each tar is one unit, read once from front to end. The webdataset library says what belongs to one sample (members with
one name up to its first dot, side by side) and what its fields are called; we say where the picture lies. Commits name
the tar by its absolute path or URL; plan, index, commits and versions are as everywhere, so everything else (stream,
subset, mixture, check) works on it. A tar that changes afterwards is found by its header at the next read, or by check.

Of a sample, the picture is the field jpg, jpeg, png or webp, else the only field that ends so; its labels are the field
cls, else "labels" or "label" in json, else a single line of at most 100 characters in txt, else none.
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
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.filter import FilterConfig
from ingest.lists import keys
from ingest.record import Fetched, Link, Reason, Verdict
from ingest.run import IngestResult, Progress
from ingest.sets import folders
from ingest.unit import judged_row
from shards import manifest, store
from shards.dataset import (
    INDEX_SCHEMA,
    KEPT,
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
from shards.pixels import IMAGE_BUILD
from shards.tar import Placed, Source, pieces, walk

PICTURES = ("jpg", "jpeg", "png", "webp")
LABELS = ("cls", "json", "txt")
LONGEST_LABEL = 100  # characters of a txt that is taken for a label; a longer one is a caption
_META = re.compile(r"__[^/]*__($|/)")  # what the webdataset library passes over
_STATS = 16  # sizes asked for at once
_KEY, _DETAIL, _ROW = (INDEX_SCHEMA.names.index(name) for name in ("key", "detail", "row"))


@dataclass
class Indexed:
    """A tar that was read: its rows lack their key and number, which follow from the tars before it."""

    url: str
    bytes: int
    sha256: str
    names: list[str] = field(default_factory=list)  # what the tar calls its samples
    rows: list[list[Any]] = field(default_factory=list)  # in the order of manifest.INDEX_SCHEMA


def run(
    config: folders.Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestResult:
    """Index the tars that have no commit, then make a version. `stop` returning True ends it soon and cleanly: a rerun
    does the tars that are left. Raises ValueError naming the tar that cannot be read or indexed."""
    if config.filter.resize is not None:
        raise ValueError(f"filter.resize is {config.filter.resize}: pictures that stay where they lie keep their size")
    store.require(source=config.source, out=config.out)
    begun = time.monotonic()
    tars = find(config.source)
    names = folders.class_names(config.classes) if config.classes else None
    _check_apart(tars, config.out)
    store.check_writable(config.out)
    write_info(config.out, _info(config, tars, names))
    done = {unit: read_commit(config.out, unit) for unit in committed_units(config.out)}
    seen, row = keys.Seen(), 0
    for unit in sorted(done):
        known = read_plan(config.out, unit)["key"]
        seen.unique(known.combine_chunks(), np.arange(row, row + len(known)), np.ones(len(known), bool))
        row += len(known)
    left = [(unit, url) for unit, (url, _) in enumerate(tars) if unit not in done]
    for unit, indexed in _indexed(config, left, names, stop):
        done[unit] = _commit(config.out, unit, indexed, row, seen)
        row += len(indexed.rows)
        if progress:
            progress(_progress(tars, done))
    made = manifest.make_version(config.out, "import in place") if len(done) == len(tars) else None
    return IngestResult(
        dataset=config.out,
        links=row,
        kept=sum(commit.kept for commit in done.values()),
        reasons=dict(sorted(_reasons(done).items())),
        units=len(tars),
        units_done=len(done),
        version=made.digest if made else None,
        seconds=time.monotonic() - begun,
        samples=made.samples if made else 0,
        deselected=dict(made.deselected) if made else {},
    )


def _info(config: folders.Config, tars: list[tuple[str, int]], names: dict[str, str] | None) -> DatasetInfo:
    settings = {"in_place": True, **dataclasses.asdict(config.filter)}
    return DatasetInfo(
        list_name=config.name or folders.set_name(re.sub(r"\{.*", "", config.source)),
        list_sha256=hashlib.sha256(json.dumps(tars).encode()).hexdigest(),
        units=len(tars),
        unit=0,  # as many as the tar has
        config_digest=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        image_build=IMAGE_BUILD,
        classes=tuple(names.values()) if names else None,
    )


def _reasons(done: dict[int, Commit]) -> Counter[str]:
    return sum((Counter(commit.reasons) for commit in done.values()), Counter())


def _progress(tars: list[tuple[str, int]], done: dict[int, Commit]) -> Progress:
    """How many samples there will be in all is told by the bytes of those tars that were read."""
    links = sum(commit.links for commit in done.values())
    read, size = sum(commit.tar_bytes for commit in done.values()), sum(size for _, size in tars)
    kept = sum(commit.kept for commit in done.values())
    likely = links if len(done) == len(tars) else round(links * size / max(read, 1))
    return Progress(likely, len(tars), links, len(done), kept, dict(sorted(_reasons(done).items())), read)


# --- which tars ----------------------------------------------------------------------------------------------------


def find(source: str) -> list[tuple[str, int]]:
    """(absolute path or URL, bytes) of each tar: of a folder, or what wildcards in the last part of a path and brace
    lists ({0000..0099}) stand for. Raises ValueError where there is none, or one cannot be read by ranges."""
    from braceexpand import braceexpand  # as the webdataset library takes lists

    urls = list(dict.fromkeys(url for pattern in braceexpand(source) for url in _expand(pattern)))
    if not urls:
        raise ValueError(f"{source}: there is no such folder or tar: check the source")
    with ThreadPoolExecutor(_STATS, thread_name_prefix="size") as pool:
        return list(zip(urls, pool.map(_size, urls)))


def _expand(pattern: str) -> list[str]:
    if store.is_local(pattern):
        path = store.local_path(pattern)
        found = path.glob("*.tar") if path.is_dir() else glob.glob(str(path))
        return sorted(store.absolute(str(each)) for each in found)
    if pattern.startswith(("http://", "https://")):
        return [pattern]  # a web server lists nothing
    if not pattern.endswith(".tar"):
        pattern = pattern.rstrip("/") + ("" if glob.has_magic(pattern) else "/*.tar")
    folder, _, name = pattern.rpartition("/")
    if not glob.has_magic(name):
        return [pattern]
    return [store.join(folder, found) for found in fnmatch.filter(store.names(folder), name)]


def _check_apart(tars: list[tuple[str, int]], out: str) -> None:
    """Raises ValueError for a tar among what a dataset there writes itself, and removes again once it is of no use."""
    ours = {_place(store.join(store.absolute(out), folder)) for folder in ("shards", "thumbs")}
    parents = {url.rpartition("/")[0] for url, _ in tars}
    within = sorted(url for url in parents if any(f"{_place(url)}/".startswith(f"{own}/") for own in ours))
    if within:
        raise ValueError(f"{within[0]}: lies in the dataset's own folder: give another --out, or move the tars")


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
    waiting: deque[tuple[int, Future[Indexed | None]]] = deque()
    coming = iter(left)
    with ThreadPoolExecutor(config.threads, thread_name_prefix="tar") as pool:
        try:
            while True:
                while len(waiting) <= config.threads and (following := next(coming, None)):
                    unit, url = following
                    waiting.append((unit, pool.submit(_index, url, config.filter, names, stop)))
                if not waiting:
                    return
                unit, future = waiting.popleft()
                indexed = future.result()
                if indexed is None:
                    return
                yield unit, indexed
        finally:
            pool.shutdown(cancel_futures=True)


def _index(url: str, rules: FilterConfig, names: dict[str, str] | None, stop: Callable[[], bool]) -> Indexed | None:
    """One tar, read once; None when stopped on the way."""
    with closing(pieces(url)) as body:
        source, indexed = Source(body), Indexed(url, 0, "")
        for sample in samples(source, url):
            if stop():
                return None
            indexed.names.append(sample["__key__"])
            indexed.rows.append(_row(sample, url, rules, names))
        source.drain()
    indexed.bytes, indexed.sha256 = source.size, source.sha256.hexdigest()
    return indexed


Field = tuple[Placed, bytes]


def samples(source: Source, url: str) -> Iterator[dict[str, Any]]:
    """The tar's samples as the webdataset library groups members; each field is its place and, where it may be wanted,
    its bytes. Raises ValueError naming the tar where it is damaged or no WebDataset."""
    from webdataset.tariterators import group_by_keys  # brings torch along: only when it is needed

    def files() -> Iterator[dict[str, Any]]:
        for member in walk(source):
            if not _META.match(member.name):
                ending = member.name.rpartition(".")[2].lower()
                body = source.take(member.length) if ending in PICTURES or ending in LABELS else b""
                yield {"fname": member.name, "data": (member, body), "__url__": url}

    try:
        yield from group_by_keys(files())
    except store.StoreError:
        raise
    except ValueError as error:
        raise ValueError(f"{url}: {error.args[0]}: it must be an uncompressed, whole WebDataset tar") from None


def _row(sample: dict[str, Any], url: str, rules: FilterConfig, names: dict[str, str] | None) -> list[Any]:
    """A row of the index but for its key and number."""
    fields: dict[str, Field] = {name: value for name, value in sample.items() if not name.startswith("__")}
    labels = tuple(label if names is None else folders.named(label, names, url) for label in _labels(fields))
    found = _picture(fields)
    name = found[0].name if isinstance(found, tuple) else sample["__key__"]
    link = Link("", f"{url.rpartition('/')[2]}/{_utf8(name)}", labels, 0)
    if isinstance(found, tuple) and name != _utf8(name):
        found = f"its name in the tar is not UTF-8: {name!r}"
    if isinstance(found, str):
        reason = Reason.NOT_AN_IMAGE if found.startswith("no picture") else Reason.UNSUPPORTED
        missing = Fetched(link, None, reason, found, status=0, final_url="", attempts=0, ms=0, at=time.time())
        return [*judged_row(Verdict(missing, None, reason, found)), None, None, None]
    place, body = found
    verdict = folders.judged(link, body, rules)
    if verdict.picture is not None and verdict.picture.body is not body and verdict.picture.body != body:
        detail = f"{verdict.source_format} is only kept as another file: import it without --in-place"
        verdict = dataclasses.replace(verdict, picture=None, reason=Reason.UNSUPPORTED, detail=detail)
    if verdict.picture is None:
        return [*judged_row(verdict), None, None, None]
    return [*judged_row(verdict), place.name, place.offset, place.length]


def _picture(fields: dict[str, Field]) -> Field | str:
    """The sample's picture, or why there is not one."""
    for name in PICTURES:
        if name in fields:
            return fields[name]
    others = [name for name in fields if name.rpartition(".")[2] in PICTURES]
    if len(others) == 1:
        return fields[others[0]]
    held = _utf8(", ".join(sorted(fields)))
    return f"has {len(others)} pictures and none of them is the sample: {held}" if others else f"no picture: {held}"


def _labels(fields: dict[str, Field]) -> list[str]:
    if "cls" in fields:
        return list(filter(None, [_text(fields["cls"])]))
    if "json" in fields:
        try:
            value = json.loads(fields["json"][1])
            value = value if isinstance(value, dict) else {}
            found = value.get("labels", value.get("label"))
            if found is not None:
                return [_utf8(str(label)) for label in (found if isinstance(found, list) else [found])]
        except (ValueError, RecursionError):  # too deep for the parser, or for str
            pass
    text = _text(fields["txt"]) if "txt" in fields else ""
    return [text] if text and len(text) <= LONGEST_LABEL and "\n" not in text else []


def _text(value: Field) -> str:
    return value[1].decode("utf-8", "replace").strip()


def _utf8(text: str) -> str:
    """The text, with ? for lone surrogates: names in tars and strings in json may hold some, an index cannot."""
    return text.encode("utf-8", "replace").decode()


def _commit(dataset: str, unit: int, indexed: Indexed, first_row: int, seen: keys.Seen) -> Commit:
    """Give the rows their keys and numbers, then write plan, index and commit; returns the commit that counts."""
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
