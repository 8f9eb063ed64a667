"""The fault proxy does what its rules say, and nothing else."""

import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fault_proxy import FaultProxy, Rule

BODY = bytes(range(256)) * 4096  # 1 MiB


class _Echo(BaseHTTPRequestHandler):
    """GET gives BODY; PUT gives back the number of bytes that came, and keeps it."""

    protocol_version = "HTTP/1.1"
    applied: list[tuple[str, int]]

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 100_000):
                piece = BODY[at : at + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        self.wfile.write(BODY)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()

    def do_PUT(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            self.applied.append((self.path, length))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")


@pytest.fixture
def echo():
    handler = type("Handler", (_Echo,), {"applied": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.applied = handler.applied
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(proxy: FaultProxy, method: str = "GET", path: str = "/", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        connection.request(method, path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_without_rules_everything_passes_on_one_connection(echo):
    with FaultProxy(echo.url) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        for path in ("/", "/chunked", "/"):
            connection.request("GET", path)
            assert connection.getresponse().read() == BODY
        for method in ("HEAD", "DELETE"):
            connection.request(method, "/")
            assert connection.getresponse().read() == b""
        connection.request("PUT", "/x", BODY)
        assert connection.getresponse().read() == b"ok"
        connection.request("GET", "/")
        reply = connection.getresponse()
        assert reply.headers["X-Host"] == f"127.0.0.1:{proxy.port}"
        reply.read()
        connection.close()
        assert echo.applied == [("/x", len(BODY))]
        assert proxy.counts["requests"] == 7
        assert proxy.counts["sent_up"] == len(BODY)


def test_slow_down_is_answered_by_the_proxy_alone(echo):
    with FaultProxy(echo.url, Rule("slow_down", method="PUT", nth=(1,))) as proxy:
        status, body = ask(proxy, "PUT", "/x", BODY)
        assert status == 503
        assert b"<Code>SlowDown</Code>" in body
        assert echo.applied == []
        assert ask(proxy, "PUT", "/x", BODY) == (200, b"ok")
        assert proxy.log == [("PUT", "/x", "slow_down"), ("PUT", "/x", "")]


@pytest.mark.parametrize("fault", ["reset", "reset_upload", "lost_reply"])
def test_a_reset_request_is_applied_only_where_the_rule_says_so(echo, fault):
    with FaultProxy(echo.url, Rule(fault, method="PUT", after=100_000)) as proxy:
        with pytest.raises(ConnectionError):
            ask(proxy, "PUT", "/x", BODY)
        assert [path for path, _ in echo.applied] == (["/x"] if fault == "lost_reply" else [])


def test_replies_are_cut_or_reset_after_so_many_bytes(echo):
    with FaultProxy(echo.url, Rule("cut", path="^/cut", after=1000), Rule("reset_reply", path="^/reset")) as proxy:
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask(proxy, path="/cut")
        assert len(caught.value.partial) == 1000
        with pytest.raises((ConnectionError, http.client.IncompleteRead)):
            ask(proxy, path="/reset")


def test_latency_delay_and_rate(echo):
    def seconds(path):
        begun = time.monotonic()
        assert ask(proxy, path=path) == (200, BODY)
        return time.monotonic() - begun

    with FaultProxy(echo.url, Rule("delay", path="late", seconds=0.3), latency=0.1) as proxy:
        assert seconds("/") >= 0.1
        assert seconds("/late") >= 0.4
    with FaultProxy(echo.url, rate=4 << 20) as proxy:
        assert seconds("/") >= 0.24


def test_an_outage_breaks_and_refuses_and_ends(echo):
    with FaultProxy(echo.url, Rule("outage", path="now", times=1, seconds=0.5)) as proxy:
        idle = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
        with pytest.raises(ConnectionError):
            ask(proxy, path="/now")
        with pytest.raises(ConnectionError):
            idle.recv(1)
        idle.close()
        with pytest.raises(ConnectionRefusedError):
            ask(proxy)
        time.sleep(0.7)
        assert ask(proxy) == (200, BODY)
        assert proxy.counts["outage"] == 1


def test_chance_is_seeded(echo):
    def faults(seed):
        with FaultProxy(echo.url, Rule("slow_down", chance=0.5), seed=seed) as proxy:
            for _ in range(20):
                ask(proxy)
            return [fault for _, _, fault in proxy.log]

    first = faults(1)
    assert 0 < first.count("slow_down") < 20
    assert faults(1) == first != faults(2)
