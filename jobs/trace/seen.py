"""Which steps of which runs saw some samples."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.trace.history import History, Stretch, Substitute
from jobs.trace.lives import Life, sample_numbers
from shards.manifest import Manifest
from shards.stream import MixedSequence, Mixture, Order, Sequence as Order_, places_in_batches, ranks, sightings

MOST = 2_000_000  # sightings, about 300 bytes each; beyond it, only each sample's first


@dataclass(frozen=True, slots=True)
class Sighting:
    """One sample in one step. Steps are numbered from 1, everything else from 0."""

    run: str  # for a branch's steps before it began: its trunk
    attempt: int | None
    epoch: int | None  # of the sample's own dataset; None where it replaced another sample
    step: int
    samples_seen: int  # after the step, as in metrics, events and checkpoints
    batch: int  # samples in the step, over all ranks
    index: int | None  # in the global batch, which ranks divide
    rank: int | None
    rank_index: int | None
    undone: bool  # a later attempt restarted before this step: no checkpoint includes it
    instead: str | None = None  # the key that replaced it, if it did not decode
    in_place_of: str | None = None  # the key that it replaced, which did not decode


@dataclass(frozen=True)
class SeenBy:
    """One sample and one run."""

    dataset: str
    key: str
    url: str
    selected: bool  # by the version that the run read; if not, the run never shows it
    times: int  # how often it was shown, without undone steps
    checkpoints: tuple[int, ...]  # those trained on it, by their samples seen
    sightings: tuple[Sighting, ...]  # by step


@dataclass(frozen=True)
class RunSaw:
    """One run, and all traced samples, in their order."""

    run: str
    samples_seen: int
    steps: int
    checkpoints: dict[int, int]  # samples seen -> how many of the samples it has seen
    seen: tuple[SeenBy, ...]
    firsts_only: bool  # `sightings` and `times` stop at each sample's first sighting
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """The sequence behind a digest of a manifest or a mixture, and the traced samples' numbers in it."""

    sequence: Order_ | MixedSequence
    life_K: np.ndarray  # the life of each number: a life has several if the mixture has its dataset twice
    number_K: np.ndarray
    tars: Mapping[str, str]  # tar -> its dataset


def data_of(
    manifests: Sequence[Manifest], weights: Sequence[int], order: Order, mixed: bool, lives: Sequence[Life]
) -> Data:
    """`lives` may come from several datasets; those from none of the manifests are not selected."""
    life, number, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for manifest in manifests:
        mine = np.array([at for at, one in enumerate(lives) if one.dataset == manifest.dataset], np.int64)
        found = sample_numbers(manifest, [lives[at] for at in mine])
        life.append(mine[found >= 0])
        number.append(found[found >= 0] + first)
        first += manifest.samples
    mixture = Mixture(tuple(manifests), tuple(map(float, weights))) if mixed else None
    sequence = MixedSequence(mixture, order) if mixture else Order_(manifests[0].counts, order)
    tars = {shard.tar_url(manifest.dataset): manifest.dataset for manifest in manifests for shard in manifest.shards}
    return Data(sequence, np.concatenate(life), np.concatenate(number), tars)


def saw(
    history: History,
    data: Mapping[str, Data],
    lives: Sequence[Life],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> RunSaw:
    """Where a run saw the samples; `data` has every digest of its stretches."""
    epochs = sum((s.stop - s.start) / data[s.manifest].sequence.samples for s in history.stretches)
    brief = len(lives) * epochs > MOST
    found: list[list[Sighting]] = [[] for _ in lives]
    for number, stretch in enumerate(history.stretches):
        if not (brief and stretch.undone):
            for at, sighting in _in_stretch(stretch, data[stretch.manifest], brief):
                if not (brief and found[at]):
                    found[at].append(sighting)
        progress(number + 1, len(history.stretches), f"stretches of {history.run}")
    _put_substitutes(history, data, lives, found)
    selected = {at for stretch in history.stretches for at in data[stretch.manifest].life_K.tolist()}
    seen = tuple(
        _seen_by(history, life, at in selected, sorted(found[at], key=lambda s: (s.samples_seen, s.attempt or 0)))
        for at, life in enumerate(lives)
    )
    last = max((s for s in history.stretches if not s.undone), key=lambda s: s.stop, default=None)
    return RunSaw(
        run=history.run,
        samples_seen=last.stop if last else 0,
        steps=last.first_step + last.steps if last else 0,
        checkpoints={at: sum(at in one.checkpoints for one in seen) for at in history.checkpoints},
        seen=seen,
        firsts_only=brief,
        remarks=history.remarks,
    )


def _in_stretch(stretch: Stretch, data: Data, brief: bool) -> Iterator[tuple[int, Sighting]]:
    """(which sample, where) for every sighting in a stretch; brief: until each sample was shown once."""
    missing = set(data.life_K.tolist())
    for found in sightings(data.sequence, data.number_K, stretch.start, stretch.stop):
        into = found.position - stretch.start
        start = stretch.start + into // stretch.batch * stretch.batch
        stop = np.minimum(start + stretch.batch, stretch.stop)
        index = places_in_batches(data.sequence, found, start, stop)
        rank, rank_index = ranks(index, stop - start, stretch.world or 1)
        step = stretch.first_step + into // stretch.batch + 1
        columns = (found.epoch, step, stop, stop - start, index, rank, rank_index)
        at_n = data.life_K[found.asked].tolist()
        undone = np.full(len(found), stretch.undone)
        for at, *row in zip(at_n, *(column.tolist() for column in (*columns, undone))):
            sighting = Sighting(stretch.run, stretch.attempt, *row)
            yield at, sighting if stretch.world else dataclasses.replace(sighting, rank=None, rank_index=None)
        missing -= set(at_n)
        if brief and not missing:
            return


def _put_substitutes(
    history: History, data: Mapping[str, Data], lives: Sequence[Life], found: Sequence[list[Sighting]]
) -> None:
    """Mark the sightings of samples that did not decode, and add those of samples that replaced others."""
    by_key: dict[str, list[int]] = defaultdict(list)
    for at, life in enumerate(lives):
        by_key[life.key].append(at)
    for swap in history.substitutes:
        if swap.key in by_key or swap.shown in by_key:
            stretch = next((s for s in history.stretches if _is_of(s, swap)), None)
            dataset = data[stretch.manifest].tars.get(swap.shard) if stretch else None
            if stretch and dataset:
                _put(swap, stretch, [at for at in by_key[swap.key] if lives[at].dataset == dataset], found, False)
                _put(swap, stretch, [at for at in by_key[swap.shown] if lives[at].dataset == dataset], found, True)


def _is_of(stretch: Stretch, swap: Substitute) -> bool:
    return (stretch.run, stretch.attempt) == (
        swap.run,
        swap.attempt,
    ) and stretch.start < swap.samples_seen <= stretch.stop


def _put(
    swap: Substitute, stretch: Stretch, those: Sequence[int], found: Sequence[list[Sighting]], added: bool
) -> None:
    for at in those:
        mine = found[at]
        if added:
            step = stretch.first_step + -(-(swap.samples_seen - stretch.start) // stretch.batch)
            size = swap.samples_seen - (stretch.start + (step - stretch.first_step - 1) * stretch.batch)
            place = Sighting(
                stretch.run, stretch.attempt, None, step, swap.samples_seen, size, None, None, None, stretch.undone
            )
            mine.append(dataclasses.replace(place, in_place_of=swap.key))
            continue
        for number, one in enumerate(mine):
            if (one.run, one.attempt, one.samples_seen) == (swap.run, swap.attempt, swap.samples_seen):
                mine[number] = dataclasses.replace(one, instead=swap.shown)


def _seen_by(history: History, life: Life, selected: bool, mine: Sequence[Sighting]) -> SeenBy:
    shown = [one for one in mine if not one.undone and one.instead is None]
    first = min((one.samples_seen for one in shown), default=None)
    return SeenBy(
        dataset=life.dataset,
        key=life.key,
        url=life.url,
        selected=selected,
        times=len(shown),
        checkpoints=tuple(at for at in history.checkpoints if first is not None and at >= first),
        sightings=tuple(mine),
    )
