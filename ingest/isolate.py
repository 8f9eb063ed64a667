"""When a body kills the process that decodes it: which one it was, and how to judge it without dying.

A decoder with a hole ends its process (SIGSEGV), eats its memory (SIGKILL) or never comes back; no `except` catches
that. So the row that is being judged stands in a small mapped file, which outlives the process (`InFlight`); whoever
takes over reads it (`suspects`) and judges those rows in a process of their own (`Child`), where a death is a verdict
like any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ingest.filter import FilterConfig, judge
from ingest.record import Fetched, Link, Picture, Reason, Verdict

_SLOTS = 64  # judgements at one time in one process
_ROW = struct.Struct("<q")


class InFlight:
    """A mapped file that says which rows this process is judging now. It is deleted when all ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(bytes(_SLOTS * _ROW.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._free = list(range(_SLOTS))

    @contextlib.contextmanager
    def judging(self, row: int) -> Iterator[None]:
        """The row counts as being judged from here to the end of the block, however that ends."""
        assert row >= 0, row
        slot = self._free.pop() * _ROW.size
        _ROW.pack_into(self._map, slot, row + 1)
        try:
            yield
        finally:
            _ROW.pack_into(self._map, slot, 0)
            self._free.append(slot // _ROW.size)

    def close(self) -> None:
        self._map.close()
        self._path.unlink(missing_ok=True)


def suspects(path: Path) -> frozenset[int]:
    """The rows that were being judged when the process that wrote this file died; none if it never lived."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    whole = len(data) // _ROW.size * _ROW.size
    return frozenset(row - 1 for (row,) in _ROW.iter_unpack(data[:whole]) if row > 0)


class ChildBroken(RuntimeError):
    """The child process cannot work at all: nothing can be said of any body."""


class Child:
    """Judges in a process of its own, which is started when it is first needed and replaced when it dies.

    The child inherits nothing but its pipes (no sockets, locks or credentials), has an address space of what a picture
    at the pixel cap may need, and ends when its parent does. Not for several threads at once.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds  # that one judgement may take
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def judge(self, fetched: Fetched, config: FilterConfig) -> Verdict:
        """As `filter.judge`, but what kills the process is `undecodable`. Raises ChildBroken."""
        if fetched.body is None:
            return judge(fetched, config)
        if isinstance(fetched.body, Path):
            body = fetched.body.read_bytes()
            fetched.body.unlink()
        else:
            body = fetched.body
        light = dataclasses.replace(fetched, body=b"")
        why = ""
        for _ in range(2):  # a second child must die as well: the first may have been killed by somebody else
            process = self._started()
            try:
                _send(process.stdin, {"config": dataclasses.asdict(config), "seconds": self.seconds}, body)
                return _verdict(*_receive(process.stdout, time.monotonic() + self.seconds), light, body)
            except TimeoutError:
                why = f"takes its decoder more than {self.seconds:g} s"
                self.close()
                break
            except (OSError, ValueError, KeyError, TypeError):
                why = f"kills its decoder ({_death(process)})"
                self.close()
        return Verdict(light, None, Reason.UNDECODABLE, why, fetched_bytes=len(body), body=body)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = _spawn()
            try:
                ready, _ = _receive(self._process.stdout, time.monotonic() + 60)
            except (OSError, ValueError):
                how = _death(self._process)
                self.close()
                raise ChildBroken(f"the process that decodes suspects does not start: {how}") from None
            assert ready == {"ready": True}
        return self._process


def _spawn() -> subprocess.Popen[bytes]:
    wanted = ("LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR")  # never credentials
    env = {name: os.environ[name] for name in wanted if name in os.environ}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "ingest.isolate"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)


def _death(process: subprocess.Popen[bytes]) -> str:
    """What became of a process that closed its pipe or talks nonsense."""
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "no sensible answer"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit status {code}"


# --- what goes over the pipes: two lengths, JSON, bytes ------------------------------------------------------------

_LENGTHS = struct.Struct("<IQ")


def _send(pipe: IO[bytes] | None, words: dict[str, Any], body: bytes) -> None:
    assert pipe is not None
    text = json.dumps(words).encode()
    pipe.write(_LENGTHS.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes] | None, deadline: float = float("inf")) -> tuple[dict[str, Any], bytes]:
    """Raises TimeoutError, ConnectionError when the other side is gone, ValueError on nonsense."""
    assert pipe is not None
    fd = pipe.fileno()
    words, body = _LENGTHS.unpack(_read(fd, _LENGTHS.size, deadline))
    return json.loads(_read(fd, words, deadline)), _read(fd, body, deadline)


def _read(fd: int, size: int, deadline: float) -> bytes:
    pieces = bytearray()
    ready = select.poll()  # not select.select, which knows no descriptor above 1023
    ready.register(fd, select.POLLIN)
    while len(pieces) < size:
        left = deadline - time.monotonic()
        if left != float("inf") and not ready.poll(max(0.0, 1000 * left)):
            raise TimeoutError("no answer")
        piece = os.read(fd, min(size - len(pieces), 1 << 20))
        if not piece:
            raise ConnectionError("the other side is gone")
        pieces += piece
    return bytes(pieces)


def _answer(verdict: Verdict, body: bytes) -> tuple[dict[str, Any], bytes]:
    picture = verdict.picture
    words: dict[str, Any] = {
        "reason": verdict.reason,
        "detail": verdict.detail,
        "source_format": verdict.source_format,
        "fetched_bytes": verdict.fetched_bytes,
        "fetched_sha256": verdict.fetched_sha256,
        "decode_checked": verdict.decode_checked,
        "picture": None,
    }
    if picture is None:
        return words, b""
    about = {field.name: getattr(picture, field.name) for field in dataclasses.fields(picture) if field.name != "body"}
    same = picture.body == body
    return words | {"picture": about, "same": same}, b"" if same else picture.body


def _verdict(words: dict[str, Any], stored: bytes, fetched: Fetched, body: bytes) -> Verdict:
    about, same = words.pop("picture"), words.pop("same", False)
    picture = Picture(body=body if same else stored, **about) if about is not None else None
    reason = Reason(words.pop("reason")) if picture is None else words.pop("reason")
    return Verdict(fetched, picture, reason, **words, body=body if reason is not None else None)


# --- the child -----------------------------------------------------------------------------------------------------

_NOBODY = Fetched(Link("", "", (), 0), None, None, "", 0, "", 0, 0, 0.0)


def main() -> None:
    """Judge what comes over standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    base = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE if sys.platform == "linux" else 1 << 30
    _send(answers, {"ready": True}, b"")
    while True:
        try:
            words, body = _receive(sys.stdin.buffer)
        except ConnectionError:
            return
        config = FilterConfig(**words["config"])
        allowed = _limit(config, len(body), base, words["seconds"])
        try:
            verdict = judge(dataclasses.replace(_NOBODY, body=body), config)
        except MemoryError:
            why = f"needs more than {allowed >> 20} MiB to decode"
            verdict = Verdict(_NOBODY, None, Reason.UNDECODABLE, why, fetched_bytes=len(body))
        _send(answers, *_answer(verdict, body))


def _limit(config: FilterConfig, size: int, base: int, seconds: float) -> int:
    """Bound memory and processor time from here on; returns the bytes allowed beyond what the process began with."""
    allowed = 20 * config.max_pixels + 8 * size + (256 << 20)  # two RGBX copies, coefficients of a progressive JPEG
    spent = resource.getrusage(resource.RUSAGE_SELF)
    for what, soft in (
        (resource.RLIMIT_AS, base + allowed),
        (resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + seconds) + 2),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    return allowed


def _end_with(parent: int) -> None:
    """The pipe tells a waiting child that its parent is gone; this tells one that is decoding."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
