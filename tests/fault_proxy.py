"""A proxy in front of an S3 endpoint, or any HTTP server, that does to requests what networks and stores do to them.

    with FaultProxy(endpoint, Rule("slow_down", method="PUT", path="/commits/", nth=(1, 2)), seed=7) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        ...
    assert proxy.counts["slow_down"] == 2

The first rule that fires decides what happens to a request:

slow_down     503 with S3's SlowDown document; not forwarded
reset         the connection is reset before the request is forwarded
reset_upload  ... after `after` bytes of its body were forwarded (half of it, if it is shorter)
reset_reply   ... after `after` bytes of the reply's body were passed on
cut           the connection is closed in good order after `after` bytes of the reply's body, though more was promised
lost_reply    the request is forwarded and applied, its reply is dropped, the connection reset
delay         the reply begins `seconds` late
outage        this and every other connection is reset, and new ones are refused, for `seconds`

`latency` (seconds to the first byte of a reply) and `rate` (bytes/s of a connection) hold for all requests. Requests
and replies are streamed, never held; Host and every other header are passed on as sent, so signatures stay valid. Runs
in a thread of its own; or as a process: python tests/fault_proxy.py http://127.0.0.1:9000 --port 9001 --latency 0.05.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

PIECE = 256 << 10
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>proxy</RequestId></Error>"
)
FAULTS = ("slow_down", "reset", "reset_upload", "reset_reply", "cut", "lost_reply", "delay", "outage")


@dataclass(frozen=True)
class Rule:
    """A fault, and which requests it meets: by method (a pattern, such as PUT|POST), by a pattern searched in path and
    query, then by the number of those requests (`nth`, from 1) or by chance; at most `times` of them."""

    fault: str
    method: str = ""
    path: str = ""
    nth: tuple[int, ...] = ()
    chance: float = 1.0
    times: int | None = None
    after: int = 0  # bytes
    seconds: float = 0.0

    def __post_init__(self) -> None:
        assert self.fault in FAULTS, f"{self.fault} is none of {FAULTS}"


@dataclass
class _Head:
    """The head of a request or reply, and how long its body is."""

    raw: bytes
    first: list[bytes]  # the three words of its first line
    headers: dict[bytes, bytes]

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where it is chunked or ends with the connection."""
        return int(self.headers[b"content-length"]) if b"content-length" in self.headers else None

    @property
    def chunked(self) -> bool:
        return b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()

    @property
    def closes(self) -> bool:
        said = self.headers.get(b"connection", b"").lower()
        return b"close" in said or (b"HTTP/1.0" in self.first and b"keep-alive" not in said)


class _Broken(Exception):
    """The connection to the client is to be reset."""


class FaultProxy:
    """Serves until its `with` block ends."""

    def __init__(
        self, upstream: str, *rules: Rule, seed: int = 0, port: int = 0, latency: float = 0.0, rate: float = 0.0
    ) -> None:
        parts = urlsplit(upstream)
        assert parts.scheme == "http", f"{upstream}: this proxy speaks plain http"
        assert parts.hostname is not None
        self.upstream = (parts.hostname, parts.port or 80)
        self.latency = latency
        self.rate = rate
        self.port = port
        self._rules = rules
        self._met: Counter[int] = Counter()  # requests that each rule has matched
        self._fired: Counter[int] = Counter()
        self._random = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._log: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="fault-proxy", daemon=True)

    # --- what tests call ---

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def counts(self) -> Counter[str]:
        """Requests ("requests") and faults (by name) so far; bytes of bodies passed on ("sent_up", "sent_down")."""
        with self._lock:
            return self._counts.copy()

    @property
    def log(self) -> list[tuple[str, str, str]]:
        """(method, path, fault or "") of every request, in the order in which they came."""
        with self._lock:
            return self._log.copy()

    def use(self, *rules: Rule) -> None:
        """From now on these rules; their counts begin anew."""
        with self._lock:
            self._rules = rules
            self._met.clear()
            self._fired.clear()

    def outage(self, seconds: float) -> None:
        """Break all connections now and refuse new ones for a time; returns at once."""
        self._loop.call_soon_threadsafe(lambda: self._hold(self._loop.create_task(self._outage(seconds))))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        assert self._ready.wait(30), "the fault proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # --- the thread ---

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        await self._listen()
        self._ready.set()
        await self._stop.wait()
        await self._refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, limit=2 * PIECE, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def _hold(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _outage(self, seconds: float) -> None:
        if self._server is None:
            return  # one is under way
        await self._refuse()
        await asyncio.sleep(seconds)
        await self._listen()

    async def _refuse(self) -> None:
        """No new connections, and the end of those there are."""
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            # Those accepted just now take their place first: asyncio leaks them when their server is closed meanwhile.
            await asyncio.sleep(0.01)
            server.close()
        self._break_all()

    def _break_all(self) -> None:
        for writer in list(self._clients):
            _reset(writer)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        self._hold(self._loop.create_task(self._accept(reader, writer)))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = _Upstream(self.upstream)
        try:
            while await self._request(reader, writer, upstream):
                pass
        except _Broken:
            _reset(writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # either side hung up
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            upstream.close()
            self._clients.discard(writer)
            writer.close()

    def _choose(self, method: str, path: str) -> Rule | None:
        with self._lock:
            chosen = None
            for at, rule in enumerate(self._rules):
                if (rule.method and not re.fullmatch(rule.method, method)) or not re.search(rule.path, path):
                    continue
                self._met[at] += 1
                spent = rule.times is not None and self._fired[at] >= rule.times
                meant = self._met[at] in rule.nth if rule.nth else self._random.random() < rule.chance
                if chosen is None and meant and not spent:
                    self._fired[at] += 1
                    chosen = rule
            self._counts["requests"] += 1
            self._log.append((method, path, chosen.fault if chosen else ""))
            if chosen is not None:
                self._counts[chosen.fault] += 1
        return chosen

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: _Upstream) -> bool:
        """One request and its reply; whether the connection can take another."""
        head = await _head(reader)
        method, path = head.first[0].decode(), head.first[1].decode("latin-1")
        rule = self._choose(method, path)
        fault = rule.fault if rule else ""
        if fault == "slow_down":
            await self._slow_down(reader, writer)
            return False
        if fault == "reset":
            raise _Broken
        if rule is not None and fault == "outage":
            self._hold(self._loop.create_task(self._outage(rule.seconds)))
            raise _Broken
        begun = time.monotonic()
        await upstream.send(head.raw)
        upload = self._loop.create_task(self._upload(head, rule, reader, upstream))
        try:
            reply = await upstream.reply(upload)
            asked_first = False
            while reply.first[1].startswith(b"1"):  # 100 Continue
                asked_first = True
                writer.write(reply.raw)
                reply = await upstream.reply(upload)
            wait = self.latency + (rule.seconds if rule and fault == "delay" else 0.0)
            await asyncio.sleep(max(0.0, begun + wait - time.monotonic()))
            await self._reply(method, reply, rule, writer, upstream)
            if not upload.done() and (asked_first or b"expect" not in head.headers):
                await asyncio.wait({upload}, timeout=1)
            whole = upload.done() and upload.exception() is None  # else the server refused it halfway
        finally:
            upload.cancel()
        if not whole:
            await _linger(reader, writer)
        endless = reply.length is None and not reply.chunked and not _empty(method, reply)
        if reply.closes or endless or not whole:
            upstream.close()
            return False
        return not head.closes

    async def _slow_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(SLOW_DOWN), SLOW_DOWN)
        )
        await _linger(reader, writer)

    async def _upload(self, head: _Head, rule: Rule | None, reader: asyncio.StreamReader, upstream: _Upstream) -> None:
        limit = None
        if rule is not None and rule.fault == "reset_upload":
            limit = min(rule.after, (head.length or 0) // 2)
        pace = _Pace(self.rate)
        async for piece in _body(head, reader, request=True):
            if limit is not None and pace.sent + len(piece) > limit:
                await upstream.send(piece[: limit - pace.sent])
                raise _Broken
            await pace.before(len(piece))
            await upstream.send(piece)
            self._count("sent_up", len(piece))
        if limit is not None:
            raise _Broken

    async def _reply(
        self, method: str, reply: _Head, rule: Rule | None, writer: asyncio.StreamWriter, upstream: _Upstream
    ) -> None:
        fault = rule.fault if rule else ""
        if fault != "lost_reply":
            writer.write(reply.raw)
        limit = None
        if rule is not None and fault in ("reset_reply", "cut"):
            limit = min(rule.after, reply.length // 2) if reply.length is not None else rule.after
        pace = _Pace(self.rate)
        if not _empty(method, reply):
            async for piece in _body(reply, upstream.reader, request=False):
                if fault == "lost_reply":
                    continue
                if limit is not None and pace.sent + len(piece) > limit:
                    writer.write(piece[: limit - pace.sent])
                    break
                await pace.before(len(piece))
                writer.write(piece)
                await writer.drain()
                self._count("sent_down", len(piece))
        await writer.drain()
        if fault == "cut":
            upstream.close()
            raise EOFError
        if fault in ("lost_reply", "reset_reply"):
            upstream.close()
            if fault == "reset_reply":
                await asyncio.sleep(0.01)  # a reset overtakes what the client has not read yet
            raise _Broken

    def _count(self, what: str, size: int) -> None:
        with self._lock:
            self._counts[what] += size


class _Upstream:
    """The connection to the server behind; opened when needed, kept while the server keeps it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, piece: bytes) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(*self.address, limit=2 * PIECE)
        self.writer.write(piece)
        await self.writer.drain()

    async def reply(self, upload: asyncio.Task[None]) -> _Head:
        """The next head from the server; raises what the upload ended with, if that comes first."""
        head = asyncio.ensure_future(_head(self.reader))
        try:
            if not upload.done():
                await asyncio.wait({head, upload}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done() and upload.exception() is not None and not head.done():
                raise upload.exception() or AssertionError
            return await head
        finally:
            head.cancel()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None


class _Pace:
    """Holds a body to a number of bytes a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.sent = 0
        self.begun = time.monotonic()

    async def before(self, size: int) -> None:
        self.sent += size
        if self.rate:
            await asyncio.sleep(max(0.0, self.begun + self.sent / self.rate - time.monotonic()))


async def _head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw[:-4].split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    return _Head(raw, first.split(b" ", 2), headers)


def _empty(method: str, reply: _Head) -> bool:
    return method == "HEAD" or reply.first[1] in (b"204", b"304")


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let a client finish what it is sending: closing at once could take the reply with it."""
    await writer.drain()
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while await reader.read(PIECE):
                pass


async def _body(head: _Head, reader: asyncio.StreamReader, request: bool) -> AsyncIterator[bytes]:
    """The body as it comes, chunk framing included."""
    if head.chunked:
        size = None
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line
            left = size + 2
            while left:
                piece = await reader.read(min(left, PIECE))
                if not piece:
                    raise EOFError
                left -= len(piece)
                yield piece
        return
    if head.length is None and request:
        return
    left = head.length
    while left is None or left:
        piece = await reader.read(PIECE if left is None else min(left, PIECE))
        if not piece:
            if left is None:
                return
            raise EOFError
        left = left - len(piece) if left is not None else None
        yield piece


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description="A proxy with latency and a rate a connection; ends with Ctrl-C.")
    parser.add_argument("upstream")
    for name, kind in (("port", int), ("latency", float), ("rate", float)):
        parser.add_argument(f"--{name}", type=kind, default=0)
    args = parser.parse_args()
    with FaultProxy(args.upstream, port=args.port, latency=args.latency, rate=args.rate) as proxy:
        print(proxy.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
