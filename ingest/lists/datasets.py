"""A dataset as a list: the samples of a version, to be fetched again, with their recorded hashes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.lists import files
from ingest.lists.columns import Columns, require
from ingest.lists.rows import ROWS
from shards import manifest, selection, store
from shards.dataset import read_columns, read_info

RECORDED = "recorded"  # the column with the sha256 of the fetched bytes


def is_dataset(urls: str) -> bool:
    """Whether `urls` names a dataset, perhaps with a version."""
    if urls.startswith(("http://", "https://")) or files.has_ending(urls):
        return False
    return store.exists(store.join(manifest.split(urls)[0], "dataset.json"))


def digest(urls: str) -> str:
    return manifest.read_manifest(urls).digest


def dataset_rows(urls: str, columns: Columns) -> Iterator[pa.RecordBatch]:
    """The samples of a version in its order, with their labels in that version and the other columns of their list.

    Raises ValueError for a missing column.
    """
    version = manifest.read_manifest(urls)
    kept = read_info(version.dataset).columns
    require(urls, ["url", *kept, RECORDED], columns)
    marks = {name: mark for name in (*kept, RECORDED) if (mark := columns.mark(name)) is not None}
    marks |= {"url": mark} if (mark := columns.mark("url", is_url=True)) is not None else {}
    line = 1
    for number, shard in enumerate(version.shards):
        wanted = ["key", "url", "labels", "row", "fetched_sha256", "sha256"]
        table = selection.selected_index(version, number, wanted).combine_chunks()
        found = {"url": table["url"], RECORDED: pc.coalesce(table["fetched_sha256"], table["sha256"])}
        if kept:
            others = read_columns(version.dataset, shard.unit)
            others = others.take(pc.index_in(table["row"], others.column(1).combine_chunks()))
            found |= {name: others.column(at) for at, name in enumerate(others.schema.names) if at > 1}
        lines = pa.array(np.arange(line, line + len(table)))
        labels = table["labels"].cast(pa.list_(pa.binary()))
        cells = [lines, table["key"].cast(pa.binary()), table["url"].cast(pa.binary()), labels]
        rows = pa.Table.from_arrays([*cells, pa.nulls(len(table), pa.string())], schema=ROWS)
        for name, mark in marks.items():
            if name in found:
                rows = rows.append_column(mark, found[name])
        line += len(table)
        yield from rows.combine_chunks().to_batches()
