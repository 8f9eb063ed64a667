"""An evaluation set on disk -> two datasets, OUT/train and OUT/eval: the splits that the paper used, counted first.

Nothing is written before both splits are found and their pictures and classes counted; the one call makes both, so that
labels mean the same in both. A set is taken whole: of `filter`, only what a stored picture looks like counts
(decode_check, resize, quality), as a picture that is tall or huge is in the paper's numbers too.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingest import layouts, sets
from ingest.benchmarks import Benchmark
from ingest.layouts import Found
from ingest.pictures import Picture
from ingest.run import IngestResult, Progress
from ingest.scratch import scratch_folder
from shards import store
from shards.image import MAX_PIXELS


@dataclass(frozen=True)
class BenchmarkResult:
    """What came of a set; splits that a stop kept from being begun are missing."""

    name: str
    layout: str  # as it was recognised
    classes: int
    counted: bool  # against the table; else the set was taken as it is
    differs: tuple[str, ...]  # where it differs from the table, when taken as it is
    splits: tuple[IngestResult, ...]  # train, then eval

    @property
    def lost(self) -> int:
        """Pictures of the source that are not in the datasets, each with its reason in the index."""
        return sum(sum(split.reasons.values()) for split in self.splits)

    @property
    def stopped(self) -> bool:
        return len(self.splits) < 2 or any(split.stopped for split in self.splits)


def run(
    config: sets.Config,
    benchmark: Benchmark,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BenchmarkResult:
    """Do what is left of both splits. Raises ValueError for a layout that is none of the set's, for what cannot be read
    and, unless `config.counts` is "any", for pictures or classes that are more or fewer than the table says."""
    if "://" in config.source and not config.source.startswith("file://"):
        raise ValueError(f"{config.source}: sets are imported from local disks: copy it there")
    rules = dataclasses.replace(config.filter, min_side=1, max_aspect=math.inf, max_pixels=MAX_PIXELS)
    with scratch_folder(config.scratch) as scratch:
        found, layout = layouts.find(store.local_path(config.source), benchmark, scratch.folder)
        _check_labels(benchmark, found)
        differs = differences(benchmark, found)
        if differs and config.counts == "table":
            raise ValueError(
                f"{config.source}: {benchmark.name} {' and '.join(differs)}: complete it, give another copy, or take "
                "it as it is with --counts any"
            )
        results: list[IngestResult] = []
        for split, pictures in (("train", found.train), ("eval", found.eval)):
            name = benchmark.name if split == "eval" else f"{benchmark.name}-train"
            part = dataclasses.replace(
                config, out=store.join(config.out, split), name=name, filter=rules, set="", counts="table"
            )
            told = progress and _both(progress, found, config.unit, results)
            results.append(sets.make(part, pictures, found.classes, told, stop))
            if results[-1].stopped:
                break
    return BenchmarkResult(
        name=benchmark.name,
        layout=layout,
        classes=len(found.classes),
        counted=config.counts == "table",
        differs=tuple(differs),
        splits=tuple(results),
    )


def differences(benchmark: Benchmark, found: Found) -> list[str]:
    """Where a set has other counts than the table, each in words with both numbers."""
    counts = (
        ("pictures in " + benchmark.train_split, len(found.train), benchmark.train),
        ("pictures in " + benchmark.eval_split, len(found.eval), benchmark.eval),
        ("classes", len(found.classes), benchmark.classes),
    )
    return [f"has {is_:,} {what} where the paper has {must:,}" for what, is_, must in counts if is_ != must]


def _check_labels(benchmark: Benchmark, found: Found) -> None:
    """Raises ValueError for an empty split, two classes of one name, or a label that is no class."""
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


def _both(
    progress: Callable[[Progress], None], found: Found, unit: int, finished: Sequence[IngestResult]
) -> Callable[[Progress], None]:
    """Progress of one split, told as that of both."""
    splits: tuple[Sequence[Picture], ...] = (found.train, found.eval)
    before = tuple(finished)

    def tell(part: Progress) -> None:
        reasons = sum((Counter(result.reasons) for result in before), Counter(part.reasons))
        progress(
            dataclasses.replace(
                part,
                links=sum(map(len, splits)),
                units=sum(-(-len(pictures) // unit) for pictures in splits),
                done=part.done + sum(result.links for result in before),
                units_done=part.units_done + sum(result.units_done for result in before),
                kept=part.kept + sum(result.kept for result in before),
                reasons=dict(sorted(reasons.items())),
            )
        )

    return tell


def lines(result: BenchmarkResult) -> list[str]:
    """What people must know of it, beside the accounts of both splits."""
    said = [f"{result.name}: laid out as {result.layout}; {result.classes:,} classes"]
    if result.differs:
        said.append(f"taken as it is (--counts any): it {' and '.join(result.differs)}")
    for split, part in zip(("train", "eval"), result.splits):
        if part.reasons:
            said.append(
                f"{split}: {part.kept:,} of {part.links:,} pictures kept: results on it are not the paper's set's "
                f"(xtra peek {part.dataset} --reason {max(part.reasons, key=part.reasons.__getitem__)})"
            )
    return said
