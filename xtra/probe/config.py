"""A probe's settings (`xtra/probe/probe.py` runs it), validated, and described in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xtra.augment import Augment
from xtra.device import chosen
from xtra.model import Mask


@dataclass(frozen=True)
class Config:
    checkpoint: str = ""  # a run folder (its newest checkpoint) or one checkpoint of it: RUN/checkpoints/000000012800
    train: str = ""  # labelled dataset that trains the heads
    eval: str = ""  # labelled dataset that the result is about
    out: str = ""  # folder that gets probes/*.json; the run's own if empty
    # trained, or random (the run's architecture, initial weights), timm:NAME, timm:NAME:FILE, torch:FILE
    encoder: str = "trained"
    # own: block-causal as in pretraining, or none after prefix attention; causal or none: that one all the same
    mask: Mask = "own"
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
    warmup_start: float = 0.1  # share of a point's own rate that its warm-up starts from
    min_lr: float = 1e-5
    warmup_defect: bool = False  # the published scheduler without warm-up: a point's peak is warmup_start of its rate
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
    device: str = "auto"  # "cpu", "cuda", "cuda:1"; auto: the GPU where there is one
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; heads train in fp32
    encode_batch: int = 128
    threads: int = 2  # that decode
    cache_gb: float = 8.0  # refuse to keep more features than this in memory
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of token features
    save_minutes: float = 10.0  # between the states that a probe with augment goes on from when it was interrupted

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
            raise ValueError(f"mask is {self.mask}, but {self.encoder} takes none: leave it out")

    @property
    def on(self) -> str:
        """The device to use on this machine."""
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


def published_resize(image: int) -> int:
    """Short side before the centre crop of a published evaluation: B/16 cuts 256 of 300 pixels, H/14 224 of 256."""
    return 300 if image == 256 else image * 256 // 224


def in_words(config: Config, image: int, kind: str, selection: Sequence[Mapping[str, float]]) -> str:
    """The settings in words; `selection` is the grid that was used, without any k above the number of images."""
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
