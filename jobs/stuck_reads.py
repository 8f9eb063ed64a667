"""Stop a verb whose main thread hangs in a read of a store: nothing there checks for a stop, so the signal is raised
a second time, which ends the verb at once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType

from shards import store

PATIENCE = 8.0  # seconds after the first signal
STILL = 4.0  # of these, spent in one read
_READS = {
    function.__code__
    for function in (
        store.read,
        store.read_range,
        store.read_into,
        store.open_read,
        store.names,
        store.exists,
        store.size,
    )
}


def watch(number: int, patience: float = PATIENCE, still: float = STILL) -> None:
    """Raise the signal again in `patience` seconds if the main thread is in one read for the last `still` of them."""

    def look() -> None:
        time.sleep(patience - still)
        before = _read_under_way()
        time.sleep(still)
        if before is not None and _read_under_way() is before:
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=look, name="stuck-reads", daemon=True).start()


def _read_under_way() -> FrameType | None:
    """The main thread's call of one of the store's readers; a later call is another frame."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code not in _READS:
        frame = frame.f_back
    return frame
