"""Names -> addresses, in threads outside the loop.

libcurl resolves 20 names at once; a list of old URLs has names whose servers never answer, 10 s each, and the living
ones behind them would run out of time. Here a name waits without holding a transfer, and two failures are
kept apart: the name does not exist, or the name server cannot answer.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

LOOK_UPS = 128  # at once

_NONE = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a name now. Without addresses `error` is the reason; `exists`: there is such a name."""

    name: str
    addresses: tuple[str, ...]
    error: str = ""
    exists: bool = True


class Resolver:
    """`wake` is called, from another thread, when there are answers."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._open = True
        self._names: SimpleQueue[str | None] = SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._threads = 0
        self._asked = 0  # and not answered

    @property
    def room(self) -> bool:
        return self._asked < LOOK_UPS

    def ask(self, name: str) -> None:
        self._asked += 1
        if self._asked > self._threads:
            self._threads += 1
            threading.Thread(target=self._serve, name="resolver", daemon=True).start()
        self._names.put(name)

    def answers(self) -> Iterator[Answer]:
        """Those that came since the last call."""
        while self._answers:
            self._asked -= 1
            yield self._answers.popleft()

    def close(self) -> None:
        """Does not wait for look-ups in progress."""
        with self._lock:
            self._open = False
        for _ in range(self._threads):
            self._names.put(None)

    def _serve(self) -> None:
        while (name := self._names.get()) is not None:
            answer = look_up(name)
            with self._lock:
                if not self._open:
                    return
                self._answers.append(answer)
                self._wake()


def look_up(name: str) -> Answer:
    """Ask this system's resolver; blocks without a time limit."""
    try:
        found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Answer(name, (), str(error.strerror), error.errno not in _NONE)
    except (OSError, UnicodeError) as error:
        return Answer(name, (), str(error), True)
    return Answer(name, tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))
