"""The dataset on disk or in a bucket: bytes and objects, without torch, fetching or Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.stream import Dataset

__all__ = ["open"]


def open(url: str) -> Dataset:  # noqa: A001  (read as `shards.open`; the modules here have Python's own)
    """Open a version of a dataset for reading: `DATASET` (the newest), `DATASET@3` or `DATASET@DIGEST`; needs no torch.

    It has `len`, `dataset[3]`, `dataset["key"]`, iteration in row order, and `dataset.shuffled(seed, epoch)`.
    Raises ValueError if there is no such version, naming those there are.
    """
    from shards.stream import Dataset

    return Dataset(str(url))
