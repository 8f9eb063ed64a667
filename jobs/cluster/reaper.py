"""Ends the remains of a Ray cluster whose driver was killed.

Ray's processes die with their driver, except for its two agents: each holds the pipe by which the other would notice.
This is a separate program (`python reaper.py DRIVER PACKAGE`) that uses only the standard library: it remembers the
processes that its parent started from Ray's package and their descendants, and kills those that outlive the parent. It
works on Linux; elsewhere it finds no processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.5
LOOK_EVERY = 4  # polls; the agents exist from the cluster's start
GRACE_SECONDS = 3.0  # for Ray's processes to end by themselves

Process = tuple[int, int]  # id and start time in ticks, because ids are reused


def processes() -> dict[Process, int]:
    """Every process of the machine and the id of its parent (man 5 proc, /proc/PID/stat)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if fields[0] != "Z":
            found[int(folder.name), int(fields[19])] = int(fields[1])
    return found


def below(driver: int, package: str = "") -> set[Process]:
    """The children of a process whose commands name `package`, and all their descendants, except for this process."""
    parents = processes()
    found = {child for child, parent in parents.items() if parent == driver and package in _command(child[0])}
    fresh = found
    while fresh := {process for process, parent in parents.items() if parent in {pid for pid, _ in fresh}} - found:
        found |= fresh
    return {process for process in found if process[0] != os.getpid()}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def main(driver: int, package: str) -> None:
    remembered, polls = set[Process](), 0
    while os.getppid() == driver:
        if polls % LOOK_EVERY == 0:
            remembered = (remembered & processes().keys()) | below(driver, package)
        polls += 1
        time.sleep(POLL_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := remembered & processes().keys()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for pid, _ in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
