"""Work on many objects at once, with the results in order: a bucket takes 50 ms to answer a request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

READERS = 32  # threads for small objects
INDEXES = 8  # threads for indexes, each a few MB
AHEAD = 4096  # results that may wait for their turn


def map_in_order(
    work: Callable[[T], R], items: Iterable[T], threads: int = READERS, ahead: int = AHEAD
) -> Generator[R]:
    """The result of each item, in the items' order, from a pool of threads. At most `ahead` results may wait.

    Items are taken by the caller's thread, as they are needed. The first error ends it, and so does closing the
    iterator: items that have not begun are dropped.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="parallel") as pool:
        coming: deque[Future[R]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(work, item))
                if len(coming) > ahead:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
