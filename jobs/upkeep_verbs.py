"""`xtra check`, `sweep`, `trace`, `status` and `doctor`: verify and repair a dataset, remove what dead writers left,
follow a sample, show the progress of a folder, inspect machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.config import DoctorConfig, StatusConfig
from jobs.progress import Progress
from jobs.terminal import say
from shards.config import CheckConfig, SweepConfig

if TYPE_CHECKING:
    from jobs.flags import Call
    from shards.repair import RepairResult


def check(call: Call) -> Any:
    config = call.config(CheckConfig, "dataset")
    from shards import check

    repaired = _repair(call, config) if config.repair else None
    if repaired and repaired.dry_run:
        return {"repair": repaired}
    with Progress("shards") as progress:
        result = check.run(config, progress)
    say("\n".join(map(str, result.problems)))
    verdict = "sound" if result.ok else f"{len(result.problems)} problems"
    say(f"{result.shards:,} shards, {result.samples:,} samples, {result.links:,} links: {verdict}")
    call.exit_code = 0 if result.ok and not (repaired and repaired.lost) else 1
    return {**vars(result), "repair": repaired} if repaired else result


def _repair(call: Call, config: CheckConfig) -> RepairResult:
    from ingest import select
    from shards import repair

    usual = [select.settings(select.SelectConfig())]
    with Progress("units") as progress:
        result = repair.run(config.dataset, config.jobs, config.dry_run, usual, progress)
    done = "would rebuild" if result.dry_run else "rebuilt"
    for line in result.rebuilt:
        say(f"{done} {line}")
    for line in result.lost:
        say(f"lost {line}")
    say(f"{done} {len(result.rebuilt):,} objects, lost {len(result.lost):,}")
    call.exit_code = 1 if result.lost else 0
    return result


def sweep(call: Call) -> Any:
    config = call.config(SweepConfig, "url")
    from shards import store, sweep
    from shards.figures import size

    store.require(url=config.url)
    if store.exists(store.join(config.url, "dataset.json")):
        result = sweep.run(config)
    else:
        from jobs import run_sweep  # it loads torch

        result = run_sweep.run(config)
    done = "would remove" if result.dry_run else "removed"
    why = f"{result.beaten:,} of attempts that lost, {result.stale:,} left by dead writers"
    why += f"; {len(result.uploads):,} uploads that were never completed" if result.uploads else ""
    say(f"{done} {len(result.objects):,} objects, {size(result.bytes)}: {why}")
    if result.young:
        say(f"{result.young:,} more may belong to a running writer: they are removed when they are older")
    if result.remark:
        say(f"xtra sweep: {result.remark}", file=sys.stderr)
    return result


def status(call: Call) -> Any:
    config = call.config(StatusConfig, "url")
    from jobs import status

    if not config.watch:
        return {"status": [status.as_dict(found) for found in status.run(config)]}
    stop, call.quiet = call.stoppable(), True  # a stop ends only the watching
    found = status.run(config, lambda seconds: stop.wait(seconds))
    return {"status": [status.as_dict(each) for each in found]}


def doctor(call: Call) -> Any:
    config = call.config(DoctorConfig, "url")
    from jobs import cluster, doctor as machine

    if config.cluster and not cluster.on_a_cluster():
        raise ValueError("--cluster asks the nodes of a cluster, and RAY_ADDRESS names none: set it to HOST:PORT")
    checks = machine.run(config)
    if config.cluster:
        cluster.start_ray()
        for check in cluster.check_nodes(out=config.url):
            say(check, flush=True)
            checks.append(check)
    call.exit_code = 1 if any(c.level == "fail" for c in checks) else 0
    return {"checks": checks}


def trace(call: Call) -> Any:
    from jobs import trace as tracing

    place, named = call.first(), []
    while (word := call.first()) is not None:
        named.append(word)
    if named:
        call.words = ["--what", *named, *call.words]
    call.words = ([] if place is None else [place]) + call.words
    config = call.config(tracing.Config, "place")

    with Progress("") as progress:
        result = tracing.run(config, progress)
    for problem in result.problems:
        say(f"xtra trace: {problem}", file=sys.stderr)
    say(tracing.text(result))
    call.exit_code = 1 if result.problems or result.unknown else 0
    return result
