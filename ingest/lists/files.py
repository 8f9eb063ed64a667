"""URL lists as bytes: which files, their compression and encoding -> blocks of whole lines, in constant memory.

Compression (gzip, zstd) is detected by content. UTF-16 with a byte order mark becomes UTF-8; all other bytes pass
unchanged, valid UTF-8 or not. A list may be several files: a folder, or a pattern like `s3://b/lists/part-*.csv`.
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
from shards.local_files import require_utf8

FORMATS = ("auto", "text", "csv", "tsv", "json", "jsonl", "parquet")
ACCEPTED = (
    "a URL a line, id<TAB>url, a CSV or TSV table, JSON (lines, or one array), or Parquet, "
    "each with a column of URLs (--format, --url-column)"
)
MAX_LINE = 64 << 10  # bytes; a longer line is bad, and is skipped without being held in memory
BLOCK = 2 << 20  # bytes of a list in memory
_OLE = b"\xd0\xcf\x11\xe0"  # older files of Microsoft Office
_PIECE = 64 << 10  # bytes of one read: errors name the line to this precision

_SUFFIXES = {
    **{"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json"},
    **{"parquet": "parquet", "pq": "parquet", "txt": "text", "lst": "text", "list": "text"},
}
# Endings of files that may be next to lists and are not lists; a name without an ending (part-00000) may be a list.
_NO_LISTS = frozenset(
    "md rst html htm pdf py ipynb sh yaml yml toml xml log crc sha1 sha256 md5 arrow tar zip jpg jpeg png gif webp "  # noqa: SIM905
    "xlsx xls ods".split()
)
_SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_PACKED = (".gz", ".zst", ".zstd")


def list_files(urls: str) -> list[str]:
    """The files of a list in order: the file itself, or the files that a folder holds or a pattern (* ? []) matches.

    Names that begin with . or _ (left by Spark and editors) and those that `skipped` returns are left out. Raises
    ValueError when no file is left.
    """
    folder, names = _named(urls)
    if folder is None:
        return [urls]
    require_utf8(urls, names)
    files = [store.join(folder, name) if folder else name for name in _lists_of(names)]
    if not files:
        raise ValueError(f"{urls}: there are no lists: check --urls")
    return files


def skipped(urls: str) -> list[str]:
    """The names of the files in a folder or pattern that are not part of the list."""
    folder, names = _named(urls)
    return sorted(set(names) - set(_lists_of(names))) if folder is not None else []


def _lists_of(names: list[str]) -> list[str]:
    """The names of lists. If there is Parquet, only Parquet, as other files describe it; JSON only if nothing else is
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
    """Whether a name has the ending of a list format."""
    return _ending(list_name(url)) in _SUFFIXES


def _ending(name: str) -> str:
    name = name.lower()
    for end in _PACKED:
        name = name.removesuffix(end)
    return name.rpartition(".")[2] if "." in name else ""


def _named(urls: str) -> tuple[str | None, list[str]]:
    """The folder of a list and the names in it that `urls` matches; (None, []) for a single file."""
    folder, _, last = urls.rstrip("/").rpartition("/")
    if any(mark in last for mark in _marks(urls)) and not (store.is_local(urls) and store.local_path(urls).exists()):
        assert "/" in urls or not folder
        return folder, [name for name in store.names(folder or ".") if fnmatch.fnmatchcase(name, last)]
    if urls.endswith("/") or (store.is_local(urls) and store.local_path(urls).is_dir()):
        return urls, store.names(urls)
    return None, []


def _marks(urls: str) -> str:
    """The wildcard characters; in a web address `?` begins the query."""
    return "*[" if urls.startswith(("http://", "https://")) else "*?["


def list_name(urls: str) -> str:
    if urls.startswith(("http://", "https://")):
        urls = urls.partition("?")[0]
    return urls.rstrip("/").rsplit("/", 1)[-1]


def list_sha256(urls: str) -> str:
    """The sha256 of the list's bytes as stored; of several files, of their names and bytes. Raises ValueError when
    unreadable."""
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
    """The format by the name's ending, before that of a compression; text where the ending is unknown."""
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
    """The file, or a reader of its decompressed bytes. Decided by the first bytes, since names can be wrong."""
    head = raw.read(6)
    raw.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return pa.CompressedInputStream(raw, "zstd")
    if list_name(url).lower().endswith(_SPREADSHEETS) or head.startswith(_OLE):
        raise ValueError(f"{url}: is a spreadsheet: save it as CSV, and give that")
    if head.startswith((b"PK\x03\x04", b"BZh", b"\xfd7zXZ\0")):
        raise ValueError(f"{url}: this compression is not supported: unpack the list, or use .gz or .zst")
    return raw


def pieces(url: str, lines: Callable[[], int]) -> Iterator[bytes]:
    """The list's bytes in order, decompressed, without a byte order mark; UTF-16 as UTF-8. Raises ValueError for
    damage, naming the line that was reached; `lines` returns how many lines were read in the pieces so far."""
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
    """(number of the first line, whole lines with their newlines). A line longer than MAX_LINE is cut to a little more
    than that, so that readers recognise it. Raises ValueError for damage, naming the line that was reached."""
    line, rest = 1, b""
    for piece in pieces(url, lambda: line - 1):  # noqa: B023 only called inside this loop
        piece = rest + piece
        cut = piece.rfind(b"\n") + 1
        rest = piece[cut:][: MAX_LINE + 1]
        if cut:
            yield line, piece[:cut]
            line += piece.count(b"\n", 0, cut)
    if rest:
        yield line, rest + b"\n"


def _decoder(start: bytes) -> Callable[[bytes], bytes] | None:
    """UTF-16 -> UTF-8 if the list begins with its byte order mark, as PowerShell and spreadsheets write it."""
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    decode = codecs.getincrementaldecoder("utf-16")("replace").decode
    return lambda piece: decode(piece).encode()
