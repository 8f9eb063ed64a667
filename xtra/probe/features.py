"""The inputs of probe heads: labels of a dataset version, and features of its images from a frozen encoder.

Training features come in batches of `Features`, from the cache here, which keeps a few deterministic views of every
image (for CPUs and quick probes), or augmented on the fly (xtra/probe/augmented_features.py). Evaluation uses every
centre crop once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.manifest import Manifest
from shards.selection import key_hash, selected_index
from shards.stream import order
from xtra import data
from xtra.probe.encoders import FrozenEncoder

# An unlikely seed for `subset`: with the same seed, its thresholds on the same hash would select the validation split.
HOLDOUT_SEED = 0x686F6C64
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

Progress = Callable[[str, int, int], None]  # current work, images done, total


# --- labels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """A labelled dataset version: class number of every sample, in manifest order, and which are held out."""

    manifest: Manifest
    class_N: np.ndarray
    held_N: np.ndarray

    @property
    def held(self) -> np.ndarray:
        """Numbers of the held-out samples, on which no head trains."""
        return np.flatnonzero(self.held_N)

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the samples on which heads train."""
        return np.flatnonzero(~self.held_N)


def labelled(train: Manifest, evaluation: Manifest, holdout: float) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Both sets and their classes: those in train's dataset.json, otherwise its sorted labels. A sample's first label
    counts. A share `holdout` of train is held out, by hash of the key; 0: nothing.

    Raises ValueError naming the key of a sample without a label, or whose label is not a class.
    """
    train_keys, train_labels = keys_and_labels(train)
    eval_keys, eval_labels = keys_and_labels(evaluation)
    classes = train.classes or tuple(sorted(set(train_labels)))
    if len(classes) < 2:
        raise ValueError(f"{train.dataset}: has {len(classes)} class; a probe needs at least 2")
    class_N = numbered(train, train_keys, train_labels, classes)
    eval_class_N = numbered(evaluation, eval_keys, eval_labels, classes)
    held_N = np.zeros(len(train_keys), bool)
    if holdout:
        held_N = key_hash(train_keys, HOLDOUT_SEED) < np.uint64(holdout * 2.0**64)
        if not held_N.any() or held_N.sum() > len(held_N) - 2:
            raise ValueError(
                f"{train.dataset}: a validation split of {holdout:g} has {held_N.sum()} of {len(held_N)} samples: "
                "use a larger set or another holdout"
            )
    return (
        Labelled(train, class_N, held_N),
        Labelled(evaluation, eval_class_N, np.zeros(len(eval_class_N), bool)),
        classes,
    )


def keys_and_labels(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Keys and labels in manifest order. Raises ValueError for a sample without a label."""
    keys: list[str] = []
    labels: list[str] = []
    for number in range(len(manifest.shards)):
        table = selected_index(manifest, number, ["key", "labels"])
        for key, found in zip(table["key"].to_pylist(), table["labels"].to_pylist()):
            if not found:
                raise ValueError(f"{manifest.dataset}: {key} has no label: probe on a labelled set")
            keys.append(key)
            labels.append(found[0])
    if not keys:
        raise ValueError(f"{manifest.dataset}: has no samples: import a labelled set into it")
    return keys, labels


def numbered(manifest: Manifest, keys: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 [N]. Raises ValueError naming the first label that is not a class."""
    number = {label: n for n, label in enumerate(classes)}
    for key, label in zip(keys, labels):
        if label not in number:
            raise ValueError(
                f"{manifest.dataset}: label {label!r} of {key} is not among the {len(classes)} classes of the "
                "training set: import both sets with the same class names"
            )
    return np.array([number[label] for label in labels], np.int64)


# --- features ------------------------------------------------------------------------------------------------------


class Feature(NamedTuple):
    """A head's input for an image: tokens [N, D] or pooled [D] (their mean), each the mean of the residual streams
    after the last `layers` layers, before any final norm; or pixels [3HW] (0..255: the head's batch norm
    standardises)."""

    form: Literal["tokens", "pooled", "pixels"]
    layers: int = 0


@dataclass(frozen=True)
class Features:
    """The heads' inputs for some images, in a storage type; `of` converts to float32."""

    labels_B: Tensor  # int64 class numbers
    values: dict[Feature, Tensor]

    def of(self, feature: Feature) -> Tensor:
        return _wide(self.values[feature])

    def __len__(self) -> int:
        return len(self.labels_B)

    def take(self, index: Tensor, device: str) -> Features:
        return Features(self.labels_B[index].to(device), {k: v[index].to(device) for k, v in self.values.items()})

    def put(self, index: Tensor, other: Features) -> None:
        self.labels_B[index] = other.labels_B.cpu()
        for feature, value in other.values.items():
            self.values[feature][index] = value.to(self.values[feature].dtype).cpu()


def joined(parts: Sequence[Features]) -> Features:
    if len(parts) == 1:
        return parts[0]
    values = {feature: torch.cat([part.values[feature] for part in parts]) for feature in parts[0].values}
    return Features(torch.cat([part.labels_B for part in parts]), values)


@dataclass(frozen=True)
class Encode:
    """Decoded images -> the features that the run's heads need, and their shapes and storage types."""

    encoder: FrozenEncoder
    wanted: tuple[Feature, ...]
    token_dtype: torch.dtype
    device: str
    batch: int
    resize: int | None  # short side before the centre crop; the encoder's image size if None
    seed: int
    threads: int
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder, by autocast

    def __post_init__(self) -> None:
        size = self.encoder.image
        if self.resize is not None and self.resize < size:
            raise ValueError(
                f"resize is {self.resize}, but the encoder takes images of {size} pixels: give at least {size}"
            )
        deepest = max((feature.layers for feature in self.wanted), default=0)
        if deepest > self.encoder.depth:
            raise ValueError(
                f"a layer set of {deepest} is deeper than the encoder, which has {self.encoder.depth} layers: "
                f"give layer_sets and linear_layer_sets of 1 to {self.encoder.depth}"
            )

    @property
    def stored(self) -> dict[Feature, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and storage type of one image's features."""
        size = self.encoder
        every = {
            "tokens": ((size.tokens, size.width), self.token_dtype),
            "pooled": ((size.width,), torch.float32),
            "pixels": ((3 * size.image**2,), torch.uint8),
        }
        return {feature: every[feature.form] for feature in self.wanted}

    def empty(self, images: int) -> Features:
        made = {feature: torch.empty(images, *shape, dtype=dtype) for feature, (shape, dtype) in self.stored.items()}
        return Features(torch.empty(images, dtype=torch.int64), made)

    def bytes(self, images: int) -> int:
        return images * sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.stored.values())

    def batches(self, source: Manifest, view: int = 0, only: np.ndarray | None = None) -> Iterator[data.Batch]:
        """Every image (or those numbered in `only`) once: the centre crop (view 0), or a random crop that depends only
        on seed, view and image."""
        size = self.encoder.image
        return data.eval_batches(
            source, self.batch, size, self.resize, view=view, seed=self.seed, threads=self.threads, only=only
        )

    @torch.no_grad()
    def __call__(
        self, images_B3HW: Tensor, class_B: np.ndarray, alter: Callable[[Tensor], Tensor] | None = None
    ) -> Features:
        """uint8 images [B, 3, H, W] -> features on the device. `alter` may change the encoder's normalised input."""
        images_B3HW = images_B3HW.to(self.device)
        found: dict[Feature, Tensor] = {}
        deepest = max(feature.layers for feature in self.wanted)
        streams: list[Tensor] = []
        if deepest:
            inputs_B3HW = data.normalise(images_B3HW, self.encoder.mean, self.encoder.std)
            inputs_B3HW = alter(inputs_B3HW) if alter else inputs_B3HW
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
                streams = self.encoder.layers(inputs_B3HW, deepest)
            if not all(map(_finite, streams)):
                raise ValueError(
                    f"the {self.encoder.name} encoder's features of some images are not finite in {self.precision}: "
                    "check its weights, or use precision fp32"
                )
        for feature in self.wanted:
            if feature.form == "pixels":
                found[feature] = images_B3HW.flatten(1)
            elif feature.form == "pooled":
                found[feature] = _mean([_wide(stream).mean(1) for stream in streams[-feature.layers :]])
            else:
                found[feature] = _mean([_wide(stream) for stream in streams[-feature.layers :]])
        return Features(torch.from_numpy(class_B).to(self.device), found)

    def evaluation(self, of: Labelled, what: str, say: Progress, only: np.ndarray | None = None) -> Iterator[Features]:
        """Features of the centre crop of every image (or those numbered in `only`) once."""
        done, total = 0, len(of.class_N) if only is None else len(only)
        for batch in self.batches(of.manifest, only=only):
            yield self(batch.images_B3HW, of.class_N[np.asarray(batch.sample_B)])
            done += len(batch.keys)
            batch.release()
            say(what, done, total)
        assert done == total, "every sample once"


def _finite(values: Tensor) -> bool:
    """Whether all are. Their sum is not if one is not; to form it takes a twentieth of the time of a look at each."""
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)


class Cache:
    """Features of some views of the images that heads train on, in memory.

    Epoch e shows image i in view (e + i) % views, so every batch mixes views and `views` consecutive epochs show each
    view of each image once. View 0 is the centre crop, the others are random crops.
    """

    def __init__(self, encode: Encode, train: Labelled, views: int, batch: int, limit_gb: float):
        self.encode, self.train, self.views, self.batch = encode, train, views, batch
        self.images = len(train.kept)
        self.gigabytes = encode.bytes(views * self.images) / 1e9
        if self.gigabytes > limit_gb:
            raise ValueError(
                f"the features take {self.gigabytes:.3g} GB ({views} views of {self.images} images) but cache_gb is "
                f"{limit_gb:g}: lower views, use a subset of train, leave out the attentive head, or raise cache_gb if "
                "the machine has the memory"
            )
        self.features = encode.empty(views * self.images)
        self.filled = 0  # the first rows, whole batches: view after view, images in the order of `train.kept`

    def fill(self, say: Progress) -> None:
        """Encode every view once, except rows that are already filled. Raises ValueError if a feature does not fit its
        storage type."""
        row_N = np.cumsum(~self.train.held_N) - 1
        for view in range(self.filled // self.images, self.views):
            done = self.filled - view * self.images
            what = f"encode view {view + 1} of {self.views} (cache {self.gigabytes:.3g} GB)"
            for batch in self.encode.batches(self.train.manifest, view, self.train.kept[done:]):
                sample_B = np.asarray(batch.sample_B)
                row = torch.from_numpy(row_N[sample_B] + view * self.images)
                assert int(row[0]) == self.filled, "rows are filled in order"
                self.features.put(row, self.encode(batch.images_B3HW, self.train.class_N[sample_B]))
                done += len(batch.keys)
                self.filled += len(batch.keys)
                batch.release()
                say(what, done, self.images)
        for feature, values in self.features.values.items():
            if feature.form == "tokens" and not all(map(_finite, values.split(256))):
                raise ValueError(f"features are not finite in {self.encode.token_dtype}: use cache_dtype bfloat16")

    def epochs(self, count: int) -> Iterator[Features]:
        for epoch in range(count):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[Features]:
        shuffled = order.permutation(self.images, self.encode.seed, epoch)
        view = (epoch + shuffled) % self.views
        # Near-equal batches: a short last one would move the batch-norm statistics that evaluation uses.
        for index in np.array_split(view * self.images + shuffled, math.ceil(self.images / self.batch)):
            yield self.features.take(torch.from_numpy(index), self.encode.device)
