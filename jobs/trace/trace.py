"""`xtra trace`: the whole history of some samples, in a dataset and in the runs that read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ingest.lists import Columns, list_sha256, row_places
from ingest.select import Exclusion, parse
from jobs.trace import lives as of_datasets
from jobs.trace.config import Config
from jobs.trace.history import History, read_history, runs_in
from jobs.trace.lives import Life
from jobs.trace.seen import Data, RunSaw, data_of, saw
from shards import store
from shards.dataset import read_info
from shards.manifest import read_manifest

T = TypeVar("T")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trace:
    """Everything found; `unknown` are words that match no link in any dataset."""

    lives: tuple[Life, ...]
    runs: tuple[RunSaw, ...]
    unknown: tuple[str, ...]
    problems: tuple[str, ...]  # datasets and runs that could not be read, one line each


def run(config: Config, progress: Progress = lambda done, total, what: None) -> Trace:
    """Trace samples. Raises ValueError if none are given, or the place is neither a dataset nor a folder of runs."""
    what = _asked(config)
    place = config.place.rstrip("/") or config.place
    store.require(place=place)
    of_dataset = store.exists(store.join(place, "dataset.json"))
    folders = [] if of_dataset else runs_in(place)
    if not (of_dataset or folders):
        raise ValueError(
            f"{place}: is neither a dataset nor a run, and contains no run: give an --out of xtra ingest or train"
        )
    for folder in config.runs:
        found = runs_in(folder)
        if not found:
            raise ValueError(f"{folder}: contains no run (no run.json in it or one folder below): check --runs")
        folders += [run for run in found if run not in folders]
    problems: list[str] = []
    histories = [h for folder in folders if (h := _tried(partial(read_history, folder), problems)) is not None]
    datasets = [place] if of_dataset else _datasets(histories)
    found = [
        life
        for dataset in datasets
        for life in _tried(partial(_lives, dataset, what, config, progress), problems) or ()
    ]
    data: dict[tuple[str, object], Data] = {}
    runs = []
    for history in histories:
        needed = partial(_needed, history, place if of_dataset else None, found, data)
        if (mine := _tried(needed, problems)) is not None:
            runs.append(saw(history, mine, found, progress))
    known = {word for life in found for word in life.named_by}
    unknown = tuple(line for line in what.lines if line not in known)
    return Trace(tuple(found), tuple(runs), unknown, tuple(problems))


def _asked(config: Config) -> Exclusion:
    lines = list(config.what)
    if config.file:
        try:
            lines += store.read(config.file).decode("utf-8", "replace").splitlines()
        except store.Missing:
            raise ValueError(f"{config.file}: there is no such file: check --file") from None
    what = parse(config.file or "xtra trace", "\n".join(lines))
    if not what.lines:
        raise ValueError("nothing to trace is given: give keys, URLs or sha256, or --file with one per line")
    return what


def _tried(work: Callable[[], T], problems: list[str]) -> T | None:
    """None, and a problem, if `work` cannot read a dataset or run: the others are still traced."""
    try:
        return work()
    except ValueError as error:
        problems.append(" ".join(str(error).split()))
        return None


def _datasets(histories: Sequence[History]) -> list[str]:
    return sorted({part.dataset for history in histories for parts in history.parts.values() for part in parts})


def _lives(dataset: str, what: Exclusion, config: Config, progress: Progress) -> list[Life]:
    info = read_info(dataset)
    found = of_datasets.with_versions(dataset, of_datasets.find(dataset, what, progress))
    if not config.urls:
        return found
    if list_sha256(config.urls) != info.list_sha256:
        raise ValueError(
            f"{config.urls}: is not the list that {dataset} was ingested from: leave --urls out, or give that list"
        )
    where = row_places(config.urls, {life.row for life in found}, Columns(config.url_column))
    lines = [where.get(life.row) for life in found]
    return [dataclasses.replace(life, line=line and f"{line[0]}:{line[1]}") for life, line in zip(found, lines)]


def _needed(
    history: History, dataset: str | None, found: Sequence[Life], data: dict[tuple[str, object], Data]
) -> Mapping[str, Data]:
    """The data behind the digests of a history; runs with the same digest and order share it."""
    for digest, parts in history.parts.items():
        if (digest, history.order) in data:
            continue
        manifests = [read_manifest(f"{_home(part.dataset, part.digest, dataset)}@{part.digest}") for part in parts]
        weights = [part.of_4096 for part in parts]
        data[digest, history.order] = data_of(manifests, weights, history.order, digest in history.mixed, found)
    return {digest: data[digest, history.order] for digest in history.parts}


def _home(recorded: str, digest: str, given: str | None) -> str:
    """The given dataset if it has the version (it may have moved since the run), otherwise the recorded one."""
    has = given is not None and store.exists(store.join(given, "manifests", f"{digest}.json"))
    return given if given is not None and has else recorded
