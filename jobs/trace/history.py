"""The data that each step of a run saw, read from its folder: stretches of the stream, by attempt.

The order is a pure function of what a run folder records; no log of samples exists or is needed. Only the first and
the last metrics of an attempt are read: in between, every step has the attempt's batch size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from shards import store
from shards.stream import Order

READERS = 16


@dataclass(frozen=True)
class Stretch:
    """Positions start .. stop-1 of the stream, seen by one attempt of a run in steps of `batch` samples; the last step
    may be shorter."""

    run: str
    attempt: int | None  # None: the attempt left no record
    start: int
    stop: int
    batch: int
    world: int | None
    manifest: str  # digest
    first_step: int = 0  # steps of the run before it
    undone: bool = False  # a later attempt restarted before it: no checkpoint includes these steps

    @property
    def steps(self) -> int:
        return -(-(self.stop - self.start) // self.batch)


@dataclass(frozen=True)
class Part:
    """One dataset version that a run read."""

    dataset: str
    digest: str
    of_4096: int  # its share of the stream


@dataclass(frozen=True)
class Substitute:
    """A sample that did not decode, and the one that was shown in its place."""

    run: str
    attempt: int
    samples_seen: int  # after that step
    shard: str  # URL of the tar
    key: str
    shown: str


@dataclass(frozen=True)
class History:
    """The data of a run's steps; the `stretches` that are not undone are contiguous from position 0."""

    run: str
    order: Order
    parts: Mapping[str, tuple[Part, ...]]  # by the digest of manifest or mixture
    mixed: frozenset[str]  # digests of mixtures
    stretches: tuple[Stretch, ...]
    checkpoints: tuple[int, ...]  # samples seen by each
    substitutes: tuple[Substitute, ...]
    remarks: tuple[str, ...]


def is_run(url: str) -> bool:
    return store.exists(store.join(url, "config.json")) and store.exists(store.join(url, "run.json"))


def runs_in(url: str) -> list[str]:
    """The run itself, or every run directly in the folder."""
    url = url.rstrip("/")
    inside = [] if is_run(url) else [store.join(url, name) for name in store.names(url)]
    return [url] if is_run(url) else [folder for folder in inside if is_run(folder)]


def read_history(run: str) -> History:
    """Read a run folder, and those of its trunks. Raises ValueError naming a file that is damaged or missing."""
    config, info = (_object(store.join(run, name)) for name in ("config.json", "run.json"))
    order = Order(**config.get("order", {}))
    parts, mixed = dict[str, tuple[Part, ...]](), set[str]()
    found, remarks = list[Stretch](), list[str]()
    metrics, events = (_by_attempt(run, kind) for kind in ("metrics", "events"))
    for number in sorted({_number(name) for name in _jsons(run, "attempts")}):
        facts = info | _object(store.join(run, "attempts", f"{number:06d}.json"))
        parts[facts["manifest"]] = _parts(facts)
        mixed |= {facts["manifest"]} if "mixture" in facts else set()
        stretch, remark = _stretch(run, number, facts, config, metrics.get(number, []), events.get(number, []))
        found += [stretch] if stretch else []
        remarks += [remark] if remark else []
    checkpoints = _checkpoints(run)
    trunk, remark = _trunk(run, config, found)
    batch = config.get("batch", 1)  # imported weights have no batch and no attempts
    lineage = _joined(run, found, batch, info["manifest"], _until(trunk, found[0].start) if trunk else [])
    if info["manifest"]:
        parts.setdefault(info["manifest"], _parts(info))
    mixed |= {info["manifest"]} if "mixture" in info else set()
    remarks += [remark] if remark else []
    names = [name for of_one in events.values() for name in of_one]
    substitutes = (*(trunk.substitutes if trunk else ()), *_substitutes(run, names))
    if trunk:
        parts, mixed, remarks = {**trunk.parts, **parts}, mixed | trunk.mixed, [*trunk.remarks, *remarks]
    return History(run, order, parts, frozenset(mixed), lineage, checkpoints, substitutes, tuple(remarks))


def _object(url: str) -> dict[str, Any]:
    try:
        value = store.read_json(url)
    except store.Missing:
        raise ValueError(f"{url}: is missing: give a run folder as xtra train leaves it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{url}: is damaged: give a run folder as xtra train leaves it")
    return value


def _jsons(run: str, folder: str) -> list[str]:
    return [name for name in store.names(store.join(run, folder)) if name.endswith(".json")]


def _number(name: str) -> int:
    return int(name.partition("-")[0].removesuffix(".json"))


def _by_attempt(run: str, kind: str) -> dict[int, list[str]]:
    """Each attempt's files of metrics or events, in order."""
    names = sorted(name for name in store.names(store.join(run, kind)) if name.endswith(".jsonl"))
    return {number: [store.join(run, kind, name) for name in of_one] for number, of_one in groupby(names, _number)}


def _parts(facts: Mapping[str, Any]) -> tuple[Part, ...]:
    if "mixture" not in facts:
        return (Part(facts["dataset"], facts["manifest"], 4096),)
    return tuple(Part(part["dataset"], part["manifest"], part["of_4096"]) for part in facts["mixture"])


def _rows(url: str) -> list[dict[str, Any]]:
    """The complete lines of a file; a torn one is left out."""
    rows = []
    for line in store.read(url).decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _stretch(
    run: str, number: int, facts: Mapping[str, Any], config: Mapping[str, Any], metrics: list[str], events: list[str]
) -> tuple[Stretch | None, str]:
    """The stretch that an attempt recorded, and a remark for users."""
    first = next(iter(_rows(metrics[0])), None) if metrics else None
    last = next(iter(reversed(_rows(metrics[-1]))), None) if metrics else None
    if first is None or last is None:
        return None, f"{run}: attempt {number} recorded no step"
    world = facts.get("world") or 1
    events = [url for url in events if int(url[-12:-6]) % world == 0]  # rank 0's, which record how an attempt ended
    began = [row for row in (_rows(events[0]) if events else ()) if row.get("event") in ("start", "resume")]
    # Without the event: seconds and samples/s are counted from the attempt's start.
    before = first["samples_seen"] - round(first["seconds"] * first["samples_per_s"])
    start = began[0].get("samples_seen", before) if began else before
    ended = any(row.get("event") in ("stop", "done") for url in events[-1:] for row in _rows(url))
    seen = f"{last['samples_seen']:,} samples"
    remark = f"{run}: attempt {number} has no recorded end: steps after {seen}, at most 30 s of them, are missing"
    stretch = Stretch(
        run=run,
        attempt=number,
        start=start,
        stop=last["samples_seen"],
        batch=first["samples_seen"] - start,
        world=facts.get("world"),
        manifest=facts["manifest"],
    )
    assert stretch.batch > 0, f"{run}: attempt {number} has a step of {stretch.batch} samples"
    return stretch, "" if ended else remark


def _trunk(run: str, config: Mapping[str, Any], found: Sequence[Stretch]) -> tuple[History | None, str]:
    """The history of the run that this one branches from: at the path in its config, or next to this run."""
    trunk = str(config.get("branch") or "").rstrip("/")
    if not (trunk and found and found[0].start):
        return None, ""
    sibling = store.join(run.rstrip("/").rpartition("/")[0] or ".", trunk.rpartition("/")[2])
    there = next((url for url in (trunk, sibling) if is_run(url)), None)
    if there is not None:
        return read_history(there), ""
    return None, f"{trunk}: the trunk is gone; its {found[0].start:,} samples follow from the branch's own order"


def _until(trunk: History, stop: int) -> list[Stretch]:
    """The stretches that a branch's weights saw before it began."""
    theirs = [stretch for stretch in trunk.stretches if not stretch.undone and stretch.start < stop]
    return [dataclasses.replace(stretch, stop=min(stretch.stop, stop)) for stretch in theirs]


def _joined(
    run: str, found: Sequence[Stretch], batch: int, manifest: str, lineage: list[Stretch]
) -> tuple[Stretch, ...]:
    """The lineage followed by the stretches, with steps numbered; parts that later attempts redid are marked undone."""
    undone: list[Stretch] = []
    for stretch in found:
        for older in [s for s in lineage if s.stop > stretch.start]:
            lineage.remove(older)
            kept, lost = dataclasses.replace(older, stop=stretch.start), max(older.start, stretch.start)
            lineage += [kept] if kept.start < kept.stop else []
            steps = older.first_step + -(-(lost - older.start) // older.batch)
            undone.append(dataclasses.replace(older, start=lost, first_step=steps, undone=True))
        end = lineage[-1].stop if lineage else 0
        if end < stretch.start:  # not recorded, but the later attempt proves that it was trained
            lineage.append(Stretch(run, None, end, stretch.start, batch, None, manifest, _steps(lineage)))
        lineage.append(dataclasses.replace(stretch, first_step=_steps(lineage)))
    return (*lineage, *undone)


def _steps(lineage: Sequence[Stretch]) -> int:
    return lineage[-1].first_step + lineage[-1].steps if lineage else 0


def _checkpoints(run: str) -> tuple[int, ...]:
    folder = store.join(run, "checkpoints")
    names = [name for name in store.names(folder) if name.isdigit()]
    return tuple(int(name) for name in names if store.exists(store.join(folder, name, "COMMIT.json")))


def _substitutes(run: str, names: Sequence[str]) -> Iterator[Substitute]:
    def read(url: str) -> list[Substitute]:
        body = store.read(url)
        if b'"substitute"' not in body:
            return []
        rows = [row for row in _rows(url) if row.get("event") == "substitute"]
        number = _number(url.rpartition("/")[2])
        return [Substitute(run, number, row["samples_seen"], row["shard"], row["key"], row["shown"]) for row in rows]

    with ThreadPoolExecutor(READERS, thread_name_prefix="events") as pool:
        for found in pool.map(read, names):
            yield from found
