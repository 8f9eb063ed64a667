"""How hosts are treated: robots.txt, opt-outs, paces, pauses, breakers, shares; and a network that goes away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pycurl
import pytest
from origin import Origin, picture

from ingest.http import fetcher as fetch_module, outage, schedule
from ingest.http.fetcher import FetchConfig, Fetcher
from ingest.http.hosts import Demand, Grant, Limiter
from ingest.http.transfer import Slot
from ingest.record import Event, Fetched, Link, Reason


def config(**options: Any) -> FetchConfig:
    return FetchConfig(**{"allow_private": ("127.0.0.0/8",), "backoff": 0.01, "cool_off": 0.05, **options})


class Run:
    """A fetcher, what it told, and what came of the URLs it was given."""

    def __init__(self, leases: Any = None, **options: Any) -> None:
        self.events: list[Event] = []
        self.fetcher = Fetcher(config(**options), leases=leases, tell=self.events.append)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.fetcher.close()

    def get(self, *urls: str) -> list[Fetched]:
        """In the order of the URLs."""
        return sorted(self.as_they_come(*urls), key=lambda f: f.link.row)

    def as_they_come(self, *urls: str) -> Iterator[Fetched]:
        links = [Link(f"k{row}", url, (), row) for row, url in enumerate(urls)]
        got = 0
        for fetched in self.fetcher.run(links):
            if fetched is not None:
                got += 1
                yield fetched
        assert got == len(urls)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def many() -> Iterator[Callable[[int], list[Origin]]]:
    """Origins that are distinct hosts."""
    with ExitStack() as stack:
        yield lambda n: [stack.enter_context(Origin(f"127.0.1.{k + 1}")) for k in range(n)]


def text(body: str, status: int = 200, **headers: str) -> Callable[[Any], None]:
    return lambda handler: handler.reply(body.encode(), status, **headers)


# --- robots.txt ----------------------------------------------------------------------------------------------------


def test_robots_is_asked_once_and_before_anything_else(origin: Origin) -> None:
    origin.robots = text("User-agent: *\nDisallow: /ok/private/\n")
    paths = [f"/ok/{'private' if n % 3 == 0 else 'public'}/{n}.jpg" for n in range(30)]
    with Run() as run:
        found = run.get(*map(origin.url, paths)) + run.get(*map(origin.url, paths))
    assert [f.reason for f in found] == [Reason.ROBOTS if "private" in f.link.url else None for f in found]
    assert origin.robots_asked == 1
    assert "User-Agent" in origin.headers[0]
    assert origin.asked("/ok/private") == 0
    refused = found[0]
    assert (refused.attempts, refused.status) == (0, 0)
    assert refused.detail.endswith("disallows /ok/private/0.jpg")


def test_robots_can_be_left_unasked(origin: Origin) -> None:
    origin.robots = text("User-agent: *\nDisallow: /\n")
    with Run(robots=False) as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None
    assert origin.robots_asked == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_no_robots_file_allows_everything(origin: Origin, status: int) -> None:
    origin.robots = text("User-agent: *\nDisallow: /", status)
    with Run() as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None


@pytest.mark.parametrize(("status", "reason"), [(500, Reason.HTTP_5XX), (503, Reason.HTTP_5XX), (429, Reason.HTTP_429)])
def test_a_robots_file_that_cannot_be_had_forbids_everything(origin: Origin, status: int, reason: Reason) -> None:
    origin.robots = text("", status)
    with Run() as run:
        found = run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(5)))
        found += run.get(origin.url("/ok/later.jpg"))
    assert {(f.reason, f.attempts) for f in found} == {(reason, 0)}
    assert all("robots.txt" in f.detail for f in found)
    assert reason.retryable
    assert origin.asked("/ok") == 0
    assert origin.robots_asked == 3  # with its retries; later links believe what is known


def test_a_robots_file_that_never_comes_forbids_everything(origin: Origin) -> None:
    origin.robots = lambda handler: handler.serve_silent("")
    begun = time.monotonic()
    with Run(deadline=0.5, retries=0) as run:
        found = run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(5)))
    assert {f.reason for f in found} == {Reason.TIMEOUT}
    assert time.monotonic() - begun < 5
    assert origin.asked("/ok") == 0


def test_a_robots_failure_passes(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "NO_ROBOTS_FOR", 0.0)
    origin.robots = text("", 500)
    with Run(retries=0) as run:
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is Reason.HTTP_5XX
        origin.robots = None
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is None


def test_robots_is_asked_anew_after_a_day(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "ROBOTS_FOR", 0.3)
    with Run() as run:
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is None
        time.sleep(0.4)
        origin.robots = text("User-agent: *\nDisallow: /")
        assert run.get(origin.url("/ok/a.jpg"))[0].reason is Reason.ROBOTS


def test_robots_redirects_lead_to_the_rules_of_the_first_origin(many: Callable[[int], list[Origin]]) -> None:
    first, second = many(2)
    second.robots = text("User-agent: *\nDisallow: /ok/x\n")
    first.robots = text("", 301, Location=second.url("/robots.txt"))
    with Run() as run:
        a, b = run.get(first.url("/ok/x.jpg"), first.url("/ok/y.jpg"))
    assert (a.reason, b.reason) == (Reason.ROBOTS, None)


def test_robots_that_redirects_for_ever_is_none(origin: Origin) -> None:
    origin.robots = text("", 302, Location="/robots.txt")
    with Run() as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None
    assert origin.robots_asked == 6


def test_robots_that_redirects_to_a_refused_address_forbids_everything(origin: Origin) -> None:
    with Origin("127.0.0.9") as inside:
        origin.robots = text("", 302, Location=inside.url("/robots.txt"))
        with Run(allow_private=("127.0.0.1",)) as run:
            (found,) = run.get(origin.url("/ok/a.jpg"))
        assert found.reason is Reason.ROBOTS
        assert inside.connections == 0
    assert origin.asked("/ok") == 0


def test_an_endless_robots_file_ends(origin: Origin) -> None:
    def endless(handler: Any) -> None:
        handler.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nUser-agent: *\nDisallow: /ok/x\n")
        handler.forever(b"# and so on\n" * 1000)

    origin.robots = endless
    with Run() as run:
        a, b = run.get(origin.url("/ok/x.jpg"), origin.url("/ok/y.jpg"))
    assert (a.reason, b.reason) == (Reason.ROBOTS, None)


def test_a_redirect_asks_the_robots_of_where_it_leads(many: Callable[[int], list[Origin]]) -> None:
    first, second = many(2)
    second.robots = text("User-agent: *\nDisallow: /ok/\n")
    with Run() as run:
        (found,) = run.get(first.url(f"/goto?{second.url('/ok/a.jpg')}"))
    assert (found.reason, found.attempts) == (Reason.ROBOTS, 1)
    assert second.asked("/ok") == 0


def test_ports_have_robots_of_their_own(origin: Origin) -> None:
    with Origin() as other:
        other.robots = text("User-agent: *\nDisallow: /")
        with Run() as run:
            a, b = run.get(origin.url("/ok/a.jpg"), other.url("/ok/a.jpg"))
    assert (a.reason, b.reason) == (None, Reason.ROBOTS)


def test_crawl_delay_is_kept_up_to_a_limit_and_told(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "CRAWL_DELAY", 0.2)
    origin.robots = text("User-agent: *\nCrawl-delay: 30\n")
    begun = time.monotonic()
    with Run() as run:
        found = run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(4)))
    assert {f.reason for f in found} == {None}
    assert time.monotonic() - begun >= 0.8  # after robots.txt, and between the four
    assert origin.busiest == 1
    assert [(e.kind, e.detail) for e in run.events] == [
        ("robots", "asks for 30 s between requests, of which 0.2 s are kept")
    ]


# --- opt-outs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ("noai", Reason.OPT_OUT),
        ("nofollow|NoImageAI", Reason.OPT_OUT),
        ("nofollow, noindex", Reason.OPT_OUT),
        ("xtra-pretrain: noai", Reason.OPT_OUT),
        ("otherbot: noai", None),
        ("otherbot: noindex, noai|nosnippet", None),
        ("otherbot: noai|*: noai", Reason.OPT_OUT),
        ("all", None),
    ],
)
def test_opt_outs_in_headers(origin: Origin, headers: str, reason: Reason | None) -> None:
    with Run() as run:
        (found,) = run.get(origin.url(f"/tag/a.jpg?{quote(headers)}"))
    assert (found.reason, found.attempts, found.status) == (reason, 1, 200)


def test_which_opt_outs_are_heeded_is_a_choice(origin: Origin) -> None:
    with Run(opt_out=("noai",)) as run:
        a, b = run.get(origin.url("/tag/a.jpg?noindex"), origin.url("/tag/b.jpg?noai"))
    assert (a.reason, b.reason) == (None, Reason.OPT_OUT)


def test_an_opted_out_body_is_not_taken(origin: Origin) -> None:
    with Run() as run:
        (found,) = run.get(origin.url("/tagged_endless"))
        assert found.reason is Reason.OPT_OUT
        assert run.fetcher._schedule._hosts["127.0.0.1"].bytes < 1 << 20


# --- paces and pauses ----------------------------------------------------------------------------------------------


def test_the_rate_of_a_host_is_kept(origin: Origin) -> None:
    begun = time.monotonic()
    with Run(per_host_rate=20.0) as run:
        run.get(*(origin.url(f"/ok/{n}.jpg") for n in range(15)))
    assert time.monotonic() - begun >= 15 / 20


def test_a_rate_is_set_for_strangers_and_not_for_ones_own_hosts() -> None:
    assert FetchConfig().rate == 20.0
    assert FetchConfig(allow_private=("10.0.0.0/8",)).rate == 0.0
    assert FetchConfig(allow_private=("10.0.0.0/8",), per_host_rate=3.0).rate == 3.0
    assert FetchConfig(per_host_rate=0.0).rate == 0.0


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


class Book:
    """A limiter in this process, as the one that several fetchers would reach from theirs; it answers a call late."""

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
        with Run(leases=Book(who, limiter, lock), per_host=3) as run:
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
    with Run(leases=Book("here", limiter, lock)) as run:
        (found,) = run.get(origin.url("/ok/a.jpg"))
    assert found.reason is None
    assert time.monotonic() - begun > 1.5


# --- the network goes away -----------------------------------------------------------------------------------------


class Cable:
    """What is plugged out: every address, or some."""

    def __init__(self) -> None:
        self.out: Callable[[str], bool] = lambda address: False


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> Cable:
    """Connections fail as they do without a network, and not as from a host that refuses."""
    cable = Cable()
    connect = Slot._open_socket

    def open_socket(self: Slot, purpose: int, address: Any) -> Any:
        if cable.out(address.addr[0]):
            self.connected = True
            return pycurl.SOCKET_BAD
        return connect(self, purpose, address)

    monkeypatch.setattr(Slot, "_open_socket", open_socket)
    monkeypatch.setattr(outage, "QUIET", 0.3)
    monkeypatch.setattr(outage, "PROBE", 0.2)
    monkeypatch.setattr(fetch_module, "LIMBO", 0.5)
    monkeypatch.setattr(fetch_module, "TICK", 0.05)
    return cable


def test_an_outage_pauses_and_makes_no_verdict(cable: Cable, many: Callable[[int], list[Origin]]) -> None:
    origins = many(5)
    urls = [origin.url(f"/leaves/{n}.jpg") for n in range(60) for origin in origins]
    paused: list[str] = []
    with Run(per_host=2, breaker=4, retries=1) as run:
        links = [Link(f"k{row}", url, (), row) for row, url in enumerate(urls)]
        found: list[Fetched] = []
        for fetched in run.fetcher.run(links):
            if fetched is not None:
                found.append(fetched)
            if len(found) == 100 and not paused:
                cable.out = lambda address: True
            if run.fetcher.paused() and not paused:
                paused.append(run.fetcher.paused())
                threading.Timer(1.0, lambda: setattr(cable, "out", lambda address: False)).start()
    assert len(found) == len(urls)
    assert {(f.reason, f.attempts) for f in found} == {(None, 1)}
    assert paused[0].startswith("no network since ")
    assert [kind for kind in run.kinds() if kind.startswith("outage")] == ["outage", "outage over"]


def test_what_hung_for_its_whole_deadline_in_an_outage_has_it_again(
    cable: Cable, many: Callable[[int], list[Origin]]
) -> None:
    urls = [origin.url(f"/leaves/{n}.jpg") for origin in many(5) for n in range(20)]
    hung = 0
    with Run(per_host=2, retries=1) as run:
        found: list[Fetched] = []
        for fetched in run.fetcher.run(Link(f"k{row}", url, (), row) for row, url in enumerate(urls)):
            if fetched is not None:
                found.append(fetched)
            if len(found) >= 40 and not hung:
                cable.out = lambda address: True
            if run.fetcher.paused() and not hung:
                for unanswered in run.fetcher._limbo:
                    unanswered.task.spent = run.fetcher.config.deadline
                hung = len(run.fetcher._limbo)
                cable.out = lambda address: False
    assert hung
    assert {f.reason for f in found} == {None}


def test_an_outage_that_lasts_is_an_error_and_no_verdict(cable: Cable, many: Callable[[int], list[Origin]]) -> None:
    origins = many(4)
    found: list[Fetched] = []
    with Run(outage_limit=1.0) as run:
        results = run.as_they_come(*(o.url(f"/leaves/{n}.jpg") for n in range(90) for o in origins))
        found += [next(results) for _ in range(50)]
        cable.out = lambda address: True
        with pytest.raises(ValueError, match=r"no network since .*rerun the same command"):
            found.extend(results)
    assert {f.reason for f in found} == {None}


def test_a_cold_start_without_a_network_makes_no_verdict(cable: Cable) -> None:
    cable.out = lambda address: True
    threading.Timer(1.5, lambda: setattr(cable, "out", lambda address: False)).start()
    with Origin() as origin, Run(retries=0) as run:
        urls = [f"http://127.0.2.{n + 1}:{origin.port}/ok/a.jpg" for n in range(40)]
        found = run.get(*urls, origin.url("/ok/a.jpg"))
    assert found[-1].reason is None
    assert {f.reason for f in found[:-1]} == {Reason.CONNECT}  # there is nobody: known once there is a network
    assert "outage over" in run.kinds()


def test_dead_hosts_beside_living_ones_are_no_outage(cable: Cable, many: Callable[[int], list[Origin]]) -> None:
    living, *dying = many(5)
    urls = [o.url(f"/leaves/{n}.jpg") for n in range(10) for o in dying]
    with Run(retries=1) as run:
        assert {f.reason for f in run.get(*urls, living.url("/ok/1.jpg"))} == {None}
        cable.out = lambda address: address != living.address
        found = run.get(*urls)  # all that is left is dead, and only who is asked in doubt shows that the network is not
    assert {f.reason for f in found} == {Reason.CONNECT}
    assert "outage" not in run.kinds()


def test_a_few_dead_links_end_soon(cable: Cable) -> None:
    cable.out = lambda address: True
    begun = time.monotonic()
    with Run(retries=0) as run:
        found = run.get(*(f"http://127.0.2.{n + 1}/a.jpg" for n in range(10)))
    assert {f.reason for f in found} == {Reason.CONNECT}
    assert run.events == []
    assert time.monotonic() - begun < 3


def test_many_names_that_do_not_exist_are_no_outage(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ever answers, as in a retry of dead links: the name server tells the two apart."""

    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("ingest.http.resolver.socket.getaddrinfo", nobody)
    with Run(retries=0) as run:
        found = run.get(*(f"http://no-such-host-{n}.invalid/a.jpg" for n in range(40)))
    assert {f.reason for f in found} == {Reason.DNS}
    assert "outage" not in run.kinds()


def test_a_consumer_that_was_away_costs_no_link_its_attempt(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "AWAY", 0.5)
    urls = [origin.url(f"/slow/0.3/{n}.jpg") for n in range(8)] + [origin.url("/ok/a.jpg")]
    with Run(deadline=0.8, retries=0) as run:
        found = []
        for fetched in run.as_they_come(*urls):
            if not found:
                time.sleep(1.5)
            found.append(fetched)
    assert {f.reason for f in found} == {None}
