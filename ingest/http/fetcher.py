"""Links -> bytes over HTTP: bounded, polite, and never into a private network.

One `Fetcher` a process drives all transfers and lives across units. A link waits in the queue of its host until
robots.txt is known and the host's pace, pauses and breaker let it start (schedule.py, hosts.py); a paused host costs
nothing and delays no other. Every link ends: by its bytes, its deadline, its byte cap, its patience, or a Reason. The
address that is actually connected to is checked at connect time (transfer.py), so neither a redirect nor a name that
resolves to a private address gets past the check. While the network is down, everything pauses and there are no
verdicts (outage.py).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ingest.http.config import FetchConfig
from ingest.http.hosts import HostLoad, Manners, Origin, Task
from ingest.http.limiter import Leases
from ingest.http.origins import Origins
from ingest.http.outcome import SILENT, Outcome, outcome
from ingest.http.resolver import Resolver
from ingest.http.robots import ANYTHING, parse
from ingest.http.schedule import Schedule
from ingest.http.silence import Silence, clock
from ingest.http.transfer import Slot, Transfers
from ingest.record import Event, Fetched, Link, Reason

HOLD = 131_072  # links held at once, so that a slow host does not hold the others up
BATCH = 1024  # links taken in one turn
TICK = 0.25  # seconds between checks of `stop` and of what has no timer
AWAY = 5.0  # seconds between two turns after which a timeout is our own fault
ROBOTS_HOPS = 5  # RFC 9309, 2.3.1.2

_BREAKS = (*SILENT, Reason.TLS, Reason.HTTP_5XX, Reason.HTTP_429)
_RETRIES = {Reason.DNS: 1, Reason.TLS: 0}  # at most: these seldom change within seconds


def fetch(
    links: Iterable[Link],
    config: FetchConfig,
    scratch: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Fetched]:
    """One result per link, as they complete. Large bodies are files under `scratch` (without it: all in memory) and
    belong to the caller. `stop` returning True ends the iteration early; transfers in flight are dropped."""
    fetcher = Fetcher(config, scratch)
    try:
        yield from (fetched for fetched in fetcher.run(links, stop) if fetched is not None)
    finally:
        fetcher.close()


def ignore(_event: Event) -> None:
    """Drop the event."""


class Fetcher:
    """Lives as long as its process, and keeps connections, DNS, TLS sessions, robots.txt and the state of hosts.
    `leases` shares hosts between processes; without it this process has them to itself. `record` receives events for
    the log. With `config.proxy` the proxy checks addresses.
    """

    def __init__(
        self,
        config: FetchConfig,
        scratch: Path | None = None,
        leases: Leases | None = None,
        record: Callable[[Event], None] = ignore,
    ) -> None:
        self.config = config
        self.record = record
        self._transfers = Transfers(config, scratch)
        self._silence = Silence(config.outage_limit)
        self._network = self._silence.network
        interval = 1 / config.rate if config.rate else 0.0
        limits = config.per_host, interval, config.backoff, config.breaker, config.cool_off, config.max_pause
        manners = Manners(*limits, config.unlimited)
        guard = config.allow_private if config.proxy else None
        self._origins = Origins(manners, config.robots, shared=leases is not None, guard=guard)
        self._schedule = Schedule(self._origins, config.connections, config.patience, leases)
        self._resolver = Resolver(self._transfers.wake)
        self._results: deque[Fetched] = deque()
        self._held = 0  # links taken that have no result yet
        self._waited = 0.0  # a clock that runs while there is nothing to do but wait for hosts
        self._ticked = 0.0
        if config.proxy:
            self._record("proxy", config.proxy, "addresses are checked by the proxy, not here")

    def close(self) -> None:
        self._drop()
        self._resolver.close()
        self._transfers.close()

    def hosts(self) -> list[HostLoad]:
        """The hosts that have most links now, for a live table; some tenths of a second old."""
        return self._schedule.loads()

    @property
    def active(self) -> int:
        """Transfers under way."""
        return self._transfers.active

    @property
    def waiting(self) -> int:
        """Links that wait for their hosts."""
        return max(0, self._held - self._transfers.active - len(self._silence.links))

    def paused(self) -> str:
        """Why nothing new is started, in one line; empty when all is well."""
        return self._silence.paused()

    def run(self, links: Iterable[Link | None], stop: Callable[[], bool] = lambda: False) -> Iterator[Fetched | None]:
        """One result per link, as they complete. A None link means that none is available yet. A None result comes
        about every TICK while nothing ends, so that the caller can do other work.

        Raises ValueError when this machine cannot go on: no sockets, no room on scratch, no network for too long."""
        source, more = iter(links), True
        turned = reported = time.monotonic()
        try:
            while not stop():
                now = time.monotonic()
                if now - turned > AWAY:
                    self._silence.away_at = now
                more = more and self._take(source, now)
                if now - self._ticked >= TICK:
                    self._tick(now)
                for answer in self._resolver.answers():
                    if self._schedule.resolved(answer, now):
                        self._network.failed(answer.name, False)
                self._schedule.fire_due(now)
                self._start(now)
                self._turn(now)
                self._sweep(now)
                turned = time.monotonic()
                if not (more or self._held or self._results):
                    return
                if self._results or turned - reported >= TICK:
                    reported = turned
                    if not self._results:
                        yield None
                    while self._results:
                        yield self._results.popleft()
        finally:
            self._drop()

    def _drop(self) -> None:
        self._transfers.drop()
        self._schedule.clear()
        self._silence.links.clear()
        self._results.clear()
        self._held = 0

    # --- links start ---

    def _take(self, source: Iterator[Link | None], now: float) -> bool:
        """Take links while there is room; False when the source has ended."""
        for _ in range(min(BATCH, HOLD - self._held)):
            try:
                link = next(source)
            except StopIteration:
                return False
            if link is None:
                break
            self._held += 1
            origin = self._origins.locate(link.url)
            if isinstance(origin, str):
                self._result(Fetched(link, None, Reason.BAD_URL, origin, 0, link.url, 0, 0, time.time()))
            else:
                self._schedule.add(Task(link, link.url, origin, waited=self._waited - origin.host.paced), now)
        return True

    def _start(self, now: float) -> None:
        if self._network.suspected:
            self._probe(now)
            return
        while self._transfers.room and (task := self._schedule.next(now)):
            self._launch(task, now)
        names = self._schedule.unresolved
        while names and self._resolver.room and self._schedule.at_hand < self.config.connections:
            self._resolver.ask(names.popleft().name)

    def _launch(self, task: Task, now: float) -> None:
        task.began = now
        task.started = task.started or now
        origin, host = task.origin, task.origin.host
        if host.known_until != origin.pinned:
            self._transfers.pin(origin.text, host.addresses)
            origin.pinned = host.known_until
        self._transfers.start(task, self.config.deadline - task.spent)

    # --- transfers end ---

    def _turn(self, now: float) -> None:
        """Wait until something is due, let libcurl work, and judge what has ended."""
        starved = self._held and self._transfers.room and self._schedule.starved and not self._network.suspected
        wait = 0.0 if self._results or self._schedule.ended else min(self._ticked + TICK, self._schedule.due) - now
        for slot, error, message in self._transfers.turn(wait):
            self._end(slot, error, message)
        if starved:
            self._waited += time.monotonic() - now

    def _end(self, slot: Slot, error: int, message: str) -> None:
        """Free the slot; then redirect, retry, or make the result. The host goes on with its next link."""
        now = time.monotonic()
        if slot.failure is not None:
            raise ValueError(slot.failure)
        task = slot.task
        assert task is not None
        host = task.origin.host
        seconds = now - task.began
        task.spent += seconds
        host.ended(seconds)
        host.bytes += slot.size
        ended = outcome(slot, error, message)
        self._note(task, ended, now)
        if task.link is None:
            text = b"".join(slot.chunks)
            self._transfers.release(slot)
            self._end_of_robots(task, text, ended, now)
        elif ended.reason is None and ended.target is None:
            body = slot.body()
            self._transfers.release(slot)
            task.attempts += 1
            self._finish(task, body, ended)
        else:
            self._transfers.release(slot)
            self._go_on(task, ended, now)
        if not self._network.suspected and (following := self._schedule.follow(host, now)):
            self._launch(following, now)
        self._schedule.list(host, now)

    def _end_of_robots(self, task: Task, text: bytes, ended: Outcome, now: float) -> None:
        if task.robots_of is None:  # a probe
            if self._network.probe_failed(now):
                self._record("outage", task.origin.host.name, f"no network since {clock(self._network.out_since)}")
        elif ended.target is None and (ended.reason is None or (ended.reason is Reason.TOO_LARGE and text)):
            remark = self._schedule.learn(task.robots_of, parse(text), None, now)
            if remark:
                self._record("robots", task.robots_of.text, remark)
        else:
            self._go_on(task, ended, now)

    def _note(self, task: Task, ended: Outcome, now: float) -> None:
        """What the end of a transfer says about the network and about its host."""
        origin, host, reason = task.origin, task.origin.host, ended.reason
        if ended.network:
            self._alive(now, task.began, origin.text if ended.status else "")
        elif ended.silent:
            task.silent_at = now
            self._network.failed(host.name, host.answered_ever)
        if 0 < ended.status < 500 and ended.status != 429:
            host.answered()
            return
        if reason not in _BREAKS or self._silence.excuses(task, ended):
            return
        if ended.status == 429 or ended.pause:
            remark = host.asked_to_wait(task.began, now, ended.pause, reason)
        elif task.attempts and not host.openings:
            return  # a link that fails again says nothing new about its host, and at the end only such links are left
        else:
            remark = host.broke(task.began, now, reason, ended.detail)
        if remark:
            self._record("host", host.name, remark)
        if host.closed_until > now:
            self._schedule.give_up(host)

    def _go_on(self, task: Task, ended: Outcome, now: float) -> None:
        """After a transfer without a body: follow its redirect, try again, or end the task."""
        if ended.target is not None:
            task.hops += 1
            most = ROBOTS_HOPS if task.link is None else self.config.redirects
            origin = self._origins.locate(ended.target)
            if task.hops > most:
                ended = ended._replace(reason=Reason.TOO_MANY_REDIRECTS, detail=f"more than {most}")
            elif isinstance(origin, str):
                ended = ended._replace(reason=Reason.BAD_URL, detail=f"redirect to {origin}")
            else:
                _aim(task, ended.target, origin)
                self._schedule.add(task, now, front=True)
                return
        reason = ended.reason
        assert reason is not None
        most = min(self.config.retries, _RETRIES.get(reason, self.config.retries))
        left = self.config.deadline - task.spent
        if self._silence.excuses(task, ended):
            task.excused += 1
            task.spent = 0.0
            self._again(task, now, 0.0)
            return
        task.attempts += 1
        if reason.retryable and task.attempts <= most and left > 0.01:
            wait = self.config.backoff * 2 ** (task.attempts - 1) * random.uniform(0.5, 1.5)
            self._again(task, now, 0.0 if reason is Reason.HTTP_429 else wait)  # its host has been paused instead
        else:
            self._fail(task, ended, now)

    def _again(self, task: Task, now: float, wait: float) -> None:
        """Start the request over after `wait` seconds."""
        task.hops = 0
        task.cookies.clear()
        if task.robots_of is not None:
            _aim(task, f"{task.robots_of.text}/robots.txt", task.robots_of)
        else:
            assert task.link is not None
            origin = self._origins.locate(task.link.url)
            assert not isinstance(origin, str)
            _aim(task, task.link.url, origin)
        if wait:
            self._schedule.later(task, now + wait)
        else:
            self._schedule.add(task, now, front=True)

    # --- results ---

    def _fail(self, task: Task, ended: Outcome, now: float) -> None:
        if task.robots_of is not None:
            failure = _robots_failure(task, ended)
            self._schedule.learn(task.robots_of, None if failure else ANYTHING, failure, now)
        elif not self._silence.holds(task, ended, now) and task.link is not None:
            self._finish(task, None, ended)

    def _finish(self, task: Task, body: bytes | Path | None, ended: Outcome) -> None:
        assert task.link is not None
        host = task.origin.host
        host.done += 1
        host.failed += ended.reason is not None
        ms = round(1000 * (time.monotonic() - task.started)) if task.started else 0
        spent, why = round(1000 * task.spent), (ended.reason, ended.detail, ended.status)
        self._result(Fetched(task.link, body, *why, task.url, task.attempts, ms, time.time(), spent))

    def _result(self, fetched: Fetched) -> None:
        self._held -= 1
        self._results.append(fetched)

    def _sweep(self, now: float) -> None:
        """Make results of the links that the schedule ended."""
        ended = self._schedule.ended
        while ended:
            task, reason, detail = ended.popleft()
            task.attempts += task.hops > 0  # its first request was made, and redirected it here
            self._fail(task, Outcome(reason, detail), now)

    # --- the network ---

    def _tick(self, now: float) -> None:
        """Work that has no timer."""
        self._ticked = now
        self._schedule.settle(now)
        self._schedule.expire(self._waited)
        for origin in self._origins.evict(now, self._schedule.holds):
            self._transfers.pin(origin.text, ())
        for _, task, ended in self._silence.settled(now, self._held):
            self._finish(task, None, ended)

    def _alive(self, now: float, began: float, origin: str) -> None:
        """A transfer that began at `began` was answered: earlier failures happened although the network was up."""
        since = self._network.out_since
        if self._network.alive(now, origin):
            self._record("outage over", origin, f"no network from {clock(since)} to {clock(now)}")
            self._schedule.forgive(since, now)
            for task in self._silence.forgiven():
                self._again(task, now, 0.0)
        for _, task, ended in self._silence.before(began):
            self._finish(task, None, ended)

    def _probe(self, now: float) -> None:
        """Ask for a sign of life."""
        text = self._network.probe(now)
        if text is None:
            return
        origin = self._origins.one(text, self._network.probed)
        if origin is not None:
            origin.host.begin(now)
            probe = Task(None, f"{origin.text}/robots.txt", origin)
            if not origin.host.addresses:
                self._transfers.pin(origin.text, ())  # else libcurl keeps believing that there is none
            probe.spent = max(0.0, self.config.deadline - self.config.connect_timeout)
            self._launch(probe, now)

    def _record(self, kind: str, about: str, detail: str) -> None:
        self.record(Event(time.time(), kind, about, detail))


def _aim(task: Task, url: str, origin: Origin) -> None:
    """Point the task at another URL. Its waiting time stays; each host has its own clock for that."""
    task.waited += task.origin.host.paced - origin.host.paced
    task.url, task.origin = url, origin


def _robots_failure(task: Task, ended: Outcome) -> tuple[Reason, str] | None:
    """Why a robots.txt cannot be read, so that everything is forbidden; None if it does not exist, so that everything
    is allowed (RFC 9309, 2.3.1)."""
    assert ended.reason is not None
    if 300 <= ended.status < 500 and ended.status not in (408, 429):
        return None
    moved = task.origin is not task.robots_of
    if ended.reason in (Reason.BLOCKED_ADDRESS, Reason.TOO_LARGE) and (moved or ended.status):
        return Reason.ROBOTS, f"robots.txt cannot be had: {ended.detail}"
    if ended.reason is Reason.BLOCKED_ADDRESS:
        return ended.reason, ended.detail
    return ended.reason, f"robots.txt: {ended.detail}"[:300]
