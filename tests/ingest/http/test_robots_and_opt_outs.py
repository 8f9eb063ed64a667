"""What robots.txt and opt-out headers forbid is not fetched, whatever happens on the way to knowing it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from fetching import Run, text
from origin import Origin

from ingest.http import schedule
from ingest.record import Reason


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
        assert run.fetcher._origins.hosts["127.0.0.1"].bytes < 1 << 20
