"""Is the network down, or are the links dead?

A list of 2011 has thousands of dead names in a row, so that failures alone prove nothing. The network is *suspected*
when nobody has answered for a while and, in that time, hosts failed that had answered before (or very many did).
It is then *asked*: an origin that answered not long ago is asked again; any answer clears it. Only when these
fail too is the network *out*. Failures without an answer since the last sign of life then count against no link.

Pure: times are handed in, in seconds on one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

QUIET = 3.0  # seconds without any sign of life before anything is suspected
KNOWN = 3  # distinct hosts that answered before and now do not
MANY = 20  # distinct hosts, whether they ever answered or not
GOOD = 8  # origins remembered to ask in doubt
COLD = 3  # probes in doubt where nobody ever answered
PROBE = 5.0  # seconds between two probes


@dataclass
class Network:
    """What the ends of transfers say about the network. `limit`: seconds to wait without it; 0: never suspect."""

    limit: float
    alive_at: float = 0.0  # the last sign of life; 0: none yet
    silent: dict[str, bool] = field(default_factory=dict)  # hosts that failed since; whether they answered before
    good: dict[str, None] = field(default_factory=dict)  # origins that answered, the last one last
    suspected: bool = False
    out_since: float = 0.0  # 0: it is up
    over_at: float = 0.0  # when the last outage ended
    probed: int = 0  # probes since the suspicion arose
    unanswered: int = 0  # of these
    next_probe: float = 0.0

    def alive(self, now: float, origin: str = "") -> bool:
        """Somebody answered (`origin`, where it was a web server). Returns whether that ends an outage."""
        self.alive_at = now
        if origin and next(reversed(self.good), None) != origin:
            self.good.pop(origin, None)
            self.good[origin] = None
            if len(self.good) > GOOD:
                del self.good[next(iter(self.good))]
        if self.silent:
            self.silent.clear()
        if not self.suspected:
            return False
        was_out = self.out_since > 0
        self._clear()
        if was_out:
            self.over_at = now
        return was_out

    def _clear(self) -> None:
        self.suspected, self.out_since, self.probed, self.unanswered, self.next_probe = False, 0.0, 0, 0, 0.0

    def failed(self, host: str, answered_before: bool) -> None:
        """A transfer to this host ended without any answer."""
        self.silent[host] = answered_before

    @property
    def evidence(self) -> bool:
        """Whether those that failed are more than a few dead links."""
        known = sum(self.silent.values()) if len(self.silent) >= KNOWN else 0
        return self.limit > 0 and (len(self.silent) >= MANY or known >= KNOWN)

    def suspect(self, now: float) -> bool:
        """Whether there is reason to doubt the network. If no host ever answered, the doubt may end without an
        answer: the silent names may turn out not to exist."""
        if self.alive_at == 0 or not self.suspected:
            self.suspected = self.evidence and now - self.alive_at >= QUIET
            if not self.suspected:
                self._clear()
        return self.suspected

    def probe(self, now: float) -> str | None:
        """The origin to ask now; "" if any will do; None if there is none to ask, or it is too early. In doubt, all
        that answered not long ago are asked at once, else one after the other."""
        good = list(self.good)
        if not self.suspected or now < self.next_probe or (not self.out_since and self.probed >= (len(good) or COLD)):
            return None
        if self.out_since or not good:
            self.next_probe = now + PROBE
        self.probed += 1
        return good[-1 - (self.probed - 1) % len(good)] if good else ""

    def probe_failed(self, now: float) -> bool:
        """A probe had no answer. Returns whether the network now counts as out, and did not before."""
        self.unanswered += 1
        if self.out_since or not self.suspected or self.unanswered < (len(self.good) or COLD):
            return False
        self.out_since = self.alive_at or now
        self.next_probe = now + PROBE
        return True
