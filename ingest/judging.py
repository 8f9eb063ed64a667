"""The verdicts of one worker: here where that is cheap and safe, else in a child process.

What this process is decoding is marked on scratch: a worker that finds the marks of a dead one judges those links in a
child.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ingest.filter import FilterConfig, judge, taken
from ingest.isolate import Judge, costly
from ingest.open_unit import OpenUnit
from ingest.record import Event, Fetched, Verdict
from ingest.scratch import JUDGING, Scratch
from shards.pixels import InFlight, suspects


class Judging:
    """`judge` returns a verdict at once, or leaves it to a thread, whose verdicts `done` yields. Call both from one
    thread. `record` receives an event for each picture that is too much for its decoder."""

    def __init__(self, rules: FilterConfig, scratch: Scratch, record: Callable[[Event], None]) -> None:
        self.left = 0  # left to the thread, and not yet yielded by `done`
        self._rules, self._record = rules, record
        self._suspects = frozenset[int]().union(*map(suspects, scratch.left))
        for marks in scratch.left:
            marks.unlink()
        self._marks = InFlight(scratch.folder / JUDGING)
        self._apart = Judge()
        self._thread: threading.Thread | None = None
        self._costly: queue.SimpleQueue[tuple[OpenUnit, Fetched] | None] = queue.SimpleQueue()
        self._judged: queue.SimpleQueue[tuple[OpenUnit, Fetched, Verdict | BaseException]] = queue.SimpleQueue()

    def judge(self, unit: OpenUnit, fetched: Fetched) -> tuple[Verdict, bool] | None:
        """The verdict, and whether the picture may be shown, which decodes it again; None: `done` will yield it."""
        if unit.careful or fetched.link.row in self._suspects:  # may have killed a process before
            return self._noted(self._apart.apart(fetched, self._rules), unit), False
        if not costly(fetched):
            return self._judge_here(unit, fetched), True
        if self._thread is None:
            self._thread = threading.Thread(target=self._judge_costly, name="judge-costly", daemon=True)
            self._thread.start()
        self.left += 1
        self._costly.put((unit, fetched))  # transfers go on while the thread waits for the child
        return None

    def done(self) -> Iterator[tuple[OpenUnit, Fetched, Verdict]]:
        """The verdicts that the thread has reached. Raises its errors."""
        while not self._judged.empty():
            unit, fetched, verdict = self._judged.get()
            self.left -= 1
            if isinstance(verdict, BaseException):
                raise verdict
            yield unit, fetched, self._noted(verdict, unit)

    def close(self) -> None:
        self._costly.put(None)
        self._apart.close()
        self._marks.close()

    def _judge_here(self, unit: OpenUnit, fetched: Fetched) -> Verdict:
        if fetched.body is None:
            return judge(fetched, self._rules)
        with self._marks.decoding(fetched.link.row):
            if not isinstance(fetched.body, bytes):  # it is needed twice where memory is short
                fetched = replace(fetched, body=taken(fetched.body))
            try:
                return judge(fetched, self._rules)
            except MemoryError:
                return self._noted(self._apart.starved(fetched, self._rules), unit)

    def _judge_costly(self) -> None:
        while (task := self._costly.get()) is not None:
            unit, fetched = task
            try:
                self._judged.put((unit, fetched, self._apart.apart(fetched, self._rules)))
            except BaseException as error:
                self._judged.put((unit, fetched, error))

    def _noted(self, verdict: Verdict, unit: OpenUnit) -> Verdict:
        """Record an event if the body was too much for its decoder; returns the verdict."""
        if verdict.poison:
            about = f"{verdict.fetched.link.key} of unit {unit.number}"
            self._record(Event(time.time(), "killed", about, verdict.detail))
        return verdict
