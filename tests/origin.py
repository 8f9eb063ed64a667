"""An HTTP origin on loopback that serves pictures and misbehaves in every way the fetcher must survive.

    with Origin() as origin:
        origin.url("/ok/1.jpg")      # a picture, different for every path
        origin.url("/status/404")

Several origins on several addresses of 127.0.0.0/8 are several hosts: Origin("127.0.0.2"). What /robots.txt answers is
`origin.robots`: None for 404, or a function that gets the handler. `tls` is a server's ssl.SSLContext.

Paths: /ok/NAME.jpg|png|gif|bmp|webp|tiff, /status/CODE, /flaky/N/NAME (503 for the first N requests), /sick/N/NAME (500
for the first N requests of all such paths),
/busy/SECONDS/NAME (429 with Retry-After once, then a picture), /drip (a byte every 0.2 s), /silent (accepts, never
answers), /endless, /truncated, /reset, /html, /empty, /gzip and /bomb (a Content-Encoding nobody asked for),
/declared/N (a Content-Length of N), /cut/NAME.jpg (a complete reply with half a picture), /slow/SECONDS/NAME.jpg,
/halves/SECONDS/NAME.jpg (the second half so much later),
/redirect/N (N hops to a picture), /loop, /goto?URL (302 to any URL), /file/NAME (from `files`), /later/SECONDS (429
always, with that Retry-After), /signed/NAME (302 to a picture, with `signature` in its URL), /tag/NAME?VALUE|VALUE
(X-Robots-Tag headers), /tagged_endless (opted out, and endless).
Lies about connections: /excess (more body than declared), /unasked (a second reply nobody asked for), /leaves (a whole
reply, then closes without notice), /hangs_up (closes before any reply), /garbage (no HTTP), /broken_chunk,
/long_status (of 5,000 digits).
Floods: /heads (header lines), /one_head (one line), /continue (interim replies), /trailers.
"""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import struct
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image


def picture(name: str, kind: str = "jpeg", side: int = 64) -> bytes:
    """A picture that is a function of its name."""
    seed = zlib.crc32(name.encode())
    block = Image.frombytes("RGB", (4, 4), struct.pack("<12I", *((seed * (k + 1)) & 0xFFFFFFFF for k in range(12))))
    out = io.BytesIO()
    block.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


class Origin:
    """Serves until the `with` block ends; counts requests by path, and the most served at the same time."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.robots: Callable[[Any], None] | None = None
        self.files: dict[str, bytes] = {}
        self.signature = ""
        self.requests: Counter[str] = Counter()  # robots.txt is counted apart
        self.robots_asked = 0
        self.connections = 0
        self.busy = 0
        self.busiest = 0
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []  # of the same requests
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.address, self.scheme = address, "https" if tls else "http"
        self._server = _Server((address, port), _Handler)
        self._server.origin, self._server.tls = self, tls
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def url(self, path: str) -> str:
        return f"{self.scheme}://{self.address}:{self.port}{path}"

    def asked(self, prefix: str) -> int:
        """Requests for paths that begin so."""
        return sum(count for path, count in self.requests.items() if path.startswith(prefix))

    def __enter__(self) -> Origin:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    origin: Origin
    tls: ssl.SSLContext | None

    def get_request(self) -> tuple[Any, Any]:
        connection, client = super().get_request()
        if self.tls is not None:  # the handshake is left to the connection's own thread
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, client

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are what these tests are about

    def process_request(self, request: Any, client_address: Any) -> None:
        self.origin.connections += 1
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        origin = self.server.origin
        path = unquote(self.path, "latin-1")
        with origin.lock:
            if path == "/robots.txt":
                origin.robots_asked += 1
            else:
                origin.requests[path] += 1
            origin.headers.append(dict(self.headers))
            origin.paths.append(path)
            origin.busy += 1
            origin.busiest = max(origin.busiest, origin.busy)
        try:
            if path == "/robots.txt":
                (origin.robots or _Handler.serve_unknown)(self)
                return
            words = path.lstrip("/").split("?")[0].split("/")
            getattr(self, f"serve_{words[0]}", self.serve_unknown)(path, *words[1:])
        finally:
            with origin.lock:
                origin.busy -= 1

    def reply(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def seen(self, path: str) -> int:
        return self.server.origin.requests[path]

    def wait(self, seconds: float) -> None:
        self.server.origin.closing.wait(seconds)

    def serve_unknown(self, path: str = "", *_: str) -> None:
        self.reply(b"no such path", 404)

    def serve_ok(self, path: str, *_: str) -> None:
        suffix = path.rsplit(".", 1)[-1]
        self.reply(picture(path, {"jpg": "jpeg"}.get(suffix, suffix)), Content_Type="image/jpeg")

    def serve_file(self, path: str, name: str) -> None:
        self.reply(self.server.origin.files[name])

    def serve_status(self, path: str, code: str) -> None:
        self.reply(b"sorry", int(code))

    def serve_flaky(self, path: str, failures: str, *_: str) -> None:
        failed = self.seen(path) <= int(failures)
        self.reply(b"" if failed else picture(path), 503 if failed else 200)

    def serve_sick(self, path: str, failures: str, *_: str) -> None:
        failed = self.server.origin.asked("/sick") <= int(failures)
        self.reply(b"" if failed else picture(path), 500 if failed else 200)

    def serve_busy(self, path: str, seconds: str, *_: str) -> None:
        if self.seen(path) == 1:
            self.reply(b"", 429, Retry_After=seconds)
        else:
            self.reply(picture(path))

    def serve_drip(self, path: str, *_: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.origin.closing.is_set():
            self.wfile.write(b"\xff")
            self.wfile.flush()
            self.wait(0.2)

    def serve_silent(self, path: str, *_: str) -> None:
        self.wait(60)
        self.close_connection = True

    def serve_slow(self, path: str, seconds: str, *_: str) -> None:
        self.wait(float(seconds))
        self.serve_ok(path)

    def serve_halves(self, path: str, seconds: str, *_: str) -> None:
        body = picture(path)
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100])
        self.wait(float(seconds))
        self.raw(body[100:])

    def serve_endless(self, path: str, *_: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"10000\r\n" + bytes(65536) + b"\r\n"
        while not self.server.origin.closing.is_set():
            self.wfile.write(piece)

    def serve_declared(self, path: str, length: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.close_connection = True

    def serve_truncated(self, path: str, *_: str) -> None:
        body = picture(path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def serve_cut(self, path: str, *_: str) -> None:
        body = picture(path)
        self.reply(body[: len(body) // 2])

    def serve_reset(self, path: str, *_: str) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def serve_html(self, path: str, *_: str) -> None:
        self.reply(b"<!DOCTYPE html><title>gone</title>", Content_Type="image/jpeg")

    def serve_empty(self, path: str, *_: str) -> None:
        self.reply(b"")

    def serve_gzip(self, path: str, *_: str) -> None:
        self.reply(gzip.compress(picture(path), mtime=0), Content_Encoding="gzip")

    def serve_named(self, path: str, encoding: str) -> None:
        self.reply(picture(path), Content_Encoding=encoding)  # which is not true

    def serve_gate(self, path: str, *_: str) -> None:
        if "seen=1" in self.headers.get("Cookie", ""):
            self.serve_ok(path + ".jpg")
        else:
            self.reply(b"", 302, Location=path, Set_Cookie="seen=1; Path=/")

    def serve_leave(self, path: str, *_: str) -> None:
        self.reply(b"", 302, Location=path.split("?", 1)[1], Set_Cookie="seen=1; Path=/")

    def serve_bomb(self, path: str, *_: str) -> None:
        self.reply(gzip.compress(bytes(50_000_000), 1, mtime=0), Content_Encoding="gzip")

    def serve_redirect(self, path: str, hops: str) -> None:
        left = int(hops)
        self.reply(b"", 302, Location=f"/redirect/{left - 1}" if left > 1 else "/ok/moved.jpg")

    def serve_later(self, path: str, seconds: str, *_: str) -> None:
        self.reply(b"", 429, Retry_After=seconds)

    def serve_tag(self, path: str, *_: str) -> None:
        self.send_response(200)
        for value in path.split("?", 1)[1].split("|"):
            self.send_header("X-Robots-Tag", value)
        body = picture(path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def serve_tagged_endless(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\nContent-Length: 1000000000\r\n\r\n")
        self.forever(bytes(65536))

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def forever(self, data: bytes) -> None:
        while not self.server.origin.closing.is_set():
            self.raw(data)

    def serve_excess(self, path: str, *_: str) -> None:
        body = picture(path)
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b%b" % (len(body), body, b"x" * 1000))

    def serve_unasked(self, path: str, *_: str) -> None:
        body = picture(path)
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self.raw(whole)
        self.wait(0.05)
        self.raw(whole.replace(body, bytes(len(body))))

    def serve_leaves(self, path: str, *_: str) -> None:
        self.serve_ok(path)
        self.close_connection = True

    def serve_hangs_up(self, path: str, *_: str) -> None:
        self.close_connection = True

    def serve_garbage(self, path: str, *_: str) -> None:
        self.raw(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
        self.close_connection = True

    def serve_long_status(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n")
        self.close_connection = True

    def serve_broken_chunk(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n")
        self.close_connection = True

    def serve_heads(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\n")
        self.forever(b"X-Flood: and again\r\n" * 100)

    def serve_one_head(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nX-Flood: ")
        self.forever(b"again" * 1000)

    def serve_continue(self, path: str, *_: str) -> None:
        self.forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    def serve_trailers(self, path: str, *_: str) -> None:
        self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Flood\r\n\r\n1\r\na\r\n0\r\n")
        self.forever(b"X-Flood: and again\r\n" * 100)

    def serve_loop(self, path: str, *_: str) -> None:
        self.reply(b"", 301, Location="/loop")

    def serve_signed(self, path: str, name: str) -> None:
        self.reply(b"", 302, Location=f"/ok/{name}?X-Amz-Signature={self.server.origin.signature}")

    def serve_goto(self, path: str, *_: str) -> None:
        self.reply(b"", 302, Location=path.split("?", 1)[1])


def unpacked(shared: Path, name: str, to: Path) -> Path:
    """The folder ../shared/data/NAME.tar.gz, unpacked."""
    with tarfile.open(shared / "data" / f"{name}.tar.gz") as tar:
        tar.extractall(to, filter="data")
    return to / name if (to / name).is_dir() else to
