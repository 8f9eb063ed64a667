"""The progress bar of what is called from Python: tqdm's, which draws itself in a notebook too. A command has
`jobs/progress.py`, which also writes lines into a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Report(Protocol):
    """Takes how many are done, of how many, and in words what is being done and what there is to say of it."""

    def __call__(self, done: int, total: int, what: str = "", note: str = "") -> None: ...


@contextmanager
def bar(unit: str, shown: bool) -> Iterator[Report]:
    """Until the end of the block; a new `what` begins a new bar. Where it is not `shown`, tqdm is not imported."""
    if not shown:
        yield lambda done, total, what="", note="": None
        return
    from tqdm.auto import tqdm

    now: Any = None
    doing: str | None = None

    def report(done: int, total: int, what: str = "", note: str = "") -> None:
        nonlocal now, doing
        if now is None or what != doing:
            if now is not None:
                now.close()
            # What was found done counts as done, not as fast.
            now, doing = tqdm(total=total, initial=done, desc=what or None, unit=f" {unit}"), what
        if note:
            now.set_postfix_str(note, refresh=False)
        now.update(done - now.n)

    try:
        yield report
    finally:
        if now is not None:
            now.close()
