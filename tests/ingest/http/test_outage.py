"""A network that goes away pauses a crawl and makes no verdict; dead hosts do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pycurl
import pytest
from fetching import Run
from origin import Origin

from ingest.http import fetcher as fetch_module, outage, silence
from ingest.http.transfer import Slot
from ingest.record import Fetched, Link, Reason

pytestmark = pytest.mark.slow  # outages and deadlines pass in real time


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
    monkeypatch.setattr(silence, "LIMBO", 0.5)
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
                for unanswered in run.fetcher._silence.links:
                    unanswered.task.spent = run.fetcher.config.deadline
                hung = len(run.fetcher._silence.links)
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
    assert {f.reason for f in found[:-1]} == {Reason.CONNECT}  # nothing listens there: known once the network is back
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
    """Nothing ever answers, as in a retry of dead links: the name server distinguishes the two."""

    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("ingest.http.resolver.socket.getaddrinfo", no_address)
    with Run(retries=0) as run:
        found = run.get(*(f"http://no-such-host-{n}.invalid/a.jpg" for n in range(40)))
    assert {f.reason for f in found} == {Reason.DNS}
    assert "outage" not in run.kinds()


def test_a_consumer_that_was_away_costs_no_link_its_attempt(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "AWAY", 0.5)
    urls = [origin.url(f"/slow/0.3/{n}.jpg") for n in range(8)] + [origin.url("/ok/a.jpg")]
    with Run(deadline=4, retries=0) as run:  # far above what a busy machine adds to 0.3 s
        found = []
        for fetched in run.as_they_come(*urls):
            if not found:
                time.sleep(6)
            found.append(fetched)
    assert {f.reason for f in found} == {None}


def test_nor_does_it_cost_one_whose_reply_had_begun(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "AWAY", 0.5)
    urls = [origin.url(f"/halves/0.6/{n}.jpg") for n in range(4)] + [origin.url("/slow/0.2/a.jpg")]
    with Run(deadline=4, retries=0) as run:
        found = []
        for fetched in run.as_they_come(*urls):
            if not found:
                time.sleep(6)
            found.append(fetched)
    assert found[0].link.url.endswith("/slow/0.2/a.jpg")
    assert {f.reason for f in found} == {None}
