"""Against an origin that misbehaves: every link ends, in bounds, with bytes or with the right Reason."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from origin import Origin, picture

from ingest.http.address import refusal
from ingest.http.fetcher import FetchConfig, fetch
from ingest.record import CONTENT, FINAL, RETRYABLE, Fetched, Link, Reason

LOOPBACK: dict[str, Any] = {"allow_private": ("127.0.0.0/8",), "backoff": 0.01}


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def get(*urls: str, scratch: Path | None = None, **options: Any) -> list[Fetched]:
    """Results in the order of the URLs."""
    links = [Link(f"k{row}", url, (), row) for row, url in enumerate(urls)]
    found = list(fetch(links, FetchConfig(**{**LOOPBACK, **options}), scratch))
    assert sorted(f.link.row for f in found) == list(range(len(urls)))
    assert all((f.reason is None) == (f.body is not None) for f in found)
    return sorted(found, key=lambda f: f.link.row)


def test_reasons_fall_in_three_groups() -> None:
    assert set(Reason) == RETRYABLE | FINAL | CONTENT
    assert len(Reason) == len(RETRYABLE) + len(FINAL) + len(CONTENT) == 25
    assert Reason.DNS.retryable
    assert not Reason.HTTP_404.retryable


def test_bytes_come_whole_over_few_connections() -> None:
    with Origin() as origin:
        paths = [f"/ok/{n}.jpg" for n in range(200)]
        found = get(*map(origin.url, paths), per_host=4)
        assert [f.body for f in found] == [picture(path) for path in paths]
        assert {(f.reason, f.status, f.attempts) for f in found} == {(None, 200, 1)}
        assert origin.connections <= 4
        assert origin.busiest <= 4
        agents = {headers["User-Agent"] for headers in origin.headers}
        assert agents == {"xtra-pretrain/0.1 (+https://github.com/xtra-pretrain/xtra-pretrain)"}


def test_the_agent_says_whom_to_contact(origin: Origin) -> None:
    get(origin.url("/ok/agent.jpg"), contact="me@example.org")
    assert origin.headers[-1]["User-Agent"] == (
        "xtra-pretrain/0.1 (+https://github.com/xtra-pretrain/xtra-pretrain; me@example.org)"
    )
    with pytest.raises(ValueError, match=r"fetch\.contact"):
        FetchConfig(contact="a\r\nX-Evil: 1")


@pytest.mark.parametrize(
    ("path", "reason", "asked"),
    [
        ("/status/404", Reason.HTTP_404, 1),
        ("/status/410", Reason.HTTP_410, 1),
        ("/status/403", Reason.HTTP_4XX, 1),
        ("/status/451", Reason.HTTP_4XX, 1),
        ("/status/304", Reason.HTTP_4XX, 1),
        ("/status/408", Reason.TIMEOUT, 3),
        ("/status/429", Reason.HTTP_429, 3),
        ("/status/500", Reason.HTTP_5XX, 3),
        ("/status/503", Reason.HTTP_5XX, 3),
        ("/truncated", Reason.TRUNCATED_BODY, 3),
        ("/reset", Reason.CONNECT, 3),
        ("/hangs_up", Reason.CONNECT, 3),
        ("/garbage", Reason.CONNECT, 3),
        ("/broken_chunk", Reason.TRUNCATED_BODY, 3),
        ("/heads", Reason.TOO_LARGE, 1),
        ("/one_head", Reason.TOO_LARGE, 1),
        ("/continue", Reason.TOO_LARGE, 1),
        ("/trailers", Reason.TOO_LARGE, 1),
        ("/endless", Reason.TOO_LARGE, 1),
        ("/declared/99000000", Reason.TOO_LARGE, 1),
        ("/bomb", Reason.TOO_LARGE, 1),
        ("/loop", Reason.TOO_MANY_REDIRECTS, 1),
        ("/goto?file:///etc/passwd", Reason.BAD_URL, 1),
        ("/goto?ftp://127.0.0.1/x", Reason.BAD_URL, 1),
        ("/goto?http://169.254.169.254/latest/meta-data/", Reason.BLOCKED_ADDRESS, 1),
        ("/goto?http://[::1]:80/", Reason.BLOCKED_ADDRESS, 1),
        ("/goto?http://10.0.0.1/", Reason.BLOCKED_ADDRESS, 1),
        ("/goto?http://2130706433.nip.invalid/", Reason.DNS, 1),
        ("/goto?http://127.0.0.1:0/", Reason.CONNECT, 1),
    ],
)
def test_each_misbehaviour_has_its_reason(origin: Origin, path: str, reason: Reason, asked: int) -> None:
    (found,) = get(origin.url(path), max_bytes=1_000_000)
    assert (found.reason, found.attempts) == (reason, asked), found
    if not path.startswith(("/goto", "/loop")):
        assert asked <= origin.requests[path] <= asked + 1  # libcurl itself repeats what a kept connection swallowed
        assert found.detail
        assert "\n" not in found.detail


def test_an_endless_status_leaves_the_terminal_alone(origin: Origin, capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = get(origin.url("/long_status/a"), retries=0)
    assert (found.reason, found.detail) == (Reason.CONNECT, "an answer without a status")
    assert capfd.readouterr().err == ""


def test_silence_and_slowness_end_by_deadline(origin: Origin) -> None:
    begun = time.monotonic()
    urls = [origin.url(path) for path in ("/silent", "/drip", "/slow/0.1/a.jpg")]
    silent, drip, slow = get(*urls, deadline=1.0, retries=5)
    assert time.monotonic() - begun < 3
    assert (silent.reason, drip.reason, slow.reason) == (Reason.TIMEOUT, Reason.TIMEOUT, None)
    assert 900 < silent.ms < 2000


def test_a_trickle_ends_by_low_speed(origin: Origin) -> None:
    begun = time.monotonic()
    (drip,) = get(origin.url("/drip"), low_speed=1000, low_speed_seconds=1, retries=0)
    assert drip.reason is Reason.TIMEOUT
    assert time.monotonic() - begun < 6


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a.jpg"
        (found,) = get(url, retries=1, robots=False)
        assert (found.reason, found.attempts, found.status) == (Reason.CONNECT, 2, 0)
        (found,) = get(url, retries=1)
        assert (found.reason, found.attempts, found.status) == (Reason.CONNECT, 0, 0)
        assert found.detail.startswith("robots.txt: ")


def test_a_name_that_does_not_exist() -> None:
    (found,) = get("http://no-such-host.invalid/a.jpg", retries=0)
    assert found.reason is Reason.DNS


def test_tls_that_is_none(origin: Origin) -> None:
    (found,) = get(origin.url("/ok/a.jpg").replace("http:", "https:"), retries=0)
    assert found.reason is Reason.TLS


def test_retries_succeed_and_are_counted(origin: Origin) -> None:
    good, bad = get(origin.url("/flaky/2/a"), origin.url("/flaky/3/b"))
    assert (good.reason, good.attempts) == (None, 3)
    assert (bad.reason, bad.attempts) == (Reason.HTTP_5XX, 3)


def test_retry_after_is_honoured_within_the_deadline(origin: Origin) -> None:
    (short,) = get(origin.url("/busy/1/a"))
    assert (short.reason, short.attempts) == (None, 2)
    assert short.ms >= 1000
    (long,) = get(origin.url("/busy/3600/b"))
    assert (long.reason, long.attempts) == (Reason.HTTP_429, 1)
    assert long.ms < 1000


def test_redirects_end_at_the_picture_and_say_where(origin: Origin) -> None:
    near, far = get(origin.url("/redirect/3"), origin.url("/redirect/6"), redirects=5)
    assert near.body == picture("/ok/moved.jpg")
    assert near.final_url == origin.url("/ok/moved.jpg")
    assert near.attempts == 1
    assert far.reason is Reason.TOO_MANY_REDIRECTS


def test_a_redirect_with_a_password_sends_none(origin: Origin) -> None:
    target = origin.url("/ok/secret.jpg").replace("//", "//me:secret@")
    (found,) = get(origin.url(f"/goto?{target}"))
    assert found.final_url == origin.url("/ok/secret.jpg")
    assert "Authorization" not in origin.headers[-1]


def test_one_slow_host_does_not_hold_the_others(origin: Origin) -> None:
    slow = [origin.url(f"/slow/0.7/{n}.jpg") for n in range(4)]
    with Origin() as other:
        fast = [other.url(f"/ok/{n}.jpg").replace("127.0.0.1", "localhost") for n in range(20)]
        links = [Link(f"k{row}", url, (), row) for row, url in enumerate(slow + fast)]
        config = FetchConfig(per_host=2, **LOOPBACK)
        order = [f.link.row for f in fetch(links, config)]
    assert set(order[:20]) == set(range(4, 24))
    assert len(order) == 24


def test_a_private_address_is_not_asked_by_default() -> None:
    with Origin() as origin:
        urls = [origin.url("/ok/a.jpg"), f"http://localhost:{origin.port}/a", f"http://0x7f.1:{origin.port}/a"]
        urls += [f"http://[::ffff:127.0.0.1]:{origin.port}/a", "http://2130706433/a"]
        found = get(*urls, allow_private=())
        assert {f.reason for f in found} == {Reason.BLOCKED_ADDRESS}
        assert {f.attempts for f in found} == {0}
        assert origin.connections == 0


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Origin() as origin, Origin() as proxy:
        for name in ("http_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        (found,) = get(origin.url("/ok/a.jpg"))
        assert found.reason is None
        assert proxy.connections == 0


@pytest.mark.parametrize(
    ("ip", "port", "why"),
    [
        ("93.184.215.14", 443, None),
        ("93.184.215.14", 22, "port 22"),
        ("2606:4700::1111", 80, None),
        ("127.0.0.1", 80, "public"),
        ("0.0.0.0", 80, "public"),
        ("10.1.2.3", 80, "public"),
        ("100.64.0.1", 80, "public"),
        ("172.16.0.1", 80, "public"),
        ("192.168.1.1", 80, "public"),
        ("169.254.169.254", 80, "public"),
        ("224.0.0.1", 80, "public"),
        ("255.255.255.255", 80, "public"),
        ("::1", 80, "public"),
        ("::", 80, "public"),
        ("::127.0.0.1", 80, "public"),
        ("::ffff:10.0.0.1", 80, "public"),
        ("64:ff9b::7f00:1", 80, "public"),
        ("64:ff9b:1::7f00:1", 80, "public"),
        ("2002:7f00:1::", 80, "public"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", 80, "public"),  # Teredo, client 127.0.0.1
        ("fe80::1%eth0", 80, "public"),
        ("fd00::1", 80, "public"),
        ("ff02::1", 80, "public"),
        ("64:ff9b::5db8:d70e", 443, None),  # NAT64 of a public address
    ],
)
def test_which_addresses_may_be_asked(ip: str, port: int, why: str | None) -> None:
    found = refusal(ip, port, ())
    assert found is None if why is None else found is not None and why in found
    assert refusal(ip, port, ("0.0.0.0/0", "::/0")) is None


def test_allowing_one_network_allows_no_other() -> None:
    allowed = ("10.0.0.0/8", "127.0.0.1")
    assert refusal("10.2.3.4", 8080, allowed) is None
    assert refusal("::ffff:127.0.0.1", 8080, allowed) is None
    assert refusal("127.0.0.2", 80, allowed) is not None
    with pytest.raises(ValueError, match="'ten' is not an address or network"):
        FetchConfig(allow_private=("ten",))


def test_an_unasked_content_encoding_is_undone(origin: Origin) -> None:
    (found,) = get(origin.url("/gzip"))
    assert found.body == picture("/gzip")


def test_large_bodies_lie_on_scratch_and_small_ones_do_not(origin: Origin, tmp_path: Path) -> None:
    origin.files["large"] = b"a" * 300_000
    origin.files["small"] = b"b" * 1000
    urls = [origin.url(f"/file/{name}") for name in ("large", "small")] + [origin.url("/endless")]
    large, small, endless = get(*urls, scratch=tmp_path, in_memory=100_000, max_bytes=400_000)
    assert isinstance(large.body, Path)
    assert large.body.read_bytes() == origin.files["large"]
    assert small.body == origin.files["small"]
    assert endless.reason is Reason.TOO_LARGE
    assert list(tmp_path.iterdir()) == [large.body]


def test_a_full_scratch_is_an_error_and_no_verdict(origin: Origin, tmp_path: Path) -> None:
    origin.files["large"] = b"a" * 300_000
    with pytest.raises(ValueError, match="cannot hold bodies"):
        get(origin.url("/file/large"), scratch=tmp_path / "gone", in_memory=1000)


def test_links_are_taken_only_as_they_are_needed(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.http.fetcher.HOLD", 40)
    taken = 0

    def links() -> Iterator[Link]:
        nonlocal taken
        for row in range(10_000):
            taken += 1
            yield Link(f"k{row}", origin.url(f"/ok/{row}.jpg"), (), row)

    results = fetch(links(), FetchConfig(connections=4, per_host=4, **LOOPBACK))
    for _ in range(10):
        next(results)
    assert taken < 10 + 40 + 4
    results.close()  # type: ignore[attr-defined]


def test_stop_ends_soon_and_leaves_no_file(origin: Origin, tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    begun = time.monotonic()
    links = [Link(f"k{row}", origin.url("/drip"), (), row) for row in range(4)]
    config = FetchConfig(in_memory=0, **LOOPBACK)
    assert list(fetch(links, config, tmp_path, stop.is_set)) == []
    assert time.monotonic() - begun < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["per_host", "connections", "deadline", "max_bytes"])
def test_a_config_that_cannot_work_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"fetch.{name} is 0: it must be more than 0"):
        FetchConfig(**{name: 0})


def test_no_sockets_left_is_an_error_and_no_verdict(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("ingest.http.transfer.socket.socket", none_left)
    with pytest.raises(ValueError, match=r"Too many open files\): lower --fetch\.connections"):
        get(origin.url("/ok/a.jpg"))
