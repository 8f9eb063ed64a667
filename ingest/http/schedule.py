"""Which link starts next: one queue per host, in turns, each at its host's pace and only once robots.txt is known.

Hosts that may start something are in one of two queues; the others wait behind an alarm, a lease or an answer and cost
nothing per turn. No I/O: a robots.txt that is needed is handed out like a link.
"""

from __future__ import annotations

import heapq
import itertools
import re
import time
from collections import deque
from collections.abc import Iterator

from ingest.http.hosts import BURST, Host, HostLoad, Origin, Task
from ingest.http.limiter import Demand, Leases
from ingest.http.origins import Origins
from ingest.http.resolver import Answer
from ingest.http.robots import Robots
from ingest.record import Reason

LEASED = 4  # hosts that hold or ask for a lease, per transfer at once
ROBOTS_FOR = 24 * 3600.0  # seconds for which a robots.txt is kept (RFC 9309, 2.4)
NO_ROBOTS_FOR = 300.0  # seconds until one that could not be read is asked for again
CRAWL_DELAY = 10.0  # seconds, the most that is honoured
LOADS = 64  # hosts shown
LOADS_FOR = 0.5  # seconds

_PATH = re.compile(r"[^:]+://[^/?#]*(.*)")


class Schedule:
    """The links that wait, by host."""

    def __init__(self, origins: Origins, connections: int, patience: float, leases: Leases | None = None) -> None:
        self.ended: deque[tuple[Task, Reason, str]] = deque()  # links that end without being asked for
        self.unresolved: deque[Host] = deque()  # hosts whose names are to be looked up
        self._origins = origins
        self._connections = connections
        self._patience = patience
        self._leases = leases
        self._ready: deque[Host] = deque()  # hosts that may start a link and have none under way
        self._spare: deque[Host] = deque()  # hosts that may start another one
        self._alarms: list[tuple[float, int, Host | Task]] = []  # heap of hosts to look at and links to retry
        self._numbers = itertools.count()  # break its ties
        self._leased: dict[str, Host] = {}
        self._unleased: dict[str, Host] = {}  # hosts whose turn to ask for a lease has not come
        self._busy: dict[str, Host] = {}  # those that have links now, and some that had
        self._loads: list[HostLoad] = []
        self._loads_at = float("-inf")
        self._expired_at = 0.0  # the clock of waiting at the last `expire`

    def loads(self) -> list[HostLoad]:
        """The busiest hosts, cached for LOADS_FOR: there may be tens of thousands, and it is called often."""
        now = time.monotonic()
        if now - self._loads_at > LOADS_FOR:
            self._loads_at = now
            self._busy = {name: host for name, host in self._busy.items() if not host.idle()}
            busiest = heapq.nlargest(LOADS, self._busy.values(), key=Host.links)
            self._loads = [host.load(time.time() - now) for host in busiest]
        return self._loads

    # --- links go in and out ---

    def add(self, task: Task, now: float, front: bool = False) -> None:
        host = task.origin.host
        if host.closed_until > now:
            self.ended.append((task, *host.last))
            return
        self._busy[host.name] = host
        if front:
            host.waiting.appendleft(task)
        else:
            host.waiting.append(task)
        self.list(host, now)

    def later(self, task: Task, when: float) -> None:
        """`add` it at `when`."""
        heapq.heappush(self._alarms, (when, next(self._numbers), task))

    def next(self, now: float) -> Task | None:
        """The next link to start now, counted as begun; None when there is none."""
        while queue := self._ready or self._spare:
            host = queue.popleft()
            host.listed = False
            task = None
            if host.room() and host.ready_at() <= now and self._known(host, now):
                task = self._pop(host, now)
            self.list(host, now)
            if task is not None:
                return task
        return None

    def follow(self, host: Host, now: float) -> Task | None:
        """A link of `host`, one of whose transfers has just ended: out of turn, while its burst lasts."""
        if host.burst and host.waiting and host.room() and host.ready_at() <= now < host.known_until:
            host.burst -= 1
            if task := self._pop(host, now):
                return task
        host.burst = BURST
        return None

    def _known(self, host: Host, now: float) -> bool:
        """Whether the host's address is known; if not, it will be looked up."""
        if now < host.known_until:
            return True
        host.resolving = True
        self.unresolved.append(host)
        return False

    def resolved(self, answer: Answer, now: float) -> bool:
        """A name has been looked up: its host goes on, or is given up. Returns whether the name server failed."""
        host = self._origins.hosts.get(answer.name)
        if host is None:
            return False
        if host.resolved(answer, now):
            self.give_up(host)
        self.list(host, now)
        return not answer.addresses and answer.exists

    def _pop(self, host: Host, now: float) -> Task | None:
        while host.waiting:
            task = host.waiting.popleft()
            if task.link is None or self._allowed(task, now):
                host.begin(now)
                return task
        return None

    def _allowed(self, task: Task, now: float) -> bool:
        """Whether robots.txt lets a link start; if not, the link has ended or waits for the answer."""
        origin = task.origin
        if origin.until <= now and not origin.asking:
            self._origins.forget_robots(origin)
        if origin.failure is not None:
            self.ended.append((task, *origin.failure))
            return False
        if origin.robots is None:
            origin.waiting.append(task)
            if not origin.asking:
                origin.asking = True
                waited = self._expired_at - origin.host.paced  # its own, not that of the link that needs it
                robots = Task(None, f"{origin.text}/robots.txt", origin, origin, waited=waited)
                origin.host.waiting.appendleft(robots)
            return False
        if origin.robots.says_something and not origin.robots.allows(path := _path(task.url)):
            self.ended.append((task, Reason.ROBOTS, f"robots.txt of {origin.text} disallows {path}"[:200]))
            return False
        return True

    def list(self, host: Host, now: float) -> None:
        """Put a host where its next link will be started from: now, when it may, or when it has a lease."""
        if host.listed or host.resolving or not host.waiting:
            return
        if self._leases is not None and host.name not in self._leased:
            self._unleased[host.name] = host
            return
        if not host.room():
            return
        at = host.ready_at()
        if at <= now:
            host.listed = True
            (self._spare if host.active else self._ready).append(host)
        elif not host.alarm or at < host.alarm:
            host.alarm = at
            heapq.heappush(self._alarms, (at, next(self._numbers), host))

    # --- time passes ---

    @property
    def at_hand(self) -> int:
        """Hosts that may start something now."""
        return len(self._ready)

    @property
    def starved(self) -> bool:
        """Nothing could start now: every waiting link waits for its host."""
        return not (self._ready or self._spare)

    @property
    def due(self) -> float:
        """When `fire_due` next has something to do."""
        return self._alarms[0][0] if self._alarms else float("inf")

    def fire_due(self, now: float) -> None:
        """Let the hosts and links go on whose alarm is due."""
        while self._alarms and self._alarms[0][0] <= now:
            what = heapq.heappop(self._alarms)[2]
            if isinstance(what, Task):
                self.add(what, now)
            else:
                what.alarm = 0.0
                self.list(what, now)

    def settle(self, now: float) -> None:
        """Agree with other processes on the shares of hosts."""
        if self._leases is None:
            return
        while self._unleased and len(self._leased) < LEASED * self._connections:
            name = next(iter(self._unleased))
            self._leased[name] = self._unleased.pop(name)
        unix = time.time() - now
        grants = self._leases.settle({name: _demand(host, now, unix) for name, host in self._leased.items()})
        for name, host in list(self._leased.items()):
            grant = grants.get(name)
            host.limit = grant.transfers if grant else 0
            if grant:
                host.interval = 1 / grant.rate if grant.rate else 0.0
                if host.paused_elsewhere(grant.paused_until - unix, grant.why, now):
                    self.give_up(host)
            if host.idle():
                host.limit = 0
                del self._leased[name]  # so the next settlement gives it back
            else:
                self.list(host, now)

    def expire(self, waited: float) -> None:
        """End the links that have waited too long for their hosts. `waited` is a clock that runs while there is nothing
        to do but wait, so that neither a busy crawl nor a slow machine counts against a host; nor do our own limits:
        the rate, the transfers at once and the lease."""
        passed = waited - self._expired_at
        if passed < 1:
            return
        self._expired_at = waited
        for host in self._origins.hosts.values():
            if not (host.limit or host.crawl_delay):
                host.paced += passed  # other processes have their turn
            for queue in (host.waiting, *(origin.waiting for origin in host.origins)):
                while queue and waited - host.paced - queue[0].waited > self._patience:
                    task = queue.popleft()
                    why = host.last[1] or "it is slow, or wants few requests"
                    self.ended.append((task, host.last[0], f"waited {self._patience:g} s for its host: {why}"[:300]))

    def holds(self, host: Host) -> bool:
        """Whether it waits here for anything, even a lease."""
        waits = host.alarm > 0 or host.listed or host.resolving
        return waits or host.name in self._leased or host.name in self._unleased

    # --- what becomes known ---

    def learn(self, origin: Origin, robots: Robots | None, failure: tuple[Reason, str] | None, now: float) -> str:
        """The answer to a robots.txt: rules, or why there are none. Its links go on. Returns a remark, or ""."""
        self._origins.learn_robots(origin, robots, failure)
        origin.asking = False
        origin.until = now + (ROBOTS_FOR if robots else NO_ROBOTS_FOR)
        host = origin.host
        links, origin.waiting = origin.waiting, deque()
        if failure is not None:
            self.ended.extend((task, *failure) for task in links)
            return ""
        host.waiting.extendleft(reversed(links))
        assert robots is not None
        host.crawl_delay = max(host.crawl_delay, min(robots.crawl_delay, CRAWL_DELAY))
        host.next_start = max(host.next_start, now + host.crawl_delay)
        self.list(host, now)
        cut = f", of which {CRAWL_DELAY:g} s are kept" if robots.crawl_delay > CRAWL_DELAY else ""
        return f"asks for {robots.crawl_delay:g} s between requests{cut}" if robots.crawl_delay else ""

    def give_up(self, host: Host) -> None:
        """End all that waits for a host."""
        for queue in (host.waiting, *(origin.waiting for origin in host.origins)):
            self.ended.extend((task, *host.last) for task in queue)
            queue.clear()

    def forgive(self, since: float, now: float) -> None:
        """The network was down since then: failures in that time do not count."""
        for host in self._origins.hosts.values():
            if host.failures or host.openings or host.look_ups:
                host.reopen()
            for origin in host.origins:
                origin.failure = None if origin.until < float("inf") else origin.failure
            self.list(host, now)
        for task in self._waiting():
            if task.silent_at >= since and task.attempts:
                task.attempts -= 1
                task.spent = 0.0

    def _waiting(self) -> Iterator[Task]:
        for host in self._origins.hosts.values():
            yield from host.waiting
            for origin in host.origins:
                yield from origin.waiting
        for _, _, what in self._alarms:
            if isinstance(what, Task):
                yield what

    def clear(self) -> None:
        """Forget all links; the state of hosts stays."""
        for queue in (self._ready, self._spare, self._alarms, self.ended, self.unresolved, self._unleased):
            queue.clear()
        self._loads_at = float("-inf")
        for host in self._origins.hosts.values():
            host.waiting.clear()
            host.active, host.listed, host.alarm, host.resolving = 0, False, 0.0, False
            for origin in host.origins:
                origin.waiting.clear()
                origin.asking = False


def _demand(host: Host, now: float, unix: float) -> Demand:
    until = max(host.paused_until, host.closed_until)
    return Demand(
        transfers=min(host.manners.per_host, host.active + len(host.waiting)),
        paused_until=unix + until if until > now else 0.0,
        active=host.active,
        alone=host.crawl_delay > 0,
        why=host.last,
    )


def _path(url: str) -> str:
    """Path and query, as robots.txt means them."""
    found = _PATH.match(url)
    path = found[1] if found else ""
    return path if path.startswith("/") else f"/{path}"
