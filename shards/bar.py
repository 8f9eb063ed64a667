"""The progress bar of the Python functions: tqdm's, which also works in notebooks. Commands use `jobs/progress.py`,
which also writes lines to a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Report(Protocol):
    """Reports that `done` of `total` are done; `what` says what is being done, `note` is shown after the bar."""

    def __call__(self, done: int, total: int, what: str = "", note: str = "") -> None: ...


@contextmanager
def bar(unit: str, shown: bool) -> Iterator[Report]:
    """A bar until the end of the block; a new `what` begins a new bar. Unless it is `shown`, tqdm is not imported."""
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
            # Work done by an earlier run must not count towards the rate.
            now, doing = tqdm(total=total, initial=done, desc=what or None, unit=f" {unit}"), what
        if note:
            now.set_postfix_str(note, refresh=False)
        now.update(done - now.n)

    try:
        yield report
    finally:
        if now is not None:
            now.close()
