"""How processes share a host: never more than its limit in all, no process starved, nothing held by a dead one."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, strategies as st

from ingest.http.hosts import Host, Manners
from ingest.http.limiter import LOST, SLICE, Demand, Grant, Limiter, _fair
from ingest.record import Reason


class Process:
    """Does all it may, as the fetcher does: what is under way goes on when the grant shrinks. Reads each grant one
    settlement late, as a process does whose limiter lives elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted = self.active = self.may = 0
        self.reply = 0

    def settle(self, limiter: Limiter, now: float) -> None:
        self.may = self.reply
        self.active = max(self.active, min(self.wanted, self.may))
        grant = limiter.settle(self.name, {"h": Demand(self.wanted, active=self.active)}, now)["h"]
        self.reply = grant.transfers

    def finish(self, transfers: int) -> None:
        self.active = max(0, self.active - transfers)


@given(
    per_host=st.integers(1, 9),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 12)), max_size=80),
)
def test_all_together_never_exceed_the_limit(per_host: int, steps: list[tuple[int, int, int]]) -> None:
    limiter = Limiter(per_host)
    processes = [Process(name) for name in "abcd"]
    for now, (who, wanted, finished) in enumerate(steps):
        process = processes[who]
        process.wanted = wanted
        process.finish(finished)
        process.settle(limiter, now / 4)
        assert sum(p.active for p in processes) <= per_host


def settled(limiter: Limiter, wants: dict[str, int], rounds: int = 8, now: float = 0.0) -> dict[str, Grant]:
    """What each process has when all have shown that they keep to it."""
    grants = {who: Grant(0) for who in wants}
    for turn in range(rounds):
        for who, wanted in wants.items():
            demand = Demand(wanted, active=min(wanted, grants[who].transfers))
            grants[who] = limiter.settle(who, {"h": demand}, now + turn / 4)["h"]
    return grants


def test_shares_are_fair_and_what_one_does_not_want_goes_to_the_others() -> None:
    assert {w: g.transfers for w, g in settled(Limiter(8), {"a": 20, "b": 20}).items()} == {"a": 4, "b": 4}
    assert {w: g.transfers for w, g in settled(Limiter(8), {"a": 1, "b": 20}).items()} == {"a": 1, "b": 7}
    assert {w: g.transfers for w, g in settled(Limiter(8), {"a": 20}).items()} == {"a": 8}


def test_a_newcomer_waits_until_the_first_has_shrunk() -> None:
    limiter = Limiter(4)
    assert limiter.settle("a", {"h": Demand(9)}, 0)["h"].transfers == 4
    assert limiter.settle("b", {"h": Demand(9)}, 0)["h"].transfers == 0
    assert limiter.settle("a", {"h": Demand(9, active=4)}, 0)["h"].transfers == 2
    assert limiter.settle("b", {"h": Demand(9)}, 0)["h"].transfers == 0  # a may still have all four under way
    limiter.settle("a", {"h": Demand(9, active=2)}, 0)
    assert limiter.settle("b", {"h": Demand(9)}, 0)["h"].transfers == 2


def test_the_rate_is_shared_too() -> None:
    grants = settled(Limiter(8, rate=10.0), {"a": 9, "b": 9})
    assert {who: grant.rate for who, grant in grants.items()} == {"a": 5.0, "b": 5.0}
    assert settled(Limiter(8, rate=10.0), {"a": 2})["a"].rate == 10.0


def test_more_processes_than_transfers_take_turns() -> None:
    limiter = Limiter(1)
    had: set[str] = set()
    active = dict.fromkeys("abc", 0)
    for turn in range(int(8 * SLICE)):
        for who in "abc":
            active[who] = limiter.settle(who, {"h": Demand(5, active=active[who])}, turn)["h"].transfers
            had |= {who} if active[who] else set()
        assert sum(active.values()) <= 1
    assert had == {"a", "b", "c"}


def test_what_is_given_back_or_held_by_the_dead_is_free() -> None:
    limiter = Limiter(2)
    limiter.settle("a", {"h": Demand(2), "i": Demand(2)}, 0)
    limiter.settle("a", {"i": Demand(2)}, 1)
    assert limiter.settle("b", {"h": Demand(2), "i": Demand(2)}, 1) == {"h": Grant(2), "i": Grant(0)}
    assert limiter.settle("b", {"i": Demand(2)}, 1 + LOST + 1) == {"i": Grant(2)}
    limiter.forget("b")
    assert limiter.settle("c", {"i": Demand(2)}, 1 + LOST + 1) == {"i": Grant(2)}


def test_a_pause_is_for_all_and_outlives_who_was_told() -> None:
    limiter = Limiter(2)
    limiter.settle("a", {"h": Demand(2, paused_until=100.0)}, 40)
    limiter.forget("a")
    assert limiter.settle("b", {"h": Demand(2)}, 50)["h"].paused_until == 100.0
    assert limiter.settle("b", {"h": Demand(2)}, 101)["h"].paused_until == 0.0


def test_a_host_that_one_gave_up_is_given_up_by_all_for_the_same_reason_and_no_longer() -> None:
    limiter, why = Limiter(8), (Reason.CONNECT, "host given up for now: nobody listens")
    limiter.settle("a", {"h": Demand(2, paused_until=400.0, active=2, why=why)}, 100)
    other = Host("h", Manners(8, 0.0, 1.0, 8, 5.0, 120.0), 8, 0.0)
    grant = limiter.settle("b", {"h": Demand(8)}, 101)["h"]
    assert other.paused_elsewhere(grant.paused_until, grant.why, 101)
    assert (other.last, other.closed_until) == (why, 400.0)


# ---- naming only what changed ----


class Whole:
    """The rule without the bookkeeping: every settlement shares out every host that the process has."""

    def __init__(self, per_host: int) -> None:
        self.per_host, self.holds = per_host, dict[str, dict[str, SimpleNamespace]]()

    def settle(self, who: str, demands: dict[str, Demand], now: float) -> dict[str, int]:
        for host, holds in list(self.holds.items()):
            if host not in demands:
                holds.pop(who, None)
        return {host: self.share(who, host, demand, now) for host, demand in demands.items()}

    def share(self, who: str, host: str, demand: Demand, now: float) -> int:
        holds = self.holds.setdefault(host, {})
        hold = holds.setdefault(who, SimpleNamespace(since=now, granted=0, before=0))
        hold.wanted, hold.active, hold.alone = demand.transfers, demand.active, demand.alone
        room = 1 if any(other.alone for other in holds.values()) else self.per_host
        others = sum(max(o.active, o.granted, o.before) for name, o in holds.items() if name != who)
        hold.before = hold.granted
        hold.granted = max(0, min(_fair(holds, who, room), room - others))  # type: ignore[arg-type]
        if hold.granted and now - hold.since > SLICE:
            hold.since = now
        return hold.granted


@given(
    per_host=st.integers(1, 5),
    steps=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.dictionaries(st.sampled_from("xyz"), st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans())),
            st.floats(0, 7),
        ),
        max_size=60,
    ),
)
def test_naming_only_what_changed_comes_to_the_same(per_host: int, steps: list[tuple[str, dict, float]]) -> None:
    whole, limiter, now = Whole(per_host), Limiter(per_host), 0.0
    said: dict[str, dict[str, Demand]] = {who: {} for who in "abc"}
    heard: dict[str, dict[str, int]] = {who: {} for who in "abc"}
    for who, wants, passed in steps:
        now += passed
        if any(now - seen > LOST for seen in limiter._seen.values()):
            return  # one that is silent is forgotten, and says all again
        demands = {host: Demand(n, active=min(n, a), alone=alone) for host, (n, a, alone) in wants.items()}
        changed = {host: demand for host, demand in demands.items() if said[who].get(host) != demand}
        dropped = said[who].keys() - demands.keys()
        said[who] = demands
        for host in dropped:
            heard[who].pop(host, None)
        heard[who] |= {host: grant.transfers for host, grant in limiter.change(who, changed, dropped, now).items()}
        assert heard[who] == whole.settle(who, demands, now)
