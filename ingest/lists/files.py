"""URL lists as bytes: which files, their compression and encoding -> blocks of whole lines, in constant memory.

Compression (gzip, zstd) is told by content. UTF-8, and any bytes that are none, pass as they are; UTF-16 becomes UTF-8
where a byte order mark says so. A list may be several files: a folder, or a pattern like `s3://b/lists/part-*.csv`.
"""

from __future__ import annotations

import codecs
import fnmatch
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

import pyarrow as pa

from shards import store

FORMATS = ("auto", "text", "csv", "tsv", "json", "jsonl", "parquet")
ACCEPTED = (
    "a URL a line, id<TAB>url, a CSV or TSV table, JSON (lines, or one array), or Parquet, "
    "each with a column of URLs (--format, --url-column)"
)
MAX_LINE = 64 << 10  # bytes; a longer line is bad, and is skipped without being held
BLOCK = 2 << 20  # bytes of a list in hand
_OLE = b"\xd0\xcf\x11\xe0"  # Microsoft's older files
_PIECE = 64 << 10  # bytes of one read: so near to damage the line is known

_SUFFIXES = {
    **{"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json"},
    **{"parquet": "parquet", "pq": "parquet", "txt": "text", "lst": "text", "list": "text"},
}
# What may be next to lists and is no list; a name without an ending (part-00000) may be one.
_NO_LISTS = frozenset(
    "md rst html htm pdf py ipynb sh yaml yml toml xml log crc sha1 sha256 md5 arrow tar zip jpg jpeg png gif webp "  # noqa: SIM905
    "xlsx xls ods".split()
)
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_PACKED = (".gz", ".zst", ".zstd")


def list_files(urls: str) -> list[str]:
    """The files of a list in order: itself, those of a folder, or those that a pattern (* ? []) names in one.

    Names that begin with . or _ are none (what Spark and editors leave), nor is what `skipped` names. Raises ValueError
    when there are none.
    """
    folder, names = _named(urls)
    if folder is None:
        return [urls]
    files = [store.join(folder, name) if folder else name for name in _lists_of(names)]
    if not files:
        raise ValueError(f"{urls}: there are no lists: check --urls")
    return files


def skipped(urls: str) -> list[str]:
    """The names of those files of a folder or pattern that are no part of the list."""
    folder, names = _named(urls)
    return sorted(set(names) - set(_lists_of(names))) if folder is not None else []


def _lists_of(names: list[str]) -> list[str]:
    """Those that are lists: Parquet alone where there is some, as others describe it; JSON only where nothing else is
    a list."""
    shown = [name for name in names if name[0] not in "._" and _ending(name) not in _NO_LISTS]
    shown = [name for name in shown if name.upper() not in ("LICENSE", "README", "NOTICE", "CHECKSUMS")]
    for kind in ("parquet", "csv", "tsv", "jsonl", "text"):
        ours = [name for name in shown if _SUFFIXES.get(_ending(name)) == kind]
        if ours and kind == "parquet":
            return ours
        if ours:
            return [name for name in shown if _SUFFIXES.get(_ending(name)) != "json"]
    return shown


def has_ending(url: str) -> bool:
    """Whether a name says that it is a list of some format."""
    return _ending(list_name(url)) in _SUFFIXES


def _ending(name: str) -> str:
    name = name.lower()
    for end in _PACKED:
        name = name.removesuffix(end)
    return name.rpartition(".")[2] if "." in name else ""


def _named(urls: str) -> tuple[str | None, list[str]]:
    """The folder and the names in it that a list's name stands for; (None, []) where it is one file."""
    folder, _, last = urls.rstrip("/").rpartition("/")
    if any(mark in last for mark in _marks(urls)) and not (store.is_local(urls) and store.local_path(urls).exists()):
        assert "/" in urls or not folder
        return folder, [name for name in store.names(folder or ".") if fnmatch.fnmatchcase(name, last)]
    if urls.endswith("/") or (store.is_local(urls) and store.local_path(urls).is_dir()):
        return urls, store.names(urls)
    return None, []


def _marks(urls: str) -> str:
    """The signs of a pattern; in a web address `?` begins the query."""
    return "*[" if urls.startswith(("http://", "https://")) else "*?["


def list_name(urls: str) -> str:
    if urls.startswith(("http://", "https://")):
        urls = urls.partition("?")[0]
    return urls.rstrip("/").rsplit("/", 1)[-1]


def list_sha256(urls: str) -> str:
    """Of the list's bytes as stored; of several files, of their bytes and names. Raises ValueError when unreadable."""
    digest = hashlib.sha256()
    files = list_files(urls)
    for url in files:
        if len(files) > 1:
            digest.update(f"\0{list_name(url)}\0".encode())
        with closing(open_list(url)) as file:
            while piece := file.read(BLOCK):
                digest.update(piece)
    return digest.hexdigest()


def kind_of(url: str) -> str:
    """The format that a name tells, compression aside; text where it tells none."""
    name = list_name(url).lower()
    for end in _PACKED:
        name = name.removesuffix(end)
    return _SUFFIXES.get(name.rsplit(".", 1)[-1], "text")


# --- bytes -> lines ------------------------------------------------------------------------------------------------


def open_list(url: str) -> BinaryIO:
    try:
        return store.open_read(url)
    except store.Missing:
        raise ValueError(f"{url}: there is no such list: check --urls") from None


def _unpacked(url: str, raw: BinaryIO) -> Any:
    """The file itself or what it holds compressed; by its first bytes, for names lie."""
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return pa.CompressedInputStream(raw, "zstd")
    if list_name(url).lower().endswith(_SPREADSHEETS) or head.startswith(_OLE):
        raise ValueError(f"{url}: is a spreadsheet: save it as CSV and give that")
    if head.startswith((b"PK\x03\x04", b"BZh", b"\xfd7zXZ\0")):
        raise ValueError(f"{url}: this compression is not read: unpack the list, or use .gz or .zst")
    return raw


def pieces(url: str, lines: Callable[[], int]) -> Iterator[bytes]:
    """The list's bytes in order, unpacked, as UTF-8 or what is none, without a mark. Raises ValueError for damage,
    naming the line that was reached; `lines` says how many were read in the pieces so far."""
    started = False
    decode: Callable[[bytes], bytes] | None = None
    with closing(open_list(url)) as raw, closing(_unpacked(url, raw)) as file:
        while True:
            parts: list[bytes] = []
            try:
                while len(parts) < BLOCK // _PIECE and (part := file.read(_PIECE)):
                    parts.append(part)
            except (OSError, EOFError, zlib.error) as error:
                reached = lines() + sum(part.count(b"\n") for part in parts)
                kind = "list" if file is raw else "compressed list"
                why = " ".join(str(error).split())[:100]
                raise ValueError(f"{url}: damaged {kind} after line {reached} ({why}): fetch it again") from None
            piece = b"".join(parts)
            if not piece:
                return
            if not started:
                decode, started = _decoder(piece), True
                piece = piece.removeprefix(codecs.BOM_UTF8)
            piece = decode(piece) if decode is not None else piece
            yield piece


def blocks(url: str) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, whole lines, each with its newline). Of a line longer than MAX_LINE a little more
    than that is left, which tells it. Raises ValueError for damage, naming the line that was reached."""
    line, rest = 1, b""
    for piece in pieces(url, lambda: line - 1):  # noqa: B023 it is asked while the loop is here
        piece = rest + piece
        cut = piece.rfind(b"\n") + 1
        rest = piece[cut:][: MAX_LINE + 1]
        if cut:
            yield line, piece[:cut]
            line += piece.count(b"\n", 0, cut)
    if rest:
        yield line, rest + b"\n"


def _decoder(start: bytes) -> Callable[[bytes], bytes] | None:
    """UTF-16 -> UTF-8 where the list begins with its mark: PowerShell and spreadsheets write such."""
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    decode = codecs.getincrementaldecoder("utf-16")("replace").decode
    return lambda piece: decode(piece).encode()
