"""The rate limiter of hosts that several processes share.

A settlement names only the demands that changed since the last one, and returns the shares that changed: most demands
stay as they are. Pure: no sockets, no clock of its own. Times are unix time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ingest.record import Reason

SLICE = 10.0  # seconds a process keeps its place on a host with more processes than transfers
LOST = 60.0  # seconds of silence after which a process is taken for dead
NO_REASON = (Reason.HTTP_429, "asked to wait")


@dataclass(frozen=True, slots=True)
class Demand:
    """What one process asks of one host."""

    transfers: int  # wanted at once, those under way included
    paused_until: float = 0.0  # unix time until which the host is paused; 0 if it is not
    active: int = 0  # under way
    alone: bool = False  # the host asked for an interval between requests: one process at a time can keep it
    why: tuple[Reason, str] = NO_REASON  # it is paused


@dataclass(frozen=True, slots=True)
class Grant:
    """What one process may ask of one host."""

    transfers: int  # at once
    paused_until: float = 0.0
    rate: float = 0.0  # requests/s; 0: no limit
    why: tuple[Reason, str] = NO_REASON  # it is paused


class Leases(Protocol):
    """Where several processes agree on their shares of a host."""

    def settle(self, demands: Mapping[str, Demand]) -> Mapping[str, Grant]:
        """Declare all that this process wants now (a host that is not named is given back); returns its shares as far
        as they are known. Never blocks; called every quarter of a second."""
        ...


@dataclass(slots=True)
class _Hold:
    """One process at one host."""

    since: float  # when its turn began
    wanted: int = 0
    active: int = 0
    alone: bool = False
    granted: int = 0
    before: int = 0  # granted by the settlement before: the process may not have read the newer one yet
    rate: float = 0.0

    @property
    def most(self) -> int:
        """The most transfers that it may have under way, as far as is known here."""
        return max(self.active, self.granted, self.before)


@dataclass
class Limiter:
    """Shares are fair, and the transfers that may be under way never exceed `per_host` in all: what one process has to
    give up goes to another only once the first has reported that it did."""

    per_host: int  # transfers at once to one host name, of all processes together
    rate: float = 0.0  # requests/s to one host name, of all processes together; 0: no limit
    _holds: dict[str, dict[str, _Hold]] = field(default_factory=dict)  # by host, then by process
    _hosts: dict[str, set[str]] = field(default_factory=dict)  # by process
    _stale: dict[str, set[str]] = field(default_factory=dict)  # by process: hosts whose share may be another one now
    _turns: dict[str, set[str]] = field(default_factory=dict)  # by process: hosts on which others wait for its turn
    _pauses: dict[str, tuple[float, tuple[Reason, str]]] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    def knows(self, who: str) -> bool:
        """Whether it still has this process's earlier demands."""
        return who in self._hosts

    def settle(self, who: str, demands: Mapping[str, Demand], now: float) -> dict[str, Grant]:
        """Note all that `who` wants and does; returns its share of each host it named. `now` is unix time."""
        self.change(who, demands, self._hosts.get(who, set()) - demands.keys(), now)
        return {host: self._grant(who, host, now) for host in demands}

    def change(
        self, who: str, demands: Mapping[str, Demand], given_back: Iterable[str], now: float
    ) -> dict[str, Grant]:
        """Note the demands of `who` that changed since its last call.

        Returns its shares of the hosts it named, and of others where they have changed since.
        """
        self._seen[who] = now
        for silent in [name for name, seen in self._seen.items() if now - seen > LOST]:
            self.forget(silent)
        held, stale = self._hosts.setdefault(who, set()), self._stale.setdefault(who, set())
        for host in given_back:
            if host in held:
                held.remove(host)
                self._give_back(who, host)
        if len(self._pauses) > 2 * len(self._holds) + 100:
            self._pauses = {host: pause for host, pause in self._pauses.items() if pause[0] > now}
        for host, demand in demands.items():
            held.add(host)
            self._note(who, host, demand, now)
        for host in self._turns.get(who, ()):
            if now - self._holds[host][who].since > SLICE:
                stale.add(host)
        changed, self._stale[who] = stale, set()
        for host in changed:
            self._share(who, host, now)
        return {host: self._grant(who, host, now) for host in {*changed, *demands}}

    def forget(self, who: str) -> None:
        """A process is gone; what it held is free."""
        self._seen.pop(who, None)
        for host in self._hosts.pop(who, ()):
            self._give_back(who, host)
        self._stale.pop(who, None)
        self._turns.pop(who, None)

    def _give_back(self, who: str, host: str) -> None:
        holds = self._holds[host]
        del holds[who]
        self._stale.get(who, set()).discard(host)
        self._turns.get(who, set()).discard(host)
        if not holds:
            del self._holds[host]
        self._mark(host, holds)

    def _mark(self, host: str, whose: Collection[str], but: str = "") -> None:
        for name in whose:
            if name != but:
                self._stale[name].add(host)

    def _note(self, who: str, host: str, demand: Demand, now: float) -> None:
        holds = self._holds.setdefault(host, {})
        if demand.paused_until > max(now, self._pauses.get(host, (0.0, NO_REASON))[0]):
            self._pauses[host] = demand.paused_until, demand.why
            self._mark(host, holds)
        hold = holds.get(who)
        if hold is None:
            hold = holds[who] = _Hold(now)
            self._mark(host, holds)
        wants, most = (hold.wanted, hold.alone), hold.most
        hold.wanted, hold.active, hold.alone = demand.transfers, demand.active, demand.alone
        if wants != (hold.wanted, hold.alone):
            self._mark(host, holds)
        elif most != hold.most:
            self._mark(host, holds, but=who)

    def _share(self, who: str, host: str, now: float) -> None:
        """Compute its share, and mark this host for the processes whose own share depends on it."""
        holds = self._holds[host]
        hold = holds[who]
        most, since = hold.most, hold.since
        room = 1 if any(other.alone for other in holds.values()) else self.per_host
        others = sum(other.most for name, other in holds.items() if name != who)
        hold.before = hold.granted
        hold.granted = max(0, min(_fair(holds, who, room), room - others))
        if hold.granted and now - hold.since > SLICE:
            hold.since = now  # a process that waits for a first transfer comes before it next time
        hold.rate = self.rate * hold.granted / (others + hold.granted) if hold.granted else 0.0
        if hold.before != hold.granted:
            self._stale[who].add(host)  # until it has read this share
        awaited = hold.granted > 0 and len(holds) > 1 and sum(other.wanted for other in holds.values()) > room
        turns = self._turns.setdefault(who, set())
        (turns.add if awaited else turns.discard)(host)
        if hold.most != most or (awaited and hold.since != since):
            self._mark(host, holds, but=who)

    def _grant(self, who: str, host: str, now: float) -> Grant:
        hold = self._holds[host][who]
        until, why = self._pauses.get(host, (0.0, NO_REASON))
        return Grant(hold.granted, until, hold.rate, why) if until > now else Grant(hold.granted, 0.0, hold.rate)


def _fair(holds: dict[str, _Hold], who: str, room: int) -> int:
    """Max-min: one transfer after the other to each that wants more, in the order of their turns."""
    share = turn = 0
    wanting = sorted(holds, key=lambda name: (holds[name].since, name))
    while wanting and room:
        turn += 1
        wanting = [name for name in wanting if holds[name].wanted >= turn]
        served = wanting[:room]
        share += who in served
        room -= len(served)
    return share
