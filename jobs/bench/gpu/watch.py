"""Time limits from outside: the bench in a separate process, which is ended when a row takes too long, and restarted.

A compiler inside `.backward()` runs in a C++ thread that Python's signals cannot interrupt. So the bench writes to a
file what it is doing and how long that may take. If it takes longer, this process ends it, adds a row with the reason,
and starts another, which continues with the missing rows. It does the same if the process dies or asks for a fresh
process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.bench.gpu import bundle
from jobs.bench.gpu.record import AGAIN, Config, settled, written

GRACE = 15.0  # seconds beyond a row's own limit before it is ended
START = 90.0  # seconds until a process must report its first row
LOOK = 0.5  # seconds


def run(config: Config, words: list[str]) -> dict[str, Any]:
    """Run the bench in as many processes as needed; return the result in --out. Raises ValueError for bad settings."""
    config = settled(config)
    begun = time.monotonic()
    out, doing = Path(config.out), Path(f"{config.out}.doing")
    try:
        written(config.out, json.dumps({"rows": []}))
    except OSError as why:
        raise ValueError(f"out is {config.out!r}, which cannot be written: {why.strerror or why}") from None
    environment = os.environ | bundle.environment(Path(bundle.FOLDER))
    silent = 0  # processes that ended before they did anything
    while (left := config.seconds - (time.monotonic() - begun)) > 1:
        doing.unlink(missing_ok=True)
        command = [sys.executable, "-m", "jobs.bench.gpu", *words, "--no-watched", "--seconds", f"{left:.1f}"]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            why = _watched(process, doing, config.seconds - (time.monotonic() - begun))
        finally:
            _end(process)
        if process.returncode == 2:
            raise ValueError("the bench did not start (see above)")
        if not why and process.returncode in (0, 130):
            break
        silent = 0 if doing.exists() else silent + 1
        if silent > 1:
            raise ValueError("the bench's process ends before its first row (see above)")
        if why or process.returncode != AGAIN:
            _add(config, doing, why or f"its process ended with {process.returncode}")
    doing.unlink(missing_ok=True)
    found = json.loads(out.read_text())
    if "subject" not in found:
        raise ValueError(f"{config.seconds:.0f} s were not enough for any row: give more --seconds")
    found["seconds"] = round(time.monotonic() - begun, 1)
    written(config.out, json.dumps(found, indent=1))
    return found


def _watched(process: subprocess.Popen[bytes], doing: Path, left: float) -> str:
    """Wait for the process; return why it must be ended, or "" if it ended by itself."""
    begun = time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK)
        now = _read(doing)
        since = time.time() - doing.stat().st_mtime if now else time.monotonic() - begun
        if since > now.get("seconds", START) + GRACE:
            return f"ended from outside after {since:.0f} s"
        if time.monotonic() - begun > left + GRACE:
            return "ended from outside: no time is left"
    return ""


def _read(doing: Path) -> dict[str, Any]:
    try:
        return json.loads(doing.read_text())
    except (OSError, ValueError):
        return {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, such as compilers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _add(config: Config, doing: Path, why: str) -> None:
    """Add a row for the process's last activity, so that the next process skips it."""
    row = {"section": "machine", "name": "the bench's process", **_read(doing), "failed": why}
    row.pop("seconds", None)
    print(f"  {row['name']}: {why}", flush=True)
    found = json.loads(Path(config.out).read_text())
    found["rows"].append(row)
    written(config.out, json.dumps(found, indent=1))
