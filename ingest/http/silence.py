"""Links that nobody answered: are they dead, was the network away (outage.py), or was this process?"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ingest.http.hosts import Task
from ingest.http.outage import PROBE, Network
from ingest.http.outcome import SILENT, Outcome

EXCUSES = 3  # times that a link is put back without counting the attempt
LIMBO = 5.0  # seconds for which a link that nobody answered waits for a sign that the network is there


class Unanswered(NamedTuple):
    """A link that would end because nobody answered, if there is a network."""

    at: float
    task: Task
    outcome: Outcome


class Silence:
    """Holds such links until it is known whose fault it was. `limit`: seconds to wait without a network; 0: every
    failure counts at once."""

    def __init__(self, limit: float) -> None:
        self.network = Network(limit)
        self.links: deque[Unanswered] = deque()
        self.away_at = 0.0  # when this process last came back from being away

    def excuses(self, task: Task, outcome: Outcome) -> bool:
        """Nobody answered because the network was away, or nobody read the answer because this process was."""
        unanswered = outcome.silent and task.began < self.network.over_at
        unread = outcome.reason in SILENT and outcome.status != 408 and task.began < self.away_at
        return (unanswered or unread) and task.excused < EXCUSES

    def holds(self, task: Task, outcome: Outcome, now: float) -> bool:
        """Whether a link that would end this way has to wait here instead."""
        if not (outcome.silent and self.network.limit):
            return False
        self.links.append(Unanswered(now, task, outcome))
        return True

    def forgiven(self) -> Iterator[Task]:
        """All of them, as the network was away: they have their time and this attempt again."""
        while self.links:
            task = self.links.popleft().task
            task.attempts -= min(1, task.attempts)
            task.spent = 0.0
            yield task

    def before(self, began: float) -> Iterator[Unanswered]:
        """Those that failed before a transfer began that was answered: there was a network."""
        while self.links and self.links[0].at <= began:
            yield self.links.popleft()

    def settled(self, now: float, held: int) -> Iterator[Unanswered]:
        """Those that have waited long enough while the network was not in doubt, of `held` links in all.

        Raises ValueError when there has been no network for too long."""
        network = self.network
        network.suspect(now)
        if network.out_since and now - network.out_since > network.limit:
            raise ValueError(
                f"no network since {clock(network.out_since)}, for {now - network.out_since:.0f} s: "
                "rerun the same command to go on (--fetch.outage-limit sets how long to wait; 0: trust every failure)"
            )
        if not network.suspected:
            alone = len(self.links) == held and not network.evidence
            while self.links and (alone or now - self.links[0].at > LIMBO):
                yield self.links.popleft()

    def paused(self) -> str:
        """Why nothing new is started, in one line; empty when all is well."""
        since = self.network.out_since
        return f"no network since {clock(since)}, trying again every {PROBE:.0f} s" if since else ""


def clock(moment: float) -> str:
    """A monotonic time as HH:MM:SS."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + moment))
