"""What probe heads train on: labels of a dataset version, and features of its images from a frozen encoder.

Batches of `Features` come from a `Source`. The one here is a cache of a few deterministic views of every image, which
suits CPUs and probes during training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards import order
from shards.manifest import Manifest
from shards.selection import key_hash, selected_index
from xtra import data
from xtra.model import Encoder

# Not a seed anyone passes to `subset`, whose thresholds on the same hash would otherwise pick out the hold-out.
HOLDOUT_SEED = 0x686F6C64
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

Progress = Callable[[str, int, int], None]  # what is being done, how many images are done, of how many


@dataclass(frozen=True)
class Labelled:
    """A labelled dataset version: class number of every sample, in manifest order, and which are held out."""

    manifest: Manifest
    class_N: np.ndarray
    held_N: np.ndarray


def labelled(train: Manifest, evaluation: Manifest, holdout: float) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Classes are the sorted labels of train; of a sample with several labels the first counts.

    Raises ValueError naming the key of a sample without label, or with one that train does not have.
    """
    train_keys, train_labels = _keys_and_labels(train)
    eval_keys, eval_labels = _keys_and_labels(evaluation)
    classes = tuple(sorted(set(train_labels)))
    if len(classes) < 2:
        raise ValueError(f"{train.dataset}: has {len(classes)} class; a probe needs at least 2")
    number = {label: n for n, label in enumerate(classes)}
    for key, label in zip(eval_keys, eval_labels):
        if label not in number:
            raise ValueError(
                f"{evaluation.dataset}: label {label!r} of {key} is not among the {len(classes)} labels of "
                f"{train.dataset}: import both sets with the same class names"
            )
    held_N = key_hash(train_keys, HOLDOUT_SEED) < np.uint64(holdout * 2.0**64)
    if not held_N.any() or held_N.sum() > len(held_N) - 2:
        raise ValueError(
            f"{train.dataset}: a hold-out of {holdout:g} takes {held_N.sum()} of {len(held_N)} samples: "
            "use a larger set or another holdout"
        )
    class_N = np.array([number[label] for label in train_labels], np.int64)
    eval_class_N = np.array([number[label] for label in eval_labels], np.int64)
    return (
        Labelled(train, class_N, held_N),
        Labelled(evaluation, eval_class_N, np.zeros(len(eval_class_N), bool)),
        classes,
    )


def _keys_and_labels(manifest: Manifest) -> tuple[list[str], list[str]]:
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


@dataclass(frozen=True)
class Features:
    """What heads see of some images, by kind of head, in a storage type; `of` gives float32.

    attentive [B, N, D], linear [B, D], pixels [B, 3HW] (0..255: the head's batch norm standardises each).
    """

    labels_B: Tensor  # int64 class numbers
    by_kind: dict[str, Tensor]

    def of(self, kind: str) -> Tensor:
        return self.by_kind[kind].float()

    def __len__(self) -> int:
        return len(self.labels_B)

    def take(self, index: Tensor, device: str) -> Features:
        return Features(self.labels_B[index].to(device), {k: v[index].to(device) for k, v in self.by_kind.items()})

    def put(self, index: Tensor, other: Features) -> None:
        self.labels_B[index] = other.labels_B.cpu()
        for kind, value in other.by_kind.items():
            self.by_kind[kind][index] = value.to(self.by_kind[kind].dtype).cpu()


# Where training features come from: epoch -> batches. The cache is one; augmenting on the fly would be another.
Source = Callable[[int], Iterator[Features]]


@dataclass(frozen=True)
class Encode:
    """Decoded images -> the features that the run's heads want, and their shapes and storage types."""

    encoder: Encoder
    kinds: tuple[str, ...]
    layers: int  # attentive: mean over this many last layers, or over all if the encoder has fewer
    token_dtype: torch.dtype
    device: str
    batch: int
    resize: int | None
    seed: int
    threads: int

    @property
    def stored(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and storage type of one image's features, by kind of head."""
        size = self.encoder.config
        every = {
            "attentive": ((size.tokens, size.width), self.token_dtype),
            "linear": ((size.width,), torch.float32),
            "pixels": ((3 * size.image**2,), torch.uint8),
        }
        return {kind: every[kind] for kind in self.kinds}

    def empty(self, images: int) -> Features:
        made = {kind: torch.empty(images, *shape, dtype=dtype) for kind, (shape, dtype) in self.stored.items()}
        return Features(torch.empty(images, dtype=torch.int64), made)

    def bytes(self, images: int) -> int:
        return images * sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.stored.values())

    def batches(self, source: Manifest, view: int) -> Iterator[data.Batch]:
        """Every image once: the centre crop (view 0), or a random crop that depends on seed, view and image alone."""
        size = self.encoder.config.image
        return data.eval_batches(source, self.batch, size, self.resize, view=view, seed=self.seed, threads=self.threads)

    @torch.no_grad()
    def __call__(self, images_B3HW: Tensor, class_B: np.ndarray) -> Features:
        """uint8 images [B, 3, H, W] -> features on the device."""
        images_B3HW = images_B3HW.to(self.device)
        found: dict[str, Tensor] = {}
        if "pixels" in self.kinds:
            found["pixels"] = images_B3HW.flatten(1)
        if "attentive" in self.kinds or "linear" in self.kinds:
            layers = min(self.layers, self.encoder.config.depth) if "attentive" in self.kinds else 1
            streams = self.encoder.layers(data.normalise(images_B3HW), layers)
            if "linear" in self.kinds:
                found["linear"] = streams[-1].mean(1)
            if "attentive" in self.kinds:
                found["attentive"] = torch.stack(streams).mean(0)
        return Features(torch.from_numpy(class_B).to(self.device), found)


class Cache:
    """Features of some views of the training images, and of the centre crop of the hold-out, in memory.

    `epoch` is a `Source`: epoch e shows image i in view (e + i) % views, so every batch mixes views and `views`
    consecutive epochs show each view of each image once.
    """

    def __init__(self, encode: Encode, train: Labelled, views: int, batch: int, limit_gb: float):
        self.encode, self.train, self.views, self.batch = encode, train, views, batch
        self.row_N = np.where(train.held_N, np.cumsum(train.held_N), np.cumsum(~train.held_N)) - 1
        self.held_images = int(train.held_N.sum())
        self.images = len(train.held_N) - self.held_images
        self.gigabytes = encode.bytes(views * self.images + self.held_images) / 1e9
        if self.gigabytes > limit_gb:
            raise ValueError(
                f"the features take {self.gigabytes:.3g} GB ({views} views of {self.images} images, and "
                f"{self.held_images} held out) but cache_gb is {limit_gb:g}: lower views, use a subset of train, "
                "leave out the attentive head, or raise cache_gb if the machine has the memory"
            )
        self.kept = encode.empty(views * self.images)
        self.held = encode.empty(self.held_images)

    def fill(self, say: Progress) -> None:
        """Encode every view once. Raises ValueError when a feature does not fit cache_dtype."""
        for view in range(self.views):
            done, what = 0, f"encode view {view + 1} of {self.views} (cache {self.gigabytes:.3g} GB)"
            for batch in self.encode.batches(self.train.manifest, view):
                done += len(batch.keys)
                sample_B = np.asarray(batch.sample_B)
                held_B = self.train.held_N[sample_B]
                for held, target in ((False, self.kept), (True, self.held)):
                    chosen_B = held_B == held
                    if not chosen_B.any() or (held and view > 0):
                        continue
                    sample = sample_B[chosen_B]
                    row = self.row_N[sample] + (0 if held else view * self.images)
                    images = batch.images_B3HW[torch.from_numpy(chosen_B)]
                    target.put(torch.from_numpy(row), self.encode(images, self.train.class_N[sample]))
                batch.release()
                say(what, done, len(self.train.held_N))
        tokens = self.kept.by_kind.get("attentive")
        if tokens is not None and not all(bool(part.isfinite().all()) for part in tokens.split(4096)):
            raise ValueError(f"token features are not finite in {self.encode.token_dtype}: use cache_dtype bfloat16")

    def epoch(self, epoch: int) -> Iterator[Features]:
        shuffled = order.permutation(self.images, self.encode.seed, epoch)
        view = (epoch + shuffled) % self.views
        # Near-equal batches: a short last one would move the batch-norm statistics that evaluation uses.
        for index in np.array_split(view * self.images + shuffled, math.ceil(self.images / self.batch)):
            yield self.kept.take(torch.from_numpy(index), self.encode.device)

    def hold_out(self) -> Iterator[Features]:
        for index in torch.arange(self.held_images).split(self.batch):
            yield self.held.take(index, self.encode.device)
