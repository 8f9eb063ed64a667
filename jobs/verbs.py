"""The verbs of `xtra`: each imports the room it needs, calls it, prints what it did and returns its result."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jobs import deploy_verb, launch, submit_verb, upkeep_verbs
from jobs.flags import nearest
from jobs.law_verbs import fit_verb, plan_verb, power, report_verb
from jobs.terminal import say
from jobs.trace_verb import trace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ingest.config import Config as IngestConfig
    from ingest.run import IngestResult
    from ingest.sets import folders
    from jobs.flags import Call
    from jobs.progress import Progress
    from shards.manifest import Manifest
    from xtra.probe import ProbeResult

C = TypeVar("C")
LOST = 4  # objects named in a line
PARITY = 1e-9  # largest relative error against the official float64 numbers


def _ingest(call: Call) -> Any:
    _spare_pandas()
    from ingest import run as ingest
    from ingest.config import Config

    workers = call.workers()
    if "--retry" in call.words[:-1]:  # REASON … may follow it
        at = call.words.index("--retry") + 1
        reasons = list(itertools.takewhile(lambda word: not word.startswith("-"), call.words[at:]))
        call.words[at : at + len(reasons)] = ["--retry-reasons", *reasons] if reasons else []
    also = "--workers N or MIN..MAX ingests with N processes (1: this one).\n--retry REASON … asks again."
    config = call.config(Config, also=also)
    if config.dry_run:
        return _dry_run(call, config)
    title = f"{config.urls} to {config.out}" if config.urls else f"{config.out}, again"
    from jobs import cluster

    if workers.most == 1 and not cluster.on_a_cluster():
        return _gather(call, config, title, ingest.run)
    _start_group(call, workers.most)
    title += f", {workers} workers"
    return _gather(
        call, config, title, lambda config, progress, _: cluster.ingest_all(config, workers, call.stop, progress)
    )


def _spare_pandas() -> None:
    """Keep pyarrow from importing pandas, which it does on its first array wherever pandas is installed: a third of a
    second and 40 MB of every process that ingests, for conversions that nothing here asks for."""
    import pyarrow

    class Absent:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "pandas":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent)  # type: ignore[arg-type]
    try:
        pyarrow.array([])  # it looks once, and remembers
    finally:
        sys.meta_path.remove(Absent)  # type: ignore[arg-type]


def _dry_run(call: Call, config: IngestConfig) -> Any:
    from ingest import dry_run
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  a dry run of {config.urls}") as live:
        call.on_stop = live.stop
        forecast = dry_run.run(config, config.dry_run, live, stop.is_set)
        call.on_stop = None
    say("\n".join(dry_run.lines(forecast)))
    return forecast


def _import(call: Call) -> Any:
    from ingest.sets import folders, in_place

    config = call.config(folders.Config, "source")
    if config.set:
        return _import_benchmark(call, config)
    run = in_place.run if config.in_place else folders.run
    return _gather(call, config, f"{config.source} to {config.out}", run)


def _import_benchmark(call: Call, config: folders.Config) -> Any:
    from ingest.sets import benchmarks, import_benchmark
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  {config.set} of {config.source} to {config.out}") as live:
        call.on_stop = live.stop
        result = import_benchmark.run(config, benchmarks.BENCHMARKS[config.set], live, stop.is_set)
        call.on_stop = None
    told = {}
    for split, part in zip(("train", "eval"), result.splits):
        say(f"\n{split}")
        told[split] = _told(call, config, part)
    say("\n" + "\n".join(import_benchmark.lines(result)))
    call.exit_code = 1 if result.counted and result.lost else 0
    return {**vars(result), "lost": result.lost, "stopped": result.stopped, "splits": told}


def _gather(call: Call, config: C, title: str, run: Callable[..., IngestResult]) -> dict[str, Any]:
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  {title}") as live:
        call.on_stop = live.stop
        result = run(config, live, stop.is_set)
        call.on_stop = None
    return _told(call, config, result)


def _told(call: Call, config: Any, result: IngestResult) -> dict[str, Any]:
    """Print what came of one dataset; returns it for --json."""
    from jobs import link_counts
    from shards import manifest

    account = link_counts.Account(
        links=result.links,
        kept=result.kept,
        reasons=result.reasons,
        deselected=result.deselected,
        left=result.links - result.kept - sum(result.reasons.values()),
        not_chosen=result.not_chosen_by,
    )
    say(link_counts.text(account))
    if result.note:
        say(f"\n{result.note}")
    told = {**vars(result), "stopped": result.stopped, "retryable": account.retryable, "address": None, "page": None}
    if result.version is None:
        say(f"\n{result.dataset}: not finished")
        return told
    version = manifest.read_manifest(f"{result.dataset}@{result.version}")
    told |= {"address": version.address, "lost": _lost(call, version)}
    told["page"] = _page(call, config, result)
    if account.retryable:
        say(f"\n{account.retryable:,} links may work later: xtra {call.verb} --retry takes these again")
    say(f"\ndataset  {told['address']}" + (f"\npage     {told['page']}" if told["page"] else ""))
    return told


def _lost(call: Call, version: Manifest) -> list[str]:
    """What commits name and the store no longer has; a rerun does not notice, as the commits are there."""
    from shards import check

    lost = check.absent(version)
    if lost:
        call.exit_code = 1
        more = f" and {len(lost) - LOST:,} more" if len(lost) > LOST else ""
        say(
            f"xtra {call.verb}: {version.dataset}/shards: committed, and gone or of another size: "
            f"{', '.join(lost[:LOST])}{more}: xtra check {version.dataset} says what that costs",
            file=sys.stderr,
        )
    return lost


def _page(call: Call, config: Any, result: IngestResult) -> str | None:
    """The page of a finished ingest. The dataset is whole without it, so a store that fails now is only a remark."""
    from jobs.report import dataset_page
    from shards.store import StoreError

    try:
        return dataset_page.write(result.dataset, settings=dataset_page.settings(config))
    except StoreError as error:
        say(f"xtra {call.verb}: the page was not written: {error}", file=sys.stderr)
        return None


def _select(call: Call) -> Any:
    from ingest import select
    from jobs import link_counts
    from jobs.progress import Progress

    config = call.config(select.Config, "dataset")
    with Progress("") as progress:
        chosen = select.run(config, lambda what, done, total: progress(done, total, what))
    say(link_counts.selection(link_counts.of_manifest(chosen)))
    told: dict[str, Any] = {}
    if config.exclude is not None:
        told["excluded"] = select.counts(chosen, config.exclude)
        say("\n" + link_counts.excluded(told["excluded"], config.exclude))
    say(f"\ndataset  {chosen.address}")
    told |= {"lost": _lost(call, chosen), "address": chosen.address, "digest": chosen.digest, "kept": chosen.kept}
    return told | {"deselected": chosen.deselected, "samples": chosen.samples}


def _peek(call: Call) -> Any:
    import shutil

    from jobs.report import peek

    result = peek.run(call.config(peek.Config, "dataset"))
    say(peek.text(result.rows, shutil.get_terminal_size().columns) if result.page is None else result.page)
    return result


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
    asked = call.prefixed("probe")
    also = """--workers N trains on N processes (1: this one, unless RAY_ADDRESS names a
cluster). --workers MIN..MAX takes what there is between, and more as it comes
(--resize-every 300 seconds). --wait-for-workers SECONDS (60; in a job for ever)
ends with exit code 75. --stall 600: seconds without a step after which a worker
counts as lost. What torchrun or srun has started is found (docs/launchers.md).
--probe.every N --probe.train SET --probe.eval SET and more of the flags of xtra
probe, as --probe.FLAG, probe its checkpoints meanwhile, in a process beside it."""
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
        _start_group(call, workers.most)
    with launch.joined(call, config, workers, followed) as placed, Progress("samples") as progress:
        results = cluster.train_all([placed], workers, call.stoppable(), show)
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


def _start_group(call: Call, workers: int) -> None:
    """Start Ray before the work, because it takes SIGTERM for itself and would die of it instead of saving."""
    from jobs import cluster

    if workers > 1 or cluster.on_a_cluster():
        cluster.start_ray()
        call.listen()


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


def _generate(call: Call) -> Any:
    from jobs.progress import Progress
    from xtra import generate

    config = call.config(generate.Config, "checkpoint")
    with Progress("images") as progress:
        result = generate.run(config, progress)
    say("\n".join(f"{result.out.rstrip('/')}/{name}" for name in result.files))
    say(f"{len(result.keys)} images, loss {result.loss:.4f}: truth, predicted from the truth, free run")
    return result


def _export(call: Call) -> Any:
    from xtra.official import export

    result = export.run(call.config(export.Config, "checkpoint"))
    say(export.describe(result))
    return result


def _scale(call: Call) -> Any:
    from jobs.lab import scale
    from jobs.progress import Progress

    config = call.config(scale.Config)
    if config.power:
        return power(len(config.seeds), config.sd, config.arms)
    stop = call.stoppable()
    _start_group(call, config.workers)
    with Progress("") as bar:
        result = scale.run(config, functools.partial(_show_study, bar), stop)
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
    "ingest": Verb("", "fetch and filter a list of image URLs into a dataset", _ingest),
    "import": Verb("SOURCE", "make a dataset of a labelled set, or of an evaluation set", _import),
    "select": Verb("DATASET", "make a version of a dataset: rules, or a random subset", _select),
    "peek": Verb("DATASET", "show a few links, kept or rejected, as rows or pictures", _peek),
    "trace": Verb("PLACE", "what became of samples, and which steps of runs saw them", trace),
    "sweep": Verb("FOLDER", "remove what dead writers of a dataset or run left behind", upkeep_verbs.sweep),
    "check": Verb("DATASET", "verify a dataset; every problem names its shard and key", upkeep_verbs.check),
    "train": Verb("RECIPE", "pretrain a model on a dataset; a rerun continues", launch.heard(_train)),
    "probe": Verb("RUN", "measure a checkpoint's features on a labelled set", _probe),
    "generate": Verb("CHECKPOINT", "draw what a model predicts of some images", _generate),
    "export": Verb("CHECKPOINT", "write a checkpoint as timm or the official code reads it", _export),
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
