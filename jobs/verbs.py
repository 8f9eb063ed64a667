"""The verbs of `xtra`: each imports the room it needs, calls it, prints what it did and returns its result."""

from __future__ import annotations

import contextlib
import functools
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from jobs import cluster, deploy_verb, launch, submit_verb, upkeep_verbs
from jobs.flags import nearest
from jobs.ingest_verbs import import_verb, ingest_verb, peek_verb, select_verb, start_group
from jobs.law_verbs import fit_verb, plan_verb, power, report_verb
from jobs.progress import Progress
from jobs.terminal import say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from jobs.flags import Call
    from xtra.probe import ProbeResult

MAIN = ("demo32", "small64", "b16_in1k", "h14_in21k")  # recipes named in an error message
PARITY = 1e-9  # largest relative error against the official float64 numbers


@dataclass(frozen=True)
class ProbesWords:
    """Probe the checkpoints during training, in another process: with these and all other flags of xtra probe, each as
    --probe.FLAG."""

    every: int = 0  # samples between two probes
    train: str = ""  # labelled dataset that trains the heads
    eval: str = ""  # labelled dataset that is evaluated
    device: str = "cpu"  # as in xtra probe


@dataclass(frozen=True)
class TrainWords(cluster.GroupWords):
    """The flags of `xtra train` besides the recipe's settings."""

    # processes that train together: N, or MIN..MAX for as many as there is room for, growing later; 1: this process,
    # unless RAY_ADDRESS names a cluster. Processes started by torchrun or srun are detected (docs/launchers.md)
    workers: str = "1"
    # take over a run that another command is provably working on; that command ends when it next saves. Without this
    # flag, such a run is refused.
    take_over: bool = False
    # probe the checkpoints during training, in another process: with these and all other flags of xtra probe, each as
    # --probe.FLAG
    probe: ProbesWords = ProbesWords()


def _recipe(call: Call) -> str:
    """The leading word, as the name of a recipe."""
    from xtra import recipes

    name, names = call.first(), recipes.names()
    if name is None:
        if "--help" in call.words or "-h" in call.words:
            _offer(call, "--data DATASET --out RUN [--workers N]", {name: recipes.describe(name) for name in names})
        main = ", ".join(name for name in MAIN if name in names)
        raise ValueError(f"RECIPE is missing: give one of {main}; xtra train --help lists all {len(names)}")
    if name not in names:
        raise ValueError(f"recipe {name!r} is unknown{nearest(name, names)}: xtra train --help lists them")
    return name


def _train(call: Call) -> Any:
    from xtra import recipes

    name = _recipe(call)
    asked, recipe = call.prefixed("probe"), recipes.get(name)
    words, config = call.both(TrainWords, type(recipe), default=recipe, needs=("data", "out"))
    workers = launch.workers(call, words)

    followed: AbstractContextManager[None] = contextlib.nullcontext()
    if asked:
        from jobs import probe_verb

        config, followed = probe_verb.beside(call, config, asked)
    which = iter([f"recipe {name}", *(f"not {other}" for other in recipes.variants(name))])

    def show(row: dict[str, Any]) -> None:
        for line in which:  # only once the run has started: a refusal is one line
            say(line, file=sys.stderr, flush=True)
        _show(progress, row, "", f"loss {row['loss']:.4f}" if row.get("loss") else "")

    if call.place is None:
        start_group(call, workers.most)
    with launch.joined(call, config, workers, followed) as placed, Progress("samples") as progress:
        results = cluster.train_all([placed], workers, call.stoppable(), show, words.take_over)
    if not results:
        say("stopped before the workers started, or between two groups of them")
        return {}
    (result,) = results
    last = "there was nothing left to do" if result.loss is None else f"loss {result.loss:.4f}"
    say(f"{result.samples_seen:,} samples seen, {last}: {result.run}")
    if result.superseded:
        say(f"xtra train: a later attempt has taken over {result.run}: xtra status shows it", file=sys.stderr)
        call.exit_code = 1
    return result


def _show(bar: Progress, row: dict[str, Any], what: str, note: str) -> None:
    """Show one row of a run's progress: a remark on its own line, numbers on the bar."""
    if "remark" in row:
        say(row["remark"], file=sys.stderr, flush=True)
    else:
        bar(row["samples_seen"], row["samples"], what, note)


def _probe(call: Call) -> Any:
    from jobs import probe_verb

    words, config = probe_verb.read(call)
    if words.suite:
        return probe_verb.suite(call, words, config)
    if words.follow:
        return probe_verb.follow(call, words, config)
    from xtra import probe

    call.stoppable()
    with Progress("images") as progress:

        def show(what: str, done: int, total: int) -> None:
            if not probe_verb.going_on(what):
                progress(done, total, what)
            call.raise_if_stopped()  # a probe with augmentation then saves its state

        results = probe.run(config, show)
    say("\n".join(_probe_lines(results)))
    return {"probes": results}


def _probe_lines(results: list[ProbeResult]) -> list[str]:
    """The results of one run's heads, in 80 columns except for long names."""
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
        "eval": "points chosen on the evaluation set itself, as published: this overestimates",
        "nothing": "evaluated as it is",
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
    from xtra.config import GenerateConfig

    config = call.config(GenerateConfig, "checkpoint")
    from xtra import generate

    with Progress("images") as progress:
        result = generate.run(config, progress)
    say("\n".join(f"{result.out.rstrip('/')}/{name}" for name in result.files))
    say(f"{len(result.keys)} images, loss {result.loss:.4f}: truth, prediction from the truth, context, free run")
    return result


def _export(call: Call) -> Any:
    from xtra.official import Config

    config = call.config(Config, "checkpoint")
    from xtra.official import export

    result = export.run(config)
    say(export.describe(result))
    return result


def _scale(call: Call) -> Any:
    from jobs.lab import ScaleConfig

    needs = () if "--power" in call.words else ("probe.train", "probe.eval")
    words, config = call.both(cluster.GroupWords, ScaleConfig, needs=needs)
    workers = words.wanted()
    if config.power:
        return power(len(config.seeds), config.sd, config.arms)
    stop = call.stoppable()
    start_group(call, workers.most)
    from jobs.lab import scale

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
    from jobs.lab import StudyConfig

    config = call.config(StudyConfig)
    from jobs.lab import study

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
    if subject is None and ("--help" in call.words or "-h" in call.words):
        _offer(call, "", {name: bench.about(name) for name in subjects})
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
    examples: tuple[str, ...] = ()  # at the end of its help


VERBS = {
    "ingest": Verb(
        "",
        "fetch and filter a list of image URLs into a dataset",
        ingest_verb,
        ("xtra ingest --urls list.txt --out set", "xtra ingest --retry --out set"),
    ),
    "import": Verb(
        "SOURCE",
        "make a dataset of a labelled set, or of an evaluation set",
        import_verb,
        ("xtra import pictures --out set", "xtra import cifar-10-python.tar.gz --set cifar10 --out cifar10"),
    ),
    "select": Verb(
        "DATASET",
        "make a version of a dataset: rules, or a random subset",
        select_verb,
        ("xtra select set --subset 10k", "xtra select set --rules.min-per-class 50"),
    ),
    "peek": Verb(
        "DATASET",
        "show a few links, kept or rejected, as rows or pictures",
        peek_verb,
        ("xtra peek set", "xtra peek set --reason undecodable --out sheet.html"),
    ),
    "trace": Verb(
        "PLACE",
        "show what became of samples, and which steps saw them",
        upkeep_verbs.trace,
        ("xtra trace set https://example.com/a.jpg --runs runs", "xtra trace runs/one --file keys.txt"),
    ),
    "sweep": Verb(
        "FOLDER",
        "remove what dead writers of a dataset or run left behind",
        upkeep_verbs.sweep,
        ("xtra sweep set --dry-run",),
    ),
    "check": Verb(
        "DATASET",
        "verify a dataset; every problem names its shard and key",
        upkeep_verbs.check,
        ("xtra check set", "xtra check set --repair --dry-run"),
    ),
    "train": Verb(
        "RECIPE",
        "pretrain a model on a dataset; a rerun continues",
        launch.heard(_train),
        (
            "xtra train demo32 --data set --out runs/one",
            "xtra train b16_in1k --data s3://b/set --out s3://b/run --workers 2..8",
        ),
    ),
    "probe": Verb(
        "RUN",
        "measure a checkpoint's features on a labelled set",
        _probe,
        (
            "xtra probe runs/one --train cifar10/train --eval cifar10/eval",
            "xtra probe runs/one --suite paper15 --root sets --only cifar10 dtd",
        ),
    ),
    "embed": Verb(
        "RUN",
        "write feature vectors of a dataset's pictures as Parquet",
        _embed,
        ("xtra embed runs/one --data set --out vectors",),
    ),
    "generate": Verb(
        "CHECKPOINT",
        "draw a model's predictions for some images",
        _generate,
        ("xtra generate runs/one --data set --out pictures",),
    ),
    "export": Verb(
        "CHECKPOINT",
        "write a checkpoint in a format that other programs read",
        _export,
        ("xtra export runs/one --out encoder", "xtra export xtra.ckpt --to run --out runs/official"),
    ),
    "scale": Verb(
        "",
        "train and probe the missing runs of a grid",
        _scale,
        ("xtra scale --data set --out r --samples 1k 4k --probe.train a --probe.eval b",),
    ),
    "study": Verb(
        "",
        "run the missing parts of the block-size study (docs/study)",
        _study,
        ("xtra study --data sets --out runs --seeds 0 1",),
    ),
    "report": Verb(
        "RUNS",
        "write report.html and the ledger of runs, or of their rows",
        report_verb,
        ("xtra report runs", "xtra report docs/study --text"),
    ),
    "fit": Verb(
        "LEDGER",
        "fit scaling laws to a ledger, with intervals; compare arms",
        fit_verb,
        ("xtra fit runs/ledger.parquet --by demo32", "xtra fit --power --seeds 5 --sd 0.4"),
    ),
    "plan": Verb(
        "RECIPE",
        "show what a run will cost",
        plan_verb,
        ("xtra plan b16_in1k --price 2.50 --gpus 16",),
    ),
    "status": Verb(
        "URL",
        "show what a run or a dataset is doing, from its folder",
        upkeep_verbs.status,
        ("xtra status runs/one --watch",),
    ),
    "submit": Verb(
        "VERB",
        "run a command on a cluster, as a job",
        lambda call: submit_verb.submit(call, VERBS),
        ("xtra submit train demo32 --data s3://b/set --out s3://b/run --workers 4", "xtra submit list"),
    ),
    "deploy": Verb(
        "KIND",
        "print a file that starts a cluster",
        lambda call: deploy_verb.deploy(call, VERBS),
        ("xtra deploy rayjob-train --set workers=8 bucket=mine > job.yaml",),
    ),
    "bench": Verb(
        "SUBJECT",
        "compare with a peer, or with the official numbers",
        _bench,
        ("xtra bench fetch", "xtra bench train --size b16 --device cuda"),
    ),
    "doctor": Verb(
        "",
        "check this machine; a store by --url, nodes by --cluster",
        upkeep_verbs.doctor,
        ("xtra doctor --url s3://bucket/folder",),
    ),
}


def _offer(call: Call, flags: str, entries: Mapping[str, str]) -> NoReturn:
    """The help of a verb whose flags depend on its leading word: lists the choices."""
    say(" ".join(filter(None, [f"usage: xtra {call.verb} {call.takes}", flags, "[--flags]"])) + "\n")
    say("\n".join(_entry(name, doc) for name, doc in entries.items()))
    say(f"\nxtra {call.verb} {call.takes} --help describes the flags, with their values.\n\nexamples:")
    say("\n".join(f"  {example}" for example in call.examples))
    raise SystemExit(0)


def _entry(name: str, doc: str) -> str:
    """A name and the first paragraph of its docstring, in 80 columns."""
    text = f"  {name:<26}  {' '.join(doc.strip().partition(chr(10) * 2)[0].split())}"
    return textwrap.fill(text, 80, subsequent_indent=" " * 30, drop_whitespace=True)
