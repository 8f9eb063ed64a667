"""Labelled sets on disk -> the same dataset format as an ingest: plan, tars, indexes, commits, a version.

`ingest.sets.sources` finds the pictures of a source. They become links in sorted order; the url of a link is its path
relative to the source (`shard.tar/KEY.jpg` inside tars).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import readme
from ingest.criteria import FilterConfig
from ingest.filter import judge
from ingest.isolate import Judge
from ingest.record import Fetched, Link, Reason, Verdict
from ingest.run import IngestResult, Progress
from ingest.scratch import holding_a_unit, scratch_folder
from ingest.sets.config import MAX_BYTES, ImportConfig as Config
from ingest.sets.pictures import Missing, Picture, links
from ingest.sets.sources import How, class_names, find
from ingest.unit import UnitWriter
from shards import folder_kind, manifest, store
from shards.dataset import (
    PLAN_SCHEMA,
    Commit,
    DatasetInfo,
    committed_units,
    planned_units,
    read_commit,
    write_info,
    write_plan,
)
from shards.pixels import IMAGE_BUILD

SHOWN = 6  # classes in a line
JudgeFn = Callable[[Fetched, FilterConfig], Verdict]  # `judge`, or a `Judge`
SLICE = 256  # pictures between two looks at `stop` and two reports


def run(
    config: Config,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestResult:
    """Import the units that have no commit, then make a version. When `stop` returns True, it ends soon and cleanly:
    the unit in progress is dropped, and a rerun does the rest. Raises ValueError for a source, a store or a setting
    that cannot work."""
    store.require(source=config.source, out=config.out)
    refuse_out(config)
    found = find(config.source, config.classes, how(config))
    classes = _classes(config, found.pictures)
    result = make(plan(config, found.pictures, classes), progress, stop)
    notes = [classes_note(classes), *found.remarks, result.note]
    return dataclasses.replace(result, note="; ".join(filter(None, notes)))


def refuse_out(config: Config) -> None:
    """Raises ValueError if `out` is inside the source or is a folder of another kind, and if the source is a dataset,
    run or export."""
    folder_kind.require(config.out, "a dataset", "dataset")
    if not store.is_local(config.source) or not store.local_path(config.source).is_dir():
        return
    held = folder_kind.look(config.source)
    if held is not None and held.kind in ("dataset", "run", "export"):
        raise ValueError(f"{config.source}: holds {held}, not pictures to import: check SOURCE")
    if store.is_local(config.out):
        source, out = store.local_path(config.source).resolve(), store.local_path(config.out).resolve()
        if out.is_relative_to(source):
            raise ValueError(f"{config.out}: is in SOURCE, {config.source}, which stays as it is: give another --out")


def how(config: Config) -> How:
    return How(config.label_from, config.labels, config.split)


def classes_note(classes: Sequence[str]) -> str:
    """A note of how many classes were found, with the first few names."""
    if not classes:
        return "no classes: pictures without labels"
    more = ", …" if len(classes) > SHOWN else ""
    return f"{len(classes):,} class{'es' if len(classes) > 1 else ''}: {', '.join(classes[:SHOWN])}{more}"


@dataclass(frozen=True)
class Planned:
    """A dataset to be made from the pictures that were found."""

    config: Config
    pictures: Sequence[Picture]
    entries: list[Link]  # one for each picture
    units: list[slice]  # of pictures and entries
    info: DatasetInfo


def plan(config: Config, pictures: Sequence[Picture], classes: tuple[str, ...]) -> Planned:
    """Plan the dataset without writing anything. Raises ValueError if it was begun with other pictures or settings."""
    entries = links(pictures)
    judges = judged_by(config)
    units = [slice(at, at + config.unit) for at in range(0, len(entries), config.unit)]
    info = DatasetInfo(
        list_name=config.name or set_name(config.source),
        list_sha256=_listing_sha256(pictures),
        units=len(units),
        unit=config.unit,
        config_digest=hashlib.sha256(json.dumps(judges, sort_keys=True).encode()).hexdigest(),
        image_build=IMAGE_BUILD,
        classes=classes,
    )
    if store.exists(store.join(config.out, "dataset.json")):
        write_info(config.out, info)  # compares only, as there is one
    return Planned(config, pictures, entries, units, info)


def judged_by(config: Config) -> dict[str, Any]:
    """The settings that decide what a unit contains; a rerun must have the same. A new one is left out at its default,
    as `max_bytes` is: older datasets did not record it."""
    caps = {"max_bytes": config.max_bytes} if config.max_bytes != MAX_BYTES else {}
    return dataclasses.asdict(config.filter) | caps


def make(
    planned: Planned,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> IngestResult:
    """Import what was planned, as `run` does."""
    begun = time.monotonic()
    config, entries, units = planned.config, planned.entries, planned.units
    with scratch_folder(config.scratch) as scratch:
        format_ = _begin(planned)
        with holding_a_unit(scratch.folder):
            done = _units(planned, format_, scratch.folder, progress, stop)
    made = None
    if len(done) == len(units):
        made = manifest.make_version(config.out, "import")
        assert made.links == len(entries), f"{made.links} links in the version, {len(entries)} pictures in the set"
    note = readme.write(made) if made else ""
    return result_of(config.out, done, len(units), len(entries), made, time.monotonic() - begun, note)


def result_of(
    dataset: str,
    done: Mapping[int, Commit],
    units: int,
    links: int,
    made: manifest.Manifest | None,
    seconds: float,
    note: str,
) -> IngestResult:
    """What an import of so many units and links has come to, by the commits that are there."""
    return IngestResult(
        dataset=dataset,
        links=links,
        kept=sum(commit.kept for commit in done.values()),
        reasons=dict(sorted(reasons_of(done).items())),
        units=units,
        units_done=len(done),
        version=made.digest if made else None,
        seconds=seconds,
        samples=made.samples if made else 0,
        deselected=dict(made.deselected) if made else {},  # by a selection since the first import
        note=note,
    )


def _units(
    planned: Planned,
    format_: int,
    scratch: Path,
    progress: Callable[[Progress], None] | None,
    stop: Callable[[], bool],
) -> dict[int, Commit]:
    """The commits of all units, including those of earlier runs; some are missing when stopped."""
    config, entries, units = planned.config, planned.entries, planned.units
    done = {unit: read_commit(config.out, unit) for unit in committed_units(config.out)}
    begun, earlier = time.monotonic(), _sums(done)

    def report(writer: UnitWriter | None = None) -> None:
        if progress is None:
            return
        reasons = reasons_of(done) + Counter({str(r): n for r, n in writer.reasons.items()} if writer else {})
        kept = sum(commit.kept for commit in done.values()) + (writer.kept if writer else 0)
        total = kept + reasons.total()
        links_before, bytes_before = earlier
        progress(
            Progress(
                links=len(entries),
                units=len(units),
                done=total,
                units_done=len(done),
                kept=kept,
                reasons=dict(sorted(reasons.items())),
                fetched_bytes=_sums(done)[1] - bytes_before + (writer.spooled if writer else 0),
                seconds=time.monotonic() - begun,
                done_now=total - links_before,
            )
        )

    for unit, part in enumerate(units):
        if unit in done:
            continue
        commit = _unit(config, unit, format_, planned.pictures[part], entries[part], scratch, report, stop)
        if commit is None:
            break
        done[unit] = commit
        report()
    return done


def _sums(done: dict[int, Commit]) -> tuple[int, int]:
    """(links, bytes of tars)."""
    return sum(commit.links for commit in done.values()), sum(commit.tar_bytes for commit in done.values())


def reasons_of(done: Mapping[int, Commit]) -> Counter[str]:
    return sum((Counter(commit.reasons) for commit in done.values()), Counter())


def _begin(planned: Planned) -> int:
    """Write dataset.json first, so that nothing is planned into another set's dataset; then the missing plans. Returns
    the dataset's format."""
    out = planned.config.out
    store.check_writable(out)
    format_ = write_info(out, planned.info).format
    there = set(planned_units(out))
    for unit, part in enumerate(planned.units):
        if unit not in there:
            rows = [dataclasses.asdict(link) for link in planned.entries[part]]
            write_plan(out, unit, pa.Table.from_pylist(rows, PLAN_SCHEMA))
    return format_


def _unit(
    config: Config,
    unit: int,
    format_: int,
    pictures: Sequence[Picture],
    entries: list[Link],
    scratch: Path,
    report: Callable[[UnitWriter], None],
    stop: Callable[[], bool],
) -> Commit | None:
    """Import one unit and commit it. When stopped before that, returns None and leaves nothing behind."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        closing(UnitWriter(config.out, unit, entries, Path(folder), format_=format_)) as writer,
        closing(Judge()) as judging,
        ThreadPoolExecutor(config.threads, thread_name_prefix="judge") as pool,
    ):
        for at in range(0, len(entries), SLICE):
            if stop():
                return None
            part = slice(at, at + SLICE)
            for verdict in pool.map(
                lambda picture, link: _judge(picture, link, config, judging), pictures[part], entries[part]
            ):
                writer.add(verdict)
            report(writer)
        return writer.seal()


def _judge(picture: Picture, link: Link, config: Config, judging: JudgeFn) -> Verdict:
    if isinstance(picture, Missing):
        return unread(link, picture.why)
    if picture.bytes_before_reading > config.max_bytes:
        return too_large(link, picture.bytes_before_reading, config.max_bytes)
    body = picture.read()
    if len(body) > config.max_bytes:
        return too_large(link, len(body), config.max_bytes)
    return judged(link, body, config.filter, judging)


def too_large(link: Link, size: int, most: int) -> Verdict:
    """The verdict on a picture that is not read because it has more than `most` bytes."""
    why = f"{size} bytes, more than {most}"
    missing = Fetched(link, None, Reason.TOO_LARGE, why, status=0, final_url="", attempts=0, ms=0, at=time.time())
    return Verdict(missing, None, Reason.TOO_LARGE, why)


def unread(link: Link, why: str) -> Verdict:
    """The verdict on a sample of a tar that has no picture to judge."""
    reason = Reason.NOT_AN_IMAGE if why.startswith("no picture") else Reason.UNSUPPORTED
    missing = Fetched(link, None, reason, why, status=0, final_url="", attempts=0, ms=0, at=time.time())
    return Verdict(missing, None, reason, why)


def judged(link: Link, body: bytes, rules: FilterConfig, judging: JudgeFn = judge) -> Verdict:
    """The verdict on a picture of a set, which did not come from the web."""
    fetched = Fetched(link, body, None, "", status=0, final_url="", attempts=0, ms=0, at=time.time())
    verdict = judging(fetched, rules)
    if verdict.reason is Reason.PLACEHOLDER and verdict.decode_checked:
        # On the web a picture of one colour is a placeholder; in a set it may be the sea. It did decode.
        verdict = judging(fetched, dataclasses.replace(rules, decode_check=False))
        verdict = dataclasses.replace(verdict, decode_checked=True)
    return verdict


def set_name(source: str) -> str:
    """The folder's name, or the tars' name without numbers: `cifar10-train-*.tar` gives `cifar10-train`."""
    name = Path(store.local_path(source)).absolute().name.removesuffix(".tar")
    return re.sub(r"[-_.]?[*?\[].*$|[-_.]\d+$", "", name) or name


def _classes(config: Config, pictures: Sequence[Picture]) -> tuple[str, ...]:
    if config.classes:
        return tuple(class_names(config.classes).values())
    labels = {label for picture in pictures for label in picture.labels}
    return tuple(sorted(labels, key=int if all(label.isdecimal() for label in labels) else None))


def _listing_sha256(pictures: Sequence[Picture]) -> str:
    """The sha256 of names, labels and sizes in order, which must be the same in a rerun."""
    digest = hashlib.sha256()
    for picture in pictures:
        label = picture.label if len(picture.labels) < 2 else list(picture.labels)
        digest.update(json.dumps([picture.name, label, picture.size]).encode() + b"\n")
    return digest.hexdigest()
