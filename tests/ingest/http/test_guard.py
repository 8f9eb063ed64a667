"""No private address is ever contacted, whatever a list, a name server, a redirect or a connection says; TLS is
checked; HTTP/2 keeps the limits of a host; and connections that lie do no harm."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings, strategies as st
from origin import Origin, picture

from ingest.http import resolver
from ingest.http.address import refusal
from ingest.http.fetcher import FetchConfig, Fetcher
from ingest.http.transfer import Slot
from ingest.record import Event, Fetched, Link, Reason


def run(fetcher: Fetcher, *urls: str) -> list[Fetched]:
    links = [Link(f"k{row}", url, (), row) for row, url in enumerate(urls)]
    found = [f for f in fetcher.run(links) if f is not None]
    assert len(found) == len(urls)
    return sorted(found, key=lambda f: f.link.row)


def get(*urls: str, **options: Any) -> list[Fetched]:
    fetcher = Fetcher(FetchConfig(**{"allow_private": ("127.0.0.1",), "backoff": 0.01, **options}))
    try:
        return run(fetcher, *urls)
    finally:
        fetcher.close()


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.fixture
def inside() -> Iterator[Origin]:
    """What must not be contacted, at an address that is not allowed."""
    with Origin("127.0.0.9") as origin:
        yield origin
        assert origin.connections == 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """name -> addresses, as a name server would answer at the time of asking."""
    names: dict[str, list[str]] = {}

    def getaddrinfo(name: bytes, *_: object, **__: object) -> list[Any]:
        if name.decode() not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in names[name.decode()]]

    monkeypatch.setattr("ingest.http.resolver.socket.getaddrinfo", getaddrinfo)
    return names


def test_a_name_that_resolves_to_a_private_address(inside: Origin, names: dict[str, list[str]]) -> None:
    names["inside.test"] = [inside.address]
    for robots in (True, False):
        (found,) = get(f"http://inside.test:{inside.port}/ok/a.jpg", robots=robots)
        assert found.reason == Reason.BLOCKED_ADDRESS
        assert found.detail == "127.0.0.9 is not a public address; if it is yours: --fetch.allow-private 127.0.0.9"


def test_of_several_addresses_only_the_allowed_ones_are_contacted(names: dict[str, list[str]]) -> None:
    with Origin() as origin, Origin("127.0.0.9", origin.port) as other:
        names["both.test"] = [other.address, origin.address]
        (found,) = get(f"http://both.test:{origin.port}/ok/a.jpg")
        assert found.body == picture("/ok/a.jpg")
        assert other.connections == 0


def test_a_name_with_hundreds_of_addresses_uses_few_descriptors(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them listens. Running out of descriptors ends a run."""
    most = 0
    open_socket = Slot._open_socket

    def counting(self: Slot, *rest: Any) -> Any:
        nonlocal most
        opened = open_socket(self, *rest)
        most = max(most, len(os.listdir("/proc/self/fd")))
        return opened

    monkeypatch.setattr(Slot, "_open_socket", counting)
    names["many.test"] = [f"127.0.{n // 200 + 2}.{n % 200 + 1}" for n in range(300)]
    before = len(os.listdir("/proc/self/fd"))
    (found,) = get("http://many.test/a.jpg", robots=False, retries=0, allow_private=("127.0.0.0/8",))
    assert found.reason is Reason.CONNECT
    assert before < most < before + 50


def test_a_name_that_is_rebound_between_two_connections(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed when robots.txt and the first picture are asked for, private for the next connection."""
    monkeypatch.setattr("ingest.http.hosts.NAME_FOR", 0.2)
    with Origin() as origin, Origin("127.0.0.9", origin.port) as other:
        fetcher = Fetcher(FetchConfig(allow_private=("127.0.0.1",)))
        names["rebound.test"] = [origin.address]
        url = f"http://rebound.test:{origin.port}/leaves/a.jpg"
        (first,) = run(fetcher, url)
        names["rebound.test"] = [other.address]
        time.sleep(0.3)
        (second,) = run(fetcher, url)
        fetcher.close()
        assert (first.reason, second.reason) == (None, Reason.BLOCKED_ADDRESS)
        assert other.connections == 0


def test_redirects_to_private_addresses(inside: Origin, names: dict[str, list[str]]) -> None:
    names["inside.test"] = [inside.address]
    with Origin() as origin:
        targets = [inside.url("/ok/a.jpg"), f"http://inside.test:{inside.port}/ok/a.jpg"]
        targets += [f"http://[::ffff:127.0.0.9]:{inside.port}/", f"http://0177.0.0.011:{inside.port}/"]
        targets += [f"http://2130706441:{inside.port}/", f"http://127.9:{inside.port}/", "http://169.254.169.254/"]
        found = get(*(origin.url(f"/goto?{target}") for target in targets))
    assert {f.reason for f in found} == {Reason.BLOCKED_ADDRESS}
    assert {f.attempts for f in found} == {1}


@given(st.ip_addresses(v=4))
@settings(deadline=None)
def test_a_wrapped_address_is_as_good_as_what_it_wraps(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    plain = refusal(str(address), 80, ())
    for wrapped in (
        ipaddress.IPv6Address((0xFFFF << 32) | number),  # mapped
        ipaddress.IPv6Address((0x64FF9B << 96) | number),  # NAT64
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),  # 6to4
        ipaddress.IPv6Address((0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF)),  # Teredo
    ):
        assert (refusal(str(wrapped), 80, ()) is None) == (plain is None), wrapped
    for never in (number, (0x64FF9B0001 << 80) | number):  # v4-compatible, and NAT64 for local use
        assert refusal(str(ipaddress.IPv6Address(never)), 80, ()) is not None


def test_names_are_looked_up_once_for_many_links(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    look_up = resolver.look_up
    monkeypatch.setattr(resolver, "look_up", lambda name: (asked.append(name), look_up(name))[1])
    names["one.test"] = ["127.0.0.1"]
    with Origin() as origin:
        urls = [f"http://one.test:{origin.port}/leaves/{n}.jpg" for n in range(20)] + ["http://none.test/a.jpg"] * 9
        found = get(*urls)
    assert [f.reason for f in found] == [None] * 20 + [Reason.DNS] * 9
    assert found[-1].detail == "name: Name or service not known"
    assert sorted(asked) == ["none.test", "one.test"]


def test_names_that_nobody_answers_for_do_not_hold_up_the_others(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four in five name servers are silent: as many look-ups hang as would hold all that libcurl does at once."""
    stuck = threading.Event()
    look_up = resolver.look_up

    def slow(name: str) -> resolver.Answer:
        if name.startswith("slow"):
            stuck.wait(20)
            return resolver.Answer(name, (), "Temporary failure in name resolution")
        return look_up(name)

    monkeypatch.setattr(resolver, "look_up", slow)
    names.update({f"quick{n}.test": ["127.0.0.1"] for n in range(20)})
    begun = time.monotonic()
    with Origin() as origin:
        urls = [
            f"http://{'slow' if n % 5 else 'quick'}{n // 5 if n % 5 == 0 else n}.test:{origin.port}/ok/a.jpg"
            for n in range(100)
        ]
        fetcher = Fetcher(FetchConfig(allow_private=("127.0.0.1",), connect_timeout=1.0))
        results = fetcher.run(Link(f"k{n}", url, (), n) for n, url in enumerate(urls))
        found: list[Fetched] = []
        while len(found) < 20:
            found += [f for f in [next(results)] if f is not None]
        assert {f.reason for f in found} == {None}
        results.close()  # type: ignore[attr-defined]
        fetcher.close()  # without waiting for look-ups in progress
        assert time.monotonic() - begun < 10
    stuck.set()


# --- a proxy that was asked for ------------------------------------------------------------------------------------


def test_an_explicit_proxy_is_used_and_said_to_guard() -> None:
    events: list[Event] = []
    with Origin() as proxy:  # it answers for every host, as proxies do
        fetcher = Fetcher(FetchConfig(proxy=proxy.url(""), robots=False), record=events.append)
        (found, literal) = run(fetcher, "http://example.test/ok/a.jpg", "http://10.0.0.1/ok/b.jpg")
        fetcher.close()
        assert (found.reason, found.status) == (None, 200) or found.status == 404
        assert literal.reason is Reason.BLOCKED_ADDRESS  # what needs no name server we refuse ourselves
        assert proxy.connections == 1
    assert [(e.kind, e.detail) for e in events] == [("proxy", "addresses are checked by the proxy, not here")]


@pytest.mark.parametrize("proxy", ["example.org:3128", "http://me:secret@proxy:1", "ftp://proxy:1", "socks5://p:1"])
def test_a_proxy_that_cannot_be_is_refused_without_its_password(proxy: str) -> None:
    with pytest.raises(ValueError, match=r"fetch\.proxy") as error:
        FetchConfig(proxy=proxy)
    assert "secret" not in str(error.value)


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem (key and certificate) for 127.0.0.1, signed by it."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: str, issuer: str, key: Any, signer: Any, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if not ca:
            loopback = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("a root", "a root", authority, authority, True)
    leaf = certificate("a server", "a root", server, authority, False)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    key = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(key + leaf.public_bytes(pem))
    return folder


def server_context(certificates: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    context.set_alpn_protocols(protocols or ["http/1.1"])
    return context


def test_https_with_a_certificate_that_is_trusted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with Origin(tls=server_context(certificates)) as origin:
        paths = [f"/ok/{n}.jpg" for n in range(40)]
        found = get(*map(origin.url, paths), per_host=3)
        assert [f.body for f in found] == [picture(path) for path in paths]
        assert origin.connections <= 3


def test_https_with_a_certificate_that_is_not(certificates: Path) -> None:
    with Origin(tls=server_context(certificates)) as origin:
        (found,) = get(origin.url("/ok/a.jpg"), robots=False)
        assert (found.reason, found.attempts) == (Reason.TLS, 1)
        assert origin.requests.total() == 0


def test_https_for_another_name(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with Origin(tls=server_context(certificates)) as origin:
        names["other.test"] = [origin.address]
        (found,) = get(f"https://other.test:{origin.port}/ok/a.jpg", robots=False)
        assert found.reason is Reason.TLS


class Http2(StreamRequestHandler):
    """As much of HTTP/2 (RFC 9113) as an origin needs that gives one body for every path: SETTINGS, PING, HEADERS that
    are not looked at, `:status: 200` from the static table, DATA. Counts streams that are open at the same time."""

    server: Any

    def handle(self) -> None:
        self.lock = threading.Lock()
        with self.server.lock:
            self.server.connections += 1
        assert self.rfile.read(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.send(4, 0, 0, b"")
        while len(head := self.rfile.read(9)) == 9:
            length, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
            payload = self.rfile.read(length)
            if kind == 4 and not flags & 1:
                self.send(4, 1, 0, b"")
            elif kind == 6 and not flags & 1:
                self.send(6, 1, 0, payload)
            elif kind == 1:
                with self.server.lock:
                    self.server.open += 1
                    self.server.most = max(self.server.most, self.server.open)
                threading.Thread(target=self.answer, args=(stream,), daemon=True).start()

    def answer(self, stream: int) -> None:
        time.sleep(0.05)
        with self.server.lock:
            self.server.open -= 1
        self.send(1, 4, stream, b"\x88")
        self.send(0, 1, stream, self.server.body)

    def send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        with self.lock:
            self.wfile.write(
                struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
            )
            self.wfile.flush()


class Http2Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Http2)
        self.context, self.lock = context, threading.Lock()
        self.connections = self.open = self.most = 0
        self.body = b"User-agent: *\nDisallow:\n"

    def get_request(self) -> tuple[Any, Any]:
        connection, client = super().get_request()
        return self.context.wrap_socket(connection, server_side=True), client

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def test_http_2_shares_a_connection_and_keeps_the_limit(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    server = Http2Server(server_context(certificates, "h2", "http/1.1"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        port = server.server_address[1]
        found = get(*(f"https://127.0.0.1:{port}/{n}.jpg" for n in range(60)), per_host=5)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert {f.body for f in found} == {server.body}
    assert server.connections == 1
    assert 2 <= server.most <= 5


# --- connections that lie ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["leaves", "excess"])
def test_a_kept_connection_that_lies_mixes_up_nothing(kind: str) -> None:
    with Origin() as origin:
        paths = [f"/{kind if n % 2 else 'ok'}/{n}.jpg" for n in range(60)]
        found = get(*map(origin.url, paths), per_host=2)
    assert [f.body for f in found] == [picture(path) for path in paths]
    assert {f.attempts for f in found} == {1}


def test_one_origin_cannot_answer_for_another() -> None:
    """An unrequested reply is thrown away when it comes before the next request; after it, it is what the origin
    says of that path. So it can spoil only its own pictures."""
    with Origin() as liar, Origin() as honest:
        paths = [f"/ok/{n}.jpg" for n in range(40)]
        urls = [url for path in paths for url in (liar.url("/unasked/x.jpg"), honest.url(path))]
        found = get(*urls, per_host=2)
    assert [f.body for f in found[1::2]] == [picture(path) for path in paths]


@pytest.mark.parametrize(
    ("ip", "port", "hint"),
    [
        ("10.1.2.3", 80, "10.1.2.3"),
        ("192.168.0.7", 8080, "192.168.0.7"),
        ("127.0.0.1", 443, "127.0.0.1"),
        ("100.64.0.1", 80, "100.64.0.1"),
        ("fd00::5", 80, "fd00::5"),
        ("::ffff:10.0.0.1", 80, "10.0.0.1"),
        ("93.184.215.14", 8080, "93.184.215.14"),
        ("169.254.169.254", 80, None),
        ("fe80::1", 80, None),
        ("224.0.0.1", 80, None),
        ("0.0.0.0", 80, None),
        ("240.0.0.1", 80, None),
    ],
)
def test_a_refusal_names_the_flag_where_the_address_may_be_the_users_own(ip: str, port: int, hint: str | None) -> None:
    why = refusal(ip, port, ())
    assert why is not None
    assert why.partition("; ")[2] == (f"if it is yours: --fetch.allow-private {hint}" if hint else "")
    if hint:
        assert refusal(ip, port, (hint,)) is None, "the hint helps"
