"""Words -> a Config: the call that a verb gets, and the flags that are the fields of its Config.

Nested fields are flags with dots (`--optim.lr 1e-3`). A mistake is a ValueError in one line that names the flag, the
nearest valid one and the next step. The CLI library lives in this file only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import shutil
import signal
import threading
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs.cluster import Workers, parse_workers

C = TypeVar("C")
REQUIRED = dataclasses.MISSING
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal that must end the verb at once: the second one, or the first where the verb cannot wind down."""


@dataclass
class Call:
    """One invocation: the words after the verb, and what the verb tells back."""

    verb: str
    takes: str
    words: list[str]
    exit_code: int = 0
    signal: int = 0
    can_stop: bool = False
    on_stop: Callable[[], None] | None = None  # shows the wish to stop where a table covers the terminal
    stop: threading.Event = field(default_factory=threading.Event)
    json: bool = False  # the command ends with one JSON object
    quiet: bool = False  # of signals: it runs beside another command, which tells of them
    echo: float = 0.0  # seconds after a signal in which another one is the same wish
    shown: bool = False  # what it raises has been printed, or another rank prints it
    place: Any = None  # this process's among the ranks that a launcher has started (jobs/launch)
    _since: float = 0.0

    def first(self) -> str | None:
        """Take the leading word that is no flag, if there is one."""
        return self.words.pop(0) if self.words and not self.words[0].startswith("-") else None

    def own(self, name: str, default: int) -> int:
        """Take a whole-number flag that belongs to the command and not to a Config."""
        value = self.value(name)
        if value is not None and not value.isdigit():
            raise ValueError(f"--{name} is {value!r}; it must be a whole number")
        return default if value is None else int(value)

    def value(self, name: str) -> str | None:
        """Take a flag that belongs to the command; None if it is not given."""
        for at, word in enumerate(self.words):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}":
                value = value if equals else " ".join(self.words[at + 1 : at + 2])
                del self.words[at : at + (1 if equals else 2)]
                return value
        return None

    def switch(self, name: str) -> bool:
        """Take a flag of the command that has no value; whether it was given."""
        given = f"--{name}" in self.words
        self.words = [word for word in self.words if word != f"--{name}"]
        return given

    def seconds(self, name: str) -> float | None:
        """Take a flag of the command that is a time in seconds; None if it is not given."""
        value = self.value(name)
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            raise ValueError(f"--{name} is {value!r}; it must be a number of seconds")
        return seconds

    def workers(self) -> Workers:
        """Take --workers N or MIN..MAX and what goes with it."""
        least, most = parse_workers(value) if (value := self.value("workers")) is not None else (1, 1)
        times = {"stall": self.seconds("stall"), "resize_every": self.seconds("resize-every")}
        given = {name: seconds for name, seconds in times.items() if seconds is not None}
        return Workers(least, most, self.seconds("wait-for-workers"), **given)

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Take a flag that belongs to the command and names one of some things; None if it is not given."""
        value = self.value(name)
        if value is not None and value not in choices:
            raise ValueError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}")
        return value

    def several(self, name: str) -> tuple[str, ...]:
        """Take a flag that belongs to the command, with all the plain words after it; empty if it is not given."""
        for at, word in enumerate(self.words):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}":
                end = at + 1
                while not equals and end < len(self.words) and not self.words[end].startswith("--"):
                    end += 1
                taken = (value,) if equals else tuple(self.words[at + 1 : end])
                if not taken:
                    raise ValueError(f"--{name} has no value: xtra {self.verb} --help describes the flags")
                del self.words[at:end]
                return taken
        return ()

    def prefixed(self, name: str) -> list[str]:
        """Take the flags --NAME.FLAG with their values, and give them as --FLAG."""
        taken, left, ours = [], [], False
        for word in self.words:
            if word.startswith("--"):
                ours = word.startswith(f"--{name}.")
            (taken if ours else left).append(word.replace(f"--{name}.", "--", 1) if ours else word)
        self.words = left
        return taken

    def config(self, kind: type[C], first: str = "", default: C | None = None, also: str = "") -> C:
        """The words as a Config; `first` names the field that the leading plain word sets."""
        if first and (word := self.first()) is not None:
            self.words = [f"--{_dashed(first)}", word, *self.words]
        elif first and self.takes and not self.words and _flags(kind)[f"--{_dashed(first)}"]:
            raise ValueError(f"{self.takes} is missing: xtra {self.verb} {self.takes}; --help describes the flags")
        if first and self.takes:
            also = "\n".join([f"{self.takes} is short for --{_dashed(first)} {self.takes}.", *filter(None, [also])])
        also = "\n".join([*filter(None, [also]), "--json: end with one JSON object on the last line of stdout."])
        return parse(kind, self.words, f"xtra {self.verb}", default, self.takes, also)

    def stoppable(self) -> threading.Event:
        """From here on a signal asks the verb to wind down by itself."""
        self.can_stop = True
        return self.stop

    def heed(self) -> None:
        """End the verb here, between two steps of it, if a signal asked for that."""
        if self.stop.is_set():
            raise Stopped

    def listen(self) -> None:
        """Take SIGINT and SIGTERM; again after a library that takes them for itself has started (Ray does)."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        """The first asks a verb that can to wind down; any other ends it at once."""
        if self.signal and time.monotonic() - self._since < self.echo:
            return
        urgent = self.signal or not self.can_stop
        self.signal, self._since = number, time.monotonic()
        self.stop.set()
        if urgent:
            raise Stopped
        if number == signal.SIGTERM:
            from jobs import stuck_reads

            stuck_reads.watch(number)
        if self.quiet:
            return
        if self.on_stop is None:
            os.write(2, b"stopping: finishing what is in hand; once more to stop at once\n")
        else:
            self.on_stop()


def nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


# ---- words -> Config ----


def parse(
    kind: type[C], words: Sequence[str], prog: str, default: C | None = None, takes: str = "", also: str = ""
) -> C:
    """A Config from flags. Raises ValueError, in one line, naming the flag, the nearest valid one and the next step;
    with --help it prints every flag (beside `takes`, a leading word, and a remark, `also`) and raises SystemExit."""
    if "--help" in words or "-h" in words:
        print(describe(kind, f"{prog} {takes}".strip(), default, also))
        raise SystemExit(0)
    flags = _flags(kind)
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    for flag in sorted(given - flags.keys()):
        raise ValueError(f"{flag} is not a flag{nearest(flag, flags)}: {prog} --help lists them")
    missing = [flag for flag, required in flags.items() if required and default is None and flag not in given]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given: {prog} --help describes the flags")
    config, said = _tyro(kind, words, prog, default, columns=10_000)  # a complaint is made one line of: no breaks
    if config is None:
        raise ValueError(f"{_complaint(said)}: {prog} --help describes the flags")
    return config


def describe(kind: type[C], usage: str, default: C | None, also: str) -> str:
    """The help of one verb: our usage line, then every flag in a box of its group."""
    columns = min(80, shutil.get_terminal_size().columns)
    text = _tyro(kind, ["--help"], usage, default, columns)[1]
    boxes = text[text.index("╭") :].rstrip()
    return "\n\n".join(part for part in (f"usage: {usage} [--flags]", also, boxes) if part)


def _tyro(kind: type[C], words: Sequence[str], prog: str, default: C | None, columns: int) -> tuple[C | None, str]:
    """The Config, or None if the parser ended with help or a complaint; and what it printed."""
    import tyro

    start = tyro.MISSING_NONPROP if default is None else default
    before, said = os.environ.get("COLUMNS"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    os.environ["COLUMNS"] = str(columns)
    config = None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            config = tyro.cli(kind, args=list(words), prog=prog, default=start, config=(tyro.conf.AvoidSubcommands,))
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    said.seek(0)
    return config, said.read()


def _flags(kind: type, prefix: str = "") -> dict[str, bool]:
    """Every flag of a Config, and whether it must be given."""
    hints, flags = typing.get_type_hints(kind), {}
    for f in dataclasses.fields(kind):
        name, hint = f"{prefix}{_dashed(f.name)}", hints[f.name]
        if any(dataclasses.is_dataclass(choice) for choice in typing.get_args(hint)):
            continue  # a whole Config or None: the verb's to fill
        required = f.default is REQUIRED and f.default_factory is REQUIRED
        if dataclasses.is_dataclass(hint):
            inner = _flags(typing.cast(type, hint), f"{name}.")
            flags |= {flag: needed and required for flag, needed in inner.items()}
            continue
        flags[f"--{name}"] = required
        if hint is bool:
            head, _, last = name.rpartition(".")
            flags[f"--{head + '.' if head else ''}no-{last}"] = False
    return flags


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _complaint(box: str) -> str:
    """The first paragraph of the parser's error box, as one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │") for line in box.splitlines()]
    body: list[str] = []
    for line in (line for line in lines if line and line[0] not in "╭╰"):
        if set(line) == {"─"}:
            break
        body.append(line)
    return re.sub(r"^Error parsing (?:(--\S+: )|\S+: )", r"\1", " ".join(body)).rstrip(".")
