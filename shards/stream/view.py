"""One version of a dataset as Python sees it: `shards.open`. Samples by number or key, and in order or shuffled.

The shuffled order is training's (`shards/stream/order.py`): the same seed is a run's `order.seed`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
from PIL.Image import Image

from shards.bar import bar
from shards.manifest import read_manifest
from shards.parallel import INDEXES, map_in_order
from shards.pixels import image
from shards.selection import key_hash, selected_index
from shards.stream.order import Order, Place
from shards.stream.reader import Reader
from shards.stream.sample import Sample
from shards.stream.stream import Once, Stream, once

_BATCH = 64  # samples that are read together in row order


@dataclass(frozen=True)
class Item:
    """One sample. `number` is its place in row order, `body` the picture as it is stored: JPEG, PNG or WebP."""

    key: str
    number: int
    labels: tuple[str, ...]
    body: bytes = field(repr=False)

    @property
    def label(self) -> str | None:
        """The first label, which is the one that probes take; None without any."""
        return self.labels[0] if self.labels else None

    def image(self) -> Image:
        """The whole picture: RGB, upright. Raises ValueError when it does not decode."""
        return image.decode(self.body)


class Dataset:
    """One version, which stays the same however the dataset grows. Iteration is in row order."""

    def __init__(self, url: str) -> None:
        """Raises ValueError if there is no such version, naming those that exist."""
        self.manifest = read_manifest(url)

    def __repr__(self) -> str:
        classes = f", {len(self.manifest.classes):,} classes" if self.manifest.classes else ""
        return f"<{self.manifest.address}: {len(self):,} samples{classes}>"

    def __reduce__(self) -> tuple[type[Dataset], tuple[str]]:
        """Another process opens the same version for itself."""
        return Dataset, (f"{self.manifest.dataset}@{self.manifest.digest}",)

    def __len__(self) -> int:
        return self.manifest.samples

    @overload
    def __getitem__(self, which: int | str) -> Item: ...
    @overload
    def __getitem__(self, which: slice) -> list[Item]: ...
    def __getitem__(self, which: int | str | slice) -> Item | list[Item]:
        """Sample `which` in row order (from the end if below 0), the sample of a key, or a slice of them.

        Raises IndexError or KeyError when there is none, and ValueError naming a tar that cannot be read.
        """
        if isinstance(which, slice):
            return self._read(range(*which.indices(len(self))))
        if isinstance(which, str):
            return self._read([self.number(which)])[0]
        number = operator.index(which)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.manifest.address} has {len(self)} samples, so there is no number {number}")
        return self._read([number % len(self)])[0]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not None

    def number(self, key: str) -> int:
        """The place of a key in row order. The first call reads all keys. Raises KeyError."""
        found = self._find(key)
        if found is None:
            raise KeyError(f"{self.manifest.address} has no sample {key!r}")
        return found

    def __iter__(self) -> Iterator[Item]:
        return self.in_order()

    def in_order(self, progress: bool = False) -> Iterator[Item]:
        """Every sample once, in row order."""
        if len(self):
            yield from self._items(once(self.manifest, _BATCH), progress)

    def shuffled(self, seed: int = 0, epoch: int = 0, progress: bool = False) -> Iterator[Item]:
        """Every sample once, in the order in which training shows them: a pure function of seed, epoch and version."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be 0 or more")
        if len(self):
            order, begin = Order(seed=seed), epoch * len(self)
            # A stream sorts each batch by lane, and a batch of one sample a lane is in the order of positions then.
            yield from self._items(Stream(self.manifest, order, order.lanes, begin, begin + len(self)), progress)

    # --- reading -------------------------------------------------------------------------------------------------

    def _items(self, source: Stream | Once, progress: bool) -> Iterator[Item]:
        done = 0
        with closing(source), bar("samples", progress) as report:
            report(0, len(self))
            for encoded in source:
                items = list(map(_item, encoded))
                encoded.release()
                for item in items:
                    yield item
                    done += 1
                    report(done, len(self))

    def _read(self, numbers: Iterable[int]) -> list[Item]:
        number_N = np.fromiter(numbers, np.int64)
        zeros = np.zeros_like(number_N)
        return list(map(_item, self._reader.read_apart(Place(zeros, zeros, zeros, number_N))))

    @cached_property
    def _reader(self) -> Reader:
        return Reader((self.manifest,))

    # --- keys ----------------------------------------------------------------------------------------------------

    @cached_property
    def _hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all keys, rising, and the numbers of their samples: 16 bytes a sample, where keys would be 100."""
        hashes = map_in_order(self._hashes_of, range(len(self.manifest.shards)), INDEXES)
        hash_N = np.concatenate([np.empty(0, np.uint64), *hashes])
        number_N = np.argsort(hash_N, kind="stable")
        return hash_N[number_N], number_N

    def _hashes_of(self, shard: int) -> np.ndarray:
        return key_hash(selected_index(self.manifest, shard, ["key"])["key"].to_pylist(), 0)

    def _find(self, key: str) -> int | None:
        hash_N, number_N = self._hashes
        wanted = key_hash([key], 0)[0]
        first, last = np.searchsorted(hash_N, wanted, "left"), np.searchsorted(hash_N, wanted, "right")
        return next((n for n in number_N[first:last].tolist() if self._reader.key(n) == key), None)


def _item(sample: Sample) -> Item:
    return Item(sample.key, sample.sample, sample.labels, bytes(sample.body))
