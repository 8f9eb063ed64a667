"""How an ingest is going: a table on a terminal, a line every few seconds anywhere else; always on stderr.

The rate covers the last minute without pauses, and the time left is at that rate. While the run is paused, the display
says so instead of estimating.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from jobs import terminal
from jobs.link_counts import ordered
from shards.figures import percent, size, span

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from ingest.http import HostLoad
    from ingest.run import Progress

EVERY_SECONDS = 5.0  # between lines
REFRESH = 2  # a second; drawing costs some milliseconds
WINDOW = 60.0  # seconds of work over which the rate is measured
STOPPING = "stopping after the work in progress; again to stop at once"
STILL = 2.0  # seconds without a finished link that count as a pause, if a note says why
SETTLED = 3.0  # seconds of work before a rate is meaningful
BUSIEST, SLOWEST = 4, 3  # hosts shown


class Pace:
    """Rates over the last WINDOW seconds of work; pauses do not count as work."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int, int]] = deque()  # seconds of work, links, bytes
        self._work = self._seconds = self._alive = 0.0
        self._done = 0
        self.paused = False  # there is a note, and no link finishes

    def add(self, p: Progress) -> None:
        if p.done_now > self._done:
            self._alive = p.seconds
        self.paused = bool(p.note) and p.seconds - self._alive >= STILL
        if not self.paused:
            self._work += max(0.0, p.seconds - self._seconds)
        self._seconds, self._done = p.seconds, p.done_now
        if not self._points or self._work - self._points[-1][0] >= WINDOW / 120:
            self._points.append((self._work, p.done_now, p.fetched_bytes))
        while len(self._points) > 2 and self._points[1][0] < self._work - WINDOW:
            self._points.popleft()

    def rates(self, p: Progress) -> tuple[float, float] | None:
        """Links and bytes a second; None until enough work is done."""
        then, links, size = self._points[0] if self._points else (0.0, 0, 0)
        span = self._work - then
        if span < SETTLED:
            return None
        return (p.done_now - links) / span, (p.fetched_bytes - size) / span

    def left(self, p: Progress) -> float | None:
        """Seconds of work left at the present rate; None without a rate."""
        rates = self.rates(p)
        return (p.links - p.done) / rates[0] if rates and rates[0] > 0 else None


class Live:
    """Call it with each Progress, from any one thread; use it in a `with` block, which restores the terminal."""

    def __init__(self, title: str, out: TextIO | None = None, every: float = EVERY_SECONDS, things: str = "links"):
        self.title, self.out, self.every, self.things = title, out or sys.stderr, every, things
        self.pace = Pace()
        self._lock = threading.Lock()
        self._newest: Progress | None = None
        self._at = self._said = time.monotonic()
        self._screen: Any = None
        self.stopping = False

    def stop(self) -> None:
        """Show that a stop was requested; safe in a signal handler."""
        self.stopping = True
        if self._screen is None:
            os.write(2, STOPPING.encode() + b"\n")

    def __enter__(self) -> Live:
        if self.out.isatty():
            from rich.console import Console
            from rich.live import Live as Screen

            console = Console(file=self.out, highlight=False, soft_wrap=False)
            if console.is_terminal and not console.is_dumb_terminal:
                self._screen = Screen(
                    console=console,
                    get_renderable=lambda: self._drawn(console.width, console.height),
                    refresh_per_second=REFRESH,
                    transient=True,  # the closing table replaces it
                    redirect_stdout=False,  # results go where the user sent them
                )
                self._screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._screen is not None:
            screen, self._screen = self._screen, None
            screen.stop()

    def __call__(self, p: Progress) -> None:
        with self._lock:
            if self._newest is None and 0 < p.done - p.done_now < p.links:
                say = self._screen.console.print if self._screen else self._print
                say(f"going on at {p.done - p.done_now:,} of {p.links:,} {self.things}")
            self.pace.add(p)
            self._newest, self._at = p, time.monotonic()
            if self._screen is None and self._at - self._said >= self.every:
                self._said = self._at
                self._print(line(p, self.pace, self.things))

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def _drawn(self, width: int, height: int) -> RenderableType:
        from rich.text import Text

        with self._lock:
            if self._newest is None:
                return Text(f"{clean(self.title, width)}\nreading the list", overflow="crop", no_wrap=True)
            since = time.monotonic() - self._at  # the clock advances during a long step
            return drawn(self.title, self._newest, self.pace, width, height, since, self.stopping, self.things)


# ---- words ----


def line(p: Progress, pace: Pace, things: str = "links") -> str:
    """The whole progress in one line, for logs."""
    rates = pace.rates(p)
    words = [f"{p.done:,} of {p.links:,} {things} ({percent(p.done, p.links)})"]
    if rates:
        words += [f"{rates[0]:,.0f} {things}/s", f"{size(rates[1])}/s"]
    words.append(f"kept {percent(p.kept, p.done)}")
    return "  ".join(word for word in (*words, remaining(p, pace, things), clean(p.note, 200)) if word)


def remaining(p: Progress, pace: Pace, things: str = "links") -> str:
    left = pace.left(p)
    if p.done >= p.links:
        return f"all {things} done"
    if left is None:
        return "" if p.note else "time left not known yet"
    return f"paused: {span(left)} of work left" if pace.paused else f"{span(left)} left"


def clean(text: str, width: int, tail: bool = False) -> str:
    """Printable and at most `width` wide: hosts and details are untrusted and may contain terminal codes."""
    text = terminal.clean(text).replace("\n", "�")
    if len(text) <= width:
        return text
    return "…" + text[len(text) - width + 1 :] if tail else text[: width - 1] + "…"


# ---- the table ----


def drawn(
    title: str,
    p: Progress,
    pace: Pace,
    width: int,
    height: int,
    since: float = 0.0,
    stopping: bool = False,
    things: str = "links",
) -> RenderableType:
    """The whole table, `width` by at most `height` characters."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=max(1, p.links), completed=p.done, width=width - 9), Text(percent(p.done, p.links)))
    rates = pace.rates(p)
    speed = f"{rates[0]:,.0f} {things}/s   {size(rates[1])}/s   " if rates else ""
    mean = f"{p.done_now / p.seconds:,.0f} {things}/s since the start" if rates and p.seconds else ""
    counts = f"{p.done:,} of {p.links:,} {things}   {p.units_done:,} of {p.units:,} units"
    parts: list[RenderableType] = [
        _ends(title, span(p.seconds + since), width, "bold"),
        bar,
        _ends(counts, "stopping" if stopping else remaining(p, pace, things), width),
        _ends(f"{speed}{size(p.fetched_bytes)} {'fetched' if things == 'links' else 'read'}", mean, width),
    ]
    if note := STOPPING if stopping else p.note:
        parts.append(Text(clean(note, width), style="yellow", no_wrap=True))
    room = height - len(parts) - 3  # blank lines before the reasons and at the end; one line to spare
    hosts = _chosen_hosts(p.hosts, room // 2 - 1)
    parts += [Text(""), _reasons(p, width, max(1, room - (len(hosts) + 2 if hosts else 0)))]
    if hosts:
        parts += [Text(""), _hosts(hosts, width)]
    return Group(*parts, Text(""))  # an empty last line, because the terminal echoes ^C there


def _ends(left: str, right: str, width: int, style: str = "") -> Text:
    """One line with text at both ends; the left one is cut if necessary."""
    from rich.text import Text

    left = clean(left, max(1, width - len(right) - 1))
    return Text.assemble((left, style), " " * max(0, width - len(left) - len(right)), (right, "dim"))


def _reasons(p: Progress, width: int, height: int) -> RenderableType:
    """Kept and every reason, in as many columns as fit; the rarest are summed if there is no room."""
    from rich.table import Table
    from rich.text import Text

    columns = max(1, (width + 2) // 40)
    rows = [("kept", p.kept), *ordered(p.reasons).items()]
    room = columns * height
    if len(rows) > room:
        rest = rows[room - 1 :]
        rows = [*rows[: room - 1], (f"{len(rest)} more reasons", sum(n for _, n in rest))]
    lines = -(-len(rows) // columns)
    table = Table.grid(padding=(0, 1))
    for _ in range(columns):
        table.add_column(width=18, no_wrap=True)
        table.add_column(width=10, justify="right", no_wrap=True)
        table.add_column(width=8, justify="right", no_wrap=True)
    for at in range(lines):
        cells: list[Text] = []
        for name, n in rows[at::lines]:
            cells += [
                Text(clean(name, 18), style="green" if name == "kept" else ""),
                Text(f"{n:,}"),
                Text(percent(n, p.done), style="dim"),
            ]
        table.add_row(*cells)
    return table


def _chosen_hosts(hosts: Iterable[HostLoad], room: int) -> list[HostLoad]:
    """The busiest hosts, then the slowest of the others."""
    hosts = list(hosts)
    busy = heapq.nlargest(max(0, min(BUSIEST, room)), hosts, key=lambda h: (h.active + h.waiting, h.done))
    names = {host.name for host in busy}
    others = (host for host in hosts if host.done and host.name not in names)
    return [*busy, *heapq.nlargest(max(0, min(SLOWEST, room - len(busy))), others, key=_seconds_each)]


def _seconds_each(host: HostLoad) -> float:
    return host.seconds / max(1, host.done)


def _hosts(hosts: Sequence[HostLoad], width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1, no_wrap=True)
    name_width = max(8, width - 47)
    for _ in range(5):
        table.add_column(justify="right", no_wrap=True, min_width=7)
    table.add_row(
        *(Text(t, style="dim") for t in ("busiest and slowest hosts", "open", "waiting", "done", "failed", "a link"))
    )
    now = time.time()
    for h in hosts:
        pause = h.paused_until - now
        state = Text(f"wait {span(pause)}", style="yellow") if pause > 0 else Text(f"{_seconds_each(h):.2f} s")
        failed = Text(f"{h.failed:,}", style="red" if 2 * h.failed > h.done else "")
        cells = [Text(f"{n:,}") for n in (h.active, h.waiting, h.done)]
        table.add_row(Text(clean(h.name, name_width, tail=True)), *cells, failed, state)
    return table
