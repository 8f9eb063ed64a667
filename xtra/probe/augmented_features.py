"""Training features without a cache: every epoch's images are streamed, augmented again and encoded, in exact batches.

The order is the dataset's own (shards/stream/order.py); held-out samples are removed from its batches, and the rest is
regrouped, so that every step trains on exactly `batch` images, none of them held out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.stream import Order, Stream
from xtra.augment import Augment, erase
from xtra.data import Batch, train_batches
from xtra.probe.features import Encode, Features, Labelled, joined


@dataclass(frozen=True)
class Position:
    """How far training is: the state needed to continue, in addition to the heads."""

    trained: int = 0  # samples that heads have trained on
    start: int = 0  # position of the first batch of the stream with an untrained sample
    skip: int = 0  # samples of that batch already trained on


@dataclass
class _Piece:
    """The rest of one batch of the stream, without held-out samples."""

    start: int
    images_B3HW: Tensor
    sample_B: np.ndarray
    epoch_B: np.ndarray
    taken: int = 0

    def take(self, most: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        rows = slice(self.taken, self.taken + most)
        self.taken = min(self.taken + most, len(self.sample_B))
        return self.images_B3HW[rows], self.sample_B[rows], self.epoch_B[rows]

    @property
    def left(self) -> int:
        return len(self.sample_B) - self.taken


class Augmented:
    """Iterate for `Features` of exactly `batch` images each; `position` is where the last one ended.

    `samples` is the number of training samples in `epochs` epochs, in whole batches.
    """

    def __init__(
        self, encode: Encode, train: Labelled, augment: Augment, batch: int, epochs: int, position: Position | None
    ):
        self.encode, self.train, self.augment, self.batch = encode, train, augment, batch
        self.images = len(train.kept)
        self.samples = epochs * self.images // batch * batch
        self.position = position or Position()
        if not self.samples:
            raise ValueError(f"batch is {batch}, but {epochs} epochs show only {epochs * self.images} images: lower it")

    def __iter__(self) -> Iterator[Features]:
        at = self.position
        stream = Stream(self.train.manifest, Order(seed=self.encode.seed), self.batch, samples_seen=at.start)
        size, seed = self.encode.encoder.image, self.encode.seed
        with closing(stream):
            batches = train_batches(stream, size, self.augment, seed, self.encode.threads)
            waiting: deque[_Piece] = deque()
            start = at.start
            while self.position.trained < self.samples:
                while sum(piece.left for piece in waiting) < self.batch:
                    piece = self._thinned(next(batches), start)
                    piece.take(at.skip if start == at.start else 0)
                    waiting.append(piece)
                    start += self.batch
                found = self._encoded(waiting)
                while waiting and not waiting[0].left:
                    waiting.popleft()
                begin, skip = (waiting[0].start, waiting[0].taken) if waiting else (start, 0)
                self.position = Position(self.position.trained + self.batch, begin, skip)
                yield found

    def _thinned(self, batch: Batch, start: int) -> _Piece:
        """A copy without the held-out samples, judged by the sample really shown: a substitute may be held out, too."""
        chosen = np.flatnonzero(~self.train.held_N[np.asarray(batch.sample_B)])
        piece = _Piece(
            start, batch.images_B3HW[torch.from_numpy(chosen)], batch.sample_B[chosen], batch.epoch_B[chosen]
        )
        batch.release()
        return piece

    def _encoded(self, waiting: deque[_Piece]) -> Features:
        """One batch off the front, encoded `encode.batch` images at a time."""
        parts, wanted = [], self.batch
        for piece in waiting:
            parts.append(piece.take(wanted))
            wanted -= len(parts[-1][1])
        images_B3HW = torch.cat([images for images, _, _ in parts])
        sample_B, epoch_B = (np.concatenate([part[n] for part in parts]) for n in (1, 2))
        found = []
        for at in range(0, self.batch, self.encode.batch):
            rows = slice(at, at + self.encode.batch)

            def noise(x: Tensor, rows: slice = rows) -> Tensor:
                return erase(x, self.augment, self.encode.seed, epoch_B[rows], sample_B[rows])

            alter = noise if self.augment.erase else None
            found.append(self.encode(images_B3HW[rows], self.train.class_N[sample_B[rows]], alter))
        return joined(found)
