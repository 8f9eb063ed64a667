"""The same run() in this process or on Ray Train workers.

One worker group serves many runs: starting a group costs some 20 s, so a study's runs are trained one after another by
the same processes. Ray's checkpoint registry is never a source: our own COMMITs say what a run has, and a group that
lost a worker starts again from them (docs/design.md, "Run folder").
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ingest import run as ingest
from ingest.config import Config as IngestConfig
from jobs.cluster.start import on_one_machine, start_ray
from shards import store
from shards.pixels import leave_no_core

if TYPE_CHECKING:  # torch comes with these, and an ingest has no use for it
    from xtra import probe
    from xtra.train import Config, TrainResult

Progress = Callable[[dict[str, Any]], None]

POLL_SECONDS = 0.5
FAILURES = 8  # worker groups lost before a run is given up
ERROR_SECONDS = 10.0  # for the other ranks to end after one of them met a mistake of the user's


def train_all(
    configs: Sequence[Config],
    workers: int = 1,
    stop: threading.Event | None = None,
    progress: Progress = lambda row: None,
) -> list[TrainResult]:
    """Train the runs one after another: in this process for one worker, on a Ray Train group for more.

    `stop` makes every rank save a checkpoint and return at the end of its step.
    Raises ValueError for what train.run() raises it for.
    """
    from xtra import train
    from xtra.run import terms

    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    stop = stop or threading.Event()
    configs = [_absolute(config) for config in configs]
    for config in configs:
        terms(config.out, config)  # refuse now what every worker would refuse later
    if workers > 1:
        return _train_on_ray(configs, workers, stop, progress)
    results: list[TrainResult] = []
    for config in configs:
        if stop.is_set():
            break
        results.append(train.run(config, stop.is_set, lambda row, c=config: progress({"run": c.out, **row})))
    return results


def ingest_all(
    config: IngestConfig,
    workers: int = 1,
    stop: threading.Event | None = None,
    progress: Callable[[ingest.Progress], None] | None = None,
) -> ingest.IngestResult:
    """Ingest a list: in this process for one worker, by Ray actors for more.

    `stop` ends it within seconds; what is not committed is done by a rerun. Raises ValueError for what
    ingest.run.run() raises it for.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    stop = stop or threading.Event()
    if workers == 1:
        return ingest.run(config, progress, stop.is_set)
    from jobs.cluster.ingest import crawl_on_actors

    start_ray()
    _need("CPU", workers)
    config = dataclasses.replace(
        config,
        urls=config.urls and store.absolute(config.urls),
        out=config.out and store.absolute(config.out),
        scratch=config.scratch and store.absolute(config.scratch),
    )
    return ingest.run(config, progress, stop.is_set, functools.partial(crawl_on_actors, workers=workers))


def _absolute(c: Config) -> Config:
    """Workers have other working directories."""
    from shards.stream import split_part

    val = dataclasses.replace(c.val, data=c.val.data and store.absolute(c.val.data))
    mix = tuple(f"{store.absolute(url)}={share!r}" for url, share in map(split_part, c.mix))
    data, out = c.data and store.absolute(c.data), c.out and store.absolute(c.out)
    return dataclasses.replace(c, data=data, mix=mix, out=out, val=val)


def probe_all(
    configs: Sequence[probe.Config],
    workers: int = 1,
    stop: threading.Event | None = None,
    progress: Progress = lambda row: None,
    failed: Callable[[probe.Config, str], None] | None = None,
) -> int:
    """Run the probes, `workers` at a time (one: in this process); returns how many were done before `stop`.

    A probe writes its own results, so one that is stopped or lost is simply missing. Raises the ValueError of a probe
    that cannot be done, or tells `failed` of it and goes on with the others. What is in hand at `stop` is finished.
    """
    stop = stop or threading.Event()
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    tell = failed or _raise
    if workers == 1 or len(configs) < 2:
        return _probe_here(configs, stop, progress, tell)
    start_ray()
    import ray

    gpus = any(config.device.startswith("cuda") for config in configs)
    _need("GPU" if gpus else "CPU", 1)
    task = ray.remote(num_cpus=1, num_gpus=int(gpus), max_retries=FAILURES)(_probe)
    waiting, running, done = list(configs), {}, 0
    try:
        while running or (waiting and not stop.is_set()):
            while waiting and len(running) < workers and not stop.is_set():
                config = waiting.pop(0)
                running[task.remote(config)] = config
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                config, error = running.pop(reference), _outcome(reference)
                if error:
                    tell(config, error)
                else:
                    done += 1
                    note = "/".join(config.eval.rstrip("/").rsplit("/", 2)[-2:])
                    progress({"run": config.out, "probe": done, "probes": len(configs), "note": note})
    finally:  # nothing runs any more, unless this one was stopped at once
        for reference in running:
            ray.cancel(reference, force=True)
    return done


def _outcome(reference: Any) -> str | None:
    """What `_probe` returned on a worker, or in one line how the worker was lost."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[-300:]  # a traceback's last words name the error


def _raise(config: probe.Config, why: str) -> None:
    raise ValueError(why)


def _probe_here(
    configs: Sequence[probe.Config],
    stop: threading.Event,
    progress: Progress,
    failed: Callable[[probe.Config, str], None],
) -> int:
    done = 0
    for config in configs:
        if stop.is_set():
            break
        row = {"run": config.out, "probe": done, "probes": len(configs)}
        if error := _probe(config, lambda what, n, of, row=row: progress({**row, "note": f"{what} {n:,} of {of:,}"})):
            failed(config, error)
        else:
            done += 1
            progress(row | {"probe": done})
    return done


def _probe(config: probe.Config, say: Callable[[str, int, int], None] | None = None) -> str | None:
    """One probe; why it cannot be done comes back as text, so that Ray does not try it again."""
    from xtra import probe

    leave_no_core()
    try:
        probe.run(config, say)
    except (ValueError, RuntimeError) as error:  # RuntimeError: out of memory, and the next one may fit
        return " ".join(str(error).split()) or type(error).__name__
    return None


class _Desk:
    """Where the driver and the workers leave each other notes: the wish to stop, progress, and how it ended.

    Ray Train's own report() would lose them: it keeps nothing that comes without a checkpoint.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.met = False  # a worker
        self.rows: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] | None = None

    def stop(self) -> None:
        self.stopping = True

    def tell(self, rows: list[dict[str, Any]]) -> bool:
        """A worker's notes; answers whether to stop."""
        self.met = True
        self.rows += rows
        return self.stopping

    def finish(self, outcome: dict[str, Any]) -> None:
        if self.outcome is None or "error" in outcome:
            self.outcome = outcome

    def collect(self) -> list[dict[str, Any]]:
        rows, self.rows = self.rows, []
        return rows

    def result(self) -> tuple[bool, dict[str, Any] | None]:
        return self.met, self.outcome


def _train_on_ray(
    configs: Sequence[Config], workers: int, stop: threading.Event, progress: Progress
) -> list[TrainResult]:
    start_ray()
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from jobs.cluster.attempt import Abandoned, Attempt
    from jobs.cluster.rendezvous import loopback
    from xtra.train import TrainResult

    configs, use_gpu = _placed(configs, workers)
    backend = "nccl" if use_gpu else "gloo"
    desk = ray.remote(num_cpus=0)(_Desk).remote()
    outcome: dict[str, Any] | None = None
    hopeless = float("inf")  # when to stop waiting for ranks that cannot end by themselves

    def watch() -> None:
        nonlocal outcome, hopeless
        if stop.is_set():
            desk.stop.remote()
        rows, (met, outcome) = ray.get([desk.collect.remote(), desk.result.remote()])
        for row in rows:
            progress(row)
        if stop.is_set() and not met:
            raise Abandoned  # the workers have not begun: there is nobody to ask and nothing to save
        if outcome is not None and "error" in outcome:
            # Ranks that did not meet the error themselves wait for those that did, and would for half an hour.
            hopeless = min(hopeless, time.monotonic() + ERROR_SECONDS)
            if time.monotonic() > hopeless:
                raise Abandoned

    attempt = Attempt(
        _worker,
        watch=watch,
        train_loop_config={"configs": list(configs), "desk": desk},
        torch_config=loopback(backend) if on_one_machine() else TorchConfig(backend),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        # A name that was never used: with an old one Ray would go on from its own idea of a checkpoint.
        run_config=RunConfig(
            name=f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}",
            storage_path=store.join(configs[0].out, "ray"),
            failure_config=FailureConfig(max_failures=FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    failed: BaseException | None = None
    try:
        attempt.fit()
    except Abandoned:
        if outcome is None:
            return []
    except Exception as error:
        failed = error
    with contextlib.suppress(Abandoned):
        watch()  # what was said last
    if outcome is not None and "error" in outcome:
        raise ValueError(outcome["error"])
    if failed:
        raise failed
    assert outcome is not None, "the worker group ended without a word"
    return [TrainResult(**result) for result in outcome["results"]]


def _placed(configs: Sequence[Config], workers: int) -> tuple[list[Config], bool]:
    """The runs with their device settled, and whether each worker gets a GPU.

    Raises ValueError when the cluster cannot hold the workers.
    """
    import ray

    have = ray.cluster_resources()
    devices = {config.device for config in configs}
    use_gpu = devices != {"cpu"} and have.get("GPU", 0) > 0
    if use_gpu and "cpu" in devices:
        raise ValueError("these runs mix device cpu with cuda or auto: train them in two calls")
    _need("GPU" if use_gpu else "CPU", workers, ", or --device cpu" if use_gpu else "")
    return [dataclasses.replace(config, device="cuda" if use_gpu else "cpu") for config in configs], use_gpu


def _need(kind: str, workers: int, otherwise: str = "") -> None:
    """Raises ValueError when the cluster has fewer: Ray would wait for ever, without a word."""
    import ray

    have = ray.cluster_resources().get(kind, 0)
    if have < workers:
        raise ValueError(f"workers is {workers}; this cluster has {have:g} {kind}s: use fewer workers{otherwise}")


def _worker(job: dict[str, Any]) -> None:
    """One rank: every run in turn, with the group's torch.distributed already set up by Ray Train."""
    import ray
    import ray.train

    from xtra import train

    leave_no_core()
    desk, stopping = job["desk"], threading.Event()
    rank = ray.train.get_context().get_world_rank()
    rows: list[dict[str, Any]] = []

    def note(run: str, row: dict[str, Any]) -> None:
        if rank == 0:
            if "remark" not in row:  # of the numbers only the newest matter
                rows[:] = [old for old in rows if "remark" in old]
            rows.append({"run": run, **row})

    def talk() -> None:
        while not stopping.wait(POLL_SECONDS):
            news, rows[:] = rows[:], []
            if ray.get(desk.tell.remote(news)):
                stopping.set()

    threading.Thread(target=talk, name="desk", daemon=True).start()
    results: list[dict[str, Any]] = []
    outcome: dict[str, Any] = {"results": results}
    try:
        for config in job["configs"]:
            result = train.run(config, stopping.is_set, functools.partial(note, config.out))
            results.append(dataclasses.asdict(result))
            if result.stopped:
                break
    except ValueError as error:
        outcome["error"] = str(error)  # the user's to mend: a new group would only fail again
    if rank == 0 or "error" in outcome:
        ray.get(desk.tell.remote(rows))
        ray.get(desk.finish.remote(outcome))
