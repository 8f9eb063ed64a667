"""Encoded samples -> decoded, cropped uint8 batches; every random choice is a draw keyed by (seed, epoch, sample).

    stream -> (feeder thread) draws, headers, views -> (decoding threads) pixels into a batch slot -> Batch

The view of a picture (`image.View`) is chosen before anything is decoded, so that the threads here and a device that
takes whole batches show the same. What a fast decoder refuses goes to Pillow, the reference decoder, which alone
decides what is bad. A bad sample is replaced by the next decodable one of its lane window and reported in the batch's
events, so the count of samples seen, the x-axis of every curve, stays correct.

Shapes: B images of 3 x H x W pixels, H = W = size.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shards.manifest import Manifest
from shards.pixels import View, crop, image
from shards.stream import Encoded, Once, Sample, Stream, once, uniform
from xtra import rand_augment
from xtra.augment import Augment
from xtra.batch_memory import Lease, Slots

MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics, as the official code's transforms use
STD = (0.229, 0.224, 0.225)
_CROP_TRIES = 10  # torchvision's RandomResizedCrop gives up after as many
_TOGETHER = 8  # samples per decoding task: a task of its own costs more than decoding a small picture


@dataclass(frozen=True)
class Batch:
    """Decoded samples, this rank's part of a global batch; `events` report what was replaced and why."""

    lease: Lease = field(repr=False)
    keys: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    sample_B: np.ndarray  # number in the manifest
    epoch_B: np.ndarray  # epoch whose draws augment each
    events: tuple[dict[str, Any], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def images_B3HW(self) -> Tensor:
        """uint8, valid until `release`. Raises ValueError after it."""
        return self.lease.images_B3HW

    def release(self) -> None:
        """Let a later batch have the memory of the images. A batch that is never released stays valid for ever."""
        self.lease.release()


class DeviceDecoder(Protocol):
    """A decoder that takes whole batches; what it refuses is decoded by the CPU."""

    def __call__(
        self, bodies: Sequence[crop.Body], views: Sequence[View | None], size: int
    ) -> tuple[Tensor, list[int]]:
        """uint8 [B, 3, size, size] on the device, and the refused indices, whose pixels are undefined. A view is None
        if the header does not give the size: these must be refused. Keeps no reference to the bodies."""
        ...


class Guard(Protocol):
    """Keeps samples that may kill a process away from the decoders of this one; see xtra/run/poison.py."""

    def decoding(self, samples: Sequence[Sample]) -> AbstractContextManager[None]:
        """Marks these samples as being decoded by this process until the end of the block."""
        ...

    def risky(self, sample: Sample) -> bool:
        """Whether only `decode` may decode it."""
        ...

    def decode(self, sample: Sample, out_3HW: np.ndarray) -> None:
        """Decode a risky sample. Raises image.Undecodable."""
        ...


class Unguarded:
    """No sample is risky."""

    def decoding(self, samples: Sequence[Sample]) -> AbstractContextManager[None]:
        return nullcontext()

    def risky(self, sample: Sample) -> bool:
        return False

    def decode(self, sample: Sample, out_3HW: np.ndarray) -> None:
        raise AssertionError(sample.key)


_UNGUARDED = Unguarded()


def normalise(
    images_B3HW: Tensor,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Tensor:
    """uint8 -> float32 normalised by mean and std (of pixels in 0..1), on the images' own device."""
    mean_311, std_311 = _statistics(images_B3HW.device, mean, std)
    return (images_B3HW.float() - mean_311) / std_311


@functools.cache
def _statistics(device: torch.device, *statistics: tuple[float, float, float]) -> list[Tensor]:
    """Sent to each device only once, because the host waits for all earlier work of the device."""
    return [(torch.tensor(numbers).view(3, 1, 1) * 255).to(device) for numbers in statistics]


# ---- views of a picture --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centre:
    """Resize the short side to `resize`, then crop the central size x size."""

    size: int
    resize: int

    def __post_init__(self) -> None:
        image.centre_view(1, 1, self.resize, self.size)

    def draw(self, epoch_B: np.ndarray, sample_B: np.ndarray) -> list[Any]:
        return [None] * len(sample_B)

    def view(self, width: int, height: int, draws: Any) -> View:
        return image.centre_view(width, height, self.resize, self.size)

    def finish(self, out_R3HW: np.ndarray, epoch_R: Sequence[int], sample_R: Sequence[int]) -> None:
        pass


@dataclass(frozen=True)
class RandomCrop:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip on our own draws."""

    size: int
    augment: Augment
    seed: int

    def draw(self, epoch_B: np.ndarray, sample_B: np.ndarray) -> list[Any]:
        """All draws that a sample may need, for each: (tries x (area, ratio, x, y), mirrored)."""
        epoch_B, sample_B = np.asarray(epoch_B, np.int64), np.asarray(sample_B, np.int64)
        u = uniform(self.seed, "crop", epoch_B[:, None], sample_B[:, None], np.arange(4 * _CROP_TRIES))
        mirrored_B = uniform(self.seed, "flip", epoch_B, sample_B) < self.augment.flip
        return list(zip(u.reshape(-1, _CROP_TRIES, 4), mirrored_B.tolist()))

    def view(self, width: int, height: int, draws: Any) -> View:
        return image.crop_view(self.box(width, height, draws[0]), self.size, draws[1])

    def finish(self, out_R3HW: np.ndarray, epoch_R: Sequence[int], sample_R: Sequence[int]) -> None:
        """RandAugment, if configured, on cropped pixels."""
        if self.augment.randaugment:
            policy = rand_augment.parse(self.augment.randaugment)
            acts_R = rand_augment.draw(policy, self.seed, np.array(epoch_R), np.array(sample_R))
            for acts, out_3HW in zip(acts_R, out_R3HW):
                rand_augment.apply(policy, acts, out_3HW)

    def box(self, width: int, height: int, tries_T4: np.ndarray) -> tuple[int, int, int, int]:
        """(x, y, width, height), as RandomResizedCrop.get_params. Python's own arithmetic: numpy's exp and log may
        differ from one processor to the next."""
        augment = self.augment
        low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
        for area_u, ratio_u, x_u, y_u in map(np.ndarray.tolist, tries_T4):
            area = width * height * (augment.scale[0] + area_u * (augment.scale[1] - augment.scale[0]))
            ratio = math.exp(low + ratio_u * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return math.floor(x_u * (width - w + 1)), math.floor(y_u * (height - h + 1)), w, h
        # No try fitted: the largest centred crop whose ratio is allowed.
        ratio = min(max(width / height, augment.ratio[0]), augment.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (width - w) // 2, (height - h) // 2, w, h


Transform = Centre | RandomCrop


def crop_box(
    width: int, height: int, augment: Augment, seed: int, epoch: int, sample: int
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the random crop of one sample, pixels."""
    transform = RandomCrop(1, augment, seed)
    ((tries_T4, _),) = transform.draw(np.array([epoch]), np.array([sample]))
    return transform.box(width, height, tries_T4)


# ---- decoding ------------------------------------------------------------------------------------------------------


def decode_batch(
    bodies: Sequence[crop.Body], views: Sequence[View | None], size: int, out_B3HW: np.ndarray
) -> list[int]:
    """Decode what the accelerator takes, straight into uint8 [B, 3, size, size]. Returns the indices that it refuses
    (all if it was not built), which are left to the reference decoder."""
    return crop.decode_batch(bodies, views, size, out_B3HW)


def decode_reference(body: crop.Body, transform: Transform, draws: Any, out_3HW: np.ndarray) -> None:
    """Decode one picture with the reference decoder. Raises image.Undecodable if the sample is bad."""
    picture = image.decode(bytes(body))
    image.show(picture, transform.view(*picture.size, draws), out_3HW)


def augmented(body: crop.Body, size: int, augment: Augment, seed: int, epoch: int, sample: int) -> np.ndarray:
    """Decode and augment, except for erasing: uint8 [3, size, size]. Raises image.Undecodable."""
    transform = RandomCrop(size, augment, seed)
    out_3HW = _alone(body, size, transform, epoch, sample)
    transform.finish(out_3HW[None], [epoch], [sample])
    return out_3HW


def centred(body: crop.Body, size: int, resize: int) -> np.ndarray:
    """Decode, resize the short side, crop the centre: uint8 [3, size, size]. Raises image.Undecodable."""
    return _alone(body, size, Centre(size, resize), 0, 0)


def _alone(body: crop.Body, size: int, transform: Transform, epoch: int, sample: int) -> np.ndarray:
    (draws,) = transform.draw(np.array([epoch]), np.array([sample]))
    out_13HW = np.empty((1, 3, size, size), np.uint8)
    if decode_batch([body], _views([body], transform, [draws]), size, out_13HW):
        decode_reference(body, transform, draws, out_13HW[0])
    return out_13HW[0]


def _views(bodies: Sequence[crop.Body], transform: Transform, draws_B: Sequence[Any]) -> list[View | None]:
    """The view of each picture; None if the accelerator cannot read its size from the header."""
    return [
        transform.view(*size, draws) if size is not None else None for size, draws in zip(crop.sizes(bodies), draws_B)
    ]


def _by_header(body: crop.Body, transform: Transform, draws: Any) -> View | None:
    """The view of an upright JPEG, which a device may take even without the accelerator; else None."""
    try:
        head = image.header(bytes(body))
    except image.Undecodable:
        return None
    return transform.view(head.width, head.height, draws) if (head.format, head.orientation) == ("jpeg", 1) else None


# ---- batches -------------------------------------------------------------------------------------------------------


def train_batches(
    stream: Stream,
    size: int,
    augment: Augment,
    seed: int,
    threads: int = 2,
    ahead: int = 2,
    device: DeviceDecoder | None = None,
    guard: Guard = _UNGUARDED,
) -> Iterator[Batch]:
    """The stream's batches, decoded and augmented except for erasing, which follows normalisation (`augment.erase`);
    `ahead` batches are being decoded while one is consumed.

    Raises ValueError when a whole lane window does not decode, or for RandAugment with a device that decodes.
    """
    transform = RandomCrop(size, augment, seed)

    def replace(sample: Sample, why: image.Undecodable, out_3HW: np.ndarray) -> tuple[Sample, dict[str, Any]]:
        """Show a substitute. Its crop is drawn for itself, in the epoch in which it is shown."""
        tar, tried = stream.reader.tar_url(sample.shard), 0
        for other in stream.substitutes(sample):
            tried += 1
            try:
                if guard.risky(other):
                    guard.decode(other, out_3HW)
                else:
                    with guard.decoding([other]):
                        out_3HW[:] = _alone(other.body, size, transform, sample.epoch, other.sample)
            except image.Undecodable:
                continue
            event = {"event": "substitute", "shard": tar, "key": sample.key, "why": str(why), "shown": other.key}
            return other, event
        raise ValueError(
            f"{tar}: {sample.key} and its whole lane window do not decode ({why}; {tried} substitutes tried): run "
            "xtra check on the dataset; in a small set, leave out what does not decode"
        )

    yield from _batches(stream, transform, replace, threads, ahead, device, guard=guard)


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
    device: DeviceDecoder | None = None,
    only: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every sample of the manifest once, in row order; with `only`, those with these rising numbers; with `part` (r,
    w), every w-th batch from the r-th on.

    View 0 resizes the short side to `resize` (default: the size itself) and crops the centre; view v >= 1 is the
    deterministic augmentation that training would use in epoch v. Raises ValueError naming the sample that does not
    decode: an evaluation has no substitutes.
    """

    def replace(sample: Sample, why: image.Undecodable, out_3HW: np.ndarray) -> tuple[Sample, dict[str, Any]]:
        tar = manifest.tar_url(sample.shard)
        raise ValueError(f"{tar}: {sample.key} does not decode ({why}): run xtra check --decode") from None

    transform = RandomCrop(size, augment or Augment(), seed) if view else Centre(size, resize or size)
    batches = once(manifest, batch, every=part, only=only)
    yield from _batches(batches, transform, replace, threads, 2, device, epoch=view)


Replace = Callable[[Sample, image.Undecodable, np.ndarray], tuple[Sample, dict[str, Any]]]
Replaced = dict[int, tuple[Sample, dict[str, Any]]]  # by index in the batch: the substitute, and the event


@dataclass(frozen=True)
class _Work:
    """A batch, and which of its samples the CPU decodes: all, or those that the device refused."""

    encoded: Encoded
    epoch_B: np.ndarray  # epoch of each sample's draws
    draws_B: Sequence[Any]
    views: Sequence[View | None]
    index: list[int]  # the samples that the CPU decodes; row j of the slot is sample index[j]
    slot: Lease
    on_device: Tensor | None
    pieces: list[Future[Replaced]] = field(default_factory=list)


def _batches(
    source: Stream | Once,
    transform: Transform,
    replace: Replace,
    threads: int,
    ahead: int,
    device: DeviceDecoder | None,
    epoch: int | None = None,
    guard: Guard = _UNGUARDED,
) -> Iterator[Batch]:
    """Decoded batches, in order, with `ahead` batches under way while one is consumed. Draws are those of each sample's
    own epoch unless `epoch` is given. Closes the source at the end."""
    if device is not None and isinstance(transform, RandomCrop) and transform.augment.randaugment:
        raise ValueError("augment.randaugment works on pixels that the CPU decodes: use --decoder cpu or leave it out")
    slots = Slots(transform.size)
    pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="decode")
    feeder = ThreadPoolExecutor(1, thread_name_prefix="feed")
    encoded_batches = iter(source)

    def begin() -> _Work | None:
        encoded = next(encoded_batches, None)
        if encoded is None:
            return None
        with guard.decoding(encoded):
            work = _begun(encoded, transform, slots, device, epoch, guard)
        for at in range(0, len(work.index), _TOGETHER):
            rows = range(at, min(at + _TOGETHER, len(work.index)))
            work.pieces.append(pool.submit(_decode_rows, work, rows, transform, replace, guard))
        return work

    try:
        waiting = deque(feeder.submit(begin) for _ in range(ahead + 1))
        while (work := waiting.popleft().result()) is not None:
            waiting.append(feeder.submit(begin))
            yield _finished(work)
    finally:
        source.close()  # first: the feeder may be waiting for a store that does not answer
        feeder.shutdown(wait=True, cancel_futures=True)
        pool.shutdown(wait=True, cancel_futures=True)


def _begun(
    encoded: Encoded,
    transform: Transform,
    slots: Slots,
    device: DeviceDecoder | None,
    epoch: int | None,
    guard: Guard,
) -> _Work:
    # Risky samples have no body here, so that every fast decoder refuses them.
    bodies = [b"" if guard.risky(sample) else sample.body for sample in encoded]
    epoch_B = encoded.place.epoch if epoch is None else np.full(len(encoded), epoch, np.int64)
    draws_B = transform.draw(epoch_B, encoded.place.sample)
    views = _views(bodies, transform, draws_B)
    if device is not None:
        views = [view or _by_header(body, transform, draws) for view, body, draws in zip(views, bodies, draws_B)]
    on_device, index = None, list(range(len(encoded)))
    if device is not None and index:
        on_device, index = device(bodies, views, transform.size)
    return _Work(encoded, epoch_B, draws_B, views, index, slots.take(len(index)), on_device)


def _decode_rows(work: _Work, rows: range, transform: Transform, replace: Replace, guard: Guard) -> Replaced:
    """Decode into some rows of the batch's slot. Raises what `replace` raises."""
    index, out_R3HW = [work.index[row] for row in rows], work.slot.pixels_B3HW[rows.start : rows.stop]
    samples, views = [work.encoded[i] for i in index], [work.views[i] for i in index]
    bad: dict[int, image.Undecodable] = {}
    with guard.decoding(samples):
        for row in decode_batch([sample.body for sample in samples], views, transform.size, out_R3HW):
            try:
                if guard.risky(samples[row]):
                    guard.decode(samples[row], out_R3HW[row])
                else:
                    decode_reference(samples[row].body, transform, work.draws_B[index[row]], out_R3HW[row])
            except image.Undecodable as why:
                bad[row] = why
    replaced = {row: replace(samples[row], why, out_R3HW[row]) for row, why in bad.items()}
    shown = [replaced[row][0] if row in replaced else sample for row, sample in enumerate(samples)]
    transform.finish(out_R3HW, [work.epoch_B[i] for i in index], [sample.sample for sample in shown])
    return {index[row]: substitute for row, substitute in replaced.items()}


def _finished(work: _Work) -> Batch:
    replaced: Replaced = {}
    for piece in work.pieces:
        replaced |= piece.result()
    lease = work.slot
    if work.on_device is not None:
        for row, i in enumerate(work.index):  # one by one: indexing by a tensor would send it and wait for it
            work.on_device[i].copy_(work.slot.images_B3HW[row], non_blocking=True)
        work.slot.release()
        lease = Lease(work.on_device)
    keys, labels, sample_B = work.encoded.keys, work.encoded.labels, work.encoded.place.sample.copy()
    for i, (shown, _) in replaced.items():
        keys[i], labels[i], sample_B[i] = shown.key, shown.labels, shown.sample
    work.encoded.release()
    return Batch(
        lease,
        keys=tuple(keys),
        labels=tuple(labels),
        sample_B=sample_B,
        epoch_B=work.epoch_B,
        events=tuple(replaced[i][1] for i in sorted(replaced)),
    )
