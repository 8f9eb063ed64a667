"""The verbs of `xtra`: each imports the room it needs, calls it, prints what it did and returns its result."""

from __future__ import annotations

import contextlib
import functools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import deploy_verb, launch, submit_verb, upkeep_verbs
from jobs.flags import nearest
from jobs.ingest_verbs import import_verb, ingest_verb, peek_verb, select_verb, start_group
from jobs.law_verbs import fit_verb, plan_verb, power, report_verb
from jobs.terminal import say
from jobs.trace_verb import trace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from jobs.flags import Call
    from jobs.progress import Progress
    from xtra.probe import ProbeResult

PARITY = 1e-9  # largest relative error against the official float64 numbers


def _train(call: Call) -> Any:
    from jobs import cluster
    from jobs.progress import Progress
    from xtra import recipes

    name = call.first()
    if name is None:
        if "--help" in call.words or "-h" in call.words:
            say("usage: xtra train RECIPE --data DATASET --out RUN [--workers N] [--flags]\n\nrecipes:")
            say("\n".join(_entry(name, recipes.describe(name)) for name in recipes.names()))
            say("\nxtra train RECIPE --help describes the flags, with that recipe's values.")
            raise SystemExit(0)
        raise ValueError(f"RECIPE is missing: give one of {', '.join(recipes.names())}")
    if name not in recipes.names():
        raise ValueError(f"recipe {name!r} is unknown{nearest(name, recipes.names())}: xtra train --help lists them")
    workers = launch.workers(call)
    asked, take_over = call.prefixed("probe"), call.switch("take-over")
    also = """--workers N trains on N processes (1: this one, unless RAY_ADDRESS names a
cluster). --workers MIN..MAX takes what there is between, and more as it comes
(--resize-every 300 seconds). --wait-for-workers SECONDS (60; in a job for ever)
ends with exit code 75. --stall 600: seconds without a step after which a worker
counts as lost. What torchrun or srun has started is found (docs/launchers.md).
--take-over goes on with a run that another command is provably at work on; that
one ends when it next saves. Without it such a run is refused.
--probe.every N --probe.train SET --probe.eval SET and more of the flags of xtra
probe, as --probe.FLAG, probe its checkpoints meanwhile, in a process beside it
(on the CPU, unless --probe.device says otherwise)."""
    config = call.config(type(recipes.get(name)), default=recipes.get(name), also=also)
    followed: AbstractContextManager[None] = contextlib.nullcontext()
    if asked:
        from jobs import probe_verb

        config, followed = probe_verb.beside(call, config, asked)
    which = iter([f"recipe {name}", *(f"not {other}" for other in recipes.variants(name))])

    def show(row: dict[str, Any]) -> None:
        for line in which:  # once the run has begun: a refused one is one line
            say(line, file=sys.stderr, flush=True)
        _show(progress, row, "", f"loss {row['loss']:.4f}" if row.get("loss") else "")

    if call.place is None:
        start_group(call, workers.most)
    with launch.joined(call, config, workers, followed) as placed, Progress("samples") as progress:
        results = cluster.train_all([placed], workers, call.stoppable(), show, take_over)
    if not results:
        say("stopped before the workers began, or between two groups of them")
        return {}
    (result,) = results
    last = "there was nothing left to do" if result.loss is None else f"loss {result.loss:.4f}"
    say(f"{result.samples_seen:,} samples seen, {last}: {result.run}")
    if result.superseded:
        say(f"xtra train: a later attempt has taken {result.run} over: xtra status shows it", file=sys.stderr)
        call.exit_code = 1
    return result


def _show(bar: Progress, row: dict[str, Any], what: str, note: str) -> None:
    """One row of a run's progress: a remark as a line of its own, numbers on the bar."""
    if "remark" in row:
        say(row["remark"], file=sys.stderr, flush=True)
    else:
        bar(row["samples_seen"], row["samples"], what, note)


def _probe(call: Call) -> Any:
    from jobs import probe_verb
    from jobs.progress import Progress
    from xtra import probe

    if suite := call.choice("suite", probe_verb.SUITES):
        return probe_verb.suite(call, suite)
    if "--follow" in call.words:
        call.words.remove("--follow")
        return probe_verb.follow(call)
    config = probe_verb.config(call)
    call.stoppable()
    with Progress("images") as progress:

        def show(what: str, done: int, total: int) -> None:
            if not probe_verb.going_on(what):
                progress(done, total, what)
            call.heed()  # a probe with augmentation saves its state then

        results = probe.run(config, show)
    say("\n".join(_probe_lines(results)))
    return {"probes": results}


def _probe_lines(results: list[ProbeResult]) -> list[str]:
    """The outcome of one run's heads, no line wider than 80 columns unless a name is."""
    first = results[0]
    of = "an official probe" if first.encoder == "official" else next((r.encoder for r in results if r.layers), "no")
    seen = f" at {first.samples_seen:,} samples" if first.samples_seen else ""
    lines = [f"{first.set}: {first.total:,} images of {first.classes:,} classes, encoder {of}{seen}"]
    for r in results:
        point = ", ".join(f"{_POINT.get(name, name)} {value:g}" for name, value in r.chosen.items() if value)
        interval = f"{100 * r.low:.1f} to {100 * r.high:.1f}"
        lines.append(f"  {r.head:<9}  {100 * r.accuracy:5.1f} %  ({interval})  {point}".rstrip())
    chosen = {
        "holdout": "points chosen on images of the training set that no head trained on",
        "eval": "points chosen on the evaluation set itself, as published: this flatters",
        "nothing": "evaluated as it came",
    }
    lines.append(f"{chosen[first.selected_on]}, {first.seconds:,.0f} s")
    if first.shared_sha256 or first.shared_phash:
        alike = f" and {first.shared_phash:,} that look alike" if first.shared_phash else ""
        lines.append(f"the training set has {first.shared_sha256:,} of the evaluation images{alike}")
    return lines + [f"{r.head}: {r.remark}" for r in results if r.remark]


_POINT = {"weight_decay": "decay"}


def _embed(call: Call) -> Any:
    from jobs import probe_verb

    return probe_verb.embed(call)


def _generate(call: Call) -> Any:
    from jobs.progress import Progress
    from xtra import generate

    config = call.config(generate.Config, "checkpoint")
    with Progress("images") as progress:
        result = generate.run(config, progress)
    say("\n".join(f"{result.out.rstrip('/')}/{name}" for name in result.files))
    say(f"{len(result.keys)} images, loss {result.loss:.4f}: truth, prediction from the truth, context, free run")
    return result


def _export(call: Call) -> Any:
    from xtra.official import export

    result = export.run(call.config(export.Config, "checkpoint"))
    say(export.describe(result))
    return result


def _scale(call: Call) -> Any:
    from jobs.lab import scale
    from jobs.progress import Progress

    workers = call.workers()
    config = call.config(
        scale.Config, also="--workers N or MIN..MAX: processes that train a run together (1: this one)."
    )
    if config.power:
        return power(len(config.seeds), config.sd, config.arms)
    stop = call.stoppable()
    start_group(call, workers.most)
    with Progress("") as bar:
        result = scale.run(config, functools.partial(_show_study, bar), stop, workers)
    say(f"{result.runs} runs, {result.trained} trained and {result.probed} probed now: xtra report {result.out}")
    return result


def _show_study(bar: Any, row: dict[str, Any]) -> None:
    name = row["run"].rstrip("/").rsplit("/", 1)[-1]
    if "probe" in row:
        bar(row["probe"], row["probes"], "probes", note=name)
    else:
        _show(bar, row, f"{name}, samples", "")


def _study(call: Call) -> Any:
    from jobs.lab import study
    from jobs.progress import Progress

    config = call.config(study.Config)
    stop = call.stoppable()
    with Progress("") as bar:
        result = study.run(config, functools.partial(_show_study, bar), stop)
    say(f"{result.trained} runs trained and {result.probed} probed now; rates {result.rates}: {result.out}")
    return result


def _bench(call: Call) -> Any:
    import importlib

    from jobs import bench

    subjects = bench.subjects()
    subject = call.first()
    if subject not in subjects:
        what = "SUBJECT is missing" if subject is None else f"{subject!r} is not a subject{nearest(subject, subjects)}"
        raise ValueError(f"{what}: give one of {', '.join(subjects)}")
    call.verb = f"bench {subject}"
    module = importlib.import_module(f"jobs.bench.{subject.replace('-', '_')}")
    result = module.run(call.config(module.Config))
    say("\n".join(f"{name} {value:.4g}" for name, value in result["ratios"].items()))
    if subject == "parity" and not result["ratios"]["max_relative_error"] <= PARITY:
        call.exit_code = 1
    return result


@dataclass(frozen=True)
class Verb:
    takes: str  # the leading word, as help shows it
    help: str
    run: Callable[[Call], Any]


VERBS = {
    "ingest": Verb("", "fetch and filter a list of image URLs into a dataset", ingest_verb),
    "import": Verb("SOURCE", "make a dataset of a labelled set, or of an evaluation set", import_verb),
    "select": Verb("DATASET", "make a version of a dataset: rules, or a random subset", select_verb),
    "peek": Verb("DATASET", "show a few links, kept or rejected, as rows or pictures", peek_verb),
    "trace": Verb("PLACE", "what became of samples, and which steps of runs saw them", trace),
    "sweep": Verb("FOLDER", "remove what dead writers of a dataset or run left behind", upkeep_verbs.sweep),
    "check": Verb("DATASET", "verify a dataset; every problem names its shard and key", upkeep_verbs.check),
    "train": Verb("RECIPE", "pretrain a model on a dataset; a rerun continues", launch.heard(_train)),
    "probe": Verb("RUN", "measure a checkpoint's features on a labelled set", _probe),
    "embed": Verb("RUN", "write the vectors of a dataset's pictures as Parquet", _embed),
    "generate": Verb("CHECKPOINT", "draw what a model predicts of some images", _generate),
    "export": Verb("CHECKPOINT", "write a checkpoint as other programs read it", _export),
    "scale": Verb("", "train and probe what is missing of a grid of runs", _scale),
    "study": Verb("", "run what is missing of the block-size study of docs/study", _study),
    "report": Verb("RUNS", "write report.html and the ledger of a folder of runs", report_verb),
    "fit": Verb("LEDGER", "scaling laws of a ledger, with intervals; its arms compared", fit_verb),
    "plan": Verb("RECIPE", "what a run costs before anything is spent", plan_verb),
    "status": Verb("URL", "say what a run or a dataset is doing, from its folder", upkeep_verbs.status),
    "submit": Verb("VERB", "run a command on a cluster, as a job", lambda call: submit_verb.submit(call, VERBS)),
    "deploy": Verb("KIND", "a file that starts a cluster", lambda call: deploy_verb.deploy(call, VERBS)),
    "bench": Verb("SUBJECT", "measure us beside a peer, or beside the official numbers", _bench),
    "doctor": Verb("", "check this machine; a store by --url, nodes by --cluster", upkeep_verbs.doctor),
}


def _entry(name: str, doc: str) -> str:
    """A name and the first paragraph of its docstring, in 80 columns."""
    text = f"  {name:<26}  {' '.join(doc.strip().partition(chr(10) * 2)[0].split())}"
    return textwrap.fill(text, 80, subsequent_indent=" " * 30, drop_whitespace=True)
