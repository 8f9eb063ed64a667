"""A study: the same data, several recipes, sample counts and seeds -> the runs and probes that are missing.

Each run is trained to its own sample count with its own schedule: a long run cut early is not a short run. What exists
under `out` already is left as it is, so an interrupted study goes on where it was, and a wider grid adds to a narrower.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs import cluster
from jobs.lab import existing
from shards import store
from shards.manifest import read_manifest
from xtra import probe, recipes, train
from xtra.run import checkpoint, terms

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Config:
    data: str  # dataset to pretrain on
    out: str  # the study's folder; each run is a folder below it
    recipes: tuple[str, ...] = ("demo32", "demo32_aim")
    samples: tuple[int, ...] = (1024, 4096, 16384)  # samples seen by a run, one run each
    seeds: tuple[int, ...] = (0,)
    workers: int = 1  # processes that train together
    probe: probe.Config = field(default_factory=lambda: probe.Config("", train="", eval=""))
    random: bool = True  # also probe each recipe's encoder at its initial weights
    pixels: bool = True  # also a linear classifier on raw pixels

    def __post_init__(self) -> None:
        for name in ("recipes", "samples", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a study needs at least one")
        if min(self.samples) < 1:
            raise ValueError(f"samples has {min(self.samples)}; every count must be at least 1")


@dataclass(frozen=True)
class StudyResult:
    out: str
    runs: int  # in the grid
    trained: int  # just now
    probed: int  # just now
    stopped: bool


def run(config: Config, progress: Progress = lambda row: None, stop: threading.Event | None = None) -> StudyResult:
    """Train and probe what is missing. Raises ValueError for a dataset, recipe or probe set that is not there."""
    stop = stop or threading.Event()
    for flag, url in (("probe.train", config.probe.train), ("probe.eval", config.probe.eval)):
        if not url:
            raise ValueError(f"--{flag} is missing: give the labelled dataset")
        read_manifest(url)
    data = read_manifest(store.absolute(config.data)).address  # one version for the study, whatever is ingested later
    runs = [
        _run_config(config, data, recipe, samples, seed)
        for recipe in config.recipes
        for seed in config.seeds
        for samples in config.samples
    ]
    for wanted in runs:  # a run that is there must be the one wanted: other data or settings are refused here
        terms(wanted.out, wanted)
    missing = [wanted for wanted in runs if not _is_trained(wanted)]
    if missing:
        cluster.train_all(missing, config.workers, stop, progress)
    trained = [wanted for wanted in runs if _is_trained(wanted)]
    wanted = (
        existing.only_missing(settings, run_config.samples if settings.encoder == "trained" else 0)
        for run_config, settings in _probes(config, trained)
    )
    missing_probes = [settings for settings in wanted if settings is not None]
    probed = cluster.probe_all(missing_probes, config.workers, stop, progress) if not stop.is_set() else 0
    return StudyResult(config.out, len(runs), sum(map(_is_trained, missing)), probed, stop.is_set())


def _run_config(config: Config, data: str, recipe: str, samples: int, seed: int) -> train.Config:
    base = recipes.get(recipe)
    out = store.join(store.absolute(config.out), f"{recipe}-{samples:09d}-s{seed}")
    batch = min(base.batch, samples)
    every = min(base.checkpoint_every, max(samples // 2, batch))
    return dataclasses.replace(
        base, data=data, out=out, samples=samples, seed=seed, batch=batch, checkpoint_every=every
    )


def _is_trained(wanted: train.Config) -> bool:
    done = checkpoint.committed(wanted.out)
    return bool(done) and done[-1] >= wanted.samples


def _probes(config: Config, runs: list[train.Config]) -> list[tuple[train.Config, probe.Config]]:
    """Every trained encoder; beside the first run of a recipe and seed, its encoder untrained; pixels once a study."""
    wanted, seen = [], set()
    training, evaluation = store.absolute(config.probe.train), store.absolute(config.probe.eval)
    base = dataclasses.replace(config.probe, train=training, eval=evaluation, pixels=False)
    for trained in runs:
        settings = dataclasses.replace(base, checkpoint=trained.out, out=trained.out)
        wanted.append((trained, settings))
        if config.random and (trained.recipe, trained.seed) not in seen:
            pixels = config.pixels and not seen
            wanted.append((trained, dataclasses.replace(settings, encoder="random", pixels=pixels)))
            seen.add((trained.recipe, trained.seed))
    return wanted
