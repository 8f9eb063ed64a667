"""What an open unit has fetched so far, on scratch: a rerun reads it instead of fetching again.

    bodies     the unit's spool (ingest/unit.py): bodies that are kept unchanged
    others     original bodies of rejected and converted pictures
    journal    a line for its binding, then one for the answers of each second: crc32 of the rest, a space, JSON

The process may be killed at any byte. A line counts if its checksum is right, and a body if its sha256 is; the rest is
fetched again. Answers are judged again, so that a rerun has the same result as a run without interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.http import FetchConfig
from ingest.record import BadLine, Fetched, Link, Reason, Verdict
from shards import store
from shards.pixels import own_file
from shards.url_secrets import without_secrets

FORMAT = 1
BODIES, OTHERS, JOURNAL = "bodies", "others", "journal"
_SETTINGS = ("allow_private", "max_bytes", "redirects", "robots", "opt_out", "proxy")  # that affect answers


@dataclass(frozen=True)
class Binding:
    """What a journal belongs to; its answers are used only if all of it is equal."""

    dataset: str
    unit: int
    plan: str  # sha256 over rows, keys and URLs
    fetch: str  # sha256 over the settings that affect answers
    format: int = FORMAT


def binding(dataset: str, unit: int, links: Sequence[Link | BadLine], config: FetchConfig) -> Binding:
    plan = "".join(f"{link.row}\t{link.key}\t{link.url}\n" for link in links)
    settings = json.dumps([getattr(config, name) for name in _SETTINGS])
    return Binding(store.absolute(dataset), unit, _sha256(plan.encode()), _sha256(settings.encode()))


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Journal:
    """Takes the answers of one unit; `flush` writes those whose bodies are on scratch."""

    def __init__(self, folder: Path, binding: Binding) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._lines, self._others = (os.open(folder / name, flags, 0o600) for name in (JOURNAL, OTHERS))
        self._size = 0  # of the others
        self._waiting: list[tuple[int, list[Any], str]] = []  # answers whose bodies are not in the spool yet
        self._ready: list[list[Any]] = []
        _write(self._lines, _line({"begun": time.time(), **dataclasses.asdict(binding)}))

    def note(self, fetched: Fetched, verdict: Verdict) -> None:
        """Note an answer and its verdict, except for a body that killed its judge."""
        about = [
            fetched.link.row,
            fetched.reason,
            fetched.detail,
            fetched.status,
            without_secrets(fetched.final_url) if fetched.final_url != fetched.link.url else None,
            fetched.attempts,
            fetched.ms,
            fetched.at,
            fetched.transfer_ms,
        ]
        if fetched.body is None:
            self._ready.append([*about, None, 0, 0, ""])
            return
        digest, picture = verdict.fetched_sha256, verdict.picture
        if digest is None:
            return
        if picture is not None and picture.sha256 == digest:
            self._waiting.append((fetched.link.row, about, digest))
            return
        body = fetched.body if isinstance(fetched.body, bytes) else verdict.body
        if body is not None:
            _write(self._others, body)
            self._ready.append([*about, OTHERS, self._size, len(body), digest])
            self._size += len(body)

    def flush(self, place: Callable[[int], tuple[int, int] | None]) -> None:
        """Write all answers whose bodies are on scratch; `place(row)` returns the offset and length of a row's body in
        the spool, or None."""
        waiting = []
        for row, about, digest in self._waiting:
            if (where := place(row)) is None:
                waiting.append((row, about, digest))
            else:
                self._ready.append([*about, BODIES, *where, digest])
        self._waiting = waiting
        if self._ready:
            _write(self._lines, _line(self._ready))
            self._ready = []

    def close(self) -> None:
        if self._lines >= 0:
            os.close(self._lines)
            os.close(self._others)
            self._lines = self._others = -1


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _write(file: int, body: bytes) -> None:
    left = memoryview(body)
    while left:
        left = left[os.write(file, left) :]


def replay(folder: Path, ours: Binding, links: Mapping[int, Link], since: float = 0.0) -> Iterator[Fetched]:
    """The answers in the journal of this unit, for its `links` by row; none if the journal began before `since`
    (seconds since 1970). Torn or changed entries and those of other units are left out."""
    try:
        with own_file(folder / JOURNAL) as file:
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return
    head = _checked(lines[0]) if lines else None
    if not isinstance(head, dict) or head.pop("begun", 0.0) < since or head != dataclasses.asdict(ours):
        return
    for row, reason, detail, status, final_url, attempts, ms, at, transfer_ms, *where in _answers(lines[1:]):
        link, body, (name, offset, length, digest) = links.get(row), None, where
        if link is None:
            continue
        if name is not None:
            body = _body(folder / str(name), offset, length)
            if hashlib.sha256(body).hexdigest() != digest:
                continue
        known = Reason(reason) if reason is not None else None
        yield Fetched(link, body, known, detail, status, final_url or link.url, attempts, ms, at, transfer_ms)


def _answers(lines: Sequence[bytes]) -> Iterator[list[Any]]:
    for line in lines:
        answers = _checked(line)
        if answers is None:
            return
        yield from answers


def _checked(line: bytes) -> Any:
    """The value of a line; None if it is torn."""
    check, _, text = line.partition(b" ")
    return json.loads(text) if check == b"%08x" % zlib.crc32(text) else None


def _body(path: Path, offset: int, length: int) -> bytes:
    try:
        with own_file(path) as file:
            return os.pread(file.fileno(), length, offset)
    except OSError:
        return b""
