"""How hard one host may be asked: its limits when several processes share it, and what people see of it.

Pure: no sockets, no clock of its own. A host is a host name; its ports and schemes share one budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

SLICE = 10.0  # seconds a process keeps its place on a host that has more askers than transfers
LOST = 60.0  # seconds of silence after which a process is taken for dead


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


# --- several processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demand:
    """What one process asks of one host."""

    transfers: int  # wanted at once, those under way included
    paused_until: float = 0.0  # unix time until which the host asked to be left alone; 0 when it did not
    active: int = 0  # under way


@dataclass(frozen=True, slots=True)
class Grant:
    """What one process may ask of one host."""

    transfers: int  # at once
    paused_until: float = 0.0
    rate: float = 0.0  # requests/s; 0: no limit


class Leases(Protocol):
    """Where several processes agree on their shares of a host."""

    def settle(self, demands: Mapping[str, Demand]) -> Mapping[str, Grant]:
        """Tell all that this process wants now (a host not named is given back); returns what it may do, as far as is
        known. Never blocks; called every quarter of a second."""
        ...


@dataclass(slots=True)
class _Hold:
    """One process at one host."""

    since: float  # when its turn began
    wanted: int = 0
    active: int = 0
    granted: int = 0
    before: int = 0  # granted by the settlement before: the process may not have read the newer one yet

    @property
    def most(self) -> int:
        """What it may be doing, as far as the book can know."""
        return max(self.active, self.granted, self.before)


@dataclass
class Limiter:
    """The one book of who may ask which host how hard. Shares are fair, and the sum of what the processes may be doing
    never exceeds `per_host`: what one has to give up goes to another only once the first has shown that it did."""

    per_host: int  # transfers at once to one host name, of all processes together
    rate: float = 0.0  # requests/s to one host name, of all processes together; 0: no limit
    _holds: dict[str, dict[str, _Hold]] = field(default_factory=dict)  # by host, then by process
    _hosts: dict[str, set[str]] = field(default_factory=dict)  # by process
    _pauses: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    def settle(self, who: str, demands: Mapping[str, Demand], now: float) -> dict[str, Grant]:
        """Note all that `who` wants and does; returns its share of each host it named. `now` is unix time."""
        self._seen[who] = now
        for silent in [name for name, seen in self._seen.items() if now - seen > LOST]:
            self.forget(silent)
        held = self._hosts.setdefault(who, set())
        for host in held - demands.keys():
            self._give_back(who, host)
        self._hosts[who] = set(demands)
        if len(self._pauses) > 2 * len(self._holds) + 100:
            self._pauses = {host: until for host, until in self._pauses.items() if until > now}
        return {host: self._share(who, host, demand, now) for host, demand in demands.items()}

    def forget(self, who: str) -> None:
        """A process is gone; what it held is free."""
        self._seen.pop(who, None)
        for host in self._hosts.pop(who, ()):
            self._give_back(who, host)

    def _give_back(self, who: str, host: str) -> None:
        holds = self._holds[host]
        del holds[who]
        if not holds:
            del self._holds[host]

    def _share(self, who: str, host: str, demand: Demand, now: float) -> Grant:
        until = max(demand.paused_until, self._pauses.get(host, 0.0))
        if until > now:
            self._pauses[host] = until
        holds = self._holds.setdefault(host, {})
        hold = holds.setdefault(who, _Hold(now))
        hold.wanted, hold.active = demand.transfers, demand.active
        others = sum(other.most for name, other in holds.items() if name != who)
        hold.before = hold.granted
        hold.granted = max(0, min(self._fair(holds, who), self.per_host - others))
        if hold.granted and now - hold.since > SLICE:
            hold.since = now  # who waits for a first transfer comes before it next time
        share = hold.granted / (others + hold.granted) if hold.granted else 0.0
        return Grant(hold.granted, until if until > now else 0.0, self.rate * share)

    def _fair(self, holds: dict[str, _Hold], who: str) -> int:
        """Max-min: one transfer after the other to whoever wants more, in the order of their turns."""
        left, share = self.per_host, 0
        wanting = sorted(holds, key=lambda name: (holds[name].since, name))
        turn = 0
        while wanting and left:
            turn += 1
            wanting = [name for name in wanting if holds[name].wanted >= turn]
            served = wanting[:left]
            share += who in served
            left -= len(served)
        return share
