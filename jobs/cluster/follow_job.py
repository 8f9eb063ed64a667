"""Follow a submitted job until it ends: its log line by line, even if the head goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
from ray.job_submission import JobInfo, JobStatus

from jobs.cluster.head import Away, Head
from jobs.cluster.wanted import TryLater

POLL_SECONDS = 0.5
SAY_SECONDS = 30.0
LOG_TRIES = 3
QUIET_SECONDS = 30.0  # without output of the job, after which the head is asked whether it still runs
# after which a job that the head does not know counts as gone: a restarted head needs time to load its jobs
UNKNOWN_SECONDS = 5.0
AWAY_SECONDS = 600.0  # that a head may be gone

T = TypeVar("T")

LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_START_FAILURE", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
STOPPED = 130


@dataclass
class Log:
    """A job's output, as it comes. Only the last line is kept."""

    line: Callable[[str], None]
    seen: int = 0  # characters shown so far
    rest: str = ""  # the start of an unfinished line
    last: str = ""  # the last non-empty line

    def take(self, text: str, skip: int) -> int:
        """Show `text` without its first `skip` characters; returns how many remain to skip."""
        fresh = text[skip:]
        self.seen += len(fresh)
        *whole, self.rest = (self.rest + fresh).split("\n")
        for line in whole:
            self._show(line)
        return max(0, skip - len(text))

    def end(self) -> None:
        if self.rest:
            self._show(self.rest)
        self.rest = ""

    def _show(self, line: str) -> None:
        self.last = line if line.strip() else self.last
        self.line(line)


@dataclass(frozen=True)
class Ended:
    """`exit_code` is the verb's own; `lost`: the job ended without its verb, as `why` explains."""

    job: str
    exit_code: int
    why: str = ""
    lost: bool = False


@dataclass
class Follower:
    """Follows one job after the other. `stopped` is called twice a second; it ends the following, not the job."""

    head: Head
    stopped: Callable[[], bool]
    say: Callable[[str], None]
    line: Callable[[str], None]
    away: float = AWAY_SECONDS
    log: Log = field(init=False)
    _said: float = float("-inf")

    def follow(self, job: str) -> Ended | None:
        """How the job ended; None if `stopped`. Raises TryLater if the head does not come back."""
        self.log = Log(self.line)
        while not self.stopped():
            info = self._info(job)
            if info is None:
                return None if self.stopped() else Ended(job, 1, "the cluster no longer has this job", lost=True)
            if info.driver_agent_http_address:
                asyncio.run(self._tail(job))
                info = self._info(job) or info
            if info.status.is_terminal():
                how = ended(job, info)
                self._rest_of_log(job, 1 if how.lost else LOG_TRIES)
                return how
            self._wait_for(job, info)
        return None

    def _info(self, job: str) -> JobInfo | None:
        """None if the cluster has not known the job for some seconds, or following was stopped."""
        unknown: float | None = None
        while True:
            info = self.patiently(job, lambda: self.head.info(job))
            unknown = unknown or time.monotonic()
            if info is not None or self.stopped() or time.monotonic() - unknown > UNKNOWN_SECONDS:
                return info
            time.sleep(POLL_SECONDS)

    def patiently(self, job: str, ask: Callable[[], T]) -> T | None:
        """The head's answer, once it comes; None if following was stopped. Raises TryLater if the head stays away."""
        since = time.monotonic()
        while not self.stopped():
            try:
                return ask()
            except Away as error:
                gone = time.monotonic() - since
                if gone > self.away:
                    raise TryLater(
                        f"{error.why}: the head has not answered for {gone:.0f} s: "
                        f"xtra submit wait {job} follows it again"
                    ) from None
                self._remark(f"{error.why}: waiting for the cluster's head")
            time.sleep(POLL_SECONDS)
        return None

    def _rest_of_log(self, job: str, tries: int) -> None:
        """Show the part of the log that is missing; if the job's node is gone, its log may be too."""
        for turn in range(tries):
            if text := self.head.log(job):
                self.log.take(text, self.log.seen)
                break
            if turn + 1 < tries:
                time.sleep(POLL_SECONDS)
        self.log.end()

    def _goes_on(self, job: str) -> bool:
        """Whether a silent job still runs: a machine that is gone does not close its connections."""
        try:
            info = self.head.info(job)
        except Away:
            return False
        return info is not None and not info.status.is_terminal()

    def _wait_for(self, job: str, info: JobInfo) -> None:
        pending = time.time() - (info.start_time or 0) / 1000
        if info.status == JobStatus.PENDING and pending > SAY_SECONDS:
            self._remark(f"{job} has not started after {pending:.0f} s: no place for its driver, or still setting up")
        time.sleep(POLL_SECONDS)

    def _remark(self, words: str) -> None:
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            self.say(words)

    async def _tail(self, job: str) -> None:
        """Show the log until it or its connection ends; the caller checks which."""
        skip, lines = self.log.seen, self.head.client.tail_job_logs(job)
        coming: asyncio.Future[str] | None = None
        heard = time.monotonic()
        try:
            while not self.stopped():
                coming = coming or asyncio.ensure_future(anext(lines))
                if not (await asyncio.wait({coming}, timeout=POLL_SECONDS))[0]:
                    if time.monotonic() - heard > QUIET_SECONDS:
                        if not await asyncio.to_thread(self._goes_on, job):
                            return
                        heard = time.monotonic()
                    continue
                text, coming, heard = coming.result(), None, time.monotonic()
                skip = self.log.take(text, skip)
        except (StopAsyncIteration, RuntimeError, OSError, aiohttp.ClientError):
            return
        finally:
            if coming is not None:
                coming.cancel()
                with contextlib.suppress(BaseException):
                    await coming
            await lines.aclose()


def ended(job: str, info: JobInfo) -> Ended:
    """The verb's exit status, from Ray's information about its process."""
    if info.status == JobStatus.SUCCEEDED:
        return Ended(job, 0)
    if info.status == JobStatus.STOPPED:
        return Ended(job, STOPPED, "stopped")
    code, kind = info.driver_exit_code, str(getattr(info.error_type, "value", info.error_type) or "")
    if code is None:
        return Ended(job, 1, " ".join((info.message or kind).split())[:300], lost=kind in LOST)
    return Ended(job, code if code > 0 else 128 - code, f"exit code {code}")
