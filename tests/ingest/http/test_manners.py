"""How hosts are treated: paces, pauses, breakers, and shares between processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import Any

import pytest
from fetching import Run, text
from origin import Origin, picture

from ingest.http import schedule
from ingest.http.address import is_named, is_named_host
from ingest.http.fetcher import FetchConfig
from ingest.http.limiter import Demand, Grant, Limiter
from ingest.record import Fetched, Link, Reason

pytestmark = pytest.mark.slow  # paces and pauses are kept in real time

# --- paces and pauses ----------------------------------------------------------------------------------------------


def test_the_rate_of_a_host_is_kept(origin: Origin) -> None:
    begun = time.monotonic()
    with Run(per_host_rate=20.0) as run:
        run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(15)))
    assert time.monotonic() - begun >= 15 / 20


def test_a_rate_is_set_for_strangers_and_not_for_the_addresses_that_are_named() -> None:
    own = FetchConfig(allow_private=("10.0.0.0/8",))
    assert (FetchConfig().rate, FetchConfig().unlimited) == (20.0, ())
    assert (own.rate, own.unlimited) == (20.0, ("10.0.0.0/8",))
    slow = FetchConfig(allow_private=("10.0.0.0/8",), per_host_rate=3.0)
    assert (slow.rate, slow.unlimited) == (3.0, ())
    assert FetchConfig(per_host_rate=0.0).rate == 0.0


@pytest.mark.parametrize(
    ("addresses", "named"),
    [
        (("10.1.2.3",), True),
        (("::ffff:10.1.2.3",), True),
        (("10.1.2.3", "192.168.0.1"), True),  # the other is never connected to
        (("10.1.2.3", "93.184.216.34"), False),
        (("93.184.216.34",), False),
        (("192.168.0.1",), False),
        ((), False),
    ],
)
def test_a_host_is_free_of_the_rate_by_its_addresses(addresses: tuple[str, ...], named: bool) -> None:
    assert is_named(addresses, ("10.0.0.0/8",)) is named


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.1", True), ("localhost", True), ("a.localhost.", True), ("[::1]", False), ("example.org", False)],
)
def test_the_contact_rule_goes_by_the_host_in_the_url(host: str, named: bool) -> None:
    assert is_named_host(host, ("127.0.0.1",)) is named


def test_others_hosts_keep_their_rate_beside_ones_own(origin: Origin) -> None:
    with Run(per_host_rate=None, allow_private=("127.0.0.1",)) as run:
        run.get(origin.url("/ok/0.jpg"))
        origins = run.fetcher._origins
        (host,) = origins.hosts.values()
        assert host.unlimited
        assert host.interval == 1 / 20
        host.begin(100.0)
        assert host.next_start == 100.0
        stranger = origins._new("http://93.184.216.34", "93.184.216.34", 80).host
        stranger.begin(100.0)
        assert stranger.next_start == 100.05


def test_too_many_requests_pause_the_whole_host_and_no_other(many: Callable[[int], list[Origin]]) -> None:
    busy, quick = many(2)
    urls = [busy.url("/busy/2/first.jpg"), *(busy.url(f"/ok/{n}.jpg") for n in range(20))]
    others = [quick.url(f"/slow/0.01/{n}.jpg") for n in range(8)]
    with Run(per_host=1) as run:
        order = list(run.as_they_come(*urls, *others))
    assert {f.reason for f in order} == {None}
    quick_done = max(k for k, f in enumerate(order) if f.link.url in others)
    assert quick_done < len(order) - 15  # nearly all of the busy host's links came after its pause
    assert [e.detail for e in run.events] == ["paused for 2 s, as it asked"]
    assert busy.asked("/busy") == 2


def test_a_date_in_retry_after_is_understood(origin: Origin) -> None:
    asked: list[float] = []

    def robots(handler: Any) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            handler.reply(b"", 503, Retry_After=formatdate(time.time() + 2, usegmt=True))
        else:
            handler.serve_unknown()

    origin.robots = robots
    with Run() as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None
    assert asked[1] - asked[0] > 0.9  # dates have whole seconds


def test_a_pause_that_is_too_long_ends_the_links_of_that_host_at_once(many: Callable[[int], list[Origin]]) -> None:
    busy, quick = many(2)
    urls = [busy.url("/later/3600")] + [busy.url(f"/ok/{n}.jpg") for n in range(50)]
    begun = time.monotonic()
    with Run(per_host=1) as run:
        found = run.get(*urls, quick.url("/ok/a.jpg"))
        again = run.get(busy.url("/ok/b.jpg"))
    assert time.monotonic() - begun < 3
    assert found[-1].reason is None
    assert {f.reason for f in found[:-1] + again} == {Reason.HTTP_429}
    assert {f.attempts for f in found[1:-1] + again} == {0}
    assert "asks to wait 3600 s" in again[0].detail
    assert busy.requests.total() == 1


def test_pauses_without_success_come_to_an_end(origin: Origin) -> None:
    begun = time.monotonic()
    with Run(per_host=1, retries=9, max_pause=3.0) as run:
        found = run.get(*(origin.url(f"/later/1?{n}") for n in range(30)))
    assert {f.reason for f in found} == {Reason.HTTP_429}
    assert time.monotonic() - begun < 8
    assert origin.requests.total() <= 4


def test_a_host_without_a_word_on_how_long_is_paused_longer_each_time(origin: Origin) -> None:
    with Run(backoff=0.1, max_pause=1.0, retries=9) as run:
        found = run.get(*(origin.url(f"/status/429?{n}") for n in range(10)))
    assert {f.reason for f in found} == {Reason.HTTP_429}
    assert origin.requests.total() <= 10 * 5  # 0.1 + 0.2 + 0.4 + 0.8 s is more than is borne


# --- the breaker ---------------------------------------------------------------------------------------------------


def test_a_host_that_only_fails_is_given_up(origin: Origin) -> None:
    with Run(breaker=5, per_host=2, retries=0) as run:
        found = run.get(*(origin.url(f"/status/500?{n}") for n in range(200)))
        assert origin.requests.total() < 15
        assert {f.reason for f in found} == {Reason.HTTP_5XX}
        unasked = [f for f in found if not f.attempts]
        assert len(unasked) > 180
        assert all("circuit breaker" in f.detail for f in unasked)
        before = origin.requests.total()
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is Reason.HTTP_5XX
        assert origin.requests.total() == before
    assert {e.kind for e in run.events} == {"host"}


def test_a_host_that_recovers_is_asked_again(origin: Origin) -> None:
    with Run(breaker=4, per_host=4, retries=3) as run:
        found = run.get(*(origin.url(f"/sick/5/{n}") for n in range(40)))
    assert [f.reason for f in found].count(None) == 40
    assert origin.asked("/sick") == 45
    assert any("circuit breaker open" in e.detail for e in run.events)


def test_a_few_broken_links_among_good_ones_do_not_cost_their_host(origin: Origin) -> None:
    """At the end of a list only the broken ones are left, to be tried again and again in a row."""
    with Run(breaker=4, per_host=4, retries=3, backoff=0.2) as run:
        found = run.get(*(origin.url(f"/status/500?{n}" if n % 6 == 5 else f"/ok/{n}.jpg") for n in range(60)))
        assert [f.reason for f in found].count(None) == 50
        assert {f.attempts for f in found if f.reason} == {4}
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is None
    assert run.events == []


def test_refusals_of_single_links_do_not_open_it(origin: Origin) -> None:
    with Run(breaker=3) as run:
        found = run.get(*(origin.url(f"/status/404?{n}") for n in range(50)), origin.url("/ok/a.jpg"))
    assert found[-1].reason is None
    assert run.events == []


def test_a_dead_host_is_probed_again_later(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.http.hosts.CLOSED", 0.1)
    with Run(breaker=2, retries=0) as run:
        run.get(*(origin.url(f"/status/500?{n}") for n in range(20)))
        time.sleep(0.2)
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is None


# --- fairness and bounds -------------------------------------------------------------------------------------------


def test_links_of_a_paused_host_do_not_use_up_their_deadline(origin: Origin) -> None:
    with Run(deadline=0.5, per_host=1) as run:
        found = run.get(origin.url("/busy/1/a"), *(origin.url(f"/slow/0.1/{n}.jpg") for n in range(8)))
    assert {f.reason for f in found} == {None}


def test_a_link_does_not_wait_for_ever_for_its_host(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "CRAWL_DELAY", 1.0)
    origin.robots = text("User-agent: *\nCrawl-delay: 1\n")
    begun = time.monotonic()
    with Run(patience=2.5) as run:
        found = run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(50)))
    assert time.monotonic() - begun < 8
    ends = [f.reason for f in found]
    assert 1 <= ends.count(None) < 8
    assert set(ends) == {None, Reason.TIMEOUT}
    assert found[-1].detail.startswith("waited 2.5 s for its host")


def test_our_own_pace_is_no_reason_to_lose_patience(origin: Origin) -> None:
    with Run(patience=1.2, per_host_rate=10) as run:
        found = run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(35)))
    with Run(patience=1.2, per_host=1) as run:
        found += run.get(*(origin.url(f"/slow/0.2/{n}.jpg") for n in range(20)))
    assert {f.reason for f in found} == {None}


def test_robots_that_is_asked_for_late_in_a_crawl_has_patience_of_its_own(
    many: Callable[[int], list[Origin]],
) -> None:
    """It waits for its turn at the host that it was moved to, after a day of waiting for others."""
    first, second = many(2)
    first.robots = lambda handler: handler.reply(b"", 302, Location=second.url("/robots.txt"))
    with Run(per_host_rate=0.5) as run:
        run.get(second.url("/ok/0.jpg"))
        run.fetcher._waited = 86_400.0
        found = run.get(second.url("/ok/1.jpg"), second.url("/ok/2.jpg"), first.url("/ok/a.jpg"))
    assert {f.reason for f in found} == {None}


def test_no_host_starves(many: Callable[[int], list[Origin]]) -> None:
    """One connection, a long queue before a short one: turns are taken."""
    long, short = many(2)
    urls = [long.url(f"/ok/{n}.jpg") for n in range(300)] + [short.url(f"/ok/{n}.jpg") for n in range(5)]
    with Run(connections=1) as run:
        order = [f.link.row for f in run.as_they_come(*urls)]
    assert max(order.index(row) for row in range(300, 305)) < 100
    assert long.connections <= 5  # and yet its connection is used many times


def test_hosts_are_shown(origin: Origin) -> None:
    with Run(per_host=2) as run:
        links = [Link(f"k{n}", origin.url(f"/slow/0.3/{n}.jpg"), (), n) for n in range(6)]
        results = run.fetcher.run(links)
        first = next(f for f in results if f is not None)
        (load,) = run.fetcher.hosts()
        results.close()  # type: ignore[attr-defined]
    assert first.reason is None
    assert (load.name, load.failed, load.paused_until) == ("127.0.0.1", 0, 0)
    assert load.active + load.waiting + load.done == 6
    assert load.bytes >= len(picture("x"))
    assert load.seconds >= 0.3


def test_none_comes_while_nothing_ends_and_may_be_given(origin: Origin) -> None:
    given = iter([None, Link("a", origin.url("/slow/0.8/a.jpg"), (), 0), None])

    def links() -> Iterator[Link | None]:
        yield from given

    with Run() as run:
        results = list(run.fetcher.run(links()))
    assert results.count(None) >= 2
    assert [f.link.key for f in results if f] == ["a"]


def test_a_fetcher_goes_on_with_the_next_links(origin: Origin) -> None:
    with Run(per_host=2) as run:
        for turn in range(3):
            found = run.get(*(origin.url(f"/ok/{turn}-{n}.jpg") for n in range(20)))
            assert {f.reason for f in found} == {None}
    assert origin.connections <= 2
    assert origin.robots_asked == 1


def test_a_run_that_is_broken_off_leaves_nothing_behind(origin: Origin) -> None:
    with Run() as run:
        results = run.fetcher.run(Link(f"k{n}", origin.url(f"/slow/0.2/{n}.jpg"), (), n) for n in range(100))
        next(f for f in results if f is not None)
        results.close()  # type: ignore[attr-defined]
        assert run.fetcher.hosts() == []
        (found,) = run.get(origin.url("/ok/a.jpg"))
        assert found.reason is None


# --- several processes ---------------------------------------------------------------------------------------------


class LateLeases:
    """Leases from a limiter that several fetchers share; they come a call late, as from another process."""

    def __init__(self, who: str, limiter: Limiter, lock: threading.Lock) -> None:
        self.who, self.limiter, self.lock = who, limiter, lock
        self.known: Mapping[str, Grant] = {}

    def settle(self, demands: Mapping[str, Demand]) -> Mapping[str, Grant]:
        known = self.known
        with self.lock:
            self.known = self.limiter.settle(self.who, demands, time.time())
        return known


def test_two_fetchers_together_keep_the_limit_of_a_host(origin: Origin) -> None:
    limiter, lock = Limiter(per_host=3), threading.Lock()
    found: list[Fetched] = []

    def work(who: str) -> None:
        with Run(leases=LateLeases(who, limiter, lock), per_host=3) as run:
            found.extend(run.get(*(origin.url(f"/slow/0.1/{who}{n}.jpg") for n in range(30))))

    threads = [threading.Thread(target=work, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f.reason for f in found] == [None] * 60
    assert 2 <= origin.busiest <= 3


def test_a_pause_reaches_the_other_fetcher(origin: Origin) -> None:
    limiter, lock = Limiter(per_host=4), threading.Lock()
    limiter.settle("elsewhere", {"127.0.0.1": Demand(1, paused_until=time.time() + 2)}, time.time())
    begun = time.monotonic()
    with Run(leases=LateLeases("here", limiter, lock)) as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None
    assert time.monotonic() - begun > 1.5
