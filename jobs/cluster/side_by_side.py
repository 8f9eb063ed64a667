"""Independent pieces of work in parallel: one process each on this machine, or one task each on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from shards.pixels import leave_no_core

Progress = Callable[[dict[str, Any]], None]
T = TypeVar("T")
R = TypeVar("R")

POLL_SECONDS = 0.5
_SPAWN = multiprocessing.get_context("spawn")


def side_by_side(
    work: Callable[[T, threading.Event, Progress], R],  # importable by name, since other processes call it
    items: Sequence[T],
    at_once: int = 1,
    stop: threading.Event | None = None,
    progress: Progress = lambda row: None,
) -> list[R]:
    """The results of `work`, in the order of completion, `at_once` pieces at a time (1: in this process).

    With RAY_ADDRESS they are tasks of one core each on that cluster, otherwise processes that share the cores of this
    machine. `stop` reaches every piece, and no further one starts. If one fails, the others are stopped. Raises
    ValueError for the reasons of `work`, and for a process that died.
    """
    stop = stop or threading.Event()
    if at_once < 1:
        raise ValueError(f"at_once is {at_once}; it must be at least 1")
    if at_once == 1:
        return [work(item, stop, progress) for item in items if not stop.is_set()]
    begin = _on_ray() if os.environ.get("RAY_ADDRESS", "local") != "local" else _Piece
    waiting, running, results, failed = list(items), [], [], ""
    while running or (waiting and not (stop.is_set() or failed)):
        while waiting and len(running) < at_once and not (stop.is_set() or failed):
            running.append(begin(work, waiting.pop(0), max(1, (os.cpu_count() or 1) // at_once)))
        time.sleep(POLL_SECONDS)
        for piece in [*running]:
            if stop.is_set() or failed:
                piece.stop.set()
            ended = piece.ended(progress)
            if ended is None:
                continue
            running.remove(piece)
            if "error" in ended:
                failed = failed or ended["error"]
            else:
                results.append(ended["result"])
    if failed:
        raise ValueError(failed)
    return results


class _Piece:
    """One piece of work in a process of its own."""

    def __init__(self, work: Callable[..., Any], item: Any, threads: int) -> None:
        self.stop, self.notes = _SPAWN.Event(), _SPAWN.Queue()
        self.process = _SPAWN.Process(target=_child, args=(work, item, threads, self.stop, self.notes), daemon=False)
        self.process.start()

    def ended(self, progress: Progress) -> dict[str, Any] | None:
        """Forward new rows to `progress`; returns {"result"} or {"error"} once the piece has ended, else None."""
        alive = self.process.is_alive()  # checked first, so that rows put before the process ended are found below
        while True:
            try:
                note = self.notes.get(timeout=0.0 if alive else 1.0)
            except queue.Empty:
                break
            if "row" not in note:
                self.process.join()
                return note
            progress(note["row"])
        if alive:
            return None
        return {"error": f"a process ended early with {self.process.exitcode}: rerun the same command to resume"}


def _child(work: Callable[..., Any], item: Any, threads: int, stop: Any, notes: Any) -> None:
    import torch

    leave_no_core()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to all processes; the parent decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(threads)
    stopping = threading.Event()
    threading.Thread(target=_watch, args=(stop, stopping), name="watch", daemon=True).start()
    try:
        note = {"result": work(item, stopping, lambda row: notes.put({"row": row}))}
    except (ValueError, RuntimeError) as error:
        note = {"error": " ".join(str(error).split()) or type(error).__name__}
    notes.put(note)


def _watch(stop: Any, stopping: threading.Event) -> None:
    """Forward a request to stop. Without a parent, exit: committed work is kept."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        if stop.wait(POLL_SECONDS):
            stopping.set()
            return
    os._exit(1)


def _on_ray() -> Callable[..., Any]:
    """A function that starts a piece as a task of the cluster."""
    from jobs.cluster.start import start_ray

    start_ray()
    import ray

    return lambda work, item, threads: _Task(ray, work, item)


class _Task:
    """One piece of work as a Ray task, and the actor through which it is stopped and reports its progress."""

    def __init__(self, ray: Any, work: Callable[..., Any], item: Any) -> None:
        self.ray, self.stop = ray, threading.Event()
        self.notes = ray.remote(num_cpus=0)(_Notes).remote()
        self.result = ray.remote(num_cpus=1, max_retries=0)(_task).remote(work, item, self.notes)

    def ended(self, progress: Progress) -> dict[str, Any] | None:
        """Forward new rows to `progress`; returns {"result"} or {"error"} once the piece has ended, else None."""
        done, _ = self.ray.wait([self.result], timeout=0)
        try:
            for row in self.ray.get(self.notes.collect.remote(self.stop.is_set())):
                progress(row)
            return self.ray.get(self.result) if done else None
        except self.ray.exceptions.RayError as error:
            return {
                "error": f"a worker was lost ({' '.join(str(error).split())[-300:]}): rerun the same command to resume"
            }


class _Notes:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stopping = False

    def collect(self, stop: bool) -> list[dict[str, Any]]:
        rows, self.rows, self.stopping = self.rows, [], stop
        return rows

    def give(self, row: dict[str, Any] | None) -> bool:
        """Add a row; returns whether to stop."""
        self.rows = [*self.rows[-99:], row] if row else self.rows
        return self.stopping


def _task(work: Callable[..., Any], item: Any, notes: Any) -> dict[str, Any]:
    import ray
    import torch

    leave_no_core()
    torch.set_num_threads(1)
    stopping, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if ray.get(notes.give.remote(None)):
                stopping.set()

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        return {"result": work(item, stopping, lambda row: notes.give.remote(row))}
    except (ValueError, RuntimeError) as error:
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    finally:
        over.set()
