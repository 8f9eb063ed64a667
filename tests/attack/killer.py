"""The command `xtra` in a forked process that is stopped at a chosen change to its disk, or to a store.

    python3 campaign.py ...                  # starts itself again with disk_killer.c loaded before libc
    outcome = killer.run(["import", ...], place, Stop(17, "inside"))
    outcome.status == -9

One process imports everything once; each command is a fork of it, which costs milliseconds where importing torch takes
seconds. That process must itself start no thread and open no store: what it wants to know of one it asks `apart`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("disk_killer.c")
MOMENTS = ("before", "inside", "after")
NEVER = -1
LIMIT = 600.0  # seconds that a command may take: a busy machine may give it little


@dataclass(frozen=True)
class Stop:
    """Where a command is stopped: at its change number `change`, from 0; "inside" leaves half of the bytes written."""

    change: int
    moment: str = "before"
    signal: int = signal.SIGKILL

    def __post_init__(self) -> None:
        assert self.moment in MOMENTS, self.moment

    def __str__(self) -> str:
        return f"{self.change}{self.moment[0]}"

    @classmethod
    def parse(cls, text: str) -> Stop:
        return cls(int(text[:-1]), {moment[0]: moment for moment in MOMENTS}[text[-1]])


@dataclass(frozen=True)
class Place:
    """Where a command works: what it makes, its temporary folder, and what it prints."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)  # of the command, such as a store's address
    sockets: bool = False  # its changes are requests that change a store, not changes to the disk

    @property
    def disk(self) -> Path:
        """What it writes to; its output lies elsewhere, so that this may be full."""
        return self.folder / "disk"

    @property
    def tmp(self) -> Path:
        return self.disk / "tmp"

    @property
    def out(self) -> Path:
        """On a disk; what a store holds has no such folder."""
        return self.disk / "out"

    def file(self, name: str) -> Path:
        return self.folder / name

    def clear(self) -> None:
        for folder in (self.tmp, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        self.tmp.mkdir(parents=True)


@dataclass(frozen=True)
class Outcome:
    status: int  # the exit status, or minus the signal that ended it
    changes: int  # that it made, where it was not ended by a signal
    text: str  # all that it printed
    seconds: float

    @property
    def last(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1][:300] if lines else ""


def preload() -> None:
    """Start this program again with the killer loaded, unless it is. Raises SystemExit without a C compiler."""
    if os.environ.get("XTRA_KILLER"):
        return
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        sys.exit("the kill campaign needs a C compiler: install cc, or set CC")
    made = Path(tempfile.mkdtemp(prefix="xtra-killer-")) / "disk_killer.so"
    command = [*compiler.split(), "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    env = os.environ | {"XTRA_KILLER": str(made), "LD_PRELOAD": str(made)}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # which pyarrow starts, and which no fork has
    os.execve(sys.executable, [sys.executable, *sys.argv], env)


def unload() -> None:
    """Remove the compiled killer; what runs keeps it mapped."""
    if made := os.environ.get("XTRA_KILLER"):
        shutil.rmtree(Path(made).parent, ignore_errors=True)


@dataclass
class Running:
    """A command under way."""

    pid: int
    place: Place
    name: str
    began: float = field(default_factory=time.monotonic)

    def wait(self, limit: float = LIMIT, stopped: bool = False) -> Outcome | None:
        """Its end; with `stopped`, also its stop by SIGSTOP. None when neither comes within the limit (seconds)."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG | (os.WUNTRACED if stopped else 0))
            if pid and os.WIFSTOPPED(status):
                return Outcome(-os.WSTOPSIG(status), 0, "", time.monotonic() - self.began)
            if pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)  # what it had started
                count = self.place.file(f"{self.name}.count")
                changes = int(count.read_text() or 0) if count.exists() else 0
                text = self.place.file(f"{self.name}.log").read_text(errors="replace")
                return Outcome(os.waitstatus_to_exitcode(status), changes, text, time.monotonic() - self.began)
            time.sleep(0.004)
        return None

    def interrupt(self) -> None:
        """Ctrl-C, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)

    def end(self) -> Outcome:
        """Kill it, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        outcome = self.wait()
        assert outcome is not None
        return outcome


def run(words: Sequence[str], place: Place, stop: Stop | None = None, changes: bool = False) -> Outcome:
    """One command to its end; after its limit it is killed, which its outcome says."""
    running = start(words, place, stop, changes=changes)
    outcome = running.wait()
    if outcome is None:
        os.kill(running.pid, signal.SIGUSR2)
        time.sleep(1)
        outcome = running.end()
        print(outcome.text[-6000:], flush=True)
        return Outcome(outcome.status, 0, f"{outcome.text}\nno end within {LIMIT:.0f} s", outcome.seconds)
    return outcome


def start(
    words: Sequence[str], place: Place, stop: Stop | None = None, name: str = "command", changes: bool = False
) -> Running:
    """`changes` writes a line for every change to NAME.changes."""
    place.file(f"{name}.count").unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _child(words, place, stop, name, changes)
    return Running(pid, place, name)


def _child(words: Sequence[str], place: Place, stop: Stop | None, name: str, changes: bool) -> None:
    status = 99
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):  # until the command takes them
            signal.signal(number, signal.SIG_DFL)
        _print_to(place.file(f"{name}.log"))
        faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)  # where it waits, if it does not end
        os.environ.update(place.env)
        os.environ["TMPDIR"] = str(place.tmp)
        tempfile.tempdir = None
        from jobs import cli

        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        count = os.open(place.file(f"{name}.count"), flags, 0o644)
        log = os.open(place.file(f"{name}.changes"), flags | os.O_APPEND, 0o644) if changes else -1
        library = ctypes.CDLL(os.environ["XTRA_KILLER"])
        library.killer_count.restype = ctypes.c_long
        wanted = stop or Stop(NEVER)
        library.killer_arm(
            f"{place.out}\n{place.tmp}".encode(),
            ctypes.c_long(wanted.change),
            MOMENTS.index(wanted.moment),
            int(wanted.signal),
            int(place.sockets),
            log,
        )
        status = cli.main(list(words))
        library.killer_disarm()
        os.write(count, str(library.killer_count()).encode())
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 97
    except BaseException:
        traceback.print_exc()
        status = 98
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _print_to(log: Path) -> None:
    handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    for number in (1, 2):
        os.dup2(handle, number)
    sys.stdout = open(os.dup(1), "w", buffering=1, errors="replace")  # noqa: SIM115
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="replace")  # noqa: SIM115


def apart(job: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None) -> Any:
    """What a function returns (JSON), called in a fork; raises RuntimeError with what it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            os.environ.update(env or {})
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            try:
                told = {"value": job(*args)}
                status = 0
            except BaseException as error:
                told = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            with os.fdopen(write, "w") as file:
                json.dump(told, file)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    told = json.loads(text) if text else {"error": "it died", "trace": ""}
    if "error" in told:
        raise RuntimeError(f"{told['error']}\n{told['trace']}")
    return told["value"]


def read_changes(place: Place, name: str = "command") -> list[tuple[str, int, str]]:
    """(call, bytes, path) of every change of a command that ran with `changes`."""
    found = []
    for line in place.file(f"{name}.changes").read_text(errors="replace").splitlines():
        _, call, size, path = line.split(" ", 3)
        found.append((call, int(size), path))
    return found
