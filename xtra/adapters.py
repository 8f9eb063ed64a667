"""The stream for other trainers: as a PyTorch iterable of decoded batches, and as the source of a WebDataset pipeline.

Both order, read and resume like our own training: the same global batches on any number of ranks, each sample once per
epoch. `state_dict()` has the position as one number, with the dataset and order; save it with the model, on any one
rank, and pass it to `load_state_dict()` on every rank, however many there are then.

Neither uses worker processes: threads of this process prefetch and decode, and every worker would read the same data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from shards.manifest import Manifest
from shards.pixels import image
from shards.stream import Order, ReadConfig, Stream, read_mixture, seen_in, state_of
from xtra.data import Augment, train_batches


class _Resumable(IterableDataset[dict[str, Any]]):
    """A stream that starts at the loaded state, or after the samples taken so far. Endless, or until `stop_at` samples;
    iterating again continues."""

    def __init__(
        self,
        data: str,
        batch: int,
        *,
        rank: int,
        world: int,
        mix: Sequence[str] = (),
        seed: int = 0,
        order: Order | None = None,
        stop_at: int | None = None,
        read: ReadConfig | None = None,
    ):
        """`data`: DATASET, DATASET@VERSION or DATASET@DIGEST; `mix`: others, DATASET=SHARE; `batch`: over all ranks;
        `order`: its seed defaults to `seed`."""
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of a world of {world}: ranks are 0 to {world - 1}")
        self.manifest = read_mixture(data, mix)
        self.samples_seen = 0  # over all ranks
        self._batch, self._rank, self._world = batch, rank, world
        self._order, self._stop_at, self._read = order or Order(seed=seed), stop_at, read

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return state_of(self.manifest, self._order, self.samples_seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises ValueError if it was saved for another dataset or order."""
        self.samples_seen = seen_in(state, self.manifest, self._order)

    def _stream(self) -> closing[Stream]:
        worker = get_worker_info()
        if worker is not None:
            raise ValueError(
                f"num_workers is {worker.num_workers}: the stream has its own threads, and every worker process would "
                "read the same data: use DataLoader(..., batch_size=None, num_workers=0)"
            )
        return closing(
            Stream(
                self.manifest,
                self._order,
                self._batch,
                self.samples_seen,
                self._stop_at,
                self._rank,
                self._world,
                self._read,
            )
        )


class TorchBatches(_Resumable):
    """Decoded, augmented batches, for `DataLoader(batches, batch_size=None)` or torchdata's `StatefulDataLoader`.

    A batch is {"image": uint8 [n, 3, size, size], "key": n strings, "labels": n lists of strings}; n is this rank's
    share. Every random choice is a draw keyed by (seed, epoch, sample), as in our own training.
    """

    def __init__(
        self,
        data: str,
        batch: int,
        size: int,
        *,
        rank: int,
        world: int,
        mix: Sequence[str] = (),
        seed: int = 0,
        order: Order | None = None,
        augment: Augment | None = None,
        stop_at: int | None = None,
        read: ReadConfig | None = None,
        threads: int = 2,
    ):
        super().__init__(
            data, batch, rank=rank, world=world, mix=mix, seed=seed, order=order, stop_at=stop_at, read=read
        )
        self._size, self._seed, self._augment, self._threads = size, seed, augment or Augment(), threads

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._stream() as stream:
            for batch in train_batches(stream, self._size, self._augment, self._seed, self._threads):
                seen = self.samples_seen + self._batch
                self.samples_seen = seen if self._stop_at is None else min(seen, self._stop_at)
                yield {
                    "image": batch.images_B3HW,
                    "key": list(batch.keys),
                    "labels": [list(names) for names in batch.labels],
                }


class WdsSamples(_Resumable):
    """Encoded samples for the webdataset library's stages: `wds.DataPipeline(samples, ...)`.

    A sample is {"__key__", "__url__", "jpg" or "png" or "webp": bytes, "json": bytes}, and "cls": bytes, its label's
    number among the dataset's classes, if it has such a label. The state is that of the last complete global `batch`:
    save it after a multiple of batch / world samples.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        classes = self.manifest.classes if isinstance(self.manifest, Manifest) else None
        numbers = {name: number for number, name in enumerate(classes or ())}
        with self._stream() as stream:
            for encoded in stream:
                for i, sample in enumerate(encoded, start=1):
                    body = bytes(sample.body)
                    ending = (image.sniff(body) or "jpeg").replace("jpeg", "jpg")
                    about = {"labels": sample.labels, "sample": sample.sample, "epoch": sample.epoch}
                    out: dict[str, Any] = {
                        "__key__": sample.key,
                        "__url__": stream.reader.tar_url(sample.shard),
                        ending: body,
                        "json": json.dumps(about).encode(),
                    }
                    if len(sample.labels) == 1 and sample.labels[0] in numbers:
                        out["cls"] = str(numbers[sample.labels[0]]).encode()
                    if i == len(encoded):
                        encoded.release()
                        self.samples_seen = encoded.stop
                    yield out
                self.samples_seen = encoded.stop  # with more ranks than samples in the batch, this rank got none
