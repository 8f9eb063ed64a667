"""The attempts of a run: the driver owns them, Ray owns one group of workers at a time.

Each takes as many places as are available within the requested range, trains on them, and ends in one of five ways:

    done      every run is complete
    stopped   the user asked, or a later attempt took over the run
    yield     the driver asked, because a node is about to go or places became free: save, and start a new group
    mistake   a rank raised ValueError: an error of the user's, not retried
    lost      anything else: start a new group from the newest COMMIT

A run is given up only if LOSSES groups in a row are lost without a new COMMIT. All requests to end work the same way:
the group saves at the end of its step and returns, so nothing is lost.

Ray Train's own elasticity (ScalingConfig(num_workers=(MIN, MAX))) is not used: it restarts from the last checkpoint
instead of saving first, and it waits for a start that cannot succeed before it takes fewer workers. Both are
compared by tests/jobs/soak_cluster.py --faults resize.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from jobs.cluster import attempt, capacity
from jobs.cluster.attempt import Abandoned, Controllers, Places
from jobs.cluster.capacity import Head
from jobs.cluster.desk import Desk
from jobs.cluster.gauges import Gauges
from jobs.cluster.rank import work
from jobs.cluster.wanted import TryLater, Workers, in_a_job
from shards.store import StoreError
from xtra.run import attempts as numbers_of, checkpoint, ended as record, this_process
from xtra.train import Config, TrainResult

Progress = Callable[[dict[str, Any]], None]

LOSSES = 8  # groups in a row without a new COMMIT
SETTLE_SECONDS = 5.0  # for a group that just ended to free its places, before fewer are taken
PLACE_SECONDS = 5.0  # within which free places must be reserved
SAY_SECONDS = 10.0
AHEAD_SECONDS = 10.0  # of work after which the next group's controller is started, in case it is needed
LOOK_SECONDS = 1.0  # between checks for nodes that go and places that became free
POLL_SECONDS = 0.5
_WHY = {
    "drained": "a node of the group was about to go",
    "resized": "there was room for more workers",
    "stopped": "the user or the platform asked for it",
}


@dataclass(frozen=True)
class Ended:
    how: Literal["done", "stopped", "yield", "mistake", "lost"]
    results: tuple[dict[str, Any], ...] = ()
    why: str = ""


@dataclass
class Attempts:
    """The driver's loop over attempts, and its state."""

    configs: Sequence[Config]
    workers: Workers
    gpus: bool
    stop: threading.Event
    progress: Progress
    desk: Desk = field(default_factory=Desk)
    head: Head = field(default_factory=Head)
    controllers: Controllers = field(default_factory=Controllers)
    done: list[TrainResult] = field(default_factory=list)  # results of the first runs
    resized_at: float = 0.0
    begun: bool = False  # some group has had its places
    asked: bool = False  # whether the autoscaler was asked
    gauges: Gauges = field(default_factory=Gauges)
    groups: int = 0  # started so far
    yielded: str = ""  # why the last group was asked to yield: drained or resized

    def close(self) -> None:
        self.desk.close()
        self.controllers.close()
        if self.asked:
            capacity.ask_autoscaler(self.kind, 0)

    @property
    def kind(self) -> str:
        return "GPU" if self.gpus else "CPU"

    def run(self) -> list[TrainResult]:
        """Train all. Raises ValueError for a rank's mistake and for a run whose groups are lost repeatedly; TryLater
        when there was no room for too long."""
        self.controllers.prepare()
        losses, newest = 0, self._newest()
        while not self.stop.is_set():
            with self._places() as places:
                if places is None:
                    break
                before = self._attempts_made()
                ended = self._attempt(places)
                self._record(ended, before)
                self.head.wait()  # if the head was lost, the group's places cannot be freed
            results = [TrainResult(**result) for result in ended.results]
            if ended.how in ("done", "stopped"):
                return [*self.done, *results]
            if ended.how == "mistake":
                raise ValueError(ended.why)
            self.done += [result for result in results if not result.stopped]
            if ended.how == "lost":
                before, newest = newest, self._newest()
                losses = losses + 1 if newest == before else 1
                self._lost(ended.why, losses)
        return self.done

    @property
    def _left(self) -> list[Config]:
        return list(self.configs[len(self.done) :])

    def _newest(self) -> list[str | None]:
        return [checkpoint.latest(config.out) for config in self.configs]

    def _attempts_made(self) -> dict[str, int] | None:
        """The newest attempt of each remaining run; None if the store does not answer now."""
        try:
            return {config.out: max(numbers_of(config.out), default=0) for config in self._left}
        except StoreError:
            return None

    def _record(self, ended: Ended, before: dict[str, int] | None) -> None:
        """Record in the events of this group's attempts why they ended, unless they were done."""
        superseded = bool(ended.results) and ended.results[-1]["superseded"]
        after = None if ended.how == "done" or superseded else self._attempts_made()
        if before is None or after is None:
            return
        how = self.yielded if ended.how == "yield" else ended.how
        if how == "lost" and re.search(r"\bnode\b.* (died|dead|failed)\b", ended.why):
            how = "lost node"
        for run, number in after.items():
            if number > before[run]:
                with contextlib.suppress(StoreError):  # an unavailable store must not end the training
                    record(run, number, how, ended.why or _WHY.get(how, how))

    def _lost(self, why: str, losses: int) -> None:
        run = self._left[0].out
        if losses >= LOSSES:
            raise ValueError(
                f"{run}: {LOSSES} groups of workers in a row were lost without a new checkpoint, the last with {why}: "
                "see the run's events; the same command resumes from the newest checkpoint"
            )
        self._say(f"workers were lost ({why}): resuming from the newest checkpoint")

    def _say(self, remark: str) -> None:
        self.progress({"run": self._left[0].out, "remark": remark})

    # --- a place for each worker ---

    @contextmanager
    def _places(self) -> Iterator[Places | None]:
        """As many places as are available, once there are enough; None if the user stops, and if the runs turn out to
        be complete meanwhile (`done` then has them)."""
        since = said = time.monotonic()
        looked = -SAY_SECONDS
        while not self.stop.is_set():
            if not self.head.answers():
                self.stop.wait(POLL_SECONDS)
                continue
            room = capacity.look(self.kind, self.workers.most)
            # Without an autoscaler, nodes may be started by hand meanwhile; with one, up to its limit only.
            patient = room.limit is None and (in_a_job() or self.workers.wait is not None)
            if not (self.begun or patient or room.may_have(self.workers.least)):
                raise ValueError(too_many(self.workers, room))
            waited = time.monotonic() - since
            chosen = choose(self.workers, room, settled=waited >= SETTLE_SECONDS)
            if room.limit is not None and not self.asked and chosen < self.workers.most:
                capacity.ask_autoscaler(self.kind, self.workers.most)
                self.asked = True
            if chosen:
                with attempt.take(chosen, self.gpus, PLACE_SECONDS) as places:
                    if places is not None:
                        self.begun, self.resized_at = True, time.monotonic()
                        yield places
                        return
            if waited - looked >= SAY_SECONDS:
                looked = waited
                if complete := self._complete():
                    self.done += complete
                    break
            if waited > self.workers.patience:
                raise TryLater(
                    f"no place for {self.workers} workers after {waited:.0f} s ({room.waiting(str(self.workers))}): "
                    "the same command goes on; --wait-for-workers SECONDS waits longer"
                )
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                self._say(room.waiting(str(self.workers)))
            self.stop.wait(POLL_SECONDS)
        yield None

    def _complete(self) -> list[TrainResult]:
        """The results of the remaining runs if all of them are complete: the group that holds the places may have ended
        them, and its driver may stand still."""
        results = []
        try:
            for config in self._left:
                seen = max(checkpoint.committed(config.out), default=0)
                if seen < config.samples:
                    return []
                results.append(TrainResult(config.out, max(numbers_of(config.out), default=0), seen, None, 0.0, False))
        except StoreError:  # it does not answer now: go on waiting
            return []
        return results

    # --- one group ---

    def _attempt(self, places: Places) -> Ended:
        """Train on these places until the group ends in any way."""
        group, nodes = uuid.uuid4().hex[:8], places.nodes()
        self.groups += 1
        asked: Literal["", "stop", "yield"] = ""
        met = False
        met_at = looked = time.monotonic()

        def watch() -> None:
            nonlocal asked, met, met_at, looked
            if self.gauges.due():
                self.gauges.set(self._left[0].out, {"xtra_attempts": self.groups})
            if self.stop.is_set():
                asked = "stop"
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                if self.head.answers() and not asked and (why := self._reason_to_yield(places, nodes)):
                    asked = "yield"
                    self._say(why)
            heard, rows = self.desk.turn(bool(asked), group)
            met, met_at = met or heard, met_at if met else time.monotonic()
            if met and time.monotonic() - met_at > AHEAD_SECONDS:
                self.controllers.prepare()
            for row in rows:
                self.progress(row)
            if asked and not met:
                raise Abandoned  # no rank has started, so there is nothing to save

        job = {
            "configs": [dataclasses.replace(config, device="cuda" if self.gpus else "cpu") for config in self._left],
            "desk": self.desk.actor,
            "group": group,
            "stall": self.workers.stall,
            "driver": dataclasses.asdict(this_process()) | attempt.this_job(),
        }
        try:
            result = attempt.run(work, job, places, watch, self.controllers)
        except Abandoned:
            return Ended("stopped" if asked == "stop" else "yield")
        except ray.exceptions.RayError as error:  # the controller died
            return Ended("lost", why=attempt.reason(error))
        for row in self.desk.turn(bool(asked), group)[1]:
            self.progress(row)
        if (why := attempt.mistake(result)) is not None:
            return Ended("mistake", why=why)
        if result.error is not None:
            return Ended("stopped" if asked == "stop" else "lost", why=attempt.reason(result.error))
        results = tuple(result.return_value["results"])
        stopped, superseded = results[-1]["stopped"], results[-1]["superseded"]
        if not stopped or superseded or asked == "stop":
            return Ended("stopped" if stopped else "done", results)
        return Ended("yield", results)

    def _placed(self, config: Config) -> Config:
        return dataclasses.replace(config, device="cuda" if self.gpus else "cpu")

    def _reason_to_yield(self, places: Places, nodes: frozenset[str]) -> str:
        """Why this group should save and yield to another; "" if it should not."""
        if nodes & capacity.going().keys():
            self.yielded = "drained"
            return "a node of the group is about to go: saving, then continuing with the others"
        if places.workers < self.workers.most and time.monotonic() - self.resized_at >= self.workers.resize_every:
            room = capacity.look(self.kind)
            self.resized_at = time.monotonic()
            if room.free:
                self.yielded = "resized"
                more = min(self.workers.most, places.workers + room.free)
                return f"there is room for {more} workers: saving, then continuing with them"
        return ""


def choose(workers: Workers, room: capacity.Room, settled: bool) -> int:
    """How many workers to start now; 0: none yet. Until `settled`, wait for as many as the remaining nodes can hold."""
    hoped = min(workers.most, room.total)
    if hoped < workers.least:
        return 0
    if room.free >= hoped:
        return hoped
    return room.free if settled and room.free >= workers.least else 0


def too_many(workers: Workers, room: capacity.Room) -> str:
    """The error for more workers than the cluster can ever have."""
    have = f"this cluster has {room.total} {room.kind}s"
    if room.limit is not None:
        have += f" and may grow to {max(room.limit, room.total):.0f}"
    return f"workers is {workers}; {have}: use fewer workers" + ", or --device cpu" * (room.kind == "GPU")
