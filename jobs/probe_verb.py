"""The flags of `xtra probe` beyond one probe: a suite of sets, following a run, also during its training; and those of
`xtra embed`."""

from __future__ import annotations

import dataclasses
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jobs import cluster
from jobs.flags import Call
from jobs.lab import FollowConfig, SuiteConfig
from jobs.progress import Progress
from jobs.terminal import say
from xtra import probe

if TYPE_CHECKING:
    from xtra.config import TrainConfig


@dataclass(frozen=True)
class ProbeWords(cluster.WorkersWords):
    """The flags of `xtra probe` besides the settings of a probe. Workers are for --suite: so many probes at a time."""

    # augment every epoch on the fly, as in the paper's probes or in its linear probe of B/16; without it, --views of
    # each image are encoded once
    augment: Literal["published", "linear-b"] | None = None
    # probe the paper's evaluation sets, each with its own settings; given flags apply to all, finished sets are
    # skipped. Needs --root, but no --train and --eval
    suite: Literal["paper15"] | None = None
    root: str = ""  # with --suite: the folder with NAME/train and NAME/eval of every set
    only: tuple[str, ...] = ()  # with --suite: names of sets; all those in --root if empty
    follow: bool = False  # probe the checkpoints of a run while it is being trained
    every: int = 0  # with --follow: samples between two probes
    parent: int = 0  # with --follow: end when this process (by its id) ends; used by xtra train itself


def going_on(what: str) -> bool:
    """Whether a probe's progress says where it resumes; then it is printed as a line of its own."""
    if what.startswith("going on at"):
        say(what, file=sys.stderr, flush=True)
        return True
    return False


def read(call: Call, first: str = "checkpoint") -> tuple[ProbeWords, probe.Config]:
    """The flags parsed as what to do, and the settings of a probe."""
    suite = any(word.partition("=")[0] == "--suite" for word in call.words)
    words, settings = call.both(ProbeWords, probe.Config, first, needs=("root",) if suite else ("train", "eval"))
    if words.augment:
        from xtra.augment import PROBE, PROBE_LINEAR_B

        recipe = {"published": PROBE, "linear-b": PROBE_LINEAR_B}[words.augment]
        settings = dataclasses.replace(settings, augment=recipe)
    return words, settings


def embed(call: Call) -> Any:
    """`xtra embed RUN --data DATASET --out FOLDER`."""
    wanted = call.config(probe.EmbedConfig, "checkpoint", needs=("checkpoint", "data", "out"))

    stop, begun = call.stoppable(), False
    with Progress("images") as progress:

        def show(done: int, total: int) -> None:
            nonlocal begun
            if done and not begun:
                say(f"xtra embed: going on at {done:,} of {total:,}", file=sys.stderr, flush=True)
            begun = True
            progress(done, total)

        result = probe.embedding.run(wanted, show, stop.is_set)
    say(f"{result.done:,} of {result.samples:,} vectors of {result.vector:,} numbers, {result.seconds:,.0f} s")
    say(f"{result.out.rstrip('/')}/part-*.parquet: {result.parts:,} files of key, label, vector")
    return {**vars(result), "stopped": result.stopped}


def suite(call: Call, words: ProbeWords, settings: probe.Config) -> Any:
    """`xtra probe RUN --suite NAME`."""
    from jobs.lab import suite as suites

    given = (word.partition("=")[0].partition(".")[0] for word in call.words if word.startswith("--"))
    kept = {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in given}
    own = {field.name for field in fields(ProbeWords)} | {"checkpoint"}
    wanted = SuiteConfig(words.root, settings, frozenset(kept - own), words.only, words.wanted())
    stop = call.stoppable()
    with Progress("") as bar:
        result = suites.run(wanted, lambda row: bar(row["probe"], row["probes"], "probes", row.get("note", "")), stop)
    say("\n".join(suites.text(result, wanted.probe.heads)))
    call.exit_code = 1 if result.failed else 0
    return result


def follow(call: Call, words: ProbeWords, settings: probe.Config) -> Any:
    """`xtra probe RUN --follow --every N`."""
    from jobs.lab import follow as following

    parent = words.parent
    wanted = FollowConfig(settings, words.every, parent)
    if parent:
        os.nice(10)  # on shared cores, the training has priority
    stop = call.stoppable()

    def report(line: str) -> None:
        say(f"xtra probe: {line}", file=sys.stderr, flush=True)

    with Progress("images") as bar:

        def show(what: str, done: int, total: int) -> None:
            if not (going_on(what) or parent):
                bar(done, total, what)

        result = following.run(wanted, report, show, stop)
    ending = "it has ended" if result.finished else "it has not ended"
    say(f"{result.run}: {len(result.probed)} checkpoints probed, {len(result.failed)} failed; {ending}")
    call.exit_code = 1 if result.failed else 0
    return result


def read_beside(words: list[str]) -> FollowConfig:
    """The flags --probe.FLAG of a training, as --FLAG. Raises ValueError naming one that is wrong."""
    try:
        mine, settings = read(Call("probe", "", list(words)), first="")
        return FollowConfig(settings, mine.every)
    except ValueError as error:
        raise ValueError(f"in the flags --probe.FLAG: {error}") from None


def beside(call: Call, training: TrainConfig, words: list[str]) -> tuple[TrainConfig, AbstractContextManager[None]]:
    """The training's config, keeping checkpoints until they are probed, and a context that probes them."""
    settings = read_beside(words)
    from jobs.lab import follow as following
    from shards.manifest import read_manifest

    try:
        for url in (settings.probe.train, settings.probe.eval):
            read_manifest(url)
    except ValueError as error:
        raise ValueError(f"in the flags --probe.FLAG: {error}") from None
    if not training.keep_every:
        training = dataclasses.replace(training, keep_every=settings.every)
    elif not following.keeps(training.keep_every, settings.every):
        raise ValueError(
            f"--keep-every {training.keep_every} deletes checkpoints that --probe.every {settings.every} needs: "
            "leave it out"
        )

    def report(line: str) -> None:
        say(f"xtra train: {line}", file=sys.stderr, flush=True)

    return training, following.beside(training.out, words, call.stop, report)
