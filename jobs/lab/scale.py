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
from dataclasses import dataclass
from typing import Any

from jobs import cluster
from jobs.lab import chain
from jobs.lab.chain import Chain, Trial
from jobs.lab.config import ScaleConfig as Config
from shards import folder_kind, store
from shards.manifest import read_manifest
from xtra import recipes, train
from xtra.run import terms

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class StudyResult:
    out: str
    runs: int  # in the grid
    trained: int  # by this call
    probed: int  # by this call
    stopped: bool


def run(
    config: Config,
    progress: Progress = lambda row: None,
    stop: threading.Event | None = None,
    workers: cluster.Workers | int = 1,
) -> StudyResult:
    """Train and probe what is missing: each run by `workers` together, and as many probes at a time.

    Raises ValueError for a missing dataset, recipe or probe set.
    """
    stop = stop or threading.Event()
    workers = cluster.Workers(workers, workers) if isinstance(workers, int) else workers
    if workers.most > 1 and config.at_once > 1:
        raise ValueError(f"at_once is {config.at_once} and workers {workers}: one of them must be 1")
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
    if workers.most > 1:
        missing = [trial.run for trial in trials if not chain.is_trained(trial.run)]
        results = cluster.train_all(missing, workers, stop, progress, True) if missing else []
        probes = [p for trial in trials if chain.is_trained(trial.run) for p in chain.missing_probes(trial)]
        probed = cluster.probe_all(probes, workers, stop, progress) if not stop.is_set() else 0
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
    batch = min(base.batch, samples)
    changes: dict[str, Any] = {}
    if lr is not None:
        changes = {"optim": dataclasses.replace(base.optim, lr=lr), "arm": f"{recipe} lr {lr:g}"}
    if config.seeds_vary in ("all", "data"):
        changes["order"] = dataclasses.replace(base.order, seed=seed)
    held_out = read_manifest(store.absolute(config.held_out or config.probe.eval)).address
    return dataclasses.replace(
        base,
        data=data,
        out=store.join(store.absolute(config.out), _name(config, recipe, lr, seed, f"{samples:09d}")),
        samples=samples,
        seed=seed if config.seeds_vary in ("all", "weights") else 0,
        batch=batch,
        checkpoint_every=min(base.checkpoint_every, max(samples // 2, batch)),
        val=dataclasses.replace(base.val, data=held_out, every=samples),
        **changes,
    )
