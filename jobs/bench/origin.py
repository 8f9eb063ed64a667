"""A fast HTTP/1.1 origin on loopback, for benches and soak tests: the path alone determines the reply.

    python -m jobs.bench.origin --bodies 64 --bytes 110000      prints {"urls": ["http://127.0.0.1:41234"], ...}
    with serving(bodies=64, bytes=110_000) as origin: origin.url("/ok/17.jpg")

One asyncio process, one hand-written protocol (keep-alive, pipelined GETs), bodies in memory; it sends several thousand
110 KB replies/s on one core. `verdict(path)` is the verdict that an ingest must reach:

/ok/NAME (a JPEG, distinct by path)  /same/K/NAME (a JPEG, distinct by K)  /404/NAME and any other status from 300 on
/html/NAME  /cut/NAME (half a picture)  /truncated/NAME (closes in the middle of the body)  /reset/NAME (RST)
/redirect/NAME (302 to /ok/NAME)  /flaky/NAME (503 the first time)  /retry-after/SECONDS/NAME (429 the first time)
/busy/SECONDS/NAME (429 always)  /slow/SECONDS/NAME (a picture after a wait)  /private/NAME (robots.txt disallows it)
/file/NAME (from --folder)  /stats (JSON: the requests so far)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import io
import ipaddress
import json
import math
import os
import socket
import ssl
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from jobs.bench.rounds import parsed, served

ROBOTS = b"User-agent: *\nDisallow: /private/\n"
HTML = b"<!DOCTYPE html><html><head><title>This photo is gone</title></head><body>Gone.</body></html>"
TABLES = 620  # bytes of a JPEG that are not picture data
BYTES_PER_PIXEL = 0.587  # for a 500x375 JPEG of 110 KB, ImageNet's mean
STATUS_REASONS = {404: "http_404", 410: "http_410", 429: "http_429", 408: "timeout"}


def verdict(path: str) -> str:
    """The final verdict of an ingest for a path, after retries and redirects: "kept" or a Reason."""
    kind = path.split("/")[1]
    if kind.isdigit():
        status = int(kind)
        return STATUS_REASONS.get(status) or ("http_5xx" if status >= 500 else "http_4xx")
    return {
        "html": "not_an_image",
        "cut": "undecodable",
        "truncated": "truncated_body",
        "reset": "connect",
        "busy": "http_429",
        "private": "robots",
    }.get(kind, "kept")


# --- pictures ------------------------------------------------------------------------------------------------------


def photographs(count: int, mean_bytes: int, seed: int = 0) -> list[bytes]:
    """JPEGs (4:2:0) with the spectrum of photographs and about the requested mean size; at least 32 px per side.

    110,000 bytes give 500x375. The amount of detail per pixel is searched once, then varied between pictures.
    """
    area = max(1, mean_bytes - TABLES) / BYTES_PER_PIXEL
    height = max(32, round(math.sqrt(area * 3 / 4)))
    width = max(43, round(height * 4 / 3))
    low, high = 0.0, 64.0  # grain, in levels
    for _ in range(8):
        grain = (low + high) / 2
        size = np.mean([len(_photograph(seed + k, width, height, grain)) for k in range(4)])
        low, high = (grain, high) if size < mean_bytes else (low, grain)
    spread = np.random.default_rng(seed).uniform(0.6, 1.4, count)
    return [_photograph(seed + k, width, height, grain * spread[k]) for k in range(count)]


def _photograph(seed: int, width: int, height: int, grain: float) -> bytes:
    random = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(x, y), 1 / max(width, height)) ** 1.2
    spectrum = falloff * np.exp(2j * np.pi * random.random((3, *falloff.shape)))
    layers = np.fft.irfft2(spectrum, (height, width))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    mixed = layers[0] + 0.3 * layers[1:2] * np.array([1, 0, -1])[:, None, None]  # colours follow brightness
    levels = 128 + 45 * mixed + grain * random.standard_normal((height, width))
    out = io.BytesIO()
    pixels = levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", quality=90)
    return out.getvalue()


def real_photographs(place: Path, count: int) -> list[bytes]:
    """The first JPEGs of a folder or of a tar, by name. Raises ValueError if there is none."""
    bodies = []
    if place.is_dir():
        paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        bodies = [path.read_bytes() for path in paths[:count]]
    elif place.is_file():
        with tarfile.open(place) as tar:
            for member in tar:
                if member.name.lower().endswith((".jpg", ".jpeg")) and len(bodies) < count:
                    bodies.append(cast(io.BufferedReader, tar.extractfile(member)).read())
    if not bodies:
        raise ValueError(f"{place}: has no JPEG: give a folder or a tar of .jpg files")
    return bodies


def body_of(pool: Sequence[bytes], name: str) -> bytes:
    """The picture for a name: one from the pool, with the name in a comment segment, so that no two are equal."""
    base = pool[zlib.crc32(name.encode()) % len(pool)]
    text = name.encode()
    return b"".join((b"\xff\xd8\xff\xfe", (len(text) + 2).to_bytes(2, "big"), text, memoryview(base)[2:]))


# --- the server ----------------------------------------------------------------------------------------------------


class _Site:
    """What all connections share."""

    def __init__(self, pool: list[bytes], folder: Path | None) -> None:
        self.pool = pool
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.seen: set[str] = set()  # requested paths whose second reply differs
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.stamp = ""
        self.tick()

    def tick(self) -> None:
        """The headers that nginx sends in addition to length and type; the date changes once a second."""
        self.stamp = (
            f"Server: bench\r\nDate: {formatdate(usegmt=True)}\r\n"
            'Last-Modified: Tue, 01 Nov 2011 08:00:00 GMT\r\nETag: "4eafa900-1adb0"\r\nAccept-Ranges: bytes\r\n'
        )

    def first(self, path: str) -> bool:
        new = path not in self.seen
        self.seen.add(path)
        return new


class _Connection(asyncio.Protocol):
    def __init__(self, site: _Site) -> None:
        self.site = site
        self.buffer = b""
        self.waiting = False  # for a slow reply: later requests on this connection wait
        self.full = False  # the client is not reading

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(1 << 20)
        self.site.connections += 1

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._requests()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > 1 << 20:
            self.transport.abort()
        self._requests()

    def _requests(self) -> None:
        while not self.waiting and not self.full and not self.transport.is_closing():
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self.buffer = rest
            line, _, headers = head.partition(b"\r\n")
            words = line.split(b" ")
            if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
                self._reply(b"only GET", 405, close=True)
                return
            self._answer(words[1].decode("latin-1"), b"connection: close" in headers.lower())

    def _reply(
        self, body: bytes, status: int = 200, kind: str = "image/jpeg", close: bool = False, extra: str = ""
    ) -> None:
        head = (
            f"HTTP/1.1 {status} X\r\n{self.site.stamp}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if close else 'keep-alive'}\r\n{extra}\r\n"
        )
        self.transport.write(head.encode() + body)
        if close:
            self.transport.close()

    def _answer(self, path: str, close: bool) -> None:
        site = self.site
        kind, _, name = path[1:].partition("/")
        site.asked[kind] += 1
        if kind in ("ok", "private"):
            self._reply(body_of(site.pool, path), close=close)
        elif kind == "same":
            self._reply(body_of(site.pool, name.split("/")[0]), close=close)
        elif kind.isdigit():
            self._reply(b"sorry", int(kind), "text/plain", close)
        elif kind == "html":
            self._reply(HTML, 200, "text/html", close)
        elif kind == "redirect":
            self._reply(b"", 302, "text/html", close, f"Location: /ok/{name}\r\n")
        elif kind in ("flaky", "retry-after", "busy", "slow"):
            self._moody(kind, path, name, close)
        elif kind in ("cut", "truncated", "reset"):
            self._broken(kind, path, close)
        elif kind == "robots.txt":
            self._reply(ROBOTS, 200, "text/plain", close)
        elif kind == "file" and site.folder is not None:
            self._file(site.folder, name, close)
        elif kind == "stats":
            stats = {"asked": dict(site.asked), "connections": site.connections}
            self._reply(json.dumps(stats).encode(), 200, "application/json", close)
        else:
            self._reply(b"no such path", 404, "text/plain", close)

    def _moody(self, kind: str, path: str, name: str, close: bool) -> None:
        wait, body = name.split("/")[0], body_of(self.site.pool, path)
        if kind == "slow":
            self.waiting = True
            asyncio.get_running_loop().call_later(float(wait), self._late, body, close)
        elif kind == "flaky" and self.site.first(path):
            self._reply(b"busy", 503, "text/plain", close)
        elif kind == "busy" or (kind == "retry-after" and self.site.first(path)):
            self._reply(b"slow down", 429, "text/plain", close, f"Retry-After: {wait}\r\n")
        else:
            self._reply(body, close=close)

    def _late(self, body: bytes, close: bool) -> None:
        self.waiting = False
        if not self.transport.is_closing():
            self._reply(body, close=close)
            self._requests()

    def _broken(self, kind: str, path: str, close: bool) -> None:
        body = body_of(self.site.pool, path)
        if kind == "cut":
            self._reply(body[: len(body) // 2], close=close)
        elif kind == "reset":
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2])
            self.transport.close()

    def _file(self, folder: Path, name: str, close: bool) -> None:
        files = self.site.files
        if name not in files:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()) or not path.is_file():
                self._reply(b"no such file", 404, "text/plain", close)
                return
            files[name] = path.read_bytes()
        self._reply(files[name], close=close)


# --- TLS -----------------------------------------------------------------------------------------------------------


def certificate(folder: Path, addresses: Sequence[str]) -> tuple[Path, Path]:
    """A P-256 authority and a leaf for the addresses: (chain with key for the server, authorities for clients).

    The second file is the system's bundle plus ours, so that clients load a realistic number of authorities.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make(name: str, issuer: str, signer: Any, public: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer)]
        builder = (
            x509.CertificateBuilder(names[1], names[0], public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(signer, hashes.SHA256())

    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key_id = x509.SubjectKeyIdentifier.from_public_key(root.public_key())
    top = make("Bench CA", "Bench CA", root, root.public_key(), x509.BasicConstraints(True, 0), key_id)
    alternatives = [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    end = make(
        addresses[0],
        "Bench CA",
        root,
        leaf.public_key(),
        x509.BasicConstraints(False, None),
        x509.SubjectAlternativeName([x509.DNSName("localhost"), *alternatives]),
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id),
    )
    pem = serialization.Encoding.PEM
    key = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    system = ssl.get_default_verify_paths().cafile
    folder.mkdir(parents=True, exist_ok=True)
    chain, authorities = folder / "chain.pem", folder / "authorities.pem"
    chain.write_bytes(key + end.public_bytes(pem) + top.public_bytes(pem))
    chain.chmod(0o600)
    authorities.write_bytes((Path(system).read_bytes() if system else b"") + top.public_bytes(pem))
    return chain, authorities


# --- the process ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A running origin."""

    urls: list[str]  # one per host: http://127.0.0.1:41234, http://127.0.0.2:41234, ...
    authorities: str | None  # PEM file that TLS clients must trust
    mean_bytes: int  # of the pictures
    pid: int

    def url(self, path: str, host: int = 0) -> str:
        return self.urls[host % len(self.urls)] + path


@contextlib.contextmanager
def serving(cpu: int | None = None, **flags: Any) -> Iterator[Served]:
    """Run an origin, optionally on one core, until the block (or this process) ends; flags as on the command line."""
    words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    with served("origin", words) as (pid, about):
        if cpu is not None:
            os.sched_setaffinity(pid, {cpu})
        yield Served(pid=pid, **about)


async def _serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    if args.data:
        pool = real_photographs(args.data, args.bodies)
    else:
        each = -(-args.bodies // len(args.bytes))
        pool = [body for k, size in enumerate(args.bytes) for body in photographs(each, size, k * each)]
    site = _Site(pool, args.folder)
    addresses = [f"127.0.{k // 250}.{k % 250 + 1}" for k in range(args.hosts)]
    context, authorities = None, None
    if args.tls is not None:
        chain, authorities = certificate(args.tls, addresses)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
    port, servers = args.port, []
    for address in addresses:
        made = await loop.create_server(lambda: _Connection(site), address, port, backlog=4096, ssl=context)
        port = made.sockets[0].getsockname()[1]
        servers.append(made)
    about = {
        "urls": [f"http{'s' if context else ''}://{address}:{port}" for address in addresses],
        "authorities": str(authorities) if authorities else None,
        "mean_bytes": round(sum(map(len, pool)) / len(pool)),
    }
    print(json.dumps(about), flush=True)
    ended = asyncio.Event()
    if args.with_parent:
        loop.add_reader(0, ended.set)  # the parent never writes: readable when its end of the pipe closes
    while not ended.is_set():
        site.tick()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 1)
    for server in servers:
        server.close()


def _sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


FLAGS: dict[str, dict[str, Any]] = {
    "--port": {"type": int, "default": 0, "help": "0: any free one"},
    "--hosts": {"type": int, "default": 1, "help": "addresses: 127.0.0.1, 127.0.0.2, ..."},
    "--bodies": {"type": int, "default": 64, "help": "pictures in the pool"},
    "--bytes": {"type": _sizes, "default": [110_000], "help": "mean sizes, as 110000,280000; 1500 is 44x33 px"},
    "--data": {"type": Path, "help": "a folder or tar of JPEGs for the pool; default: synthetic"},
    "--folder": {"type": Path, "help": "served under /file/"},
    "--tls": {"type": Path, "help": "speak TLS; keys and certificates go to this folder"},
    "--with-parent": {"action": "store_true", "help": "end when standard input closes"},
}


def main() -> None:
    args = parsed(None, FLAGS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(args))


if __name__ == "__main__":
    main()
