"""The desk: an actor on the driver's node through which the driver and the workers exchange messages.

It holds no essential state. Progress that is lost with it is just not shown; a request to stop is repeated every half
second; Ray restarts a desk that died. Results come back as the group's return value.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.gauges import Gauges, of_step

POLL_SECONDS = 0.5
ANSWER_SECONDS = 10.0  # that a worker waits for an answer of the desk
SILENT_SECONDS = 30.0  # after which a desk that does not answer its driver is restarted
STALLED = 70  # exit status of a rank that ended itself


class _Desk:
    def __init__(self) -> None:
        self.ending = False
        self.met: set[str] = set()  # groups with a rank that has reported
        self.rows: list[dict[str, Any]] = []

    def turn(self, ending: bool, group: str) -> tuple[bool, list[dict[str, Any]]]:
        """Called by the driver; returns whether a rank of the group has reported, and the new rows."""
        self.ending = ending
        rows, self.rows = self.rows, []
        return group in self.met, rows

    def speak(self, group: str, rows: list[dict[str, Any]]) -> bool:
        """Called by a rank with new rows; returns whether to save and return."""
        self.met.add(group)
        self.rows += rows
        return self.ending


class Desk:
    """The driver's side. No method waits long or raises Ray's errors."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Desk).remote()
        self._asked: Any = None
        self._since = 0.0

    def turn(self, ending: bool, group: str) -> tuple[bool, list[dict[str, Any]]]:
        """Set whether the group is to save and return; returns whether a rank has reported, and new rows."""
        if self._asked is None:
            self._asked, self._since = self.actor.turn.remote(ending, group), time.monotonic()
        if not ray.wait([self._asked], timeout=POLL_SECONDS / 5)[0]:
            if time.monotonic() - self._since > SILENT_SECONDS:
                ray.kill(self.actor, no_restart=False)
                self._asked = None
            return False, []
        asked, self._asked = self._asked, None
        try:
            return ray.get(asked)
        except ray.exceptions.RayError:
            return False, []

    def close(self) -> None:
        ray.kill(self.actor)


class Talk:
    """A rank's side: a thread that sends rows, receives requests to stop, and ends a rank that stalls."""

    def __init__(self, desk: Any, group: str, stall: float, rank: int) -> None:
        self._desk, self._group, self._stall, self._rank = desk, group, stall, rank
        self._stalled: Callable[[str], None] = lambda stack: None
        self._rows: list[dict[str, Any]] = []
        self._lock, self._over, self._ending = threading.Lock(), threading.Event(), False
        self._stepped: float | None = time.monotonic()
        self._worker = threading.current_thread().ident
        self._gauges, self._began = Gauges(), time.time()
        self._thread = threading.Thread(target=self._live, name="desk", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Whether to stop; the training calls it after every step."""
        self._stepped = time.monotonic()
        return self._ending

    def note(self, run: str, row: dict[str, Any]) -> None:
        """Queue a row for the driver: only rank 0's; of rows with numbers, only the newest."""
        if row.get("samples_seen") is not None and row["samples_seen"] == row.get("samples"):
            self._stepped = None  # the last step is done, and its checkpoint may take long
        if self._rank == 0:
            if row.get("samples_seen") is not None and (
                self._gauges.due() or row["samples_seen"] == row.get("samples")
            ):
                self._gauges.set(run, of_step(row, self._began))
            with self._lock:
                kept = self._rows if "remark" in row else [old for old in self._rows if "remark" in old]
                self._rows = [*kept, {"run": run, **row}]

    def begin(self, stalled: Callable[[str], None]) -> None:
        """Start another run; `stalled` records its stack if it makes no step."""
        self._stalled, self._stepped, self._began = stalled, time.monotonic(), time.time()

    def close(self) -> None:
        self._over.set()
        self._thread.join(ANSWER_SECONDS)
        self._speak()

    def _live(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._speak()
            if self._stepped is not None and not self._ending and time.monotonic() - self._stepped > self._stall:
                self._give_up()

    def _speak(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
        try:
            self._ending |= ray.get(self._desk.speak.remote(self._group, rows), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError:  # it is gone or slow; the driver repeats the request
            return

    def _give_up(self) -> None:
        """Record the training's stack in the events, and exit: Ray Train ends the group, the driver starts another."""
        stack = "".join(traceback.format_stack(sys._current_frames().get(self._worker or 0)))
        writer = threading.Thread(target=self._stalled, args=(stack,), daemon=True)
        writer.start()
        writer.join(ANSWER_SECONDS)  # the store may be what it hangs on
        os._exit(STALLED)
