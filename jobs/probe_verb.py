"""The words of `xtra probe` beyond one probe: a suite of sets, following a run, and doing so beside its training; and
those of `xtra embed`."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from jobs.flags import Call
from jobs.lab import follow as following, suite as suites
from jobs.progress import Progress
from jobs.terminal import say
from shards.manifest import read_manifest
from xtra import probe
from xtra.augment import PROBE, PROBE_LINEAR_B

if TYPE_CHECKING:
    from xtra import train

SUITES = suites.SUITES
_RECIPES = {"published": PROBE, "linear-b": PROBE_LINEAR_B}
_ALSO = (
    "--augment published | linear-b: every epoch anew, as the paper's probes or its linear probe of B/16 do, not "
    "--views of each image encoded once.",
    "--suite paper15 --root URL [--only NAME …] [--workers N or MIN..MAX]: the paper's evaluation sets that lie at "
    "URL/NAME/train and URL/NAME/eval, each with its own settings; flags that are given hold for all. What is done is "
    "left as it is.",
    "--follow --every N: probe the checkpoints of a run that is being trained as they come, every N samples.",
)


def going_on(what: str) -> bool:
    """Whether a probe's progress says where it goes on; printed as a line of its own then."""
    if what.startswith("going on at"):
        say(what, file=sys.stderr, flush=True)
        return True
    return False


def config(call: Call, first: str = "checkpoint") -> probe.Config:
    """The words as one probe."""
    recipe = call.choice("augment", list(_RECIPES))
    also = "\n".join(textwrap.fill(line, 80) for line in _ALSO)
    settings = call.config(probe.Config, first, also=also)
    return dataclasses.replace(settings, augment=_RECIPES[recipe] if recipe else None)


def embed(call: Call) -> Any:
    """`xtra embed RUN --data DATASET --out FOLDER`."""
    wanted = call.config(probe.embedding.Config, "checkpoint")
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


def suite(call: Call, name: str) -> Any:
    """`xtra probe RUN --suite NAME`."""
    root, only = " ".join(call.several("root")), call.several("only")
    if not root:
        raise ValueError(f"--root is missing: give the folder that has NAME/train and NAME/eval of {name}")
    workers = call.workers()
    given = (word.partition("=")[0].partition(".")[0] for word in call.words if word.startswith("--"))
    kept = frozenset(flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in given)
    wanted = suites.Config(root, config(call), kept, only, workers)
    stop = call.stoppable()
    with Progress("") as bar:
        result = suites.run(wanted, lambda row: bar(row["probe"], row["probes"], "probes", row.get("note", "")), stop)
    say("\n".join(suites.text(result, wanted.probe.heads)))
    call.exit_code = 1 if result.failed else 0
    return result


def follow(call: Call) -> Any:
    """`xtra probe RUN --follow --every N`."""
    every, parent = call.own("every", 0), call.own("parent", 0)
    wanted = following.Config(config(call), every, parent)
    if parent:
        os.nice(10)  # where both want the same cores, the training goes first
    stop = call.stoppable()

    def tell(line: str) -> None:
        say(f"xtra probe: {line}", file=sys.stderr, flush=True)

    with Progress("images") as bar:

        def show(what: str, done: int, total: int) -> None:
            if not (going_on(what) or parent):
                bar(done, total, what)

        result = following.run(wanted, tell, show, stop)
    ending = "it has ended" if result.finished else "it has not ended"
    say(f"{result.run}: {len(result.probed)} checkpoints probed, {len(result.failed)} failed; {ending}")
    call.exit_code = 1 if result.failed else 0
    return result


def beside(call: Call, training: train.Config, words: list[str]) -> tuple[train.Config, AbstractContextManager[None]]:
    """The training's config with checkpoints kept until they are probed, and the block in which they are."""
    asked = Call("train", "", list(words))
    try:
        every = asked.own("every", 0)
        settings = following.Config(config(asked, first=""), every)
        for url in (settings.probe.train, settings.probe.eval):
            read_manifest(url)
    except ValueError as error:
        raise ValueError(f"of the flags --probe.FLAG: {error}") from None
    if not training.keep_every:
        training = dataclasses.replace(training, keep_every=settings.every)
    elif not following.keeps(training.keep_every, every):
        raise ValueError(
            f"--keep-every {training.keep_every} loses what --probe.every {every} is to probe: leave it out"
        )

    def tell(line: str) -> None:
        say(f"xtra train: {line}", file=sys.stderr, flush=True)

    return training, following.beside(training.out, words, call.stop, tell)
