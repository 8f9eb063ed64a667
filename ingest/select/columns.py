"""The kept rows of a dataset as columns on scratch, read once from its indexes: what selecting compares.

A row is identified by its position: shards are in the manifest's order, each shard's rows are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.filter import PLACEHOLDERS
from shards import store
from shards.dataset import KEPT, read_table
from shards.manifest import Manifest, Shard
from shards.parallel import INDEXES, map_in_order

_COLUMNS = ["row", "reason", "url", "labels", "sha256", "fetched_sha256", "phash", "width", "height", "orientation"]
_DTYPES = {"row": "<i8", "sha": "<u8", "sha2": "<u8", "phash": "<u8", "url": "<u8", "site": "<u8", "shape": "<f4"}
_SITE = (
    r"^[a-z]+://(?:[^/?#:]*?\.)??"
    r"(?P<site>\d+\.\d+\.\d+\.\d+|[^./:?#]+\.[a-z]{2,3}\.[a-z]{2}|[^./:?#]+\.[^./:?#]+|\[[^\]]*\])(?::\d*)?(?:[/?#]|$)"
)
_LABELS_FILE = "labels.arrow"
_LABELS = pa.schema([("labels", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Kept:
    """Columns of the kept rows [N]. Numeric columns are memory-mapped on each access."""

    start: np.ndarray  # int64 [shards + 1]: positions of shard i are start[i] to start[i + 1]
    known_placeholders: np.ndarray  # int64, positions
    folder: Path

    @property
    def count(self) -> int:
        return int(self.start[-1])

    @property
    def row_N(self) -> np.ndarray:
        """The link's row, int64."""
        return self._column("row")

    @property
    def sha_N(self) -> np.ndarray:
        """The first 64 bits of the member's sha256, uint64; 0: unknown."""
        return self._column("sha")

    @property
    def sha2_N(self) -> np.ndarray:
        """The next 64 bits, uint64."""
        return self._column("sha2")

    @property
    def phash_N(self) -> np.ndarray:
        """uint64; 0: unknown, or one colour."""
        return self._column("phash")

    @property
    def url_N(self) -> np.ndarray:
        """A hash of the URL, uint64, for counting distinct URLs."""
        return self._column("url")

    @property
    def site_N(self) -> np.ndarray:
        """A hash of the URL's site, uint64; 0 for a URL without a host name."""
        return self._column("site")

    @property
    def shape_N(self) -> np.ndarray:
        """log(width / height) of the upright picture, float32."""
        return self._column("shape")

    def _column(self, name: str) -> np.ndarray:
        if not self.count:
            return np.empty(0, _DTYPES[name])
        return np.memmap(self.folder / name, _DTYPES[name], "r", shape=(self.count,))

    def same_shape(self, one: np.ndarray, other: np.ndarray, within: float) -> np.ndarray:
        shape_N = self.shape_N
        return np.abs(shape_N[one] - shape_N[other]) <= within

    def labels(self) -> Iterator[tuple[int, pa.ListArray]]:
        """(first position, labels) of each shard; null means no labels."""
        with pa.OSFile(str(self.folder / _LABELS_FILE)) as file, pa.ipc.open_file(file) as batches:
            for number in range(batches.num_record_batches):
                yield int(self.start[number]), batches.get_batch(number)["labels"]

    def distinct_labels(self, at_P: np.ndarray, group_P: np.ndarray, groups: int) -> np.ndarray:
        """How many different labels the rows of each group have, [groups]."""
        group_L, label_L, names = self.flat_labels(at_P, group_P)
        pairs = np.unique(group_L * max(1, len(names)) + label_L)
        return np.bincount(pairs // max(1, len(names)), minlength=groups)

    def flat_labels(self, at_P: np.ndarray, group_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """The labels of these rows, concatenated: (group of the row [L], index of the label among the names [L], the
        names)."""
        order = np.argsort(at_P, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        labels = self._take(at_P[order]).take(pa.array(back))
        lengths = pc.list_value_length(labels).fill_null(0).to_numpy(zero_copy_only=False)
        coded = labels.flatten().dictionary_encode()
        label_L = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        return np.repeat(group_P, lengths), label_L, coded.dictionary

    def _take(self, at_P: np.ndarray) -> pa.ListArray:
        """The labels of these ascending positions."""
        bounds = np.searchsorted(at_P, self.start)
        pieces = [pa.array([], _LABELS.field(0).type)]
        with pa.OSFile(str(self.folder / _LABELS_FILE)) as file, pa.ipc.open_file(file) as batches:
            for number in np.flatnonzero(np.diff(bounds)).tolist():
                here = at_P[bounds[number] : bounds[number + 1]] - self.start[number]
                pieces.append(batches.get_batch(number)["labels"].take(pa.array(here)))
        return pa.concat_arrays(pieces)


def read_kept(manifest: Manifest, folder: Path, report: Callable[[int, int], None]) -> Kept:
    """Read every index once and write the columns to `folder`; `report(shards read, shards)`.

    Raises StoreError naming an index that is damaged or keeps another number of rows than the manifest says.
    """
    start, known, at = np.zeros(len(manifest.shards) + 1, np.int64), [np.empty(0, np.int64)], 0
    files = {name: (folder / name).open("wb") for name in _DTYPES}
    try:
        with pa.OSFile(str(folder / _LABELS_FILE), "wb") as sink, pa.ipc.new_file(sink, _LABELS) as labels:
            for number, table in enumerate(_indexes(manifest)):
                for name, column in _columns(table).items():
                    files[name].write(column.astype(_DTYPES[name]).tobytes())
                known.append(at + np.flatnonzero(_is_known(table)))
                column = table["labels"].cast(_LABELS.field(0).type).combine_chunks()
                labels.write_batch(pa.record_batch([column], schema=_LABELS))
                at += len(table)
                start[number + 1] = at
                report(number + 1, len(manifest.shards))
    finally:
        for file in files.values():
            file.close()
    return Kept(start, np.concatenate(known), folder)


def _indexes(manifest: Manifest) -> Iterator[pa.Table]:
    """The kept rows of each shard, in order, a few read ahead."""
    return map_in_order(lambda shard: _index(manifest.dataset, shard), manifest.shards, INDEXES, INDEXES)


def _index(dataset: str, shard: Shard) -> pa.Table:
    url = store.join(dataset, "shards", shard.index)
    table = read_table(url, _COLUMNS).filter(pc.field("reason") == KEPT)
    if len(table) != shard.kept:
        raise store.StoreError(f"{url}: keeps {len(table)} rows, the manifest says {shard.kept}: run xtra check")
    return table


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    sha, sha2 = _sha_numbers(table["sha256"])
    width, height = (_numbers(table[name], 1).astype(np.float64) for name in ("width", "height"))
    turned = _numbers(table["orientation"], 1) >= 5  # EXIF: width and height are swapped
    shape = np.log(np.maximum(width, 1) / np.maximum(height, 1))
    return {
        "row": _numbers(table["row"], 0),
        "sha": sha,
        "sha2": sha2,
        "phash": _numbers(table["phash"], 0),
        # Python's hash differs between processes, but these values never leave this one.
        "url": np.fromiter(map(hash, table["url"].to_pylist()), np.int64, len(table)).view(np.uint64),
        "site": sites(table["url"]),
        "shape": np.where(turned, -shape, shape),
    }


def sites(urls: pa.ChunkedArray) -> np.ndarray:
    """A hash of each URL's site, uint64: the last two labels of its host (three below co.uk and the like), or its
    address."""
    found = pc.extract_regex(pc.utf8_lower(urls), _SITE)
    site = pc.coalesce(pc.struct_field(found, "site"), "").combine_chunks().dictionary_encode()
    hashes = np.array([hash(name) if name else 0 for name in site.dictionary.to_pylist()], np.int64).view(np.uint64)
    return hashes[site.indices.to_numpy()] if len(hashes) else np.zeros(len(urls), np.uint64)


def _numbers(column: Any, default: int) -> np.ndarray:
    return column.fill_null(default).to_numpy()


def _is_known(table: pa.Table) -> np.ndarray:
    known = pa.array(sorted(PLACEHOLDERS), pa.string())
    hits = pc.or_(*(pc.is_in(table[name], value_set=known) for name in ("sha256", "fetched_sha256")))
    return hits.to_numpy()


def _sha_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The first 128 bits of each hexadecimal sha256, as two uint64 [n]; 0, 0 where it is null."""
    text = np.zeros((len(column), 32), np.uint8)
    head = pc.utf8_slice_codeunits(column, 0, 32).combine_chunks()
    valid = pc.equal(pc.binary_length(head), 32).fill_null(False).to_numpy(zero_copy_only=False)
    strings = head.filter(pa.array(valid)).cast(pa.binary(32))
    text[valid] = np.frombuffer(strings.buffers()[1] or b"", np.uint8).reshape(-1, 32)[: len(strings)]
    digit = (text & 15) + 9 * (text >> 6)
    number = np.ascontiguousarray(digit[:, ::2] << 4 | digit[:, 1::2]).view(">u8").astype(np.uint64)
    return number[:, 0], number[:, 1]
