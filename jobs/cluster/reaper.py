"""Ends what a killed driver leaves of its own Ray cluster.

Ray's processes die with their driver, but for its two agents: each holds the pipe by which the other would notice. This
is a program of its own (`python reaper.py DRIVER MARK`), of the standard library alone: when its parent is gone, it
kills every process that has MARK in its environment. Linux; elsewhere it finds none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0  # in which Ray's own way of dying may do


def marked(mark: str) -> list[int]:
    """The processes of this user, but for this one, that were started with `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if mark.encode() in environment and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def main(driver: int, mark: str) -> None:
    while os.getppid() == driver:
        time.sleep(POLL_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for pid in marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
