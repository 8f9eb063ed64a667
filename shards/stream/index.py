"""A shard's index for streaming: the selected samples by columns, some 50 bytes each, memory-mapped if there is a cache
folder.

14 million samples are 1,400 indexes, and a shuffled epoch is in all of them at once.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import store
from shards.manifest import Manifest
from shards.selection import selected_index
from shards.stream.cache import DiskCache

_COLUMNS = ["key", "row", "labels", "offset", "length"]


class Index:
    """The selected samples of one shard in row order. `offset`, `length` (bytes in the tar) and `row` are indexed by
    number in the shard and give plain integers."""

    def __init__(self, table: pa.Table) -> None:
        # A memoryview of integers gives a Python int in a third of numpy's time.
        self.row, self.offset, self.length = (
            memoryview(_one(table[name]).to_numpy()) for name in ("row", "offset", "length")
        )
        keys, labels = _one(table["key"]), _one(table["labels"])
        _, ends, text = keys.buffers()
        self._key_ends = memoryview(ends).cast("i")[keys.offset :]
        self._key_text = memoryview(text)
        self._label_ends = memoryview(labels.offsets.to_numpy())
        self._label_codes = memoryview(labels.values.indices.to_numpy())
        self._names: list[str] = labels.values.dictionary.to_pylist()

    def __len__(self) -> int:
        return len(self.row)

    def key(self, number: int) -> str:
        return str(self._key_text[self._key_ends[number] : self._key_ends[number + 1]], "utf-8")

    def labels(self, number: int) -> tuple[str, ...]:
        codes = self._label_codes[self._label_ends[number] : self._label_ends[number + 1]]
        return tuple(self._names[code] for code in codes)


def read_index(manifest: Manifest, shard: int, cache: DiskCache | None = None) -> Index:
    """Raises StoreError naming an index that is missing, damaged, or selects another number of samples."""
    name = f"{manifest.digest[:32]}-{manifest.shards[shard].unit}.arrow"
    path = cache.path(name) if cache else None
    if path is not None:
        try:
            with pa.memory_map(str(path)) as file:
                return Index(pa.ipc.open_file(file).read_all())
        except (pa.ArrowInvalid, OSError, KeyError):
            pass  # evicted meanwhile, or not ours: read the index itself
    table = selected_index(manifest, shard, _COLUMNS).select(_COLUMNS)
    if len(table) != manifest.shards[shard].selected:
        raise store.StoreError(
            f"{manifest.shards[shard].index}: selects {len(table)} samples, its manifest has "
            f"{manifest.shards[shard].selected}: run xtra check {manifest.dataset}"
        )
    _require_places(table, manifest, shard)
    table = _compact(table)
    if cache:
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
        cache.write(name, out.getvalue())
    return Index(table)


def _require_places(table: pa.Table, manifest: Manifest, number: int) -> None:
    """Raises StoreError unless every sample has a key, a row and a place in its tar: no memory is allocated for a
    length from a damaged index."""
    shard = manifest.shards[number]
    for name in ("key", "row", "offset", "length"):
        if table[name].null_count:
            raise store.StoreError(f"{shard.index}: a {name} is missing: run xtra check {manifest.dataset}")
    if not len(table):
        return
    lowest = min(pc.min(table[name]).as_py() for name in ("row", "offset", "length"))
    longest = pc.max(table["length"]).as_py()
    if lowest < 0 or longest > shard.tar_bytes or pc.max(table["offset"]).as_py() > shard.tar_bytes - longest:
        ends = pc.max(pc.add(table["offset"].cast(pa.float64()), table["length"].cast(pa.float64()))).as_py()
        if lowest < 0 or ends > shard.tar_bytes:
            raise store.StoreError(
                f"{shard.index}: a sample is outside its tar of {shard.tar_bytes} bytes: run xtra check "
                f"{manifest.dataset}"
            )


def _compact(table: pa.Table) -> pa.Table:
    """In one piece, with each label name once: there are far fewer names than samples."""
    labels = _one(table["labels"].cast(pa.list_(pa.string())))
    counts = labels.value_lengths().fill_null(0).to_numpy()
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    coded = pa.ListArray.from_arrays(pa.array(ends), labels.flatten().dictionary_encode())
    columns = {name: _one(table[name]) for name in ("row", "offset", "length")}
    return pa.table({**columns, "key": _one(table["key"].cast(pa.string())), "labels": coded})


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)
