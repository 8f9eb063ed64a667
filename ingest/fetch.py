"""Links -> bytes over HTTP: bounded, polite, and never into a private network.

One libcurl multi handle a process: keep-alive connections, one DNS cache, as many transfers at once as `connections`
and `per_host` allow, results in the order in which they complete. Every transfer ends: by its bytes, its deadline, its
byte cap, or a Reason. The address that is really connected to is checked at the moment of connecting, so neither a
redirect nor a name that resolves to a private address gets past it.
"""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import pycurl

from ingest.address import networks, refusal
from ingest.hosts import HostLoad, Leases
from ingest.record import Event, Fetched, Link, Reason
from ingest.source import check_url, quote

AGENT = "xtra-pretrain/0.1"
LOOKAHEAD = 4  # links held per connection, so that a busy host does not idle the others
ERROR_BODY = 64 << 10  # bytes of an error page worth reading to keep its connection
TICK = 0.25  # seconds between looks at `stop`


@dataclass(frozen=True)
class FetchConfig:
    """How to ask. Times in seconds, sizes in bytes."""

    allow_private: tuple[str, ...] = ()  # addresses or networks that may be asked although they are not public
    per_host: int = 8  # transfers at once to one host name
    connections: int = 128  # transfers at once in all
    deadline: float = 60.0  # for one link with its redirects, retries and waits, from its first request on
    connect_timeout: float = 10.0
    low_speed: int = 1000  # bytes/s; slower than this for low_speed_seconds is a timeout
    low_speed_seconds: int = 15
    max_bytes: int = 32 << 20
    retries: int = 2
    backoff: float = 1.0  # before the first retry; doubles, with jitter
    redirects: int = 5
    contact: str = ""  # an address or page where the asked can reach you; part of the user agent
    in_memory: int = 1 << 20  # a larger body goes to a file on scratch

    def __post_init__(self) -> None:
        for name in ("per_host", "connections", "deadline", "connect_timeout", "max_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"fetch.{name} is {getattr(self, name)}: it must be more than 0")
        for name in ("retries", "redirects", "backoff", "low_speed", "low_speed_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"fetch.{name} is {getattr(self, name)}: it must be 0 or more")
        if not self.contact.isprintable() or not self.contact.isascii():
            raise ValueError(f"fetch.contact is {self.contact!r}: use one line of plain ASCII")
        networks(self.allow_private)

    @property
    def user_agent(self) -> str:
        return f"{AGENT} (+{self.contact})" if self.contact else AGENT


def fetch(
    links: Iterable[Link],
    config: FetchConfig,
    scratch: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Fetched]:
    """One result a link, as they complete. Large bodies are files under `scratch` (without it: all in memory), and
    then belong to the caller. `stop` returning True ends the iteration early; what was in flight is dropped."""
    fetcher = Fetcher(config, scratch)
    try:
        yield from (fetched for fetched in fetcher.run(links, stop) if fetched is not None)
    finally:
        fetcher.close()


# --- one transfer --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Task:
    """A link on its way."""

    link: Link
    url: str
    host: str
    started: float = 0.0  # monotonic; 0 before the first request
    attempts: int = 0
    hops: int = 0


class _Slot:
    """An easy handle, reused for one task after the other, and what the current transfer has brought."""

    def __init__(self, config: FetchConfig, scratch: Path | None) -> None:
        self.config = config
        self.scratch = scratch
        self.task: _Task | None = None
        self.curl = curl = pycurl.Curl()
        self._file: BinaryIO | None = None
        self._opened: list[socket.socket] = []  # libcurl works on duplicates of these
        for option, value in (
            (pycurl.USERAGENT, config.user_agent),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, ""),  # an environment's proxy would hide the address that is asked
            (pycurl.NOPROXY, "*"),
            (pycurl.ACCEPT_ENCODING, "identity"),  # and undo what a server encodes nevertheless
            (pycurl.HTTPHEADER, ["Accept: image/*, */*;q=0.5"]),
            (pycurl.CONNECTTIMEOUT_MS, int(config.connect_timeout * 1000)),
            (pycurl.LOW_SPEED_LIMIT, config.low_speed),
            (pycurl.LOW_SPEED_TIME, config.low_speed_seconds),
            (pycurl.MAXFILESIZE_LARGE, config.max_bytes),
            (pycurl.BUFFERSIZE, 256 << 10),
            (pycurl.DNS_CACHE_TIMEOUT, 600),
            (pycurl.TCP_NODELAY, 1),
            (pycurl.NOSIGNAL, 1),
            (pycurl.OPENSOCKETFUNCTION, self._open_socket),
            (pycurl.HEADERFUNCTION, self._header),
            (pycurl.WRITEFUNCTION, self._write),
            *_certificates(),
        ):
            curl.setopt(option, value)

    def start(self, task: _Task, now: float) -> None:
        self.task, self.blocked, self.status = task, "", 0
        self.chunks: list[bytes] = []
        self.size, self.too_large = 0, False
        self.failure: str | None = None  # of this machine, no verdict; an exception cannot cross libcurl
        self.curl.setopt(pycurl.URL, task.url)
        self.curl.setopt(pycurl.TIMEOUT_MS, max(1, int(1000 * (task.started + self.config.deadline - now))))

    def end(self) -> None:
        self.task = None
        while self._opened:
            self._opened.pop().close()

    def body(self) -> bytes | Path:
        """What came; a file then belongs to the caller."""
        if self._file is None:
            return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        path = Path(self._file.name)
        self._file.close()
        self._file = None
        return path

    def discard(self) -> None:
        self.chunks = []
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink()
            self._file = None

    def _open_socket(self, _purpose: int, address: pycurl.CurlSockAddr) -> socket.socket | int:
        ip, port = address.addr[:2]
        why = refusal(str(ip), int(port), self.config.allow_private)
        if why is not None:
            self.blocked = why
            return pycurl.SOCKET_BAD
        try:
            opened = socket.socket(address.family, address.socktype, address.protocol)
        except OSError as error:
            self.failure = (
                f"no socket for a connection ({error.strerror}): lower --fetch.connections or raise ulimit -n"
            )
            return pycurl.SOCKET_BAD
        self._opened.append(opened)
        return opened

    def _header(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            words = line.split(None, 2)
            self.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0

    def _write(self, piece: bytes) -> int | None:
        """None takes the piece, 0 makes libcurl end the transfer."""
        self.size += len(piece)
        if self.status >= 300:
            return None if self.size <= ERROR_BODY else 0
        if self.size > self.config.max_bytes:
            self.too_large = True
            return 0
        self.chunks.append(piece)
        if self._file is not None or (self.scratch is not None and self.size > self.config.in_memory):
            try:
                self._spool()
            except OSError as error:
                self.failure = f"{self.scratch}: cannot hold bodies ({error.strerror}): free space or set --scratch"
                return 0
        return None

    def _spool(self) -> None:
        if self._file is None:
            assert self.task is not None
            assert self.scratch is not None
            self._file = (self.scratch / f"body-{self.task.link.row}").open("wb")
        self._file.writelines(self.chunks)
        self.chunks = []


def _certificates() -> Iterator[tuple[int, str]]:
    """This system's certificate store: libcurl inside a wheel looks where its builder's system has one."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        yield pycurl.CAINFO, paths.cafile
    if paths.capath:
        yield pycurl.CAPATH, paths.capath


_RETRY_AFTER: int = getattr(pycurl, "RETRY_AFTER")  # noqa: B009 its stubs do not know it yet

_BY_ERROR = {
    Reason.DNS: (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY),
    Reason.TIMEOUT: (pycurl.E_OPERATION_TIMEDOUT,),
    Reason.BAD_URL: (pycurl.E_URL_MALFORMAT, pycurl.E_UNSUPPORTED_PROTOCOL),
    Reason.TLS: (
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_INVALIDCERTSTATUS,
        pycurl.E_SSL_SHUTDOWN_FAILED,
        pycurl.E_SSL_ENGINE_INITFAILED,
    ),
    Reason.TRUNCATED_BODY: (pycurl.E_PARTIAL_FILE, pycurl.E_BAD_CONTENT_ENCODING),
    Reason.TOO_LARGE: (pycurl.E_FILESIZE_EXCEEDED,),
}
_REASON_OF = {code: reason for reason, codes in _BY_ERROR.items() for code in codes}


def reason_of_status(status: int) -> Reason:
    """The reason of a final HTTP status that is not a success."""
    if status == 429:
        return Reason.HTTP_429
    if status == 408:
        return Reason.TIMEOUT
    if status == 404:
        return Reason.HTTP_404
    if status == 410:
        return Reason.HTTP_410
    return Reason.HTTP_5XX if status >= 500 else Reason.HTTP_4XX


def _reason(slot: _Slot, error: int, message: str) -> tuple[Reason | None, str]:
    """Why a transfer that is not a redirect gave no body; (None, "") when it did."""
    if slot.status >= 300:
        return reason_of_status(slot.status), f"status {slot.status}"
    if error == 0:
        return None, ""
    if slot.too_large:
        return Reason.TOO_LARGE, f"more than {slot.config.max_bytes} bytes"
    if slot.blocked and error == pycurl.E_COULDNT_CONNECT:
        return Reason.BLOCKED_ADDRESS, slot.blocked
    broken = Reason.TRUNCATED_BODY if slot.size else Reason.CONNECT
    return _REASON_OF.get(error, broken), " ".join(f"curl {error}: {message}".split())[:200]


# --- the loop ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Host:
    """The transfers of one host name."""

    active: int = 0
    waiting: deque[_Task] = field(default_factory=deque)
    listed: bool = False  # in _Loop.ready


def ignore(_event: Event) -> None:
    """Nobody wants to know."""


class Fetcher:
    """Fetches for as long as its process lives: connections, DNS, TLS sessions and what is known of hosts stay.

    `leases` is where several processes share hosts; without it this process has them to itself. `tell` hears of what
    people will want to know afterwards.
    """

    def __init__(
        self,
        config: FetchConfig,
        scratch: Path | None = None,
        leases: Leases | None = None,
        tell: Callable[[Event], None] = ignore,
    ) -> None:
        self.config = config
        self.leases = leases
        self.tell = tell
        self._hosts: dict[str, _Host] = {}
        self.ready: deque[str] = deque()  # hosts with a task to start and room to start it
        self.later: list[tuple[float, int, _Task]] = []  # heap of tasks that wait for their next attempt
        self.held = 0  # tasks that have not ended
        self.alarm: float | None = None  # when libcurl wants to be called
        self.selector = selectors.DefaultSelector()
        self.multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, config.connections)
        multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, config.per_host)
        multi.setopt(pycurl.M_MAXCONNECTS, config.connections)
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._set_alarm)
        self.slots = [_Slot(config, scratch) for _ in range(config.connections)]
        self.idle = list(self.slots)
        self.slot_of = {slot.curl: slot for slot in self.slots}

    def close(self) -> None:
        for slot in self.slots:
            if slot.task is not None:
                self.multi.remove_handle(slot.curl)
            slot.end()
            slot.discard()
            slot.curl.close()
        self.multi.close()
        self.selector.close()

    def hosts(self) -> list[HostLoad]:
        """What is known of the hosts that have links now, for a live table."""
        return [HostLoad(name, host.active, len(host.waiting), 0, 0, 0, 0.0, 0.0) for name, host in self._hosts.items()]

    def paused(self) -> str:
        """Why nothing new is started, in one line; empty when all is well."""
        return ""

    def run(self, links: Iterable[Link | None], stop: Callable[[], bool] = lambda: False) -> Iterator[Fetched | None]:
        """One result a link, as they complete. A None among the links says: none just now, ask again soon. A None among
        the results comes about every TICK when nothing ends, so that the caller can look after other things."""
        source = iter(links)
        more = True
        quiet_since = time.monotonic()
        while (more or self.held) and not stop():
            while more and self.held < LOOKAHEAD * self.config.connections:
                try:
                    link = next(source)
                except StopIteration:
                    more = False
                    break
                if link is None:
                    break
                self.held += 1
                why = check_url(link.url)
                if why is None:
                    self._queue(_Task(link, link.url, _host(link.url)))
                else:
                    self.held -= 1
                    yield _fetched(_Task(link, link.url, ""), None, Reason.BAD_URL, why, 0)
            now = time.monotonic()
            while self.later and self.later[0][0] <= now:
                self._queue(heapq.heappop(self.later)[2])
            self._start(now)
            self._turn()
            for fetched in self._finished():
                quiet_since = now
                yield fetched
            if now - quiet_since >= TICK:
                quiet_since = now
                yield None

    def _queue(self, task: _Task) -> None:
        host = self._hosts.setdefault(task.host, _Host())
        host.waiting.append(task)
        self._list(task.host, host)

    def _list(self, name: str, host: _Host) -> None:
        if host.waiting and host.active < self.config.per_host and not host.listed:
            host.listed = True
            self.ready.append(name)

    def _start(self, now: float) -> None:
        while self.ready and self.idle:
            name = self.ready.popleft()
            host = self._hosts[name]
            host.listed = False
            task = host.waiting.popleft()
            host.active += 1
            self._list(name, host)
            task.started = task.started or now
            slot = self.idle.pop()
            slot.start(task, now)
            self.multi.add_handle(slot.curl)

    def _watch(self, event: int, fd: int, _multi: object, _data: object) -> None:
        if event == pycurl.POLL_REMOVE:
            self.selector.unregister(fd)
            return
        wanted = (selectors.EVENT_READ if event & pycurl.POLL_IN else 0) | (
            selectors.EVENT_WRITE if event & pycurl.POLL_OUT else 0
        )
        if fd in self.selector.get_map():
            self.selector.modify(fd, wanted)
        else:
            self.selector.register(fd, wanted)

    def _set_alarm(self, ms: int) -> None:
        self.alarm = None if ms < 0 else time.monotonic() + ms / 1000

    def _turn(self) -> None:
        """Wait until a socket, libcurl's timer, a retry or `stop` is due, and let libcurl work."""
        now = time.monotonic()
        due = [t for t in (self.alarm, self.later[0][0] if self.later else None) if t is not None]
        wait = max(0.0, min([TICK, *(t - now for t in due)]))
        for key, mask in self.selector.select(wait):
            bits = (pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0) | (
                pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            )
            self.multi.socket_action(key.fd, bits)
        if self.alarm is not None and self.alarm <= time.monotonic():
            self.alarm = None
            self.multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def _finished(self) -> Iterator[Fetched]:
        left = 1
        while left:
            left, done, failed = self.multi.info_read()
            for curl in done:
                yield from self._end(self.slot_of[curl], 0, "")
            for curl, error, message in failed:
                yield from self._end(self.slot_of[curl], error, message)

    def _end(self, slot: _Slot, error: int, message: str) -> Iterator[Fetched]:
        """Free the slot; then redirect, retry, or give the result."""
        task = slot.task
        assert task is not None
        target = slot.curl.getinfo_raw(pycurl.REDIRECT_URL) if 300 <= slot.status < 400 else None
        pause = slot.curl.getinfo(_RETRY_AFTER) if slot.status in (429, 503) else 0
        self.multi.remove_handle(slot.curl)
        slot.end()
        if slot.failure is not None:
            raise ValueError(slot.failure)
        self.idle.append(slot)
        host = self._hosts[task.host]
        host.active -= 1
        self._list(task.host, host)
        if not host.active and not host.waiting:
            del self._hosts[task.host]

        if target:
            slot.discard()
            yield from self._redirect(task, quote(target.decode("utf-8", "surrogateescape")), slot.status)
            return
        task.attempts += 1
        reason, detail = _reason(slot, error, message)
        if reason is None:
            self.held -= 1
            yield _fetched(task, slot.body(), None, "", slot.status)
            return
        slot.discard()
        if reason.retryable and task.attempts <= self.config.retries:
            wait = max(pause, self.config.backoff * 2 ** (task.attempts - 1) * random.uniform(0.5, 1.5))
            due = time.monotonic() + wait
            if due < task.started + self.config.deadline:
                task.url, task.host, task.hops = task.link.url, _host(task.link.url), 0
                heapq.heappush(self.later, (due, task.link.row, task))
                return
        self.held -= 1
        yield _fetched(task, None, reason, detail, slot.status)

    def _redirect(self, task: _Task, target: str, status: int) -> Iterator[Fetched]:
        why = check_url(target)
        task.hops += 1
        if why is None and task.hops <= self.config.redirects:
            task.url, task.host = target, _host(target)
            self._queue(task)
            return
        self.held -= 1
        task.attempts += 1
        if why is not None:
            yield _fetched(task, None, Reason.BAD_URL, f"redirect to {why}", status)
        else:
            yield _fetched(task, None, Reason.TOO_MANY_REDIRECTS, f"more than {self.config.redirects}", status)


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _fetched(task: _Task, body: bytes | Path | None, reason: Reason | None, detail: str, status: int) -> Fetched:
    ms = round(1000 * (time.monotonic() - task.started)) if task.started else 0
    return Fetched(task.link, body, reason, detail, status, task.url, task.attempts, ms, time.time())
