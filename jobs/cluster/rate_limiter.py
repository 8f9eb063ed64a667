"""The one rate limiter of all workers of an ingest, in a process of its own, and a worker's side of it.

A settlement names only what changed since the last one that was answered, and is answered likewise. How long a worker
waits until the next is up to the limiter: a quarter of a second, and more where many workers keep it busy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ingest.http import Demand, Grant, Limiter

LEAST, MOST = 0.25, 2.0  # seconds between the settlements of a worker
BUSY, IDLE = 0.3, 0.15  # of a core: above the one they become rarer, below the other more frequent
WINDOW = 1.0  # seconds over which that is looked at
SAME = 0.5  # seconds by which the end of a pause may seem to move


class Leases:
    """A worker's side: asks without waiting, and goes by the last answer."""

    def __init__(self, limiter: Any, who: str) -> None:
        self._limiter, self._who = limiter, who
        self._asked: Any = None
        self._serial = 0  # of settlements since all was said; 0: all is to be said
        self._said: dict[str, Demand] = {}
        self._granted: dict[str, Grant] = {}
        self._next = 0.0

    def settle(self, demands: Mapping[str, Demand]) -> Mapping[str, Grant]:
        import ray

        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            # If the limiter's process died, Ray starts another, and each worker says all it does again.
            answer = None
            with suppress(ray.exceptions.RayError):
                answer = ray.get(self._asked)
            self._asked = None
            self._hear(answer)
        # What has just been given back must not come from an old answer should it be wanted before the next one.
        self._granted = {host: grant for host, grant in self._granted.items() if host in demands}
        if self._asked is None and time.monotonic() >= self._next:
            self._ask(demands)
        return self._granted

    def _ask(self, demands: Mapping[str, Demand]) -> None:
        if not self._serial:
            self._said = {}
        changed = {
            host: demand
            for host, demand in demands.items()
            if host not in self._said or host not in self._granted or not _same(self._said[host], demand)
        }
        dropped = [host for host in self._said if host not in demands]
        self._said = {host: changed.get(host) or self._said[host] for host in demands}
        wire = [(host, *_fields(demand)) for host, demand in changed.items()]
        self._asked = self._limiter.settle.remote(self._who, self._serial, wire, dropped)

    def _hear(self, answer: tuple[float, list[tuple[Any, ...]]] | None) -> None:
        if answer is None:  # it died, or does not remember what was said before
            self._serial, self._next = 0, 0.0
            return
        interval, grants = answer
        self._serial += 1
        self._next = time.monotonic() + interval - LEAST / 2  # the fetcher calls every quarter of a second
        self._granted |= {host: Grant(*grant) for host, *grant in grants if host in self._said}


class RateLimiter:
    """The actor that keeps the limiter."""

    def __init__(self, per_host: int, rate: float) -> None:
        self._limiter = Limiter(per_host, rate)
        self._serials: dict[str, int] = {}
        self._interval = LEAST
        self._looked = time.monotonic(), time.process_time()

    def settle(
        self, who: str, serial: int, changed: list[tuple[Any, ...]], dropped: list[str]
    ) -> tuple[float, list[tuple[Any, ...]]] | None:
        """The seconds until the next settlement, and the shares that changed. `serial` counts the settlements since the
        process said all it does (0: it does now). None: it must do so, as what it said before is not known here."""
        demands = {host: Demand(*demand) for host, *demand in changed}
        if serial == 0:
            grants = self._limiter.settle(who, demands, time.time())
        elif self._serials.get(who) != serial - 1 or not self._limiter.knows(who):
            return None
        else:
            grants = self._limiter.change(who, demands, dropped, time.time())
        self._serials[who] = serial
        return self._pace(), [(host, *_fields(grant)) for host, grant in grants.items()]

    def forget(self, who: str) -> None:
        self._limiter.forget(who)
        self._serials.pop(who, None)

    def cpu_seconds(self) -> float:
        """Of this process so far."""
        return time.process_time()

    def _pace(self) -> float:
        now, cpu = time.monotonic(), time.process_time()
        passed = now - self._looked[0]
        if passed >= WINDOW:
            load = (cpu - self._looked[1]) / passed
            self._looked = now, cpu
            if load > BUSY:
                self._interval = min(MOST, self._interval * min(2.0, load / BUSY))
            elif load < IDLE:
                self._interval = max(LEAST, self._interval / 1.25)
        return self._interval


def _fields(record: Demand | Grant) -> tuple[Any, ...]:
    """In order: between processes, tuples cost a third of what objects do."""
    return tuple(getattr(record, name) for name in record.__slots__)


def _same(one: Demand, other: Demand) -> bool:
    """Equal but for the clock's rounding of a pause."""
    return (
        (one.transfers, one.active, one.alone) == (other.transfers, other.active, other.alone)
        and abs(one.paused_until - other.paused_until) < SAME
        and (one.why == other.why or not other.paused_until)
    )
