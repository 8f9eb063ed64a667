"""The settings of a probe (run by `xtra/probe/probe.py`) and of `xtra embed`, checked; and a probe's settings in words.

Loads no torch: a command's flags are parsed into these (see xtra/config.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shards import roles
from xtra.config import Augment, Mask


@dataclass(frozen=True)
class Config:
    # a run folder (its newest checkpoint) or one checkpoint of it: RUN/checkpoints/000000012800
    checkpoint: str = roles.data("")
    train: str = roles.data("")  # labelled dataset that trains the heads
    eval: str = roles.data("")  # labelled dataset that is evaluated
    out: str = roles.machine("")  # folder to write probes/*.json to; the run's own if empty
    # trained, random (the run's architecture with initial weights), timm:NAME, timm:NAME:FILE or torch:FILE
    encoder: str = roles.data("trained")
    # own: block-causal as in pretraining, or none after prefix attention; causal, none: force this mask
    mask: Mask = roles.law("own")
    # knn and logreg are quick: they see one view of each image, and need no schedule or learning rate
    heads: tuple[Literal["attentive", "linear", "knn", "logreg"], ...] = roles.law(("attentive", "linear"))
    pixels: bool = roles.law(False)  # also evaluate a linear classifier on raw pixels
    # holdout: the grid point is chosen on images of train that no head trained on; published: as for the paper's
    # numbers, heads train on all of train and the point is chosen on eval itself, which overestimates
    protocol: Literal["holdout", "published"] = roles.law("holdout")
    # learning rates to try; the paper's are 1e-4 to 8e-3 at batches of 512 to 4096 and 100 epochs, and short probes of
    # small sets need higher ones
    lrs: tuple[float, ...] = roles.law((3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2, 5e-2))
    weight_decays: tuple[float, ...] = roles.law((0.1,))  # weight decays to try
    # attentive: features are the mean of the last n layers, for each n; empty: the last 6, or all if there are fewer
    layer_sets: tuple[int, ...] = roles.law(())
    linear_layer_sets: tuple[int, ...] = roles.law((1,))  # the same for linear, knn and logreg, averaged over tokens
    attention_heads: int = roles.law(16)  # attention heads of an attentive probe head
    batch: int = roles.law(256)  # images per training step of the heads
    epochs: int = roles.law(20)  # passes over the training set
    warmup_epochs: float = roles.law(0.0)  # epochs at the start in which rates rise linearly
    warmup_start: float = roles.law(0.1)  # share of a rate at which its warm-up starts
    min_lr: float = roles.law(1e-5)  # learning rate at the end of the cosine schedule
    # as the published scheduler without warm-up: the peak is only warmup_start times the rate
    warmup_defect: bool = roles.law(False)
    betas: tuple[float, float] = roles.law((0.9, 0.95))  # AdamW's (official configs; paper's Table 2: 0.9 0.999)
    clip: float = roles.law(3.0)  # limit of the gradient norm of each grid point
    # augmentation of every epoch, on the fly; None: `views` of each image are encoded once and kept
    augment: Augment | None = roles.law(None)
    # views of each training image without augment: the centre crop, then random crops with flips
    views: int = roles.law(2, unless={"augment": roles.SET})
    # share of the training set, by hash of the key, on which the grid point is chosen
    holdout: float = roles.law(0.1, unless={"protocol": "published"})
    # numbers of neighbours to try
    knn: tuple[int, ...] = roles.law((5, 10, 20, 50, 100, 200), unless={"augment": roles.SET})
    # inverse strengths of regularisation to try
    logreg: tuple[float, ...] = roles.law((1e-2, 1e-1, 1.0, 1e1, 1e2), unless={"augment": roles.SET})
    strict: bool = roles.machine(False)  # refuse a train and an eval set that share images
    # short side before the centre crop; the image size if None
    resize: int | None = roles.law(None, unless={"augment": roles.SET})
    seed: int = roles.trial(0)  # seed of the heads' initial weights, the order and the views
    device: str = roles.machine("auto")  # "cpu", "cuda", "cuda:1"; auto: the GPU where there is one
    precision: Literal["fp32", "bf16"] = roles.law("fp32")  # precision of the encoder; heads train in fp32
    encode_batch: int = roles.law(128)  # images in one pass of the encoder
    threads: int = roles.machine(2)  # decoding threads
    cache_gb: float = roles.machine(8.0)  # refuse to keep more features than this in memory
    # type in which token features are kept
    cache_dtype: Literal["float16", "bfloat16", "float32"] = roles.law("float16", unless={"augment": roles.SET})
    # minutes between saved states, from which an interrupted probe with augment resumes
    save_minutes: float = roles.machine(10.0)

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("heads", "lrs", "weight_decays", "layer_sets", "linear_layer_sets", "knn", "logreg"):
            values = getattr(self, name)
            if twice := [value for n, value in enumerate(values) if value in values[:n]]:
                raise ValueError(f"{name} has {twice[0]} twice: give each once")
        if not self.lrs or not self.weight_decays or not self.linear_layer_sets:
            raise ValueError("the grid is empty: give at least one each of lrs, weight_decays and linear_layer_sets")
        if ("knn" in self.heads and not self.knn) or ("logreg" in self.heads and not self.logreg):
            raise ValueError("the grid is empty: give at least one value each of knn and logreg for these heads")
        if not self.heads and not self.pixels:
            raise ValueError("there is nothing to probe: give heads (attentive, linear, knn, logreg) or pixels")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; it must be between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas[0]:g} {self.betas[1]:g}; each must be at least 0 and below 1")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g}; it must be 0 to {self.epochs}, the epochs")
        if self.warmup_defect and self.warmup_epochs:
            raise ValueError(f"warmup_defect needs a schedule without warm-up; warmup_epochs is {self.warmup_epochs:g}")
        if not 0 < self.warmup_start <= 1:
            raise ValueError(f"warmup_start is {self.warmup_start}; it must be a share, above 0 and at most 1")
        if self.encoder not in ("trained", "random") and not self.encoder.startswith(("timm:", "torch:")):
            raise ValueError(f"encoder is {self.encoder!r}; it must be trained, random, timm:NAME or torch:FILE")
        if self.mask != "own" and self.encoder not in ("trained", "random"):
            raise ValueError(f"mask is {self.mask}, but {self.encoder} takes no mask: leave it out")

    @property
    def on(self) -> str:
        """The device to use on this machine."""
        from xtra.device import chosen  # it loads torch

        return chosen(self.device)

    def _check_numbers(self) -> None:
        for name in ("attention_heads", "batch", "epochs", "views", "encode_batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("layer_sets", "linear_layer_sets", "knn"):
            if any(n < 1 for n in getattr(self, name)):
                raise ValueError(f"{name} has {min(getattr(self, name))}; each must be at least 1")
        for name in ("lrs", "logreg"):
            if bad := [value for value in getattr(self, name) if not 0 < value < math.inf]:
                raise ValueError(f"{name} has {bad[0]}; each must be above 0")
        for name in ("clip", "cache_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name, values in (
            ("weight_decays", self.weight_decays),
            ("min_lr", [self.min_lr]),
            ("save_minutes", [self.save_minutes]),
        ):
            if bad := [value for value in values if not 0 <= value < math.inf]:
                raise ValueError(f"{name} has {bad[0]}; it must be at least 0")


@dataclass(frozen=True)
class EmbedConfig:
    # a run folder (its newest checkpoint), one checkpoint of it, or an official checkpoint
    checkpoint: str = roles.data("")
    data: str = roles.data("")  # dataset: URL, URL@VERSION or URL@DIGEST; labels are not needed
    out: str = roles.machine("")  # folder for part-000000.parquet, ...; a rerun writes the missing parts
    encoder: str = roles.data("trained")  # as in xtra probe: trained, random, timm:NAME, timm:NAME:FILE, torch:FILE
    # a vector is the mean of the residual streams after the last so many layers, before any final norm
    layers: int = roles.law(1)
    # mean: one vector per image, as for linear probes; none: all tokens, as for attentive probes
    pooling: Literal["mean", "none"] = roles.law("mean")
    resize: int | None = roles.law(None)  # short side before the centre crop; the image size if None
    device: str = roles.machine("auto")  # auto: the GPU where there is one
    precision: Literal["fp32", "bf16"] = roles.law("fp32")  # precision of the encoder
    dtype: Literal["float32", "float16"] = roles.law("float32")  # type in which vectors are written
    encode_batch: int = roles.law(128)  # images in one pass of the encoder
    rows: int = roles.law(0)  # rows per part; a kill loses at most one part; 0: about 8192, or 512 with all tokens
    threads: int = roles.machine(2)  # decoding threads

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("encode_batch", 1), ("rows", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.rows % self.encode_batch:
            raise ValueError(
                f"rows is {self.rows}; it must be a multiple of encode_batch, which is {self.encode_batch}"
            )

    @property
    def part(self) -> int:
        """Rows per part: whole batches, so that a sample's batch does not depend on which parts are missing."""
        about = 8192 if self.pooling == "mean" else 512
        return self.rows or max(1, about // self.encode_batch) * self.encode_batch


def published_resize(image: int) -> int:
    """Short side before the centre crop of a published evaluation: B/16 cuts 256 of 300 pixels, H/14 224 of 256."""
    return 300 if image == 256 else image * 256 // 224


def in_words(config: Config, image: int, kind: str, selection: Sequence[Mapping[str, float]]) -> str:
    """The settings in words; `selection` is the grid that was used, without any k above the number of images. Results
    store these words and comparisons read them: they stay as they are."""
    c = config
    if c.protocol == "published":
        words = ["published: all of train trains, grid point chosen on eval itself"]
    else:
        words = [f"grid point chosen on {c.holdout:.0%} of train that no head trained on"]
    words += [f"image {image}" + (f" of {c.resize}" if c.resize else ""), f"encoder in {c.precision}"]
    words += [f"mask {c.mask}"] if c.mask != "own" else []
    if kind == "knn":
        words.append("centre crops, votes of the nearest by cosine similarity")
        dropped = sorted(set(c.knn) - {point["k"] for point in selection})
        words += [f"fewer images train than k {' '.join(map(str, dropped))}: left out"] if dropped else []
        return ", ".join(words)
    if kind == "logreg":
        return ", ".join([*words, "centre crops, logistic regression by L-BFGS"])
    a = c.augment
    shown = f"{c.views} views, encoded once" if a is None else f"augmented anew every epoch ({a})"
    words += [shown, f"{c.epochs} epochs", f"batch {c.batch}", f"AdamW {c.betas[0]:g} {c.betas[1]:g}"]
    if c.warmup_defect:
        words.append(f"no warm-up and its published defect: peaks are {c.warmup_start:g} of the rates named")
    elif c.warmup_epochs:
        words.append(f"warm-up {c.warmup_epochs:g} epochs from {c.warmup_start:g} of the rate")
    words.append(f"cosine to {c.min_lr:g}")
    return ", ".join([*words, f"clip {c.clip:g}", f"seed {c.seed}"])
