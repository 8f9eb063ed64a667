"""The dataset on the bucket: bytes and objects. Knows no torch, no fetching, no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.stream import Dataset

__all__ = ["open"]


def open(url: str) -> Dataset:  # noqa: A001  (read as `shards.open`; the modules here have Python's own)
    """A version of a dataset, to look into: `DATASET` (its newest), `DATASET@3` or `DATASET@DIGEST`; no Ray, no torch.

    `len`, `dataset[3]`, `dataset["key"]`, iteration in row order, and `dataset.shuffled(seed, epoch)`.
    Raises ValueError when there is no such version, naming what there is.
    """
    from shards.stream import Dataset

    return Dataset(str(url))
