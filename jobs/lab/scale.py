"""A study over several recipes, sample counts and seeds on the same data: train and probe what is missing.

A recipe with a constant rate is trained once per seed, as a trunk, and every sample count is a branch of it that decays
the rate to 0 (xtra/optim.py). A recipe with a cosine is trained once for every count, each with its own schedule: a
long run cut early is not a short run. Finished work under `out` is kept, so an interrupted study continues where it
stopped, and a wider grid adds to a narrower one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs import cluster
from jobs.lab import chain
from jobs.lab.chain import Chain, Trial
from shards import folder_kind, store
from shards.manifest import read_manifest
from xtra import probe, recipes, train
from xtra.run import terms

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Config:
    data: str  # dataset to pretrain on
    out: str  # the study's folder; each run is a folder below it
    recipes: tuple[str, ...] = ("demo32", "demo32_aim")
    samples: tuple[int, ...] = (1024, 4096, 16384)  # samples seen by each run
    seeds: tuple[int, ...] = (0,)
    # What a seed changes: the initial weights (and the random crops, which are drawn with them), the order of the data,
    # the initial weights of probe heads (and their views), or all of these.
    seeds_vary: Literal["all", "weights", "data", "probe"] = "all"
    lrs: tuple[float, ...] = ()  # peak learning rates to sweep, each a separate arm; empty: the recipe's
    held_out: str = ""  # dataset for each run's held-out loss at its end; the probe's eval if empty
    workers: int = 1  # processes that train one run together
    at_once: int = 1  # runs trained at the same time, with one worker each
    probe: probe.Config = field(default_factory=lambda: probe.Config("", train="", eval=""))
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
        if self.workers > 1 and self.at_once > 1:
            raise ValueError(f"at_once is {self.at_once} and workers {self.workers}: one of them must be 1")


@dataclass(frozen=True)
class StudyResult:
    out: str
    runs: int  # in the grid
    trained: int  # by this call
    probed: int  # by this call
    stopped: bool


def run(config: Config, progress: Progress = lambda row: None, stop: threading.Event | None = None) -> StudyResult:
    """Train and probe what is missing. Raises ValueError for a missing dataset, recipe or probe set."""
    stop = stop or threading.Event()
    folder_kind.require(config.out, "a study", "study", "probes")
    for flag, url in (("probe.train", config.probe.train), ("probe.eval", config.probe.eval)):
        if not url:
            raise ValueError(f"--{flag} is missing: give the labelled dataset")
        read_manifest(url)
    data = read_manifest(store.absolute(config.data)).address  # pin one version for the whole study
    chains = _chains(config, data)
    trials = [trial for one in chains for trial in one.trials]
    for trial in trials:  # refuse existing runs with other data or settings
        terms(trial.run.out, trial.run)
    if config.workers > 1:
        missing = [trial.run for trial in trials if not chain.is_trained(trial.run)]
        results = cluster.train_all(missing, config.workers, stop, progress, True) if missing else []
        probes = [p for trial in trials if chain.is_trained(trial.run) for p in chain.missing_probes(trial)]
        probed = cluster.probe_all(probes, config.workers, stop, progress) if not stop.is_set() else 0
        done = [chain.Done(sum(each.loss is not None and not each.stopped for each in results), probed)]
    else:
        missing = [one for one in chains if not chain.is_done(one)]
        done = cluster.side_by_side(chain.work, missing, config.at_once, stop, progress)
    trained, probed = sum(one.trained for one in done), sum(one.probed for one in done)
    return StudyResult(config.out, len(trials), trained, probed, stop.is_set())


def _chains(config: Config, data: str) -> list[Chain]:
    """At a constant rate, one chain for every recipe, rate and seed; otherwise one for every run."""
    chains: list[Chain] = []
    for recipe in config.recipes:
        for lr in config.lrs or (None,):
            for seed in config.seeds:
                trials = _trials(config, data, recipe, lr, seed, pixels=config.pixels and not chains)
                together = trials[0].run.optim.schedule == "constant"
                chains += [Chain(tuple(trials))] if together else [Chain((trial,)) for trial in trials]
    return chains


def _trials(config: Config, data: str, recipe: str, lr: float | None, seed: int, pixels: bool) -> list[Trial]:
    """The runs of all sample counts with their probes: of every trained encoder, and with the first, the untrained."""
    runs = [_run_config(config, data, recipe, lr, samples, seed) for samples in config.samples]
    draw = seed if config.seeds_vary in ("all", "probe") else config.probe.seed
    training, evaluation = store.absolute(config.probe.train), store.absolute(config.probe.eval)
    base = dataclasses.replace(config.probe, train=training, eval=evaluation, pixels=False, seed=draw)
    trials = [Trial(run, (dataclasses.replace(base, checkpoint=run.out, out=run.out),)) for run in runs]
    if config.random:
        first = dataclasses.replace(trials[0].probes[0], encoder="random", pixels=pixels)
        trials[0] = dataclasses.replace(trials[0], probes=(*trials[0].probes, first))
    if runs[0].optim.schedule == "constant":
        out = store.join(store.absolute(config.out), _name(config, recipe, lr, seed, "trunk"))
        trunk, *branches = chain.with_trunk(runs, out)
        trials = [Trial(trunk), *(dataclasses.replace(t, run=branch) for t, branch in zip(trials, branches))]
    return trials


def _name(config: Config, recipe: str, lr: float | None, seed: int, what: str) -> str:
    number = seed if config.seeds_vary != "probe" else 0  # probes with different seeds share their runs
    return f"{recipe}{'' if lr is None else f'-lr{lr:g}'}-{what}-s{number}"


def _run_config(config: Config, data: str, recipe: str, lr: float | None, samples: int, seed: int) -> train.Config:
    base = recipes.get(recipe)
    vary = config.seeds_vary
    batch = min(base.batch, samples)
    every = min(base.checkpoint_every, max(samples // 2, batch))
    changes: dict[str, Any] = {}
    if lr is not None:
        changes = {"optim": dataclasses.replace(base.optim, lr=lr), "arm": f"{recipe} lr {lr:g}"}
    if vary in ("all", "data"):
        changes["order"] = dataclasses.replace(base.order, seed=seed)
    held_out = read_manifest(store.absolute(config.held_out or config.probe.eval)).address
    return dataclasses.replace(
        base,
        data=data,
        out=store.join(store.absolute(config.out), _name(config, recipe, lr, seed, f"{samples:09d}")),
        samples=samples,
        seed=seed if vary in ("all", "weights") else 0,
        batch=batch,
        checkpoint_every=every,
        val=dataclasses.replace(base.val, data=held_out, every=samples),
        **changes,
    )
