"""Bodies that kill the process that decodes them: find which one it was, and decode it in a child process.

A decoder with a bug ends its process (SIGSEGV), uses up its memory (SIGKILL) or never returns; no `except` catches
that. So the numbers of the bodies being decoded are in a small mapped file, which outlives the process (`InFlight`).
The next process reads it (`suspects`) and decodes those bodies in a child process (`Child`), whose death is an ordinary
result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import json
import mmap
import os
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

_NUMBER = struct.Struct("<q")


def private_folder(root: str = "") -> Path:
    """A folder private to this user in the system's temporary folder, or in `root`, under a name that others can guess.

    Raises ValueError if another user has made it, or it is open to others.
    """
    folder = Path(root or tempfile.gettempdir()) / f"xtra-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise ValueError(f"{folder}: is not a private folder of yours: remove it, or set TMPDIR to another folder")
    return folder


@contextlib.contextmanager
def own_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of this user for reading: never through a link, a pipe, or a file of another user.

    Raises OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "is not a file of this user", str(path))
        yield file


class InFlight:
    """A mapped file with the numbers of the bodies that this process is decoding, at most `slots` at a time.

    It is locked while its process lives, and deleted by `close` unless memory ran out.
    """

    def __init__(self, path: Path, slots: int = 64) -> None:
        self._path = path
        aside = path.with_name(path.name + ".new")
        aside.unlink(missing_ok=True)  # left by a process that died before the rename
        handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w+b") as file:
            file.write(bytes(slots * _NUMBER.size))
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            self._map = mmap.mmap(file.fileno(), 0)  # holds a copy of the descriptor, and so the lock
        aside.rename(path)  # so that others never see it unlocked
        self._free = list(range(slots))
        self._starved = False

    @contextlib.contextmanager
    def decoding(self, *numbers: int) -> Iterator[None]:
        """Mark the bodies as being decoded until the end of the block. Thread-safe.

        After a MemoryError they stay marked: the process is about to fail, and the next attempt must find them.
        """
        slots = [self._free.pop() * _NUMBER.size for _ in numbers]
        for slot, number in zip(slots, numbers):
            assert number >= 0, number
            _NUMBER.pack_into(self._map, slot, number + 1)
        try:
            yield
        except MemoryError:
            self._starved = True
            raise
        except BaseException:
            self._clear(slots)
            raise
        self._clear(slots)

    def _clear(self, slots: list[int]) -> None:
        for slot in slots:
            _NUMBER.pack_into(self._map, slot, 0)
            self._free.append(slot // _NUMBER.size)

    def close(self) -> None:
        self._map.close()
        if not self._starved:
            self._path.unlink(missing_ok=True)


def suspects(path: Path) -> frozenset[int]:
    """The numbers that were marked in this file when its process died; none if there is no such file."""
    try:
        with own_file(path) as file:
            data = file.read()
    except OSError:
        return frozenset()
    whole = len(data) // _NUMBER.size * _NUMBER.size
    return frozenset(number - 1 for (number,) in _NUMBER.iter_unpack(data[:whole]) if number > 0)


def alive(path: Path) -> bool:
    """Whether the process that wrote this file still lives."""
    try:
        with own_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


class Killed(RuntimeError):
    """The body killed the process that decoded it, or exceeded a limit; the message says which."""


class ChildBroken(RuntimeError):
    """The child process does not work at all: no body can be judged."""


class Child:
    """Applies one function to bodies in a child process, which is started on first use and replaced when it dies.

    `work` names the function as "module:function": (words, body) -> (words, body), where words are JSON objects. The
    child inherits only its pipes (no sockets, locks or credentials) and ends when its parent does. Not thread-safe.
    """

    def __init__(self, work: str, seconds: float = 60.0) -> None:
        self.work = work
        self.seconds = seconds  # that one body may take
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, words: dict[str, Any], body: bytes, memory: int) -> tuple[dict[str, Any], bytes]:
        """The function's result for words and body, with `memory` bytes beyond what the child began with.

        Raises Killed if the body kills the child, takes too long or needs more memory; ChildBroken.
        """
        why = ""
        for _ in range(2):  # a second child must die as well: something else may have killed the first
            process = self._started()
            try:
                _send(process.stdin, {"seconds": self.seconds, "memory": memory, "words": words}, body)
                answer, made = _receive(process.stdout, time.monotonic() + self.seconds)
            except TimeoutError:
                self.close()
                raise Killed(f"takes its decoder more than {self.seconds:g} s") from None
            except (OSError, ValueError):
                why = f"kills its decoder ({_death(process)})"
                self.close()
                continue
            if "starved" in answer:
                raise Killed(f"needs more than {memory >> 20} MiB to decode")
            return answer["words"], made
        raise Killed(why)

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
            self._process = _spawn(self.work)
            try:
                ready, _ = _receive(self._process.stdout, time.monotonic() + 60)
            except (OSError, ValueError):
                how = _death(self._process)
                self.close()
                raise ChildBroken(f"the child process that decodes suspects does not start: {how}") from None
            assert ready == {"ready": True}
        return self._process


def _spawn(work: str) -> subprocess.Popen[bytes]:
    wanted = ("LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TMPDIR")  # never credentials
    env = {name: os.environ[name] for name in wanted if name in os.environ}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "shards.pixels.isolate", work]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)


def _death(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that closed its pipe or sent nonsense."""
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
    """The words and body of one message. Raises TimeoutError, ConnectionError if the other side is gone, ValueError for
    nonsense."""
    assert pipe is not None
    fd = pipe.fileno()
    words, body = _LENGTHS.unpack(_read(fd, _LENGTHS.size, deadline))
    return json.loads(_read(fd, words, deadline)), _read(fd, body, deadline)


def _read(fd: int, size: int, deadline: float) -> bytes:
    pieces = bytearray()
    ready = select.poll()  # not select.select, which is limited to descriptors below 1024
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


# --- the child -----------------------------------------------------------------------------------------------------

Work = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def main(name: str) -> None:
    """Apply the function named "module:function" to messages from standard input until that ends."""
    leave_no_core()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that what libraries print is not taken for an answer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    base = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE if sys.platform == "linux" else 1 << 30
    _send(answers, {"ready": True}, b"")
    while True:
        try:
            asked, body = _receive(sys.stdin.buffer)
        except ConnectionError:
            return
        _limit(base + asked["memory"], asked["seconds"])
        try:
            words, made = work(asked["words"], body)
        except MemoryError:
            _send(answers, {"starved": True}, b"")
        else:
            _send(answers, {"words": words}, made)


def leave_no_core() -> None:
    """Disable core dumps of this process: untrusted pictures may kill it, and its memory holds keys of stores."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _limit(memory: int, seconds: float) -> None:
    """Limit the memory of this process, in bytes, and its CPU time from now on."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    for what, soft in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + seconds) + 2),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _end_with(parent: int) -> None:
    """End the child when its parent is gone, even while it decodes. (A waiting child notices the closed pipe.)"""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
