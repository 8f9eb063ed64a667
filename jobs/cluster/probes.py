"""Probes side by side, as tasks of the cluster."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jobs.cluster.group import Progress, need, require_nodes
from jobs.cluster.start import start_ray
from jobs.cluster.wanted import Workers, on_a_cluster
from shards.pixels import leave_no_core

if TYPE_CHECKING:
    from xtra import probe

POLL_SECONDS = 0.5
LOSSES = 8  # of a probe's process, not counting lost nodes
KILLED = 3  # times that a probe may run out of memory


def probe_all(
    configs: Sequence[probe.Config],
    workers: Workers | int = 1,
    stop: threading.Event | None = None,
    progress: Progress = lambda row: None,
    failed: Callable[[probe.Config, str], None] | None = None,
) -> int:
    """Run the probes, at most `workers` at a time (1: in this process); returns how many were done before `stop`.

    A probe writes its own results, so one that is stopped or lost is simply missing. Raises the ValueError of a probe
    that cannot be done, or calls `failed` with it and continues with the others. Running probes finish after `stop`.
    """
    stop = stop or threading.Event()
    workers = Workers(workers, workers) if isinstance(workers, int) else workers
    report = failed or _raise
    if not configs or (not on_a_cluster() and (workers.most == 1 or len(configs) < 2)):
        return _probe_here(configs, stop, progress, report)
    start_ray()
    import ray

    read = [url for config in configs for url in (config.train, config.eval) if url]
    require_nodes(dict.fromkeys(read), configs[0].out, progress)
    auto = probing_device("auto") if any(config.device == "auto" for config in configs) else ""
    configs = [dataclasses.replace(c, device=auto) if c.device == "auto" else c for c in configs]
    gpus = any(config.device.startswith("cuda") for config in configs)
    # --workers N is the most at a time, not a minimum; the MIN of MIN..MAX is.
    need("GPU" if gpus else "CPU", Workers(workers.least if workers.least < workers.most else 1, workers.most))
    task = ray.remote(num_cpus=1, num_gpus=int(gpus), max_retries=0, scheduling_strategy="SPREAD")(_probe)
    waiting, running, losses, done = list(configs), {}, Counter[int](), 0
    try:
        while running or (waiting and not stop.is_set()):
            while waiting and len(running) < workers.most and not stop.is_set():
                config = waiting.pop(0)
                running[task.remote(config)] = config, _nodes()
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                config, nodes = running.pop(reference)
                how, error = _outcome(reference, nodes)
                losses[id(config)] += how != "node"
                if how == "done":
                    done += 1
                    note = "/".join(config.eval.rstrip("/").rsplit("/", 2)[-2:])
                    progress({"run": config.out, "probe": done, "probes": len(configs), "note": note})
                elif how == "failed" or losses[id(config)] >= (KILLED if how == "memory" else LOSSES):
                    report(config, error)
                else:
                    waiting.append(config)
    finally:  # something still runs only if this process was stopped at once
        for reference in running:
            ray.cancel(reference, force=True)
    return done


def probing_device(name: str) -> str:
    """The device for probes with this setting; for "auto" a GPU, if this machine or the cluster has one."""
    from xtra.device import chosen

    if name != "auto" or not on_a_cluster():
        return chosen(name)
    start_ray()
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"


def _nodes() -> frozenset[str]:
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _outcome(
    reference: Any, nodes: frozenset[str]
) -> tuple[Literal["done", "failed", "node", "memory", "worker"], str]:
    """How a probe ended: done, failed, or lost with its node, for lack of memory or otherwise; and why, in one line.

    `nodes` were alive when it began.
    """
    import ray

    try:
        error = ray.get(reference)
        return ("failed", error) if error else ("done", "")
    except ray.exceptions.OutOfMemoryError:
        return "memory", f"its process was killed {KILLED} times because its node ran out of memory: give it more"
    except ray.exceptions.RayTaskError as bug:
        return "failed", " ".join(str(bug).split())[-300:]  # a traceback's last words name the error
    except ray.exceptions.RayError as lost:
        died = isinstance(lost, ray.exceptions.NodeDiedError) or nodes - _nodes()
        return "node" if died else "worker", " ".join(str(lost).split())[:300]


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
