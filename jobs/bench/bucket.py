"""A read-only S3 and HTTP file server over a folder, cheap in CPU, that can simulate a distant store.

    python -m jobs.bench.bucket FOLDER --latency 0.05 --rate 60e6     prints {"endpoint": "http://127.0.0.1:41234", ...}
    with serving(folder) as bucket: bucket.url("set/shards/000000.tar"), bucket.counts()

A folder directly under FOLDER is a bucket; a file below it is an object. GET (whole, or one Range: 206), HEAD and
ListObjectsV2 are answered; signatures and presigned URLs are accepted unchecked. One process, one thread per
connection: after the header, a body is one `sendfile`, which blocks in the kernel without the interpreter lock, so the
server does not slow the client on the other core. `/.counts` returns what was sent since the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import stat
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from jobs.bench.rounds import parsed, served

KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
REGION = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}  # SDKs read one or the other
PIECE_S = 0.004  # bytes sent at once, in seconds of the connection's rate
PAGE = 1000  # names in one listing
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@dataclass(frozen=True)
class Counts:
    """What was served since the start."""

    requests: int
    bytes: int  # of bodies
    connections: int
    cpu: float  # CPU seconds of the server process

    def since(self, earlier: Counts) -> Counts:
        return Counts(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Answer:
    """A reply's status and body: bytes, or a range of an open file."""

    status: int
    body: bytes = b""
    kind: str = "application/xml"
    file: int = -1
    offset: int = 0
    length: int = 0
    headers: str = ""


class Bucket:
    """The folder, its simulated distance, and what was sent. Shared by all connections."""

    def __init__(self, root: Path, latency: float = 0, rate: float = 0) -> None:
        self.root = root.resolve()
        self.latency, self.rate = latency, rate  # seconds to the first byte; bytes/s per connection, 0: unlimited
        self._lock = threading.Lock()
        self._requests = self._bytes = self._connections = 0

    def connected(self) -> None:
        with self._lock:
            self._connections += 1

    def sent(self, length: int) -> None:
        with self._lock:
            self._requests += 1
            self._bytes += length

    def counts(self) -> Counts:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with self._lock:
            return Counts(self._requests, self._bytes, self._connections, used.ru_utime + used.ru_stime)

    def answer(self, method: str, target: str, headers: dict[str, str]) -> Answer:
        """The reply to a request; the caller closes `file`."""
        parts = urlsplit(target)
        path, query = unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)
        if method not in ("GET", "HEAD"):
            return _error(405, "MethodNotAllowed", path)
        if path == ".counts":
            return Answer(200, json.dumps(self.counts().__dict__).encode(), "application/json")
        if ".." in path.split("/"):
            return _error(400, "InvalidURI", path)
        if "/" not in path:
            return self._bucket(path, query)
        return self._object(path, headers.get("range"))

    def _bucket(self, name: str, query: dict[str, list[str]]) -> Answer:
        if not name or not (self.root / name).is_dir():
            return _error(404, "NoSuchBucket", name)
        if "location" in query:
            return _xml(f"<LocationConstraint {XMLNS}/>")
        return self._listing(name, {key: values[0] for key, values in query.items()})

    def _listing(self, bucket: str, query: dict[str, str]) -> Answer:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        folder = (self.root / bucket / prefix.rpartition("/")[0]).resolve()
        names = sorted(_keys(folder, self.root / bucket, delimiter == "/")) if folder.is_dir() else []
        names = [name for name in names if name.startswith(prefix) and name > after]
        page = names[: int(query.get("max-keys", PAGE))]
        more = len(names) > len(page)
        body = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_iso(info.st_mtime)}</LastModified>"
            f"<ETag>&quot;{_etag(info)}&quot;</ETag><Size>{info.st_size}</Size><StorageClass>STANDARD</StorageClass>"
            "</Contents>"
            for name, info in ((name, (self.root / bucket / name).stat()) for name in page if not name.endswith("/"))
        )
        body += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in page if name.endswith("/")
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return _xml(
            f"<ListBucketResult {XMLNS}><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<Delimiter>{escape(delimiter)}</Delimiter><KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{body}</ListBucketResult>"
        )

    def _object(self, path: str, wanted: str | None) -> Answer:
        try:
            file = os.open(self.root / path, os.O_RDONLY)
        except OSError:
            return _error(404, "NoSuchKey", path)
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            os.close(file)
            return _error(404, "NoSuchKey", path)
        about = (
            f'ETag: "{_etag(info)}"\r\nLast-Modified: {formatdate(info.st_mtime, usegmt=True)}\r\n'
            "Accept-Ranges: bytes\r\n"
        )
        octets = "application/octet-stream"
        if wanted is None:
            return Answer(200, kind=octets, file=file, length=info.st_size, headers=about)
        span = byte_range(wanted, info.st_size)
        if span is None:
            os.close(file)
            return _error(416, "InvalidRange", path, f"Content-Range: bytes */{info.st_size}\r\n")
        about += f"Content-Range: bytes {span[0]}-{span[1] - 1}/{info.st_size}\r\n"
        return Answer(206, kind=octets, file=file, offset=span[0], length=span[1] - span[0], headers=about)


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """(start, stop) of `bytes=a-b`, `bytes=a-` or `bytes=-n` within an object; None if the range is empty."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    return (start, stop) if start < stop else None


def _keys(folder: Path, bucket: Path, flat: bool) -> Iterator[str]:
    """Object names below a folder; with `flat`, only those directly in it, and `NAME/` for its folders."""
    for entry in os.scandir(folder):
        name = Path(entry.path).relative_to(bucket.resolve()).as_posix()
        if entry.is_file():
            yield name
        elif flat:
            yield name + "/"
        else:
            yield from _keys(Path(entry.path), bucket, flat)


def _etag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _xml(body: str) -> Answer:
    return Answer(200, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode())


def _error(status: int, code: str, path: str, headers: str = "") -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{code}</Message><Resource>/{escape(quote(path))}</Resource></Error>"
    return Answer(status, body.encode(), headers=headers)


# --- connections ---------------------------------------------------------------------------------------------------


def _serve_connection(bucket: Bucket, raw: socket.socket) -> None:
    bucket.connected()
    with raw, contextlib.suppress(ConnectionError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = b""
        while True:
            head, end, rest = buffer.partition(b"\r\n\r\n")
            if not end:
                more = raw.recv(1 << 16)
                if not more or len(buffer) > 1 << 20:
                    return
                buffer += more
                continue
            buffer = rest
            lines = head.decode("latin-1").split("\r\n")
            words = lines[0].split(" ")
            if len(words) != 3:
                return
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                headers["connection"] = "close"  # its body is not read
            _reply(bucket, raw, words[0], bucket.answer(words[0], words[1], headers), headers)
            if headers.get("connection", "").lower() == "close":
                return


def _reply(bucket: Bucket, raw: socket.socket, method: str, answer: Answer, headers: dict[str, str]) -> None:
    length = answer.length if answer.file >= 0 else len(answer.body)
    close = headers.get("connection", "").lower() == "close"
    head = (
        f"HTTP/1.1 {answer.status} X\r\nServer: bench\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: {answer.kind}\r\nContent-Length: {length}\r\n{answer.headers}"
        f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n"
    ).encode()
    try:
        if bucket.latency:
            time.sleep(bucket.latency)
        if method == "HEAD" or answer.file < 0:
            raw.sendall(head + (b"" if method == "HEAD" else answer.body))
            bucket.sent(0 if method == "HEAD" else length)
        else:
            bucket.sent(length)
            raw.send(head, socket.MSG_MORE)
            _send_file(raw, answer, bucket.rate)
    finally:
        if answer.file >= 0:
            os.close(answer.file)


def _send_file(raw: socket.socket, answer: Answer, rate: float) -> None:
    at, stop, begun = answer.offset, answer.offset + answer.length, time.monotonic()
    piece = max(1 << 14, int(rate * PIECE_S)) if rate else answer.length
    while at < stop:
        done = os.sendfile(raw.fileno(), answer.file, at, min(piece, stop - at))
        if not done:
            raise ConnectionError("the file has become shorter")
        at += done
        if rate:
            time.sleep(max(0.0, begun + (at - answer.offset) / rate - time.monotonic()))


# --- the process ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A running server."""

    endpoint: str
    pid: int

    def url(self, name: str) -> str:
        """Plain HTTP address of BUCKET/KEY."""
        return f"{self.endpoint}/{quote(name)}"

    def counts(self) -> Counts:
        with urllib.request.urlopen(self.url(".counts"), timeout=60) as reply:
            return Counts(**json.load(reply))

    def variables(self) -> dict[str, str]:
        """The AWS variables that point an S3 client here."""
        return {"AWS_ENDPOINT_URL": self.endpoint, **KEYS, **REGION}


@contextlib.contextmanager
def serving(folder: Path, cpu: int | None = None, latency: float = 0, rate: float = 0) -> Iterator[Served]:
    """Run a server, optionally on one core, until the block (or this process) ends."""
    words = [str(folder.resolve()), f"--latency={latency}", f"--rate={rate}"]
    with served("bucket", [*words, *([] if cpu is None else [f"--cpu={cpu}"])]) as (pid, about):
        yield Served(pid=pid, **about)


def _accept(bucket: Bucket, listener: socket.socket) -> None:
    while True:
        raw, _ = listener.accept()
        threading.Thread(target=_serve_connection, args=(bucket, raw), daemon=True).start()


def main(words: list[str] | None = None) -> None:
    flags: dict[str, dict[str, Any]] = {
        "folder": {"type": Path},
        "--port": {"type": int, "default": 0, "help": "0: any free one"},
        "--latency": {"type": float, "default": 0, "help": "seconds to the first byte of every reply"},
        "--rate": {"type": float, "default": 0, "help": "bytes/s per connection; 0: unlimited"},
        "--cpu": {"type": int, "help": "the one core to run on"},
        "--with-parent": {"action": "store_true", "help": "end when standard input closes"},
    }
    args = parsed(words, flags, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    listener = socket.create_server(("127.0.0.1", args.port), backlog=1024)
    print(json.dumps({"endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    threading.Thread(target=_accept, args=(Bucket(args.folder, args.latency, args.rate), listener), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        if args.with_parent:
            sys.stdin.read()  # the parent never writes: this returns when its end of the pipe closes
        else:
            threading.Event().wait()


if __name__ == "__main__":
    main()
