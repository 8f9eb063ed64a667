"""Parquet files of pictures as the Hugging Face Hub publishes them, of any set: rows of {bytes, path}, perhaps labels.

What the columns mean is in the schema's "huggingface" metadata (features Image and ClassLabel), as for the paper's
sets in `ingest.sets.layouts.parquet`; here a row without bytes is a picture that is missing, and counts as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.sets.pictures import Blocks, Picture, Row
from shards.dataset import DAMAGE
from shards.local_files import refuse_special

_SHARD = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5})?(-[0-9a-f]+)?\.parquet")
_LABELS = ("label", "labels", "class", "fine_label")


class _Columns(NamedTuple):
    image: str
    label: str | None
    names: tuple[str, ...]  # of the labels' numbers; () where labels are the values themselves


def files(root: Path, split: str | None) -> list[Path]:
    """The Parquet files in a folder or below it, those of a split if one is named. Raises ValueError where there are
    several splits and none is."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        shard = _SHARD.fullmatch(path.name)
        name = path.parent.name if path.stem.isdecimal() or shard is None else shard["split"]
        found.setdefault(name, []).append(path)
    if split is not None:
        return found.get(split, [])
    if len(found) > 1:
        raise ValueError(f"{root}: holds Parquet files of {', '.join(sorted(found)[:6])}: import one with --split")
    return [path for paths in found.values() for path in paths]


def pictures(root: Path, paths: list[Path], labels: bool) -> list[Picture]:
    """A picture a row. Raises ValueError for files without a column of pictures, or without one of labels."""
    columns = _columns(paths[0], labels)
    for path in paths[1:]:
        if _columns(path, labels) != columns:
            raise ValueError(f"{paths[0]} and {path}: have other columns or class names: import them one by one")
    places: list[tuple[Path, int]] = []  # of each block: file and row group
    blocks = Blocks(lambda block: _bodies(*places[block], columns.image))
    return [row for path in paths for row in _rows(root, path, columns, places, blocks)]


def _columns(path: Path, labels: bool) -> _Columns:
    schema = _open(path).schema_arrow
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: said for name, said in features.items() if isinstance(said, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        features = {}
    images = [field.name for field in schema if _is_image(field.type)]
    images = [name for name in images if features.get(name, {}).get("_type", "Image") == "Image"]
    classed = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in _LABELS if name in schema.names] or classed
    if len(images) != 1:
        raise ValueError(
            f"{path}: has the columns {', '.join(schema.names)[:300]}: it must have one of pictures {{bytes, path}} (a "
            "list of URLs is for xtra ingest)"
        )
    if not labels:
        return _Columns(images[0], None, ())
    if not named:
        raise ValueError(
            f"{path}: has no column {' or '.join(_LABELS)} among {', '.join(schema.names)[:300]}: import it with "
            "--no-labels"
        )
    return _Columns(images[0], named[0], tuple(features.get(named[0], {}).get("names") or ()))


def _is_image(kind: Any) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _rows(
    root: Path, path: Path, columns: _Columns, places: list[tuple[Path, int]], blocks: Blocks
) -> Iterator[Picture]:
    file = _open(path)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    labels = _read(path, columns.label).to_pylist() if columns.label else [None] * sum(groups)
    name, size, number = path.relative_to(root).as_posix(), path.stat().st_size, 0
    for group, rows in enumerate(groups):
        block = len(places)
        places.append((path, group))
        for at in range(rows):
            label = _label(path, labels[number], columns.names)
            yield Row(blocks, block, at, f"{name}/{group}.{at}", f"{path.stem}_{number:07d}", label, size)
            number += 1


def _label(path: Path, label: Any, names: tuple[str, ...]) -> str:
    """The class of a row; none where its label is null, or -1 as of splits whose labels are secret."""
    if label is None or (names and label == -1):
        return ""
    if isinstance(label, list):
        raise ValueError(f"{path}: its labels are lists: import it with --no-labels")
    if names and not (isinstance(label, int) and 0 <= label < len(names)):
        raise ValueError(f"{path}: label {label!r} is not among the {len(names)} class names: get the file again")
    return names[label] if names else str(label)


def _bodies(path: Path, group: int, column: str) -> list[bytes]:
    """The encoded pictures of one row group; empty where there is none."""
    bodies = pa.chunked_array([chunk.field("bytes") for chunk in _read(path, column, group).chunks], pa.binary())
    return [body or b"" for body in bodies.to_pylist()]


def _open(path: Path) -> pq.ParquetFile:
    refuse_special(path)
    try:
        with pq.ParquetFile(path) as file:
            return file
    except DAMAGE as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}): get the file again") from None


def _read(path: Path, column: str, group: int | None = None) -> pa.ChunkedArray:
    """A column of a file, or of one of its row groups."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read([column]) if group is None else file.read_row_group(group, [column])
    except DAMAGE as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}): get the file again") from None
    return table[column]
