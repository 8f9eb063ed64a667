"""The unit of work of a study: a trunk and its branches, or a single run, each with its probes, in one process.

All state is in the run folders: finished work is not repeated, and interrupted work continues.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.lab import existing
from shards import store
from xtra import probe, train
from xtra.optim import decay_start
from xtra.run import checkpoint

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """One run of a study and the probes of its encoder."""

    run: train.Config
    probes: tuple[probe.Config, ...] = ()
    recorded: bool = False  # its results were recorded on a machine that is gone: nothing to do


@dataclass(frozen=True)
class Chain:
    """Trials in order; a trunk, whose checkpoints the branches need, has no probes and comes first."""

    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Done:
    """The work done by this call; work by another study on the same folder does not count."""

    trained: int = 0
    probed: int = 0


def is_trained(run: train.Config) -> bool:
    return max(checkpoint.committed(run.out), default=0) >= run.samples


def work(chain: Chain, stop: threading.Event, progress: Progress = lambda row: None) -> Done:
    """Train and probe what a chain is missing. Raises what train.run and probe.run raise."""
    trained = probed = 0
    for trial in chain.trials:
        if trial.recorded:
            continue
        if not is_trained(trial.run) and not _is_spare(trial, chain):
            result = train.run(trial.run, stop.is_set, lambda row, run=trial.run: progress({"run": run.out, **row}))
            if result.stopped:
                break
            trained += result.loss is not None  # None: another study had just finished it
        for settings in missing_probes(trial):
            if stop.is_set():
                return Done(trained, probed)
            _probe(settings, trial.run, progress)
            probed += 1
    return Done(trained, probed)


def missing_probes(trial: Trial) -> list[probe.Config]:
    """The probes of a trained run, without the heads that already have results."""
    seen = {"trained": trial.run.samples, "random": 0}
    wanted = (existing.only_missing(settings, seen[settings.encoder]) for settings in trial.probes)
    return [settings for settings in wanted if settings is not None]


def is_done(chain: Chain) -> bool:
    """Whether nothing is left to do, from the folders alone."""
    open_trials = [trial for trial in chain.trials if not trial.recorded]
    runs = all(is_trained(trial.run) or _is_spare(trial, chain) for trial in open_trials)
    return runs and not any(missing_probes(trial) for trial in open_trials)


def _is_spare(trial: Trial, chain: Chain) -> bool:
    """Whether it is a trunk whose branches are all trained."""
    branches = [other for other in chain.trials if other.run.branch]
    return (
        bool(branches)
        and not trial.run.branch
        and all(branch.recorded or is_trained(branch.run) for branch in branches)
    )


def _probe(settings: probe.Config, run: train.Config, progress: Progress) -> None:
    row = {"run": run.out, "probe": 0, "probes": 1}
    probe.run(settings, lambda what, n, of: progress({**row, "note": f"{what} {n:,} of {of:,}"}))
    progress({**row, "probe": 1})


def with_trunk(runs: list[train.Config], out: str) -> list[train.Config]:
    """Turn runs that differ only in their samples, at a constant rate, into a trunk in `out` and its branches."""
    forks = {run.samples: decay_start(run.optim, run.samples, run.batch) for run in runs}
    longest = max(runs, key=lambda run: run.samples)
    trunk = dataclasses.replace(
        longest,
        out=out,
        samples=max(forks.values()),
        optim=dataclasses.replace(longest.optim, decay=0.0),
        keep_at=tuple(sorted(set(forks.values()))),
        val=dataclasses.replace(longest.val, data=""),  # a trunk is no result: it needs no held-out loss
    )
    return [trunk, *(dataclasses.replace(run, branch=store.absolute(out)) for run in runs)]
