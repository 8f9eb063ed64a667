"""Whether another process is at work on a run, as far as that can be proved.

An attempt's file names its driver: the process of the command, which starts group after group of workers on a cluster
and is the attempt's own process elsewhere. A driver is alive where its process lives on this machine, or where Ray
says that its job has not ended; it is dead where either says so; else nobody knows.
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

VARIABLE = "XTRA_DRIVER"  # what a rank of a group finds its driver in, as JSON
_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
_LAST = 16  # parts of an attempt's events in which its end is looked for, and as many as it has ranks
_OVER = {"done", "stopped", "mistake"}  # however it was trained
_OVER_ALONE = {*_OVER, "stop", "failed"}  # of a group's ranks these may be followed by the next group


@dataclass(frozen=True)
class Other:
    """An attempt that has not ended, as far as its run folder says."""

    run: str
    attempt: int
    host: str
    pid: int
    since: str
    proved: bool  # it is at work; else that is not known

    def __str__(self) -> str:
        doing = "is at work on it" if self.proved else "may still be at work on it"
        return (
            f"{self.run}: attempt {self.attempt} {doing} (process {self.pid} on {self.host}, since {self.since[:19]})"
        )


def this_process() -> Driver:
    boot = _read(_BOOT).strip()
    return Driver(socket.gethostname(), os.getpid(), boot, _started(os.getpid()) or 0)


def driver() -> Driver:
    """The driver of this rank: this process, unless a group's driver has said that it is."""
    said = os.environ.get(VARIABLE)
    return Driver(**json.loads(said)) if said else this_process()


def say_driver(facts: dict[str, Any]) -> None:
    """In a rank: who drives its group."""
    os.environ[VARIABLE] = json.dumps(facts)


def lives(other: Driver) -> bool | None:
    """Whether that very process lives; None where this machine cannot know."""
    here = this_process()
    if not (here.boot and (other.host, other.boot) == (here.host, here.boot)):
        return None
    return _started(other.pid) == other.started


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None for none, and for one that has ended."""
    about = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()  # its name may have spaces and brackets
    return int(about[19]) if len(about) > 19 and about[0] not in "ZX" else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def at_work(run: str, number: int, job_lives: Callable[[str, str], bool | None] = lambda *job: None) -> Other | None:
    """The attempt of that number, unless it has ended, its driver is dead, or that is this very process.

    `job_lives(cluster, job)` says what Ray knows of a job.
    """
    try:
        begun = typed_json.read(Begun, store.join(run, "attempts", f"{number:06d}.json"))
    except store.StoreError:
        return None  # a damaged file proves nothing, and keeps nobody from going on
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
    """Whether the last events of an attempt say that it is over, and nothing follows."""
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
