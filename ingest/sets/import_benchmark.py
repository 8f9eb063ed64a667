"""An evaluation set on disk -> two datasets, OUT/train and OUT/eval: the splits that the paper used, counted first.

Nothing is written before both splits are found and their pictures and classes counted. One call makes both, so that
labels mean the same in both. A set is taken whole, since tall or huge pictures count in the paper's numbers, too: of
`filter` only decode_check, resize and quality apply.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingest.run import IngestResult, Progress
from ingest.scratch import scratch_folder
from ingest.sets import folders, layouts
from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts import Found
from ingest.sets.pictures import Picture
from shards import folder_kind, store
from shards.pixels import MAX_PIXELS


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of importing a set; splits that were not begun because of a stop are missing."""

    name: str
    layout: str  # that was recognised
    classes: int
    counted: bool  # checked against the table; else the set was taken as it is
    differs: tuple[str, ...]  # where it differs from the table, if it was taken as it is
    splits: tuple[IngestResult, ...]  # train, then eval

    @property
    def lost(self) -> int:
        """The number of pictures that were rejected; the indexes have their reasons."""
        return sum(sum(split.reasons.values()) for split in self.splits)

    @property
    def stopped(self) -> bool:
        return len(self.splits) < 2 or any(split.stopped for split in self.splits)


def run(
    config: folders.Config,
    benchmark: Benchmark,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BenchmarkResult:
    """Import what is left of both splits. Raises ValueError for an unknown layout, for files that cannot be read and,
    unless `config.counts` is "any", for numbers of pictures or classes that differ from the table."""
    store.require(source=config.source, out=config.out)
    if not store.is_local(config.source):
        raise ValueError(f"{config.source}: sets are imported from local disks: copy it there")
    folder_kind.require(config.out, "two datasets, train and eval,", "study")
    for split in ("train", "eval"):
        folder_kind.require(store.join(config.out, split), "a dataset", "dataset")
    rules = dataclasses.replace(config.filter, min_side=1, max_aspect=math.inf, max_pixels=MAX_PIXELS)
    with scratch_folder(config.scratch) as scratch:
        found, layout = layouts.find(store.local_path(config.source), benchmark, scratch.folder)
        _check_labels(benchmark, found)
        differs = differences(benchmark, found)
        if differs and config.counts == "table":
            raise ValueError(
                f"{config.source}: is not {benchmark.name} as the paper has it: {'; '.join(differs)}: complete it, or "
                "take it as it is with --counts any"
            )
        planned = []  # both, before either is imported, so that a bad name or setting is refused at once
        for split, name, pictures in (
            ("train", f"{benchmark.name}-train", found.train),
            ("eval", benchmark.name, found.eval),
        ):
            part = dataclasses.replace(
                config, out=store.join(config.out, split), name=name, filter=rules, set="", counts="table"
            )
            planned.append(folders.plan(part, pictures, found.classes))
        results: list[IngestResult] = []
        both = _Both(progress or (lambda part: None), found, config.unit)
        for part in planned:
            results.append(folders.make(part, both, stop))
            if results[-1].stopped:
                break
            both.finished(results[-1])
    return BenchmarkResult(
        name=benchmark.name,
        layout=layout,
        classes=len(found.classes),
        counted=config.counts == "table",
        differs=tuple(differs),
        splits=tuple(results),
    )


def differences(benchmark: Benchmark, found: Found) -> list[str]:
    """The counts of a set that differ from the table, such as "9 classes, not 10"."""
    counts = (
        ("pictures in " + benchmark.train_split, len(found.train), benchmark.train),
        ("pictures in " + benchmark.eval_split, len(found.eval), benchmark.eval),
        ("classes", len(found.classes), benchmark.classes),
    )
    return [f"{is_:,} {what}, not {must:,}" for what, is_, must in counts if is_ != must]


def _check_labels(benchmark: Benchmark, found: Found) -> None:
    """Raises ValueError for an empty split, two classes of one name, or a label that is not a class."""
    twice = [name for name, times in Counter(found.classes).items() if times > 1]
    if twice:
        raise ValueError(f"{benchmark.name}: two classes are called {twice[0]!r}: get the set again")
    for split, pictures in ((benchmark.train_split, found.train), (benchmark.eval_split, found.eval)):
        if not pictures:
            raise ValueError(f"{benchmark.name}: {split} has no pictures: get the set again")
        odd = {picture.label for picture in pictures} - set(found.classes)
        if odd:
            raise ValueError(
                f"{benchmark.name}: {split} has the label {min(odd)!r}, which is none of its {len(found.classes):,} "
                "classes: get the set again"
            )


class _Both:
    """Reports the progress of the two splits, one after the other, as progress of both."""

    def __init__(self, progress: Callable[[Progress], None], found: Found, unit: int) -> None:
        splits: tuple[Sequence[Picture], ...] = (found.train, found.eval)
        self._progress = progress
        self._whole = {
            "links": sum(map(len, splits)),
            "units": sum(-(-len(pictures) // unit) for pictures in splits),
        }
        self._before: list[IngestResult] = []
        self._links = self._bytes = 0  # done by this run in earlier splits
        self._newest = (0, 0)

    def finished(self, split: IngestResult) -> None:
        self._before.append(split)
        self._links, self._bytes = self._newest

    def __call__(self, part: Progress) -> None:
        reasons = sum((Counter(split.reasons) for split in self._before), Counter(part.reasons))
        self._newest = (self._links + part.done_now, self._bytes + part.fetched_bytes)
        self._progress(
            dataclasses.replace(
                part,
                **self._whole,
                done=part.done + sum(split.links for split in self._before),
                units_done=part.units_done + sum(split.units_done for split in self._before),
                kept=part.kept + sum(split.kept for split in self._before),
                reasons=dict(sorted(reasons.items())),
                seconds=part.seconds + sum(split.seconds for split in self._before),
                done_now=self._newest[0],
                fetched_bytes=self._newest[1],
            )
        )


def lines(result: BenchmarkResult) -> list[str]:
    """Lines to show in addition to the results of both splits."""
    shown = [f"{result.name}: laid out as {result.layout}; {result.classes:,} classes"]
    if result.differs:
        shown.append(f"taken as it is (--counts any): it has {'; '.join(result.differs)}")
    for split, part in zip(("train", "eval"), result.splits):
        if part.reasons:
            shown.append(
                f"{split}: {part.kept:,} of {part.links:,} pictures kept: results on it are not the paper's set's "
                f"(xtra peek {part.dataset} --reason {max(part.reasons, key=part.reasons.__getitem__)})"
            )
    return shown
