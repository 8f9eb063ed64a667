"""Whether another process is working on a run, as far as that can be proved.

An attempt's file names its driver: the command's process, which starts group after group of workers on a cluster and is
the attempt's own process elsewhere. A driver is alive if its process lives on this machine or Ray says that its job has
not ended; it is dead if either shows that it ended; otherwise its state is unknown.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards import store, typed_json
from xtra.run import records
from xtra.run.records import Begun, Driver

VARIABLE = "XTRA_DRIVER"  # environment variable with a group's driver, as JSON
_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
_LAST = 16  # last event segments searched for an attempt's end, in addition to one per rank
_OVER = {"done", "stopped", "mistake"}  # final in any run
_OVER_ALONE = {*_OVER, "stop", "failed"}  # final without a cluster; on one, another group may follow


@dataclass(frozen=True)
class Other:
    """An attempt without a recorded end in its run folder."""

    run: str
    attempt: int
    host: str
    pid: int
    since: str
    proved: bool  # it is provably running; otherwise unknown

    def __str__(self) -> str:
        doing = "is at work on it" if self.proved else "may still be at work on it"
        return (
            f"{self.run}: attempt {self.attempt} {doing} (process {self.pid} on {self.host}, since {self.since[:19]})"
        )


def this_process() -> Driver:
    boot = _read(_BOOT).strip()
    return Driver(socket.gethostname(), os.getpid(), boot, _started(os.getpid()) or 0)


def driver() -> Driver:
    """The driver of this rank: the group's driver if it set VARIABLE, otherwise this process."""
    said = os.environ.get(VARIABLE)
    return Driver(**json.loads(said)) if said else this_process()


def say_driver(facts: dict[str, Any]) -> None:
    """Record in a rank who drives its group."""
    os.environ[VARIABLE] = json.dumps(facts)


def lives(other: Driver) -> bool | None:
    """Whether exactly that process is alive; None if this machine cannot tell."""
    here = this_process()
    if not (here.boot and (other.host, other.boot) == (here.host, here.boot)):
        return None
    return _started(other.pid) == other.started


def _started(pid: int) -> int | None:
    """A process's start time in clock ticks since boot; None if there is none, or it has ended."""
    about = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()  # its name may contain spaces and brackets
    return int(about[19]) if len(about) > 19 and about[0] not in "ZX" else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def at_work(run: str, number: int, job_lives: Callable[[str, str], bool | None] = lambda *job: None) -> Other | None:
    """The attempt with that number, unless it has ended, its driver is dead, or its driver is this process.

    `job_lives(cluster, job)`: whether Ray says that a job lives.
    """
    try:
        begun = typed_json.read(Begun, store.join(run, "attempts", f"{number:06d}.json"))
    except store.StoreError:
        return None  # a damaged file proves nothing, and must not block the run
    theirs = begun.driver
    if theirs and theirs.is_process(driver()):
        return None
    alive = lives(theirs) if theirs else None
    if alive is None and theirs and theirs.cluster:
        alive = job_lives(theirs.cluster, theirs.job)
    if alive is False or _ended(run, number, _OVER if theirs and theirs.cluster else _OVER_ALONE, begun.world or 1):
        return None
    who = theirs or begun
    return Other(run, number, who.host or "?", who.pid or 0, begun.since or "?", bool(alive))


def _ended(run: str, number: int, ends: set[str], world: int) -> bool:
    """Whether the last event of an attempt records its end."""
    folder = store.join(run, "events")
    names = [name for name in records.ours(store.names(folder), records.PART) if name.startswith(f"{number:06d}-")]
    for name in names[-_LAST - world :]:
        for line in store.read(store.join(folder, name)).splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") in ends:
                return True
    return False
