"""A verb's progress: a bar on a terminal, elsewhere a line every few seconds; always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, TextIO

from jobs.terminal import clean, say

EVERY_SECONDS = 5.0


class Progress:
    """Call it with the number done, the total and what is counted. Thread-safe. A new `what` starts a new count."""

    def __init__(self, unit: str, out: TextIO | None = None, every: float = EVERY_SECONDS):
        self.unit, self.out, self.every = unit, out or sys.stderr, every
        self._lock = threading.Lock()
        self._what: str | None = None
        self._bar: Any = None
        self._since = self._said = 0.0
        self._first = 0

    def __call__(self, done: int, total: int | None = None, what: str = "", note: str = "") -> None:
        with self._lock:
            if what != self._what:
                self._begin(done, total, what)
            if self._bar is not None:
                self._bar.set_postfix_str(clean(note), refresh=False)
                self._bar.update(done - self._bar.n)
            elif time.monotonic() - self._said >= self.every:
                self._said = time.monotonic()
                say(self._line(done, total, note), file=self.out, flush=True)

    def _begin(self, done: int, total: int | None, what: str) -> None:
        """Start the rate here, so that work already done before a resume does not count."""
        self._close_bar()
        self._what, self._first = what, done
        self._since = self._said = time.monotonic()
        if self.out.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=clean(what) or None, unit=f" {self.unit}", file=self.out)

    def _line(self, done: int, total: int | None, note: str) -> str:
        rate = (done - self._first) / max(1e-9, time.monotonic() - self._since)
        of = f" of {total:,} ({100 * done / total:.1f} %)" if total else ""
        words = [self._what or "", f"{done:,}{of} {self.unit}", f"{rate:,.1f}/s", note]
        return "  ".join(word for word in words if word)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
