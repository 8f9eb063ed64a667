"""Encoded samples -> decoded, cropped uint8 batches; every random choice is a draw keyed by (seed, epoch, sample).

The CPU path: a few threads (the codecs release the GIL) decode with Pillow, the reference decoder. A sample that does
not decode is replaced by the next decodable one of its lane window and reported in the batch's events: the count of
samples seen, the x-axis of every curve, stays true.

Shapes: B images of 3 x H x W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards import image
from shards.manifest import Manifest
from shards.order import uniform
from shards.stream import Sample, Stream, once

MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics, as the official code's transforms use
STD = (0.229, 0.224, 0.225)
_CROP_TRIES = 10  # torchvision's RandomResizedCrop gives up after as many
_TOGETHER = 8  # samples that one decoding task takes: handing each over alone costs more than decoding a small one


@dataclass(frozen=True)
class Augment:
    """Training-time augmentation; the defaults are the paper's Table 1."""

    scale: tuple[float, float] = (0.3, 1.0)  # share of the image's area that a crop covers
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop
    flip: float = 0.5  # probability of a horizontal mirror

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"augment.{name} is {low} {high}; it must be two rising numbers above 0")
        if self.scale[1] > 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"augment.scale {self.scale} and augment.flip {self.flip} must not pass 1")


@dataclass(frozen=True)
class Batch:
    """Decoded samples, this rank's part of a global batch; `events` tell what was replaced and why."""

    images_B3HW: Tensor  # uint8
    keys: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    sample_B: np.ndarray
    epoch_B: np.ndarray
    events: tuple[dict[str, Any], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.keys)


def normalise(images_B3HW: Tensor) -> Tensor:
    """uint8 -> float32 with ImageNet mean and std taken out, on the images' own device."""
    mean = torch.tensor(MEAN, device=images_B3HW.device).view(3, 1, 1) * 255
    std = torch.tensor(STD, device=images_B3HW.device).view(3, 1, 1) * 255
    return (images_B3HW.float() - mean) / std


def crop_box(
    width: int, height: int, augment: Augment, seed: int, epoch: int, sample: int
) -> tuple[float, float, float, float]:
    """(x, y, width, height) of the random crop, pixels: torchvision's RandomResizedCrop.get_params on our draws."""
    u = uniform(seed, "crop", epoch, sample, np.arange(4 * _CROP_TRIES)).reshape(_CROP_TRIES, 4)
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for area_u, ratio_u, x_u, y_u in u.tolist():
        area = width * height * (augment.scale[0] + area_u * (augment.scale[1] - augment.scale[0]))
        ratio = math.exp(low + ratio_u * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(x_u * (width - w + 1)), math.floor(y_u * (height - h + 1)), w, h
    # No try fitted: the largest centred crop whose ratio is allowed.
    ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def augmented(body: bytes, size: int, augment: Augment, seed: int, epoch: int, sample: int) -> np.ndarray:
    """Decode, crop at random, resize and perhaps mirror: uint8 [3, size, size]. Raises image.Undecodable."""
    picture = image.decode(body)
    pixels = image.crop_resize(picture, crop_box(picture.width, picture.height, augment, seed, epoch, sample), size)
    if uniform(seed, "flip", epoch, sample) < augment.flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def centred(body: bytes, size: int, resize: int) -> np.ndarray:
    """Decode, resize the short side, crop the centre: uint8 [3, size, size]. Raises image.Undecodable."""
    return np.ascontiguousarray(image.resize_center(image.decode(body), resize, size).transpose(2, 0, 1))


def train_batches(
    stream: Stream, size: int, augment: Augment, seed: int, threads: int = 2, ahead: int = 2
) -> Iterator[Batch]:
    """The stream's batches, decoded and augmented; `ahead` batches are being decoded while one is consumed.

    Raises ValueError when a whole lane window does not decode.
    """

    def decode(sample: Sample) -> Decoded:
        first_why = None
        for candidate in itertools.chain([sample], stream.substitutes(sample)):
            try:
                # Crops follow the sample that is really shown, in the epoch in which it is shown.
                pixels = augmented(candidate.body, size, augment, seed, sample.epoch, candidate.sample)
            except image.Undecodable as why:
                first_why = first_why or str(why)
                continue
            event = None
            if first_why is not None:
                tar = stream.reader.tar_url(sample.shard)
                event = {
                    "event": "substitute",
                    "shard": tar,
                    "key": sample.key,
                    "why": first_why,
                    "shown": candidate.key,
                }
            return candidate, pixels, event
        raise ValueError(
            f"{stream.reader.tar_url(sample.shard)}: {sample.key} and its whole lane window do not decode "
            f"({first_why}): run xtra check on the dataset"
        )

    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="decode") as pool:
        try:
            for decoded in _decoded(pool, decode, stream, ahead):
                yield _stack(decoded, size)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def eval_batches(
    manifest: Manifest,
    batch: int,
    size: int,
    resize: int | None = None,
    view: int = 0,
    seed: int = 0,
    threads: int = 2,
    augment: Augment | None = None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Every sample of the manifest once, in row order; of `part` (r, w) every w-th batch from the r-th on.

    View 0 resizes the short side to `resize` (default: the size itself) and crops the centre; view v >= 1 is the
    deterministic random crop and mirror that training would use in epoch v. Raises ValueError naming the sample that
    does not decode: an evaluation has no substitutes.
    """

    def decode(sample: Sample) -> Decoded:
        try:
            if view == 0:
                return sample, centred(sample.body, size, resize or size), None
            return sample, augmented(sample.body, size, augment or Augment(), seed, view, sample.sample), None
        except image.Undecodable as why:
            tar = manifest.shards[sample.shard].tar
            raise ValueError(
                f"{manifest.dataset}/shards/{tar}: {sample.key} does not decode ({why}): run xtra check --decode"
            ) from None

    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="decode") as pool:
        try:
            for decoded in _decoded(pool, decode, itertools.islice(once(manifest, batch), part[0], None, part[1]), 2):
                yield _stack(decoded, size)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


Decoded = tuple[Sample, np.ndarray, dict[str, Any] | None]


def _decoded(
    pool: ThreadPoolExecutor, decode: Callable[[Sample], Decoded], batches: Iterable[list[Sample]], ahead: int
) -> Iterator[list[Decoded]]:
    """Each batch decoded, in order, with `ahead` batches under way while one is consumed."""

    def together(samples: list[Sample]) -> list[Decoded]:
        return [decode(sample) for sample in samples]

    waiting: deque[list[Future[list[Decoded]]]] = deque()
    for samples in batches:
        starts = range(0, len(samples), _TOGETHER)
        waiting.append([pool.submit(together, samples[start : start + _TOGETHER]) for start in starts])
        if len(waiting) > ahead:
            yield [done for future in waiting.popleft() for done in future.result()]
    while waiting:
        yield [done for future in waiting.popleft() for done in future.result()]


def _stack(decoded: list[Decoded], size: int) -> Batch:
    samples = [sample for sample, _, _ in decoded]
    pixels = np.stack([p for _, p, _ in decoded]) if decoded else np.zeros((0, 3, size, size), np.uint8)
    return Batch(
        images_B3HW=torch.from_numpy(pixels),
        keys=tuple(sample.key for sample in samples),
        labels=tuple(sample.labels for sample in samples),
        sample_B=np.array([sample.sample for sample in samples], np.int64),
        epoch_B=np.array([sample.epoch for sample in samples], np.int64),
        events=tuple(event for _, _, event in decoded if event is not None),
    )
