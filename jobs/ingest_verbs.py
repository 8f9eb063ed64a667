"""The verbs that make and show datasets: ingest, import, select, peek; and the text of their results."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.progress import Progress
from jobs.terminal import say

if TYPE_CHECKING:
    from ingest.config import Config as IngestConfig
    from ingest.run import IngestResult
    from ingest.sets import folders
    from jobs.flags import Call
    from shards.manifest import Manifest

C = TypeVar("C")
LOST = 4  # lost objects named in a line
_THINGS = {"ingest": "links", "import": "pictures"}  # what a source consists of


def ingest_verb(call: Call) -> Any:
    from ingest.config import Config
    from jobs import cluster

    if "--retry" in call.words[:-1]:  # REASON … may follow it
        at = call.words.index("--retry") + 1
        reasons = list(itertools.takewhile(lambda word: not word.startswith("-"), call.words[at:]))
        call.words[at : at + len(reasons)] = ["--retry-reasons", *reasons] if reasons else []
    needs = ("out",) if "--retry" in call.words else ("urls", "out")
    with _nothing_to_collect():
        words, config = call.both(cluster.WorkersWords, Config, needs=needs)
        workers = words.wanted()
        _spare_pandas()
        from ingest import run as ingest

    if config.dry_run:
        return _dry_run(call, config)
    title = f"{config.urls} to {config.out}" if config.urls else f"{config.out}, again"
    if workers.most == 1 and not cluster.on_a_cluster():
        return _gather(call, config, title, ingest.run)
    start_group(call, workers.most)
    title += f", {workers} workers"
    return _gather(
        call, config, title, lambda config, progress, _: cluster.ingest_all(config, workers, call.stop, progress)
    )


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """What start-up makes stays: no collection looks through it, neither meanwhile, a sixth of start-up, nor later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _spare_pandas() -> None:
    """Keep pyarrow from importing pandas, which it does on its first array if pandas is installed: a third of a
    second and 40 MB in every process that ingests, for conversions that nothing here uses."""
    import pyarrow

    class Absent:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "pandas":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent)  # type: ignore[arg-type]
    try:
        pyarrow.array([])  # it looks for pandas only once
    finally:
        sys.meta_path.remove(Absent)  # type: ignore[arg-type]


def _dry_run(call: Call, config: IngestConfig) -> Any:
    from ingest import dry_run
    from jobs import forecast_text
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  a dry run of {config.urls}") as live:
        call.on_stop = live.stop
        forecast = dry_run.run(config, config.dry_run, live, stop.is_set)
        call.on_stop = None
    say("\n".join(forecast_text.lines(forecast)))
    return forecast


def import_verb(call: Call) -> Any:
    from ingest.sets import ImportConfig

    config = call.config(ImportConfig, "source")
    from ingest.sets import folders, in_place

    if config.set:
        return _import_benchmark(call, config)
    run = in_place.run if config.in_place else folders.run
    return _gather(call, config, f"{config.source} to {config.out}", run)


def _import_benchmark(call: Call, config: folders.Config) -> Any:
    from ingest.sets import benchmarks, import_benchmark
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  {config.set} of {config.source} to {config.out}", things="pictures") as live:
        call.on_stop = live.stop
        result = import_benchmark.run(config, benchmarks.BENCHMARKS[config.set], live, stop.is_set)
        call.on_stop = None
    found = {}
    for split, part in zip(("train", "eval"), result.splits):
        say(f"\n{split}")
        found[split] = _result(call, config, part)
    say("\n" + "\n".join(import_benchmark.lines(result)))
    call.exit_code = 1 if result.counted and result.lost else 0
    return {**vars(result), "lost": result.lost, "stopped": result.stopped, "splits": found}


def _gather(call: Call, config: C, title: str, run: Callable[..., IngestResult]) -> dict[str, Any]:
    from jobs.ingest_display import Live

    stop = call.stoppable()
    with Live(f"xtra {call.verb}  {title}", things=_THINGS[call.verb]) as live:
        call.on_stop = live.stop
        result = run(config, live, stop.is_set)
        call.on_stop = None
    return _result(call, config, result)


def _result(call: Call, config: Any, result: IngestResult) -> dict[str, Any]:
    """Print the result for one dataset; returns it for --json."""
    from jobs import link_counts
    from jobs.report import dataset_page
    from shards import manifest

    account = link_counts.Account(
        links=result.links,
        kept=result.kept,
        reasons=result.reasons,
        deselected=result.deselected,
        left=result.links - result.kept - sum(result.reasons.values()),
        not_chosen=result.not_chosen_by,
    )
    say(link_counts.text(account, _THINGS[call.verb]))
    if result.note:
        say(f"\n{result.note}")
    found = {**vars(result), "stopped": result.stopped, "retryable": account.retryable, "address": None, "page": None}
    if result.version is None:
        say(f"\n{result.dataset}: not finished")
        return found
    version = manifest.read_manifest(f"{result.dataset}@{result.version}")
    found |= {"address": version.address, "lost": _lost(call, version)}
    found["page"] = _page(call, config, result)
    if account.retryable:
        again = dataset_page.retry_command(result.dataset, dataset_page.settings(config))
        links = f"{account.retryable:,} link{'s' if account.retryable > 1 else ''}"
        say(f"\n{links} may work later; to retry them:\n{again}")
    say(f"\ndataset  {found['address']}" + (f"\npage     {found['page']}" if found["page"] else ""))
    return found


def _lost(call: Call, version: Manifest) -> list[str]:
    """Objects that commits name but the store no longer has; a rerun does not notice, because the commits exist."""
    from shards import check

    lost = check.absent(version)
    if lost:
        call.exit_code = 1
        more = f" and {len(lost) - LOST:,} more" if len(lost) > LOST else ""
        say(
            f"xtra {call.verb}: {version.dataset}/shards: committed, but missing or of another size: "
            f"{', '.join(lost[:LOST])}{more}: xtra check {version.dataset} says what is lost",
            file=sys.stderr,
        )
    return lost


def _page(call: Call, config: Any, result: IngestResult) -> str | None:
    """Write the page of a finished ingest. The dataset is complete without it, so a failing store is only a remark."""
    from jobs.report import dataset_page
    from shards.store import StoreError

    try:
        return dataset_page.write(result.dataset, settings=dataset_page.settings(config))
    except StoreError as error:
        say(f"xtra {call.verb}: the page was not written: {error}", file=sys.stderr)
        return None


def select_verb(call: Call) -> Any:
    from ingest.select import Config

    config = call.config(Config, "dataset")
    from ingest import select
    from jobs import link_counts
    from shards import manifest

    before = manifest.newest_version(manifest.split(config.dataset)[0])
    with Progress("") as progress:
        chosen = select.run(config, lambda what, done, total: progress(done, total, what))
    say(link_counts.selection(link_counts.of_manifest(chosen)))
    found: dict[str, Any] = {}
    if config.exclude is not None:
        found["excluded"] = select.counts(chosen, config.exclude)
        say("\n" + link_counts.excluded(found["excluded"], config.exclude))
    now = manifest.newest_version(chosen.dataset)
    say(f"\ndataset  {chosen.address}\n         {link_counts.meaning(chosen, before, now)}")
    found |= {"lost": _lost(call, chosen), "address": chosen.address, "digest": chosen.digest, "kept": chosen.kept}
    return found | {"deselected": chosen.deselected, "samples": chosen.samples}


def peek_verb(call: Call) -> Any:
    import shutil

    from jobs.config import PeekConfig

    config = call.config(PeekConfig, "dataset")
    from jobs.report import peek

    result = peek.run(config)
    say(peek.text(result.rows, shutil.get_terminal_size().columns) if result.page is None else result.page)
    return result


def start_group(call: Call, workers: int) -> None:
    """Start Ray before the work, because it takes over SIGTERM and would die of it instead of saving."""
    from jobs import cluster

    if workers > 1 or cluster.on_a_cluster():
        cluster.start_ray()
        call.listen()
