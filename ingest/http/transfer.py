"""Transfers: libcurl handles, the loop that drives them, and their data. Pace is not decided here."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pycurl

from ingest.http.address import refusal
from ingest.http.headers import TooLarge, cookies, decoded, remember_cookie
from ingest.http.robots import LIMIT, opted_out
from ingest.record import Link, Reason

if TYPE_CHECKING:
    from ingest.http.config import FetchConfig
    from ingest.http.hosts import Task

ERROR_BODY = 64 << 10  # bytes of an error page worth reading to keep its connection
MAX_HEAD = 64 << 10  # bytes of all header lines of a response, interim responses and trailers included
BUFFER = 512 << 10  # bytes libcurl reads at once; one buffer for all transfers

_SUPPRESS_CONNECT_HEADERS = 265  # pycurl has no name for it

_spooled = itertools.count()


class Slot:
    """An easy handle, reused from task to task, and the data of its current transfer."""

    def __init__(self, config: FetchConfig, scratch: Path | None) -> None:
        self.config = config
        self.scratch = scratch
        self.task: Task | None = None
        self.curl = curl = pycurl.Curl()
        self.size = 0
        self.failure: str | None = None  # of this machine, no verdict; an exception cannot cross libcurl
        self._file: BinaryIO | None = None
        self._opened: list[socket.socket] = []  # libcurl works on duplicates of these
        self.encoding = ""  # the value of its Content-Encoding
        self._timeout = 0
        self._cookies = False
        self._pinned = False
        for option, value in (
            (pycurl.USERAGENT, config.user_agent),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS),
            (pycurl.PIPEWAIT, 1),  # one connection where HTTP/2 can share it
            (pycurl.PROXY, config.proxy),  # an environment's proxy would hide the address that is asked
            (pycurl.NOPROXY, "" if config.proxy else "*"),
            (_SUPPRESS_CONNECT_HEADERS, 1),  # a proxy's answer is not the origin's
            # Bodies that are encoded all the same are decoded here: libcurl fails if the header is false.
            (pycurl.HTTPHEADER, ["Accept: image/*, */*;q=0.5", "Accept-Encoding: identity"]),
            (pycurl.CONNECTTIMEOUT_MS, int(config.connect_timeout * 1000)),
            (pycurl.LOW_SPEED_LIMIT, config.low_speed),
            (pycurl.LOW_SPEED_TIME, config.low_speed_seconds),
            (pycurl.MAXFILESIZE_LARGE, config.max_bytes),
            (pycurl.BUFFERSIZE, BUFFER),
            # With an age, libcurl would look through all names for each connection: see Transfers.
            (pycurl.DNS_CACHE_TIMEOUT, -1),
            (pycurl.TCP_NODELAY, 1),
            (pycurl.NOSIGNAL, 1),
            (pycurl.OPENSOCKETFUNCTION, self._open_socket),
            (pycurl.HEADERFUNCTION, self._header),
            (pycurl.WRITEFUNCTION, self._write),
            *_certificates(),
        ):
            curl.setopt(option, value)

    def start(self, task: Task, seconds: float, pins: list[str]) -> None:
        """Prepare for `task`, which may take `seconds`. `pins`: addresses of names for libcurl."""
        self.task, self.status, self.head = task, 0, 0
        self.chunks: list[bytes] = []
        self.size = 0
        self.ended: tuple[Reason, str] | None = None  # why we ended the transfer
        self.refused = ""
        self.connected = False
        self.encoding = ""
        curl = self.curl
        curl.setopt(pycurl.URL, task.url)
        if jar := task.cookies.get(task.origin.host.name):
            curl.setopt(pycurl.COOKIE, cookies(jar).encode("latin-1"))
            self._cookies = True
        elif self._cookies:
            curl.unsetopt(pycurl.COOKIE)
            self._cookies = False
        timeout = max(1, int(1000 * seconds))
        if timeout != self._timeout:
            curl.setopt(pycurl.TIMEOUT_MS, timeout)
            self._timeout = timeout
        if pins or self._pinned:
            curl.setopt(pycurl.RESOLVE, pins)
            self._pinned = bool(pins)

    def end(self) -> None:
        """The transfer is over; its data is still here."""
        self.task = None
        self._close_opened()

    def body(self) -> bytes | Path:
        """The body; a file then belongs to the caller."""
        chunks, self.chunks = self.chunks, []
        if self._file is None:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        path = Path(self._file.name)
        self._file.close()
        self._file = None
        return path

    def decode(self) -> tuple[Reason | None, str]:
        """Undo the encoding of a complete body; returns why that failed, or (None, "")."""
        task = self.task
        assert task is not None
        if not self.encoding or self.encoding.lower() == "identity":
            return None, ""
        most = self.config.max_bytes if task.link is not None else LIMIT
        path = Path(self._file.name) if self._file is not None else None
        if self._file is not None:
            self._file.flush()
        try:
            body = decoded(path.read_bytes() if path is not None else b"".join(self.chunks), self.encoding, most)
        except TooLarge as error:
            return Reason.TOO_LARGE, str(error)
        except ValueError as error:
            return Reason.TRUNCATED_BODY, " ".join(str(error).split())[:200]
        self.discard()
        self.chunks = [body]
        if len(body) > self.config.in_memory and self.scratch is not None and task.link is not None:
            self._spool(task.link)
        return None, ""

    def discard(self) -> None:
        self.chunks = []
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None

    # --- called by libcurl ---

    def _open_socket(self, _purpose: int, address: pycurl.CurlSockAddr) -> socket.socket | int:
        """The one place where a connection can begin: whatever was resolved, redirected or cached before, this is the
        address that is connected to. With a proxy it is the proxy's, which then checks addresses."""
        ip, port = address.addr[:2]
        why = None if self.config.proxy else refusal(str(ip), int(port), self.config.allow_private)
        if why is not None:
            self.refused = why
            return pycurl.SOCKET_BAD
        try:
            opened = socket.socket(address.family, address.socktype, address.protocol)
        except OSError as error:
            self.failure = (
                f"no socket for a connection ({error.strerror}): lower --fetch.connections or raise ulimit -n"
            )
            return pycurl.SOCKET_BAD
        self.connected = True
        self._close_opened()  # sockets of addresses that did not answer: a name may have thousands
        self._opened.append(opened)
        return opened

    def _close_opened(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def _header(self, line: bytes) -> int | None:
        """None takes the line, 0 makes libcurl end the transfer."""
        self.head += len(line)
        if line.startswith(b"HTTP/"):
            words = line.split(None, 2)
            if len(words) < 2 or not re.fullmatch(rb"[0-9]{3}", words[1]):
                self.ended = Reason.CONNECT, "an answer without a status"
                return 0
            self.status = int(words[1])
            self.encoding = ""
        elif line[:17].lower() == b"content-encoding:":
            value = line[17:].decode("latin-1").strip()
            self.encoding = f"{self.encoding}, {value}" if self.encoding else value
        elif line[:11].lower() == b"set-cookie:" and 300 <= self.status < 400:
            task = self.task
            assert task is not None
            if task.link is not None:
                remember_cookie(task.cookies.setdefault(task.origin.host.name, {}), line[11:].decode("latin-1").strip())
        elif line[:13].lower() == b"x-robots-tag:" and 200 <= self.status < 300 and self.config.opt_out:
            assert self.task is not None
            found = opted_out(line[13:].decode("latin-1"), self.config.opt_out)
            if found and self.task.link is not None:
                self.ended = Reason.OPT_OUT, f"X-Robots-Tag: {found}"
                return 0
        if self.head > MAX_HEAD:
            self.ended = Reason.TOO_LARGE, f"more than {MAX_HEAD} bytes of headers"
            return 0
        return None

    def _write(self, piece: bytes) -> int | None:
        """None takes the piece, 0 makes libcurl end the transfer."""
        self.size += len(piece)
        if self.status >= 300:
            return None if self.size <= ERROR_BODY else 0
        task = self.task
        assert task is not None
        most = self.config.max_bytes if task.link is not None else LIMIT
        if self.size > most:
            if task.link is None:
                self.chunks.append(piece)  # only the beginning of a robots.txt is read
            self.ended = Reason.TOO_LARGE, f"more than {most} bytes"
            return 0
        self.chunks.append(piece)
        if self.size > self.config.in_memory and self.scratch is not None and task.link is not None:
            try:
                self._spool(task.link)
            except OSError as error:
                self.failure = f"{self.scratch}: cannot hold bodies ({error.strerror}): free space or set --scratch"
                return 0
        return None

    def _spool(self, link: Link) -> None:
        assert self.scratch is not None
        if self._file is None:
            self._file = (self.scratch / f"body-{link.row}-{next(_spooled)}").open("wb")
        self._file.writelines(self.chunks)
        self.chunks = []


def _certificates() -> Iterator[tuple[int, str]]:
    """This system's certificate store: libcurl inside a wheel looks where its builder's system has one. If there is a
    file, it alone: with a folder as well, libcurl would load it again for each connection, 20 ms of CPU."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile and os.path.isfile(paths.cafile):
        yield pycurl.CAINFO, paths.cafile
    elif paths.capath:
        yield pycurl.CAPATH, paths.capath


# --- all of them ---------------------------------------------------------------------------------------------------


class Transfers:
    """Up to `connections` transfers at once on one libcurl multi handle, which keeps connections, names and TLS
    sessions for all of them. Who starts one gets it back from `turn`, and then releases the slot.

    `pin` gives libcurl the addresses of a name; it keeps them until the next `pin`."""

    def __init__(self, config: FetchConfig, scratch: Path | None) -> None:
        self.config = config
        self.scratch = scratch
        self.active = 0
        self._alarm: float | None = None  # when libcurl wants to be called
        self._epoll = select.epoll()
        self._watched: set[int] = set()
        self._slots: dict[pycurl.Curl, Slot] = {}
        self._idle: list[Slot] = []
        self._pins: list[str] = []
        self._waker = os.eventfd(0, os.EFD_NONBLOCK)
        self._epoll.register(self._waker, select.EPOLLIN)
        self._multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, config.connections)
        multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, config.per_host)
        multi.setopt(pycurl.M_MAXCONNECTS, config.connections)
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._set_alarm)

    @property
    def room(self) -> bool:
        return self.active < self.config.connections

    def pin(self, origin: str, addresses: tuple[str, ...]) -> None:
        """Where the next connections to an origin go; without addresses libcurl looks them up itself."""
        scheme, _, name = origin.partition("://")
        if "[" in name:
            return
        name = name if ":" in name else f"{name}:{443 if scheme == 'https' else 80}"
        shown = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
        self._pins.append(f"{name}:{shown}" if addresses else f"-{name}")

    def wake(self) -> None:
        """Make `turn` return soon; may be called by another thread."""
        os.eventfd_write(self._waker, 1)

    def start(self, task: Task, seconds: float) -> None:
        if self._idle:
            slot = self._idle.pop()
        else:
            slot = Slot(self.config, self.scratch)
            self._slots[slot.curl] = slot
        self.active += 1
        slot.start(task, seconds, self._pins)
        self._multi.add_handle(slot.curl)

    def turn(self, wait: float) -> Iterator[tuple[Slot, int, str]]:
        """Wait at most `wait` seconds for a socket or libcurl's timer, and let libcurl work. Yields the transfers that
        have ended, with libcurl's error and message."""
        if self._alarm is not None:
            wait = min(wait, self._alarm - time.monotonic())
        if self._pins:  # all transfers of one turn get them: libcurl may begin with any of these
            self._pins = []
        action = self._multi.socket_action
        for fd, mask in self._epoll.poll(max(0.0, wait)):
            if fd == self._waker:
                os.eventfd_read(fd)
                continue
            bits = pycurl.CSELECT_IN if mask & ~select.EPOLLOUT else 0
            action(fd, bits | pycurl.CSELECT_OUT if mask & select.EPOLLOUT else bits)
        if self._alarm is not None and self._alarm <= time.monotonic():
            self._alarm = None
            action(pycurl.SOCKET_TIMEOUT, 0)
        left = 1
        while left:
            left, done, failed = self._multi.info_read()
            for curl in done:
                yield self._slots[curl], 0, ""
            for curl, error, message in failed:
                yield self._slots[curl], error, message

    def release(self, slot: Slot) -> None:
        """Free the slot; data that was not taken is dropped."""
        self._multi.remove_handle(slot.curl)
        slot.end()
        slot.discard()
        self.active -= 1
        self._idle.append(slot)

    def drop(self) -> None:
        """Abort all transfers."""
        for slot in self._slots.values():
            if slot.task is not None:
                self.release(slot)

    def close(self) -> None:
        self.drop()
        for slot in self._slots.values():
            slot.curl.close()
        self._multi.close()
        self._epoll.close()
        os.close(self._waker)

    def _watch(self, event: int, fd: int, _multi: object, _data: object) -> None:
        """libcurl's callback: the sockets it waits for."""
        if event == pycurl.POLL_REMOVE:
            self._watched.discard(fd)
            with contextlib.suppress(OSError):  # it may be closed already
                self._epoll.unregister(fd)
            return
        wanted = (select.EPOLLIN if event & pycurl.POLL_IN else 0) | (select.EPOLLOUT if event & pycurl.POLL_OUT else 0)
        if fd in self._watched:
            self._epoll.modify(fd, wanted)
        else:
            self._watched.add(fd)
            self._epoll.register(fd, wanted)

    def _set_alarm(self, ms: int) -> None:
        self._alarm = None if ms < 0 else time.monotonic() + ms / 1000
