"""The same run() in this process or on the workers of a Ray cluster.

One worker group serves many runs: starting a group costs some 20 s, so a study's runs are trained one after another by
the same processes. Ray's checkpoint registry is never used: our own COMMITs define a run's state, and a group that
lost a worker restarts from them (docs/design.md, "Run folder").
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ingest import run as ingest
from ingest.config import Config as IngestConfig
from jobs.cluster.start import start_ray
from jobs.cluster.wanted import Workers, closed_by, on_a_cluster
from shards import store

if TYPE_CHECKING:  # these load torch, which an ingest does not need
    from xtra.train import Config, TrainResult

Progress = Callable[[dict[str, Any]], None]


def train_all(
    configs: Sequence[Config],
    workers: Workers | int = 1,
    stop: threading.Event | None = None,
    progress: Progress = lambda row: None,
    take_over: bool = False,
) -> list[TrainResult]:
    """Train the runs one after another: in this process, which may be a rank of a group that a launcher has started, or
    on a Ray Train group for several workers or on a cluster.

    `stop` makes every rank save a checkpoint and return at the end of its step. Workers and nodes may come
    and go meanwhile. Raises ValueError for the reasons of train.run(), and for a run that another process is provably
    working on (unless `take_over`); TryLater if the cluster had no place for the workers within the time that they may
    wait.
    """
    from xtra import train
    from xtra.distributed import world_of
    from xtra.run import terms

    workers = Workers(workers, workers) if isinstance(workers, int) else workers
    stop = stop or threading.Event()
    configs = [_absolute(config) for config in configs]
    for config in configs:
        terms(config.out, config)  # refuse now what every worker would refuse later
    rank, world = world_of()
    if world == 1 and (workers.most > 1 or on_a_cluster()):
        return _train_on_ray(configs, workers, stop, progress, take_over)
    if rank == 0:
        _look_for_others(configs, take_over, progress)
    results: list[TrainResult] = []
    for config in configs:
        if stop.is_set():
            break
        results.append(train.run(config, stop.is_set, lambda row, c=config: progress({"run": c.out, **row})))
    return results


def _look_for_others(
    configs: Sequence[Config],
    take_over: bool,
    progress: Progress,
    job_lives: Callable[[str, str], bool | None] = lambda *job: None,
) -> None:
    """Raises ValueError for a run whose newest attempt is provably running; a remark if it may be running."""
    from xtra.run import at_work, attempts

    for run in (config.out for config in configs):
        newest = max(attempts(run), default=0)
        other = at_work(run, newest, job_lives) if newest else None
        if other is None:
            continue
        if other.proved and not take_over:
            raise ValueError(f"{other}: wait for it, stop it, or give --take-over to continue in its place")
        progress({"run": run, "remark": f"{other}: continuing in its place; it ends when it next saves"})


def ingest_all(
    config: IngestConfig,
    workers: Workers | int = 1,
    stop: threading.Event | None = None,
    progress: Callable[[ingest.Progress], None] | None = None,
) -> ingest.IngestResult:
    """Ingest a list: in this process, or by Ray actors for several workers or on a cluster.

    `stop` ends it within seconds; a rerun does what is not committed. Raises ValueError for the reasons of
    ingest.run.run(), and TryLater when the cluster had no room for any worker for too long.
    """
    workers = Workers(workers, workers) if isinstance(workers, int) else workers
    stop = stop or threading.Event()
    if workers.most == 1 and not on_a_cluster():
        return ingest.run(config, progress, stop.is_set)
    from jobs.cluster import gauges
    from jobs.cluster.ingest import crawl_on_actors

    start_ray()
    require_nodes([], config.out, lambda row: None)
    need("CPU", workers)
    config = dataclasses.replace(
        config,
        urls=config.urls and store.absolute(config.urls),
        out=config.out and store.absolute(config.out),
        scratch=config.scratch and store.absolute(config.scratch),
    )
    shown = gauges.Gauges()

    def show(now: ingest.Progress) -> None:
        if shown.due() or now.done == now.links:
            shown.set(config.out, gauges.of_ingest(now), now.reasons)
        if progress is not None:
            progress(now)

    return ingest.run(config, show, stop.is_set, functools.partial(crawl_on_actors, workers=workers))


def require_nodes(read: Iterable[str], out: str, progress: Progress) -> None:
    """Check that every node of an existing cluster can do its part; `read` are datasets.

    Raises ValueError naming the first that cannot.
    """
    if on_a_cluster():
        from jobs.cluster import preflight

        preflight.require([*read], out, lambda line: progress({"run": out, "remark": line}))


def need(kind: str, workers: Workers) -> None:
    """Raises ValueError if the cluster can never have so many: Ray would wait for ever without a message."""
    from jobs.cluster import capacity
    from jobs.cluster.attempts import too_many

    room = capacity.look(kind, workers.least)
    if not room.may_have(workers.least):
        raise ValueError(too_many(workers, room))


def _absolute(c: Config) -> Config:
    """The config with absolute paths, because workers have other working directories."""
    from shards.stream import split_part

    val = dataclasses.replace(c.val, data=c.val.data and store.absolute(c.val.data))
    mix = tuple(f"{store.absolute(url)}={share!r}" for url, share in map(split_part, c.mix))
    data, out = c.data and store.absolute(c.data), c.out and store.absolute(c.out)
    return dataclasses.replace(c, data=data, mix=mix, out=out, val=val)


def _train_on_ray(
    configs: Sequence[Config], workers: Workers, stop: threading.Event, progress: Progress, take_over: bool
) -> list[TrainResult]:
    start_ray()
    import ray

    from jobs.cluster import attempt
    from jobs.cluster.attempts import Attempts
    from shards.stream import split_part

    read = [url for c in configs for url in (c.data, c.val.data, *(split_part(part)[0] for part in c.mix))]
    _look_for_others(configs, take_over, progress, attempt.job_lives)
    require_nodes(dict.fromkeys(read), configs[0].out, progress)
    devices = {config.device for config in configs}
    gpus = devices != {"cpu"} and ray.cluster_resources().get("GPU", 0) > 0
    if gpus and "cpu" in devices:
        raise ValueError("these runs mix device cpu with cuda or auto: train them in two calls")
    attempts = Attempts(configs, workers, gpus, stop, progress)
    with closed_by(attempts.close):
        return attempts.run()
