"""Full units are sealed and uploaded while fetching goes on, a few at a time."""

from __future__ import annotations

import queue
import threading

from ingest.open_unit import OpenUnit
from shards.dataset import Commit

SEALING = 2  # units that are being written to the store


class Sealing:
    """Takes full units; `done` returns their commits."""

    def __init__(self) -> None:
        self.full: list[OpenUnit] = []  # waiting for their turn
        self.sealing: dict[int, OpenUnit] = {}
        self._sealed: queue.SimpleQueue[tuple[int, Commit | BaseException]] = queue.SimpleQueue()

    @property
    def units(self) -> list[OpenUnit]:
        return [*self.full, *self.sealing.values()]

    @property
    def room(self) -> bool:
        return len(self.full) + len(self.sealing) < SEALING

    def add(self, unit: OpenUnit) -> None:
        self.full.append(unit)
        self.start()

    def start(self) -> None:
        """Begin to seal the units whose turn it is."""
        while self.full and len(self.sealing) < SEALING:
            unit = self.full.pop(0)
            self.sealing[unit.number] = unit
            # No pool: an upload that hangs must not keep a stopped process alive.
            threading.Thread(target=self._seal, args=(unit,), name=f"seal-{unit.number}", daemon=True).start()

    def _seal(self, unit: OpenUnit) -> None:
        try:
            self._sealed.put((unit.number, unit.writer.seal()))
        except BaseException as error:
            self._sealed.put((unit.number, error))

    def done(self, wait: float) -> tuple[OpenUnit, Commit | BaseException] | None:
        """A unit that was sealed, and its commit or what went wrong; waits at most `wait` seconds for one."""
        try:
            number, result = self._sealed.get(timeout=wait) if wait else self._sealed.get_nowait()
        except queue.Empty:
            return None
        return self.sealing.pop(number), result
