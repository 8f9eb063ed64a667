"""Response headers that matter to the body and to the link's next request: encodings and cookies."""

from __future__ import annotations

import re
import zlib

import pyarrow as pa

from shards.pixels import image

MAX_COOKIES = 20  # of one link and host
MAX_COOKIE = 4096  # bytes of a name and its value (RFC 6265, 6.1)
_OVER = re.compile(r";\s*(?:max-age\s*=\s*(?:-\d+|0)\s*(?:;|$)|expires\s*=[^;]*\b19\d\d\b)", re.IGNORECASE)
_PIECE = 1 << 16

KNOWN = ("gzip", "x-gzip", "deflate", "br", "zstd")


class TooLarge(ValueError):
    """A body that is larger than allowed once it is decoded."""


def remember_cookie(jar: dict[str, str], line: str) -> None:
    """Put one Set-Cookie value into a host's jar. Paths and domains are ignored: a jar lives for one link and host."""
    pair = line.partition(";")[0]
    name, equals, value = (part.strip() for part in pair.partition("="))
    if not equals or not name or len(pair) > MAX_COOKIE or not pair.isprintable():
        return
    if _OVER.search(line):
        jar.pop(name, None)
    elif name in jar or len(jar) < MAX_COOKIES:
        jar[name] = value


def cookies(jar: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in jar.items())


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """Undo the encodings that a Content-Encoding header names, outermost first. Unknown names are ignored, and so are
    false ones: what begins like a picture is one.

    Raises TooLarge above `most` bytes, and ValueError for an encoded body that is damaged or cut.
    """
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        if name in KNOWN and body and image.sniff(body) is None:
            body = _undone(body, name, most)
    return body


def _undone(body: bytes, name: str, most: int) -> bytes:
    if name in ("gzip", "x-gzip"):
        return _inflated(body, 31, most) if body.startswith(b"\x1f\x8b") else body
    if name == "deflate":  # RFC 9110 means zlib's form; some servers send it bare
        wrapped = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return _inflated(body, 15 if wrapped else -15, most)
    if name == "zstd" and not body.startswith(b"\x28\xb5\x2f\xfd"):
        return body
    pieces, size = [], 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), "brotli" if name == "br" else "zstd") as stream:
            while piece := stream.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise TooLarge(f"more than {most} bytes")
    except OSError as error:
        raise ValueError(f"damaged {name} encoding: {error}") from None
    return b"".join(pieces)


def _inflated(body: bytes, form: int, most: int) -> bytes:
    inflate = zlib.decompressobj(form)
    try:
        out = inflate.decompress(body, most + 1)
    except zlib.error as error:
        raise ValueError(f"damaged gzip or deflate encoding: {error}") from None
    if len(out) > most:
        raise TooLarge(f"more than {most} bytes")
    if not inflate.eof:
        raise ValueError("the gzip or deflate encoding is cut short")
    return out
