"""Probes during pretraining, beside it: a process of its own watches a run's checkpoints and probes those that are due.

The training knows nothing of it and never waits. What is due follows from what is committed, and what is done from the
results that lie there: the first checkpoint at or after each multiple of `every`, and the last. So it may start late,
end early, run on another machine, or run again after the training was resumed. Checkpoints must live until they are
probed: `--keep-every` of the training keeps just those that are due.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.lab import existing
from jobs.lab.config import FollowConfig as Config
from shards import store
from shards.manifest import read_manifest
from xtra import probe
from xtra.run import checkpoint, records

END_SECONDS = 10.0  # that a follower gets to end before it is killed


@dataclass(frozen=True)
class FollowResult:
    run: str
    probed: tuple[int, ...]  # samples seen of the checkpoints probed just now
    failed: tuple[int, ...]
    finished: bool  # the run came to its end, and its last checkpoint's turn as well


Tell = Callable[[str], None]
Say = Callable[[str, int, int], None]


def run(
    config: Config, tell: Tell = lambda line: None, say: Say | None = None, stop: threading.Event | None = None
) -> FollowResult:
    """Probe until the run has ended, `stop` is set or the parent has gone. A probe that fails is told and left."""
    stop = stop or threading.Event()
    url = existing.run_of(store.absolute(config.probe.checkpoint))
    settings = dataclasses.replace(config.probe, out=store.absolute(config.probe.out) if config.probe.out else url)
    for data in (settings.train, settings.eval):
        read_manifest(data)  # a set that is not there is told now, and not hours later
    probed: list[int] = []
    failed: list[int] = []
    over: set[int] = set()  # checkpoints that need no look any more
    finished = warned = False
    while not (finished or stop.is_set() or (config.parent and os.getppid() != config.parent)):
        planned = _planned(url)
        if planned and not warned and not keeps(planned["keep_every"], config.every):
            warned = True
            tell(f"{url}: keeps its newest checkpoints only: with --keep-every {config.every} a slow probe misses none")
        due = _due(url, config.every, planned["samples"], settings, over) if planned else []
        if due:
            over.add(due[0])
            (probed if _probe(url, due[0], settings, tell, say) else failed).append(due[0])
        else:
            finished = planned is not None and max(checkpoint.committed(url), default=0) >= planned["samples"]
            if not finished:
                stop.wait(config.poll)
    return FollowResult(url, tuple(probed), tuple(failed), finished)


def _planned(url: str) -> dict[str, int] | None:
    """The samples that the run is to see, and its keep_every; None before it has begun."""
    try:
        settings = records.read_settings(url)
    except store.Missing:
        return None
    return {name: int(settings.get(name, 0)) for name in ("samples", "keep_every")}


def keeps(keep_every: int, every: int) -> bool:
    """Whether a run that keeps so often keeps all that is due."""
    return keep_every > 0 and every % keep_every == 0


def _due(url: str, every: int, samples: int, settings: probe.Config, over: set[int]) -> list[int]:
    """Committed checkpoints that wait for their probe, oldest first; those that do not are added to `over`.

    One stands for a multiple: where the first behind it was pruned after its probe, the next is not due as well.
    """
    commits = checkpoint.committed(url)
    last = {seen for seen in commits if seen >= samples}
    firsts = {seen // every: seen for seen in reversed(commits)}
    waiting = ({seen for multiple, seen in firsts.items() if multiple} | last) - over
    if not waiting:
        return []
    known = {result["samples_seen"] for result in existing.results(settings.out) if result["encoder"] == "trained"}
    over |= {seen for seen in known if existing.only_missing(settings, seen) is None}
    multiples = {seen // every for seen in over}
    due = sorted(seen for seen in waiting - over if seen in last or seen // every not in multiples)
    over |= waiting.difference(due)
    return due


def _probe(url: str, seen: int, settings: probe.Config, tell: Tell, say: Say | None) -> bool:
    folder = checkpoint.checkpoint_folder(url, seen)
    wanted = existing.only_missing(settings, seen)
    assert wanted is not None, "what is done is not due"
    try:
        results = probe.run(dataclasses.replace(wanted, checkpoint=folder), say)
    except (ValueError, RuntimeError) as error:  # RuntimeError: out of memory, and the next one may fit
        tell(f"{folder}: was not probed: {' '.join(str(error).split())}")
        return False
    told = ", ".join(f"{r.head} {100 * r.accuracy:.1f} %" for r in results)
    tell(f"{seen:,} samples seen: {results[0].set} {told}")
    return True


# --- beside a training ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(run: str, words: Sequence[str], stop: threading.Event, tell: Tell) -> Iterator[None]:
    """A follower as a process of its own while the block trains; then its last probes are waited for, unless `stop`.

    `words` are those of `xtra probe RUN --follow`. Its output is our standard error. It ends when we do, however.
    """
    command = [sys.executable, "-m", "jobs.cli", "probe", run, "--follow", "--parent", str(os.getpid()), *words]
    if not any(word.partition("=")[0] == "--device" for word in words):
        command += ["--device", "cpu"]  # the GPU's memory is the training's, which has taken what it found free
    # One thread: on cores that both want, the threads of two would spin while they wait for each other.
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    # A session of its own: Ctrl-C is ours, and we pass it on once the training has saved what it has.
    child = subprocess.Popen(command, stdout=sys.stderr, env=env, start_new_session=True)
    try:
        yield
        if child.poll() is None and not stop.is_set():
            tell(f"{run}: trained; its last probes are being made")
        while child.poll() is None and not stop.wait(0.2):
            pass
    finally:
        _end(child)
        if child.returncode not in (0, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            tell(f"{run}: its probes ended early (exit {child.returncode}): xtra probe {run} --follow makes up for it")


def _end(child: subprocess.Popen[bytes]) -> None:
    """The first signal asks for an end after the probe in hand, the second for one now: a probe can be made again."""
    for wait in (0.5, END_SECONDS):
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(wait)
    if child.poll() is None:
        child.kill()
        child.wait()
