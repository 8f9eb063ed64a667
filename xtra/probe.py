"""Probes: how good a frozen encoder's features are for classification, measured on labelled sets.

One pass of the encoder feeds every head of the grid (`xtra/heads.py`). Protocol of the quick, cached form here:
features of a few deterministic views of the training set are computed once and kept in memory, all heads train on them,
the grid point is chosen on a tenth of the training set that no head trained on, and the chosen head is evaluated once.

What is probed: the residual streams after the encoder's last layers, before any final norm, with the block-causal mask
of pretraining. attentive: their mean over the last `layers` layers, every token. linear: the last one, averaged over
tokens. pixels: the normalised image itself under the linear head, which any encoder has to beat.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from shards import store
from shards.manifest import read_manifest
from xtra import checkpoint, heads
from xtra.data import Augment
from xtra.features import DTYPES, Cache, Encode, Labelled, Progress, Source, labelled
from xtra.model import Encoder, build, model_config


@dataclass(frozen=True)
class Config:
    checkpoint: str = ""  # a run folder (its newest checkpoint) or one checkpoint of it: RUN/checkpoints/000000012800
    train: str = ""  # labelled dataset that trains the heads
    eval: str = ""  # labelled dataset that the result is about
    out: str = ""  # folder that gets probes/*.json; the run's own if empty
    encoder: str = (
        "trained"  # or random (the run's architecture, initial weights), timm:NAME, timm:NAME:FILE, torch:FILE
    )
    # knn and logreg are quick: they look at one view of each image, and no schedule or learning rate is theirs.
    heads: tuple[Literal["attentive", "linear", "knn", "logreg"], ...] = ("attentive", "linear")
    pixels: bool = False  # also a linear classifier of raw pixels
    # holdout: the grid point is chosen on images of train that no head trained on. published: as the paper's numbers
    # were made, all of train trains and the point is chosen on eval itself, which flatters.
    protocol: Literal["holdout", "published"] = "holdout"
    # The paper's grid is 1e-4 to 8e-3 at batches of 512 to 4096 and 100 epochs; short probes of small sets need more.
    lrs: tuple[float, ...] = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2, 5e-2)
    weight_decays: tuple[float, ...] = (0.1,)  # one more axis of the grid
    # attentive: the mean of the last n layers, for each n; empty: of the last 6, or of all if the encoder has fewer
    layer_sets: tuple[int, ...] = ()
    linear_layer_sets: tuple[int, ...] = (1,)  # linear, knn, logreg: the same, averaged over tokens
    attention_heads: int = 16
    batch: int = 256
    epochs: int = 20
    warmup_epochs: float = 0.0
    warmup_lr: float = 1e-4  # that the warm-up starts from
    min_lr: float = 1e-5
    inert_grid: bool = False  # the published scheduler without warm-up: every point trains at warmup_lr
    betas: tuple[float, float] = (0.9, 0.95)  # of the official configs; the paper's Table 2 says 0.9 0.999
    clip: float = 3.0
    augment: Augment | None = None  # of every epoch, on the fly; None: `views` of each image, encoded once and kept
    views: int = 2  # of each training image, without augment: the centre crop, then random crops with flips
    holdout: float = 0.1  # share of the training set, by hash of the key, that chooses the grid point
    knn: tuple[int, ...] = (5, 10, 20, 50, 100, 200)  # numbers of neighbours to choose from
    logreg: tuple[float, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2)  # inverse strengths of regularisation to choose from
    strict: bool = False  # refuse sets that share images
    resize: int | None = None  # short side before the centre crop; the image size if None
    seed: int = 0
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; heads train in fp32
    encode_batch: int = 128
    threads: int = 2  # that decode
    cache_gb: float = 8.0  # refuse to keep more features than this in memory
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of token features
    save_minutes: float = 10.0  # between the states that a probe with augment goes on from when it was interrupted

    def __post_init__(self) -> None:
        for name in ("attention_heads", "batch", "epochs", "views", "encode_batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("layer_sets", "linear_layer_sets", "knn"):
            if any(n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name} has {min(getattr(self, name))}; each must be at least 1")
        if not self.lrs or not self.weight_decays or not self.linear_layer_sets:
            raise ValueError("the grid is empty: give at least one each of lrs, weight_decays and linear_layer_sets")
        if ("knn" in self.heads and not self.knn) or ("logreg" in self.heads and not self.logreg):
            raise ValueError(
                "the grid is empty: give at least one of knn, and of logreg, where these heads are asked for"
            )
        if min(self.logreg, default=1.0) <= 0:
            raise ValueError(f"logreg has {min(self.logreg)}; each must be above 0")
        if not self.heads and not self.pixels:
            raise ValueError("there is nothing to probe: give heads (attentive, linear, knn, logreg) or pixels")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; it must lie between 0 and 1")
        if self.inert_grid and self.warmup_epochs:
            raise ValueError(
                f"inert_grid is a defect of schedules without warm-up; warmup_epochs is {self.warmup_epochs:g}"
            )
        if self.encoder not in ("trained", "random") and not self.encoder.startswith(("timm:", "torch:")):
            raise ValueError(f"encoder is {self.encoder!r}; it must be trained, random, timm:NAME or torch:FILE")


@dataclass(frozen=True)
class ProbeResult:
    """One head's outcome, as written to probes/*.json."""

    checkpoint: str
    samples_seen: int
    manifest_train: str
    manifest_eval: str
    set: str  # list name of the eval dataset
    head: str  # attentive, linear or pixels
    encoder: str  # trained, random or none
    accuracy: float  # of the chosen head on eval, 0..1
    low: float  # 95 % Wilson interval
    high: float
    correct: int
    total: int
    classes: int
    lr: float
    weight_decay: float
    selection: tuple[dict[str, float], ...]  # lr, weight_decay, accuracy on the hold-out, for every grid point
    per_class: tuple[float | None, ...]  # in the order of labels; None where eval has no sample of the class
    labels: tuple[str, ...]
    seconds: float  # of the whole run, which all its heads share
    protocol: str


@dataclass(frozen=True)
class Place:
    """Which encoder is probed: of a run, at a checkpoint ("" for the random one, which has seen 0 samples)."""

    run: str
    checkpoint: str
    samples_seen: int


@dataclass
class Head:
    """One kind of head with its whole grid."""

    kind: str
    module: heads.Heads
    optimiser: heads.StackedAdamW


def run(config: Config, progress: Progress | None = None) -> list[ProbeResult]:
    """Train and evaluate all heads: one result a head, each also written to
    `probes/<set>-<head>-<encoder>-<samples seen>.json`.

    Memory: the feature cache holds views x training images + hold-out images, each of tokens x width values of
    `cache_dtype` (attentive), width float32 (linear) and the bytes of the image (pixels): 50,000 images of 64 tokens
    and 192 channels are 1.2 GB a view. Raises ValueError for sets without usable labels or a cache above `cache_gb`.
    """
    since = time.monotonic()
    say = progress or (lambda what, done, total: None)
    place = _find(config)
    encoder = _encoder(config, place)
    train_set, eval_set, labels = labelled(read_manifest(config.train), read_manifest(config.eval), config.holdout)
    kinds = (*config.heads, *(("pixels",) if config.pixels else ()))
    encode = _encode(config, encoder, kinds)
    trained = [_head(config, kind, encode, len(labels)) for kind in kinds]
    cache = Cache(encode, train_set, config.views, config.batch, config.cache_gb)
    cache.fill(say)
    train(config, trained, cache.epoch, cache.images, say)
    selection = _hold_out_accuracy(trained, cache)
    points = heads.grid(config.lrs, config.weight_decays)
    best = [accuracy_G.index(max(accuracy_G)) for accuracy_G in selection]
    for head, g in zip(trained, best):
        heads.take(head.module, g)
    right, total_C = _evaluate(trained, encode, eval_set, len(labels), say)

    results = []
    for head, g, accuracy_G, right_C in zip(trained, best, selection, right):
        seen_by_encoder = place if head.kind != "pixels" else Place(place.run, "", 0)
        low, high = wilson(sum(right_C), sum(total_C))
        result = ProbeResult(
            checkpoint=seen_by_encoder.checkpoint,
            samples_seen=seen_by_encoder.samples_seen,
            manifest_train=train_set.manifest.digest,
            manifest_eval=eval_set.manifest.digest,
            set=eval_set.manifest.list_name,
            head=head.kind,
            encoder="none" if head.kind == "pixels" else config.encoder,
            accuracy=sum(right_C) / sum(total_C),
            low=low,
            high=high,
            correct=sum(right_C),
            total=sum(total_C),
            classes=len(labels),
            lr=points[g].lr,
            weight_decay=points[g].weight_decay,
            selection=tuple(dataclasses.asdict(point) | {"accuracy": a} for point, a in zip(points, accuracy_G)),
            per_class=tuple(r / t if t else None for r, t in zip(right_C, total_C)),
            labels=labels,
            seconds=round(time.monotonic() - since, 3),
            protocol=_protocol(config, encoder),
        )
        _write(config.out or place.run, result)
        results.append(result)
    return results


def _write(run: str, result: ProbeResult) -> None:
    name = f"{result.set}-{result.head}-{result.encoder}-{result.samples_seen}"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    store.put_json(store.join(run, "probes", f"{name}.json"), dataclasses.asdict(result))


def _protocol(config: Config, encoder: Encoder) -> str:
    c = config
    return (
        f"cached {c.views} views, image {encoder.config.image}, "
        f"last {min((c.layer_sets or (6,))[0], encoder.config.depth)} layers, "
        f"{c.epochs} epochs of {1 - c.holdout:.0%} of train, batch {c.batch}, AdamW {c.betas}, cosine to {c.min_lr:g}, "
        f"warm-up {c.warmup_epochs:g} epochs, clip {c.clip:g}, grid point by the other {c.holdout:.0%}, seed {c.seed}"
    )


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927): also sane at 0, at 1 and for few samples."""
    share, weight = correct / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


# --- the encoder ---------------------------------------------------------------------------------------------------


def _find(config: Config) -> Place:
    """Raises ValueError when there is no committed checkpoint, or nothing says which model is meant."""
    given = (config.checkpoint or config.out).rstrip("/")
    if not given or not (config.checkpoint or config.encoder == "random"):
        raise ValueError("checkpoint is empty: give a run folder, or one of its checkpoints")
    is_checkpoint = store.exists(store.join(given, checkpoint.COMMIT))
    run = given.rsplit("/", 2)[0] if is_checkpoint else given
    if config.encoder == "random":
        return Place(run, "", 0)
    url = given if is_checkpoint else checkpoint.latest(run)
    if url is None:
        raise ValueError(f"{run}: holds no committed checkpoint: name a run folder or one of its checkpoints")
    return Place(run, url, store.read_json(store.join(url, checkpoint.COMMIT))["samples_seen"])


def _encoder(config: Config, place: Place) -> Encoder:
    if config.encoder == "trained":
        encoder = checkpoint.load_encoder(place.checkpoint)
    else:
        settings = store.read_json(store.join(place.run, "config.json"))
        encoder = build(model_config(settings["model"]), settings["seed"]).encoder
    return encoder.to(config.device).eval().requires_grad_(False)


def _encode(config: Config, encoder: Encoder, kinds: tuple[str, ...]) -> Encode:
    return Encode(
        encoder=encoder,
        kinds=kinds,
        layers=(config.layer_sets or (6,))[0],
        token_dtype=DTYPES[config.cache_dtype],
        device=config.device,
        batch=config.encode_batch,
        resize=config.resize,
        seed=config.seed,
        threads=config.threads,
    )


# --- training and evaluation ---------------------------------------------------------------------------------------


def _head(config: Config, kind: str, encode: Encode, classes: int) -> Head:
    points = heads.grid(config.lrs, config.weight_decays)
    width = encode.stored[kind][0][-1]
    if kind == "attentive":
        module = heads.AttentiveHeads(len(points), width, classes, config.attention_heads, config.seed)
    else:
        module = heads.LinearHeads(len(points), width, classes, config.seed)
    module = module.to(config.device)
    return Head(kind, module, heads.StackedAdamW(module, points, config.betas, config.clip))


def train(config: Config, trained: list[Head], source: Source, images: int, say: Progress) -> None:
    """Every grid point of every head, over the same batches."""
    warmup = round(config.warmup_epochs * images)
    schedule = heads.Schedule(config.epochs * images, warmup, config.warmup_lr, config.min_lr)
    seen = 0
    for epoch in range(config.epochs):
        for features in source(epoch):
            for head in trained:
                heads.losses(head.module(features.of(head.kind)), features.labels_B).sum().backward()
                head.optimiser.step(schedule.at(head.optimiser.lr_G, seen))
            seen += len(features)
            say("train heads", seen, config.epochs * images)
    assert seen == config.epochs * images, "an epoch shows every image once"


@torch.no_grad()
def _hold_out_accuracy(trained: list[Head], cache: Cache) -> list[list[float]]:
    """Accuracy on the hold-out of each head's grid points."""
    right = [torch.zeros(len(head.optimiser.lr_G), dtype=torch.int64) for head in trained]
    for features in cache.hold_out():
        for head, count_G in zip(trained, right):
            head.module.eval()
            count_G += heads.correct(head.module(features.of(head.kind)), features.labels_B).sum(1).cpu()
    return [[n / cache.held_images for n in count_G.tolist()] for count_G in right]


@torch.no_grad()
def _evaluate(
    trained: list[Head], encode: Encode, evaluation: Labelled, classes: int, say: Progress
) -> tuple[list[list[int]], list[int]]:
    """How many samples of each class the one head left in each module gets right, and how many there are."""
    right = [torch.zeros(classes, dtype=torch.int64) for _ in trained]
    done = 0
    for batch in encode.batches(evaluation.manifest, view=0):
        features = encode(batch.images_B3HW, evaluation.class_N[np.asarray(batch.sample_B)])
        for head, right_C in zip(trained, right):
            hits_B = heads.correct(head.module.eval()(features.of(head.kind)), features.labels_B)[0]
            right_C += torch.bincount(features.labels_B[hits_B].cpu(), minlength=classes)
        batch.release()
        done += len(features)
        say("evaluate", done, len(evaluation.class_N))
    assert done == len(evaluation.class_N), "every evaluation sample once"
    return [right_C.tolist() for right_C in right], np.bincount(evaluation.class_N, minlength=classes).tolist()
