"""How many workers a command may have, and how long it waits for them. Imports neither Ray nor torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata

SUBMITTED_WITH = "XTRA_SUBMITTED_WITH"  # the variable with the version of this package that checked a job
WAIT_SECONDS = 60.0  # outside of a job, where a user is waiting


class TryLater(ValueError):
    """Nothing is wrong with the command, but it cannot continue now; the same command may work later."""

    exit_code = os.EX_TEMPFAIL  # 75


class HeadLost(TryLater):
    """The cluster's head is gone. Ray would wait a minute for it and then end the process: do not call it any more."""

    at_once = True  # without any library's exit handlers


@contextmanager
def closed_by(close: Callable[[], object]) -> Iterator[None]:
    """Call `close` when the block ends in any way, except if the head is lost: without it, Ray can end nothing."""
    try:
        yield
    except HeadLost:
        raise
    except BaseException:
        close()
        raise
    close()


@dataclass(frozen=True)
class Workers:
    """From `least` to `most` workers, as many as there is room for."""

    least: int = 1
    most: int = 1
    wait: float | None = None  # seconds to wait for room before the command ends; None: 60, or for ever in a job
    stall: float = 600.0  # seconds without a step after which a rank counts as lost
    resize_every: float = 300.0  # seconds between checks for room for more workers

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"workers is {self.least}; it must be at least 1")
        if self.most < self.least:
            raise ValueError(f"workers is {self.least}..{self.most}; give MIN..MAX, the smaller number first")
        if self.stall <= 0:
            raise ValueError(f"stall is {self.stall:g}; it must be more than 0 seconds")
        for name, seconds in (("wait-for-workers", self.wait or 0), ("resize-every", self.resize_every)):
            if not seconds >= 0:
                raise ValueError(f"{name} is {seconds:g}; it must be 0 or more seconds")

    @property
    def patience(self) -> float:
        """Seconds to wait for room."""
        if self.wait is not None:
            return self.wait
        return float("inf") if in_a_job() else WAIT_SECONDS

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least}..{self.most}"


@dataclass(frozen=True)
class WorkersWords:
    """The flags for `Workers`."""

    # processes that share the work: N, or MIN..MAX for as many as there is room for; 1: this process, unless
    # RAY_ADDRESS names a cluster
    workers: str = "1"
    # seconds to wait for room for them before the command ends with exit code 75; None: 60 (300 with torchrun or
    # Slurm), or for ever in a job
    wait_for_workers: float | None = None

    def __post_init__(self) -> None:
        self.wanted()

    def wanted(self) -> Workers:
        """Raises ValueError for an invalid number of workers."""
        return Workers(*parse_workers(self.workers), self.wait_for_workers)


@dataclass(frozen=True)
class GroupWords(WorkersWords):
    """The flags for the `Workers` that train together."""

    stall: float = 600.0  # seconds without a step after which a worker counts as lost
    resize_every: float = 300.0  # seconds between checks for room for more workers, up to the MAX of --workers

    def wanted(self) -> Workers:
        return replace(super().wanted(), stall=self.stall, resize_every=self.resize_every)


def parse_workers(text: str) -> tuple[int, int]:
    """`4` or `2..4` as (least, most). Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if found is None:
        raise ValueError(f"--workers is {text!r}; it must be a whole number, or MIN..MAX")
    least = int(found[1])
    return least, int(found[2]) if found[2] else least


def in_a_job() -> bool:
    """Whether this process was submitted to a Ray cluster as a job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def on_a_cluster() -> bool:
    """Whether the command is to run on a cluster that others started."""
    return in_a_job() or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def version() -> str:
    """The version of this package; "?" if it is not installed."""
    try:
        return metadata.version("xtra-pretrain")
    except metadata.PackageNotFoundError:
        return "?"
