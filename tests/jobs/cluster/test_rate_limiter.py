"""The limiter between workers: saying only what changed comes to the same as saying all, and keeps its load low."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from ingest.http import Demand, Limiter
from jobs.cluster.rate_limiter import Leases, RateLimiter

DIED = ray.exceptions.RayActorError()


class Wire:
    """A rate limiter that is called at once; `down` makes it answer as a dead one does."""

    def __init__(self, per_host: int = 4) -> None:
        self.per_host, self.down, self.sizes, self.seconds = per_host, False, list[int](), 0.0
        self.restart()
        self.settle = SimpleNamespace(remote=self._settle)

    def restart(self) -> None:
        self.limiter = RateLimiter(self.per_host, 0.0)

    def _settle(self, *words: Any) -> list[Any]:
        if self.down:
            return [DIED]
        self.sizes.append(len(words[2]))
        began = time.thread_time()
        answer = self.limiter.settle(*words)
        self.seconds += time.thread_time() - began
        return [answer]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: list[Any]) -> Any:
        if isinstance(reference[0], Exception):
            raise reference[0]
        return reference[0]

    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray, "get", get)


def at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimiter, "_pace", lambda limiter: 0.0)


def test_only_what_changed_is_said_and_the_shares_are_those_of_saying_all(monkeypatch):
    at_every_call(monkeypatch)
    rng, wire, whole = random.Random(3), Wire(), Limiter(4)
    workers = {who: Leases(wire, who) for who in "abc"}
    wants = {who: {f"h{n}": Demand(rng.randrange(5)) for n in range(50)} for who in workers}
    expected: dict[str, Any] = {who: {} for who in workers}
    for _ in range(200):
        who = rng.choice("abc")
        wants[who][f"h{rng.randrange(50)}"] = Demand(rng.randrange(5))
        wants[who].pop(f"h{rng.randrange(50)}", None)
        granted = workers[who].settle(wants[who])  # of the settlement before
        assert {h: g.transfers for h, g in granted.items()} == {
            host: grant.transfers for host, grant in expected[who].items() if host in wants[who]
        }
        expected[who] = whole.settle(who, wants[who], time.time())
    assert sum(wire.sizes) < 200 * 50 / 8


def test_after_its_death_all_is_said_again(monkeypatch):
    at_every_call(monkeypatch)
    wire = Wire()
    worker, demands = Leases(wire, "a"), {f"h{n}": Demand(2) for n in range(5)}
    for _ in range(3):
        worker.settle(demands)
    assert wire.sizes == [5, 0, 0]
    wire.down = True
    worker.settle(demands)
    wire.down = False
    wire.restart()
    worker.settle(demands)  # hears of the death
    worker.settle(demands)
    assert wire.sizes[-2:] == [5, 0]
    wire.restart()  # this time nobody told: the serial is not known
    for _ in range(3):
        assert {host: grant.transfers for host, grant in worker.settle(demands).items()} == dict.fromkeys(demands, 2)
    assert wire.sizes[-3:] == [0, 5, 0]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_64_workers_keep_it_below_half_a_core(shared):
    """512 hosts a worker, the same for all or its own; a tenth of them change in what is under way at each call."""
    rng, wire = random.Random(1), Wire()
    workers = [Leases(wire, f"w{n}") for n in range(64)]
    hosts = [[f"h{n}" if shared else f"h{worker}-{n}" for n in range(512)] for worker in range(64)]
    wants = [{host: Demand(rng.randrange(1, 5), active=rng.randrange(2)) for host in mine} for mine in hosts]
    seconds, spent, began = 12.0, 0.0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        for n, worker in enumerate(workers):
            for host in rng.sample(hosts[n], 8):
                granted = worker._granted.get(host)
                active = rng.randrange(1 + (granted.transfers if granted else 0))
                wants[n][host] = Demand(rng.randrange(1, 5), active=active)
            worker.settle(wants[n])
        if passed < seconds / 2:
            spent = wire.seconds  # of the first half, in which all is said and the interval is found
        time.sleep(max(0.0, 0.25 - (time.monotonic() - began - passed)))
    load = (wire.seconds - spent) / (seconds / 2)
    print(f"shared={shared}: {load:.2f} of a core, interval {wire.limiter._interval:.2f} s")
    assert load < 0.5
