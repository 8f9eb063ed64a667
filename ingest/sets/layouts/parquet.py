"""Parquet folders as Hugging Face publishes them, for any set.

A file is SPLIT-00000-of-00003.parquet (perhaps with -HASH), or default/SPLIT/0000.parquet of an automatic conversion. A
row is a picture {bytes, path} and a label. The schema's "huggingface" metadata names the columns and the classes
(github.com/huggingface/datasets, features Image and ClassLabel). A column of bare bytes does not count as pictures: it
might hold anything.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, sorted_names
from ingest.sets.pictures import Blocks, Row
from shards.dataset import DAMAGE

_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<files>\d{5})(-[0-9a-f]+)?\.parquet")
_LABELS = ("label", "fine_label", "labels")  # the second is CIFAR-100's


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    names: tuple[str, ...]  # class names by label number; () if the values are the labels themselves


def read(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """SPLIT-*.parquet, in the folder or below it."""
    files = _files(source, {*benchmark.train_names, *benchmark.eval_names})
    train = [file for name in benchmark.train_names for file in files.get(name, ())]
    evaluation = [file for name in benchmark.eval_names for file in files.get(name, ())]
    if not train or not evaluation:
        return None
    columns = _columns([*train, *evaluation])
    splits = [list(_rows(source, split, files, columns)) for split, files in (("train", train), ("eval", evaluation))]
    classes = columns.names or sorted_names(row.label for split in splits for row in split)
    return Found(*splits, classes=classes)


def _files(source: Path, splits: set[str]) -> dict[str, list[Path]]:
    """The files of each split, in order. Raises ValueError if a split is in two folders, as for two configurations of a
    data set, or has fewer files than their names say."""
    found, counted = defaultdict[str, list[Path]](list), dict[str, int]()
    for path in sorted(source.rglob("*.parquet")) if source.is_dir() else ():
        shard = _SHARD.fullmatch(path.name)
        if shard or re.fullmatch(r"\d{4}\.parquet", path.name):
            split = shard["split"] if shard else path.parent.name
            if split in splits:
                found[split].append(path)
                counted[split] = int(shard["files"]) if shard else 0
    for split, paths in found.items():
        folders = sorted({path.parent for path in paths})
        if len(folders) > 1:
            raise ValueError(f"{source}: {split} is in {folders[0]} and {folders[1]}: give one of them as SOURCE")
        if len(paths) < counted[split]:
            raise ValueError(f"{folders[0]}: holds {len(paths)} of {split}'s {counted[split]} files: get the others")
    return found


def _columns(files: list[Path]) -> _Columns:
    """The columns of all the files. Raises ValueError if two files differ: a number would mean different classes."""
    first = _columns_of(files[0])
    for path in files[1:]:
        if _columns_of(path) != first:
            raise ValueError(
                f"{files[0]} and {path}: have different columns or class names: get both from one data set"
            )
    return first


def _columns_of(path: Path) -> _Columns:
    with _open(path) as file:
        schema = file.schema_arrow
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        features = {}
    images = [name for name in schema.names if _is_image(schema.field(name).type)]
    images = [name for name in images if features.get(name, {}).get("_type", "Image") == "Image"]
    labels = [name for name in _LABELS if name in schema.names]
    if len(images) != 1 or not labels:
        raise ValueError(
            f"{path}: has the columns {', '.join(schema.names)}: one of pictures {{bytes, path}} and one called "
            f"{' or '.join(_LABELS)} are needed"
        )
    names = features.get(labels[0], {}).get("names") or ()
    return _Columns(images[0], labels[0], tuple(names))


def _is_image(kind: Any) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _rows(source: Path, split: str, files: list[Path], columns: _Columns) -> Iterator[Row]:
    places: list[tuple[Path, int]] = []  # file and row group of each block
    blocks = Blocks(lambda block: _pictures(*places[block], columns.image))  # shared by all files; rows keep it alive
    number = 0
    for path in files:
        with _open(path) as file:
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        labels = iter(_read(path, columns.label).to_pylist())
        name, size = path.relative_to(source).as_posix(), path.stat().st_size
        for group, rows in enumerate(groups):
            block = len(places)
            places.append((path, group))
            for at in range(rows):
                label = _label(path, next(labels), columns.names)
                yield Row(blocks, block, at, f"{name}/{group}.{at}", f"{split}_{number:07d}", label, size)
                number += 1


def _label(path: Path, label: Any, names: tuple[str, ...]) -> str:
    if label in (None, -1):  # the Hub has -1 in splits whose labels are secret
        raise ValueError(f"{path}: has rows without a label ({label}): get the set with its labels")
    if names and not (isinstance(label, int) and 0 <= label < len(names)):
        raise ValueError(f"{path}: label {label!r} is not among the {len(names)} class names: get the file again")
    return names[label] if names else str(label)


def _pictures(path: Path, group: int, column: str) -> list[bytes]:
    """The encoded pictures of one row group."""
    bodies = pa.chunked_array(chunk.field("bytes") for chunk in _read(path, column, group).chunks)
    if bodies.null_count:
        raise ValueError(f"{path}: has rows without bytes: get the data set with its pictures, not their paths")
    return bodies.to_pylist()


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except DAMAGE as error:
        raise ValueError(f"{path}: cannot be read ({error}): get the file again") from None


def _read(path: Path, column: str, group: int | None = None) -> pa.ChunkedArray:
    """A column of a file, or of one of its row groups."""
    try:
        with _open(path) as file:
            table = file.read([column]) if group is None else file.read_row_group(group, [column])
    except DAMAGE as error:
        raise ValueError(f"{path}: cannot be read ({error}): get the file again") from None
    return table[column]
