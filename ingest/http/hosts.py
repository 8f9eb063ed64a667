"""The load on one host: its pace, its pauses, its circuit breaker. (Shared between processes: limiter.py.)

Pure: no sockets, no clock of its own. A host is a host name; its ports and schemes share one budget. Times are seconds
on one monotonic clock, except between processes, where they are unix time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ingest.http.address import is_named
from ingest.http.resolver import Answer
from ingest.http.robots import Robots
from ingest.record import Link, Reason

BURST = 32  # links of one host that may follow one another while other hosts wait: its connection stays warm
OPENINGS = 3  # of a host's breaker in a row, after which its links are given up
COOL_OFF_GROWS = 3.0  # times longer after each opening
CLOSED = 300.0  # seconds for which a given-up host is not asked; doubles each time
CLOSED_MOST = 3600.0
NAME_FOR = 300.0  # seconds for which the addresses of a name are believed
LOOK_UPS_AGAIN = 1  # retries of a look-up that the name server could not answer
CREDIT = 0.25  # seconds of pauses that one success pays back
BRISK = 1.0  # seconds; a host whose transfers take no longer is not slow: links wait for our own limits


# --- one host, as one process knows it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manners:
    """How every host is treated."""

    per_host: int  # transfers at once
    interval: float  # seconds from one start to the next, at least
    backoff: float  # seconds of the first pause of a host that does not say how long; doubles
    breaker: int  # failures in a row that open it
    cool_off: float  # seconds until one link may try again
    max_pause: float  # seconds of pauses without enough successes between them, after which a host is given up
    unlimited: tuple[str, ...] = ()  # addresses and networks whose hosts have no interval


@dataclass(eq=False, slots=True)
class Origin:
    """A scheme, host and port: what one robots.txt covers."""

    text: str  # "http://example.org:8080", without a slash
    host: Host
    robots: Robots | None = None  # None: not known
    failure: tuple[Reason, str] | None = None  # why it is not known, and for now nothing may be asked
    until: float = 0.0  # when either expires
    pinned: float = 0.0  # the `known_until` of the addresses that libcurl has
    asking: bool = False
    waiting: deque[Task] = field(default_factory=deque)  # links that wait for the answer


@dataclass(eq=False, slots=True)
class Task:
    """Something to ask for: a link, an origin's robots.txt (no link), or a sign of life (a probe)."""

    link: Link | None
    url: str
    origin: Origin  # of url
    robots_of: Origin | None = None  # whose robots.txt this is, wherever a redirect has led
    started: float = 0.0  # monotonic; 0 before the first request
    began: float = 0.0  # of the present transfer
    spent: float = 0.0  # seconds in transfers, of the deadline
    waited: float = 0.0  # where the clock of waiting for its host stood when it was taken
    attempts: int = 0
    hops: int = 0
    excused: int = 0  # attempts not counted, because the network or this process was away
    silent_at: float = 0.0  # when it last failed without an answer
    cookies: dict[str, dict[str, str]] = field(default_factory=dict)  # by host name, of the redirects of this link


@dataclass(eq=False, slots=True)
class Host:
    """The links of one host name, and when the next of them may start."""

    name: str
    manners: Manners
    limit: int  # transfers at once, as granted
    interval: float  # seconds from one start to the next
    waiting: deque[Task] = field(default_factory=deque)
    origins: list[Origin] = field(default_factory=list)
    active: int = 0
    next_start: float = 0.0
    crawl_delay: float = 0.0  # what its robots.txt asks for, capped
    paused_until: float = 0.0
    paused_at: float = 0.0
    pauses: int = 0  # in a row
    pause_spent: float = 0.0  # of max_pause
    failures: int = 0  # in a row
    openings: int = 0  # in a row; from the first on only one transfer at a time
    opened_at: float = 0.0
    closed_until: float = 0.0
    closed_for: float = 0.0
    last: tuple[Reason, str] = (Reason.TIMEOUT, "")  # what it failed with last
    addresses: tuple[str, ...] = ()
    unlimited: bool = False  # the interval does not apply to it
    known_until: float = 0.0  # when its addresses expire
    resolving: bool = False
    look_ups: int = 0  # that failed, in a row
    answered_ever: bool = False
    listed: bool = False  # in one of the loop's queues
    alarm: float = 0.0  # when the loop looks at it again; 0: no alarm is set
    burst: int = BURST  # links that may still follow at once, on the same connection
    paced: float = 0.0  # seconds that its links waited for our own limits, not for it
    done: int = 0
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def room(self) -> bool:
        return self.active < (min(1, self.limit) if self.openings else self.limit)

    def ready_at(self) -> float:
        return max(self.paused_until, self.next_start)

    def begin(self, now: float) -> None:
        self.active += 1
        self.next_start = now + max(0.0 if self.unlimited else self.interval, self.crawl_delay)

    def ended(self, seconds: float) -> None:
        """A transfer that took so long is over."""
        self.active -= 1
        self.seconds += seconds
        self.paced += max(0.0 if self.unlimited else self.interval, min(seconds, BRISK) / max(1, self.limit))

    def idle(self) -> bool:
        return not self.links()

    def answered(self) -> None:
        """It gave an answer that is neither an error of its own nor a request to wait."""
        self.failures = self.openings = self.pauses = 0
        self.pause_spent = max(0.0, self.pause_spent - CREDIT)
        self.closed_for = 0.0
        self.answered_ever = True

    def broke(self, began: float, now: float, reason: Reason, detail: str) -> str:
        """A transfer that began at `began` failed. Returns a remark for the log, or ""."""
        if began < self.opened_at:  # one of those that were under way when it opened
            return ""
        self.last = (reason, detail)
        self.failures += 1
        if self.failures < self.manners.breaker and not self.openings:
            return ""
        self.openings += 1
        self.opened_at = now
        what = f"{self.failures} failures in a row, the last: {detail}"
        if self.openings >= OPENINGS:
            return self._close(now, 0.0, f"circuit breaker: {what}")
        wait = self.manners.cool_off * COOL_OFF_GROWS ** (self.openings - 1)
        self.paused_until = max(self.paused_until, now + wait)
        return f"circuit breaker open for {wait:.3g} s: {what}"

    def asked_to_wait(self, began: float, now: float, seconds: float, reason: Reason) -> str:
        """It answered a transfer that began at `began` with 429, or 503 and Retry-After; `seconds` is 0 if it did
        not say for how long. Returns a remark for the log, or ""."""
        if began < self.paused_at:  # sent before the pause in force began
            self.paused_until = max(self.paused_until, min(now + seconds, now + self.manners.max_pause))
            return ""
        self.pauses += 1
        self.paused_at = now
        seconds = max(seconds, min(self.manners.backoff * 2.0 ** (self.pauses - 1), self.manners.max_pause))
        self.pause_spent += seconds
        self.last = (reason, f"asked to wait {seconds:.3g} s")
        if self.pause_spent > self.manners.max_pause:
            return self._close(now, seconds, f"asks to wait {seconds:.4g} s, {self.pause_spent:.4g} s in all")
        self.paused_until = now + seconds
        return f"paused for {seconds:.4g} s, as it asked" if seconds >= 1 else ""

    def paused_elsewhere(self, until: float, why: tuple[Reason, str], now: float) -> bool:
        """Another process pauses this host until then, for this reason. Returns whether that is too long to wait."""
        if until <= max(now, self.paused_until, self.closed_until) + 0.5:
            return False
        if until - now <= self.manners.max_pause:
            self.paused_until, self.paused_at = until, now
            return False
        self.last = why
        self.closed_until, self.paused_until = (
            until,
            0.0,
        )  # no longer: two processes would prolong it for ever
        return True

    def _close(self, now: float, at_least: float, why: str) -> str:
        self.closed_for = min(max(CLOSED, 2 * self.closed_for), CLOSED_MOST)
        self.closed_until = now + max(self.closed_for, min(at_least, CLOSED_MOST))
        self.paused_until = 0.0
        self.last = (self.last[0], f"host given up for now: {why}"[:300])
        return self.last[1]

    def resolved(self, answer: Answer, now: float) -> bool:
        """Its name has been looked up. Returns whether the host is given up for lack of an address."""
        self.resolving = False
        if answer.addresses or self.addresses:  # better an old address than none
            self.addresses = answer.addresses or self.addresses
            self.unlimited = bool(self.manners.unlimited) and is_named(self.addresses, self.manners.unlimited)
            self.known_until, self.look_ups = now + NAME_FOR, 0
            return False
        self.last = (Reason.DNS, f"name: {answer.error}")
        self.look_ups += 1
        if answer.exists and self.look_ups <= LOOK_UPS_AGAIN:
            self.paused_until = max(self.paused_until, now + self.manners.backoff)
            return False
        self.closed_for = min(max(CLOSED, 2 * self.closed_for), CLOSED_MOST)
        self.closed_until = now + self.closed_for
        return True

    def reopen(self) -> None:
        """Its failures were not its fault."""
        self.failures = self.openings = self.look_ups = 0
        self.closed_until = self.closed_for = self.paused_until = 0.0
        for origin in self.origins:
            origin.failure = None

    def links(self) -> int:
        """Under way or waiting here."""
        return self.active + len(self.waiting) + sum(len(origin.waiting) for origin in self.origins)

    def load(self, since: float) -> HostLoad:
        """`since`: the unix time of the monotonic clock's 0."""
        waiting = self.links() - self.active
        until = max(self.paused_until, self.closed_until)
        return HostLoad(
            self.name, self.active, waiting, self.done, self.failed, self.bytes, self.seconds, until and since + until
        )


@dataclass(frozen=True, slots=True)
class HostLoad:
    """A line of the live table."""

    name: str
    active: int  # transfers under way
    waiting: int  # links that wait for it
    done: int  # links that ended, with bytes or without
    failed: int  # of these without
    bytes: int
    seconds: float  # in transfers, summed
    paused_until: float  # unix time; 0 when it is not
