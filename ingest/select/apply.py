"""Which kept pictures a dataset version holds: rules about duplicates, placeholders and classes across all units.

Selecting writes a new manifest, never a new tar. It looks at every kept row of the parent's units and ignores the
parent's own rules, so the same settings on the same units give the same version; a parent that is a subset gives the
same subset of the result. One pass over the indexes writes the needed columns to scratch (about 80 bytes a kept row).
They are then sorted and compared in parts of bounded size (`ingest.select.duplicates`), so memory grows only with what
is found. A billion rows take the same steps on 64 parts, 70 GB of scratch, and 70 sorts of the perceptual hashes,
each of which could run on its own machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ingest.criteria import ClassConfig, SelectConfig
from ingest.scratch import scratch_folder
from ingest.select import duplicates, exclude
from ingest.select.columns import Kept, read_kept
from ingest.select.config import Config
from ingest.wordnet import chosen, takes
from shards import manifest as versions, rules, selection
from shards.manifest import Manifest

METHOD = 3  # number of the rules below: another number gives another version even with the same settings
ASPECT = 0.05  # log(width / height) of two copies of a picture differs by at most this

Progress = Callable[[str, int, int], None]  # what, how many are done, of how many


class Rule(StrEnum):
    """Why a kept picture is not in a version."""

    DUPLICATE = "duplicate"  # the same bytes as a lower row's
    NEAR_DUPLICATE = "near_duplicate"  # looks like a lower row that stays
    PLACEHOLDER = "placeholder"  # a placeholder image, served in place of pictures that are gone
    CLASS = "class"  # none of its labels was chosen
    SMALL_CLASS = "small_class"  # all of its labels have too few pictures
    EXCLUDED = "excluded"  # an exclusion list names it


def run(config: Config, progress: Progress | None = None) -> Manifest:
    """Make the version and return its manifest. Rules make a numbered version; a subset is known only by its digest.

    Raises ValueError and StoreError as `select` and `shards.selection.subset` do, and ValueError for a bad exclusion
    list.
    """
    manifest = versions.read_manifest(config.dataset)
    if config.subset is not None:
        return selection.subset(manifest, config.subset, config.seed)
    given, rules = exclude.read(config.exclude) if config.exclude is not None else None, config.rules
    if given is not None and rules == SelectConfig() and manifest.rules is not None:
        rules = _settings(manifest.rules.how)
    return select(manifest, rules, Path(config.scratch) if config.scratch else None, progress, given)


def _settings(how: Mapping[str, Any]) -> SelectConfig:
    """The settings that made a version, as far as its manifest has them."""
    names = {each.name for each in dataclasses.fields(SelectConfig)} - {"classes"}
    classes: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in how.get("classes", {}).items()
    }
    return SelectConfig(**{name: how[name] for name in names if name in how}, classes=ClassConfig(**classes))


def select(
    manifest: Manifest,
    config: SelectConfig,
    scratch: Path | None = None,
    progress: Progress | None = None,
    given: exclude.Given | None = None,
) -> Manifest:
    """Apply the rules to every kept row of the manifest's units, and make the result the newest version.

    Rows named by the dataset's exclusion lists or by `given` are taken out first; `given` is stored in the dataset.
    Raises ValueError when the rules leave nothing or scratch cannot be written, and StoreError naming a damaged index.
    """
    report = progress or (lambda what, done, total: None)
    how = settings(config)
    names, what = exclude.all_of(manifest.dataset, given)
    how |= {"excluded": names} if names else {}
    if manifest.rules and manifest.rules.how == how and config.classes.all:
        return manifest  # made by the same rules (with classes, a class file may have changed)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(str(scratch) if scratch else None, "select")).folder
        stack.enter_context(_full_disk_named(folder))
        rows = read_kept(manifest, folder, lambda done, total: report("shards read", done, total))
        found = _Found(rows)
        if what.lines:
            out = [np.flatnonzero(named) for named, _ in exclude.matches(manifest, what)]
            found.drop(np.concatenate([at + start for at, start in zip(out, rows.start)]), Rule.EXCLUDED)
        _identical(found, config)
        if config.duplicates and config.near_distance >= 0:
            _alike(found, config.near_distance, lambda done, total: report("comparisons", done, total))
        found.join_labels()
        how |= _classes(found, config)
        if not (found.fate_N == 0).any():
            raise ValueError(f"{manifest.address}: these rules leave none of {rows.count:,} pictures: loosen them")
        if given is not None:  # before the version: once the version is there, a rerun does nothing more
            exclude.remember(manifest.dataset, given)
        result = _ruled(manifest, found, how, folder)
    if manifest.subset:
        result = selection.below(result, manifest.subset)
        versions.write_manifest(result)
    else:
        versions.add_version(result, "select")
    return result


def settings(config: SelectConfig) -> dict[str, Any]:
    """What a manifest records about its selection, except for the content of class files."""
    return json.loads(json.dumps({"method": METHOD, **dataclasses.asdict(config)}))


@contextlib.contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError about scratch: storage raises its own errors."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: cannot hold the columns of this dataset ({error.strerror}): free space or set --scratch"
        ) from error


# --- what is found, row by row -------------------------------------------------------------------------------------

_FATES: tuple[Rule, ...] = tuple(Rule)  # fate 0: the row stays; fate i + 1: it goes, by rule _FATES[i]


class _Found:
    """The fate of each kept row, by its position among the kept rows."""

    def __init__(self, rows: Kept) -> None:
        self.rows = rows
        self.fate_N = np.zeros(rows.count, np.uint8)
        self.gone: list[np.ndarray] = []  # positions that another row replaces, and
        self.stands: list[np.ndarray] = []  # the row that replaces each; a third row may later replace that one
        self.joined_P = np.empty(0, np.int64)  # positions whose labels differ from the index's, ascending,
        self.joined = pa.array([], pa.list_(pa.string()))  # and their labels

    def drop(self, at: np.ndarray, rule: Rule) -> None:
        self.fate_N[at] = 1 + _FATES.index(rule)

    def replace(self, gone: np.ndarray, stands: np.ndarray, rule: Rule) -> None:
        self.drop(gone, rule)
        self.gone.append(gone)
        self.stands.append(stands)

    def join_labels(self) -> None:
        """Give rows that replace others the labels of all of them, each once, in row order."""
        if not self.gone:
            return
        gone, stands = np.concatenate(self.gone), np.concatenate(self.stands)
        order = np.argsort(gone)
        gone, stands = gone[order], stands[order]
        while True:  # a chain is a duplicate of a near-duplicate: two steps
            at = np.minimum(np.searchsorted(gone, stands), len(gone) - 1)
            further = gone[at] == stands
            if not further.any():
                break
            stands = np.where(further, stands[at], stands)
        keep = np.unique(stands)
        member = np.concatenate([keep, gone])
        group = np.searchsorted(keep, np.concatenate([keep, stands]))
        order = np.lexsort((self.rows.row_N[member], group))
        group_L, label_L, names = self.rows.flat_labels(member[order], group[order])
        own = self.rows.distinct_labels(keep, np.arange(len(keep)), len(keep))
        # A row's own labels come first: it is lower than all rows that it replaces.
        self.joined_P, self.joined = _unions(keep, group_L, label_L, names, own)


def _unions(
    keep: np.ndarray, group_L: np.ndarray, label_L: np.ndarray, names: pa.Array, own: np.ndarray
) -> tuple[np.ndarray, pa.ListArray]:
    """The labels of each group, each once, in order of first appearance; only groups with more labels than the first
    row's own."""
    _, first = np.unique(group_L * max(1, len(names)) + label_L, return_index=True)
    first.sort()
    group_L, label_L = group_L[first], label_L[first]
    size = np.bincount(group_L, minlength=len(keep))
    more = size > own
    lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(size[more])]), pa.int32()), names.take(pa.array(label_L[more[group_L]]))
    )
    return keep[more], lists


# --- the rules -----------------------------------------------------------------------------------------------------


def _identical(found: _Found, config: SelectConfig) -> None:
    """Drop placeholders, known and found, with all their copies; of other equal bytes keep the lowest row."""
    rows = found.rows
    known = rows.known_placeholders
    found.drop(known[found.fate_N[known] == 0], Rule.PLACEHOLDER)
    at_M, bounds = duplicates.equal_groups(rows.sha_N, rows.sha2_N, rows.row_N)
    size = np.diff(bounds)
    group_M = np.repeat(np.arange(len(size)), size)
    placeholder = np.zeros(len(size), bool)
    if config.placeholder_from:
        placeholder |= _crowded(rows, group_M, at_M, size, config.placeholder_from)
    if config.placeholder_labels:
        # Not so for one URL with many labels: its picture shows many things, or has many captions.
        most = config.placeholder_labels
        crowd = _crowded(rows, group_M, at_M, size, most)[group_M]
        labels = rows.distinct_labels(at_M[crowd], group_M[crowd], len(size))
        placeholder |= labels >= most
    stays = found.fate_N[at_M] == 0
    found.drop(at_M[placeholder[group_M] & stays], Rule.PLACEHOLDER)
    if config.duplicates and len(at_M):
        place = np.arange(len(at_M))
        first = np.minimum.reduceat(np.where(stays, place, len(at_M)), bounds[:-1])[group_M]
        copy = ~placeholder[group_M] & (place > first) & stays
        found.replace(at_M[copy], at_M[first[copy]], Rule.DUPLICATE)


def _crowded(rows: Kept, group_M: np.ndarray, at_M: np.ndarray, size: np.ndarray, most: int) -> np.ndarray:
    """Which groups have at least `most` different URLs, not counting one for each site beyond the first. A picture on
    many sites is popular; one that a site serves under many URLs is its placeholder."""
    looked = size >= most
    urls = _distinct(group_M, rows.url_N, at_M, looked)
    return looked & (urls - _distinct(group_M, rows.site_N, at_M, looked) + 1 >= most)


def _distinct(group_M: np.ndarray, value_N: np.ndarray, at_M: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many different values each of these groups has; 0 for other groups."""
    looked = groups[group_M]
    group, value = group_M[looked], value_N[at_M[looked]]
    order = np.lexsort((value, group))
    group, value = group[order], value[order]
    new = np.ones(len(group), bool)
    new[1:] = (group[1:] != group[:-1]) | (value[1:] != value[:-1])
    return np.bincount(group[new], minlength=len(groups))


def _alike(found: _Found, distance: int, report: Callable[[int, int], None]) -> None:
    """Drop near-duplicates: hashes a few bits apart, and the same shape. Hash 0: unknown, or one colour."""
    rows, row_N = found.rows, found.rows.row_N
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for hash_P, place_P in duplicates.parts(rows.phash_N):
        stays = found.fate_N[place_P] == 0
        hash_L, place_L = _with_one_hash(found, hash_P[stays], place_P[stays])
        hashes.append(hash_L)
        places.append(place_L)
    hash_L, place_L = np.concatenate(hashes), np.concatenate(places)  # hashes ascend from part to part
    del hashes, places
    first_U = np.flatnonzero(np.concatenate([[True], hash_L[1:] != hash_L[:-1]])[: len(hash_L)])
    hash_U = hash_L[first_U]
    del hash_L
    near = np.searchsorted(hash_U, duplicates.near_pairs(hash_U, distance, report=report))
    first_U = np.append(first_U, len(place_L))
    with_itself = np.flatnonzero(np.diff(first_U) > 1)
    one, other = _all_pairs(np.concatenate([near, np.stack([with_itself, with_itself], 1)]), first_U)
    one, other = place_L[one], place_L[other]
    alike = rows.same_shape(one, other, ASPECT) & (one != other)
    one, other = one[alike], other[alike]
    row, row_other = row_N[one], row_N[other]
    ends, which = np.unique(np.concatenate([row, row_other]), return_index=True)
    place_of = np.concatenate([one, other])[which]
    gone, stands = duplicates.leaders(np.minimum(row, row_other), np.maximum(row, row_other))
    found.replace(place_of[np.searchsorted(ends, gone)], place_of[np.searchsorted(ends, stands)], Rule.NEAR_DUPLICATE)


def _with_one_hash(found: _Found, hash_P: np.ndarray, place_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows with the same hash and about the same shape keep only the lowest, the leader. Returns (hash, position) of
    the leaders, hashes ascending."""
    rows = found.rows
    same = hash_P[1:] == hash_P[:-1]
    several = np.zeros(len(hash_P), bool)
    several[1:] |= same
    several[:-1] |= same
    hash_M, place_M = hash_P[several], place_P[several]
    shape_M = np.floor(rows.shape_N[place_M] / ASPECT)
    order = np.lexsort((rows.row_N[place_M], shape_M, hash_M))
    hash_M, place_M, shape_M = hash_M[order], place_M[order], shape_M[order]
    leads = np.ones(len(hash_M), bool)
    leads[1:] = (hash_M[1:] != hash_M[:-1]) | (shape_M[1:] != shape_M[:-1])
    leader_M = place_M[leads][np.cumsum(leads) - 1]
    found.replace(place_M[~leads], leader_M[~leads], Rule.NEAR_DUPLICATE)
    hash_L = np.concatenate([hash_P[~several], hash_M[leads]])
    order = np.argsort(hash_L, kind="stable")
    return hash_L[order], np.concatenate([place_P[~several], place_M[leads]])[order]


def _all_pairs(pair_M: np.ndarray, first_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For pairs of groups, all pairs of their members; group u is `first_U[u]` to `first_U[u + 1]`."""
    a, b = pair_M[:, 0], pair_M[:, 1]
    size = first_U[b + 1] - first_U[b]
    count = (first_U[a + 1] - first_U[a]) * size
    pair = np.repeat(np.arange(len(count)), count)
    inside = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    return first_U[a][pair] + inside // size[pair], first_U[b][pair] + inside % size[pair]


def _classes(found: _Found, config: SelectConfig) -> dict[str, Any]:
    """Drop pictures without a chosen label; returns what the manifest records about the choice."""
    if config.classes.all and not config.min_per_class:
        return {}
    counts = _class_counts(found)
    taken = chosen(config.classes, lambda: counts)
    enough = {label for label, n in counts.items() if n >= config.min_per_class}
    enough = enough if taken is None else enough & taken
    for start, labels in found.rows.labels():
        mine = slice(start, start + len(labels))
        if taken is not None:
            _leave_out(found, mine, labels, sorted(taken), Rule.CLASS)
        if config.min_per_class:
            _leave_out(found, mine, labels, sorted(enough), Rule.SMALL_CLASS)
    return {} if taken is None else {"chosen": hashlib.sha256("\n".join(sorted(taken)).encode()).hexdigest()}


def _leave_out(found: _Found, mine: slice, labels: pa.ListArray, classes: list[str], rule: Rule) -> None:
    has = takes(labels, classes).to_numpy(zero_copy_only=False)
    joined = slice(*np.searchsorted(found.joined_P, [mine.start, mine.stop]))
    has[found.joined_P[joined] - mine.start] = takes(found.joined[joined], classes).to_numpy(zero_copy_only=False)
    found.drop(mine.start + np.flatnonzero(~has & (found.fate_N[mine] == 0)), rule)


def _class_counts(found: _Found) -> Mapping[str, int]:
    """How many pictures with each label stay so far."""
    counts: Counter[str] = Counter()
    mine = np.zeros(found.rows.count, bool)
    mine[found.joined_P] = True
    for start, labels in found.rows.labels():
        here = slice(start, start + len(labels))
        _count(counts, labels.filter(pa.array((found.fate_N[here] == 0) & ~mine[here])))
    _count(counts, found.joined)
    return counts


def _count(counts: Counter[str], labels: pa.ListArray) -> None:
    for found in labels.flatten().value_counts().to_pylist():
        counts[found["values"]] += found["counts"]


# --- the result ----------------------------------------------------------------------------------------------------


def _ruled(manifest: Manifest, found: _Found, how: dict[str, Any], folder: Path) -> Manifest:
    rows, fate_N = found.rows, found.fate_N
    written = rules.write_rules(manifest.dataset, _tables(manifest, found), how, folder)
    gone = np.concatenate([[0], np.cumsum(fate_N != 0)])[rows.start]
    shards = tuple(
        dataclasses.replace(shard, selected=shard.kept - int(out)) for shard, out in zip(manifest.shards, np.diff(gone))
    )
    counts = np.bincount(fate_N, minlength=len(_FATES) + 1)[1:].tolist()
    deselected = {str(rule): n for rule, n in sorted(zip(_FATES, counts)) if n}
    return dataclasses.replace(manifest, shards=shards, deselected=deselected, subset=None, rules=written)


def _tables(manifest: Manifest, found: _Found) -> Iterator[pa.Table]:
    """The rules of each shard that has any."""
    names = pa.array([None, *map(str, _FATES)])
    stays = found.fate_N[found.joined_P] == 0
    joined_P, joined = found.joined_P[stays], found.joined.filter(pa.array(stays))
    row_N = found.rows.row_N
    for number, shard in enumerate(manifest.shards):
        start, end = found.rows.start[number : number + 2]
        out = start + np.flatnonzero(found.fate_N[start:end])
        first, last = np.searchsorted(joined_P, [start, end])
        at = np.concatenate([out, joined_P[first:last]])
        if len(at):
            labels = pa.concat_arrays([pa.nulls(len(out), joined.type), joined[first:last]])
            row = row_N[at]
            table = pa.table(
                {
                    "unit": pa.array(np.full(len(at), shard.unit)),
                    "row": pa.array(row),
                    "reason": names.take(pa.array(found.fate_N[at])),
                    "labels": labels,
                }
            )
            yield table.take(pa.array(np.argsort(row)))
