"""The Configs of studies: `xtra study`, `scale`, `plan`, and `xtra probe` with --suite and --follow.

Loads no torch: a command's flags are parsed into these (see jobs/config.py). `jobs.lab.scale.Config` and the others
are these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from ingest.sets import BENCHMARKS
from jobs.cluster import Workers
from shards import roles
from xtra import recipes
from xtra.probe import Config as ProbeConfig

SWEEP_SEED = 1000  # not used by the grid


@dataclass(frozen=True)
class Arm:
    name: str
    recipe: str
    every: int = 1  # 2: every second count, from the largest down
    few: bool = False  # trained on `few_images`
    schedule: Literal["constant", "cosine"] = "constant"


ARMS = (  # in training order within a seed
    Arm("block4", "tiny_imagenet_block4"),
    Arm("block1", "tiny_imagenet_block1"),
    Arm("block4-random-order", "tiny_imagenet_block4_random", every=2),
    Arm("block2", "tiny_imagenet_block2"),
    Arm("block4-few-images", "tiny_imagenet_block4", every=2, few=True),
    Arm("block4-cosine", "tiny_imagenet_block4", every=3, schedule="cosine"),
)


PRIMARY = {"arm": "block4", "against": "block1"}  # declared before the study ran; xtra report reads it


@dataclass(frozen=True)
class StudyConfig:
    # folder of imported sets: tin-train, tin-val (Tiny ImageNet), cifar10-train, cifar10-test, grocery-train,
    # grocery-test
    data: str = field(metadata=roles.role("data"))
    out: str = field(metadata=roles.role("machine"))  # folder of the runs
    rows: str = roles.machine("")  # folder for the result rows, updated whenever a part is done: docs/study
    samples: tuple[int, ...] = roles.law(recipes.STUDY_SAMPLES)  # samples seen at which runs end and are probed
    seeds: tuple[int, ...] = roles.trial((0, 1, 2))  # seeds of the runs; more may be added later
    # the grid up to the first of these counts is run first, for all seeds; then its trunks are trained up to the next
    stages: tuple[int, ...] = roles.trial((16_000, 64_000))
    sweep_samples: int = roles.law(4_000)  # samples seen by each run of the sweep
    lrs: tuple[float, ...] = roles.law((1e-3, 2e-3, 4e-3))  # rates of the sweep, extended if an end is best
    few_images: int = roles.law(6_250)  # images of the arm that separates unique images from samples seen
    head_images: int = roles.law(10_000)  # images that train probe heads
    held_out_images: int = roles.law(1_000)  # images for the held-out pretraining loss
    probe_epochs: int = roles.law(20)  # epochs of each probe
    at_once: int = roles.machine(2)  # runs trained at the same time, a process each
    arms: tuple[str, ...] = roles.law(())  # variants to run, by their names in ARMS; empty: all
    # sets that are probed only at a stage's largest count
    secondary: tuple[Literal["tin", "grocery"], ...] = roles.law(("tin", "grocery"))
    batch: int = roles.law(0)  # images per step; 0: the recipe's
    warmup: int = roles.law(0)  # samples of the warm-up; 0: the recipe's
    device: Literal["cpu", "cuda"] = roles.machine("cpu")  # where everything runs
    threads: int = roles.machine(1)  # decoding threads of each run

    def __post_init__(self) -> None:
        for name in ("samples", "seeds", "stages", "lrs"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a study needs at least one")
        if SWEEP_SEED in self.seeds:
            raise ValueError(f"seeds has {SWEEP_SEED}, which the sweep uses: use others")
        for name in self.arms:
            if name not in (known := [arm.name for arm in ARMS]):
                raise ValueError(f"arms has {name!r}; each must be one of {', '.join(known)}")
        if not self.arms or {PRIMARY["arm"], PRIMARY["against"]} <= {*self.arms}:
            return
        raise ValueError(f"arms must contain {PRIMARY['arm']} and {PRIMARY['against']}, for the primary comparison")


@dataclass(frozen=True)
class ScaleConfig:
    data: str  # dataset to pretrain on
    out: str  # the study's folder; each run is a folder below it
    recipes: tuple[str, ...] = ("demo32", "demo32_aim")  # recipes to compare; xtra train --help lists them
    samples: tuple[int, ...] = (1024, 4096, 16384)  # samples seen by each run
    seeds: tuple[int, ...] = (0,)  # a run of every recipe and count for each
    # what a seed changes: the initial weights (and the random crops, which are drawn with them), the order of the data,
    # the initial weights of probe heads (and their views), or all of these
    seeds_vary: Literal["all", "weights", "data", "probe"] = "all"
    lrs: tuple[float, ...] = ()  # peak learning rates to sweep, each a separate arm; empty: the recipe's
    held_out: str = ""  # dataset for each run's held-out loss at its end; the probe's eval if empty
    at_once: int = 1  # runs trained at the same time, with one worker each
    probe: ProbeConfig = field(default_factory=lambda: ProbeConfig("", train="", eval=""))
    random: bool = True  # also probe each recipe's encoder at its initial weights
    pixels: bool = True  # also a linear classifier on raw pixels
    power: bool = False  # run nothing: print the difference between recipes that this grid can detect
    sd: float = 0.5  # for --power: standard deviation between seeds, in points of accuracy

    @property
    def arms(self) -> int:
        return len(self.recipes) * max(1, len(self.lrs))

    def __post_init__(self) -> None:
        for name in ("recipes", "samples", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a study needs at least one")
        if min(self.samples) < 1:
            raise ValueError(f"samples has {min(self.samples)}; every count must be at least 1")


@dataclass(frozen=True)
class PlanConfig:
    recipe: str  # a training recipe: xtra train --help lists them
    price: float  # price of one GPU-hour; all prices are in the same currency
    gpus: int = 8  # GPUs that train together
    gpu: str = "H100"  # a name with a known peak (xtra/flops.py)
    mfu: float = 0.4  # share of that peak that the official code's FLOPs reach
    images: int = 0  # images in the dataset; 0: the paper's number, if the recipe is the paper's
    image_bytes: int = 110_000  # average size of a stored image
    months: float = 1.0  # how long the dataset is kept, in addition to the run
    links: int = 0  # also plan the ingest of this many links
    kept: float = 0.92  # share of links that become images: 13.1 of 14.2 million in the paper
    core_images: float = 1000.0  # links fetched and checked per core-second (xtra bench fetch measures it)
    core_price: float = 0.05  # price of one CPU core-hour
    storage_price: float = 0.023  # price of one GB for a month
    egress_price: float = 0.09  # price of one GB that leaves the region; reading inside it is free
    put_price: float = 0.005  # price of 1,000 writes
    get_price: float = 0.0004  # price of 1,000 reads
    ledger: str = ""  # measurements whose laws predict the gain of the next doubling

    def __post_init__(self) -> None:
        for name in ("gpus", "image_bytes", "core_images"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be above 0")
        for f in fields(self):
            value = getattr(self, f.name)
            if (f.name.endswith("price") or f.name in ("months", "images", "links")) and not 0 <= value < math.inf:
                raise ValueError(f"{f.name} is {value:g}; it must be 0 or more")
        for name in ("mfu", "kept"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class SuiteConfig:
    root: str  # folder with ROOT/NAME/train and ROOT/NAME/eval, as `xtra import --set NAME` makes them
    probe: ProbeConfig  # the encoder and the heads
    kept: frozenset[str] = frozenset()  # fields of `probe` that override every set's own setting
    only: tuple[str, ...] = ()  # names of benchmarks; all 15 if empty
    workers: Workers | int = 1  # probes at a time

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.only) - BENCHMARKS.keys()):
            raise ValueError(f"--only {unknown[0]} is not a benchmark: give some of {', '.join(BENCHMARKS)}")
        if self.probe.train or self.probe.eval:
            raise ValueError("--train and --eval name one set: for a suite give --root, with NAME/train and NAME/eval")


@dataclass(frozen=True)
class FollowConfig:
    probe: ProbeConfig  # `probe.checkpoint` is the run
    every: int  # samples between two probes
    parent: int = 0  # process id: end when it is no longer our parent; 0: ignore
    poll: float = 5.0  # seconds between looks at the run

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"--every is {self.every}: give the number of samples between probes, at least 1")
        if self.probe.encoder != "trained":
            raise ValueError(
                f"--encoder is {self.probe.encoder}: only a run's own encoder can be followed; leave it out"
            )
