"""The command `xtra`: words -> a Config -> its run(). Rooms are imported only by the verb that needs them.

A verb's flags are the fields of its Config, nested ones with dots (`--optim.lr 1e-3`). A user's mistake is one line on
stderr and exit 2; a finished verb that found something wrong exits 1; a stop by signal exits 130 or 143 and can be
rerun; anything else that is raised is a bug and shows its traceback. The CLI library lives in this file only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs.verbs import VERBS, nearest

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
    quiet: bool = False  # of signals: it runs beside another command, which tells of them

    def first(self) -> str | None:
        """Take the leading word that is no flag, if there is one."""
        return self.words.pop(0) if self.words and not self.words[0].startswith("-") else None

    def own(self, name: str, default: int) -> int:
        """Take a whole-number flag that belongs to the command and not to a Config."""
        for at, word in enumerate(self.words):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}":
                rest = self.words[at + 1 : at + 2]
                value = value if equals else (rest[0] if rest else "")
                if not value.isdigit():
                    raise ValueError(f"--{name} is {value!r}; it must be a whole number")
                del self.words[at : at + (1 if equals else 2)]
                return int(value)
        return default

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """Take a flag that belongs to the command and names one of some things; None if it is not given."""
        for at, word in enumerate(self.words):
            flag, equals, value = word.partition("=")
            if flag == f"--{name}":
                value = value if equals else " ".join(self.words[at + 1 : at + 2])
                if value not in choices:
                    raise ValueError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}")
                del self.words[at : at + (1 if equals else 2)]
                return value
        return None

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
        urgent = self.signal or not self.can_stop
        self.signal = number
        self.stop.set()
        if urgent:
            raise Stopped
        if self.quiet:
            return
        if self.on_stop is None:
            os.write(2, b"stopping: finishing what is in hand; once more to stop at once\n")
        else:
            self.on_stop()


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


# ---- the command ----


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, rest = words[0], words[1:]
    verb = VERBS.get(name)
    if verb is None:
        print(f"xtra: {name!r} is not a verb{nearest(name, list(VERBS))}: xtra --help lists them", file=sys.stderr)
        return 2
    as_json = "--json" in rest
    call = Call(name, verb.takes, [word for word in rest if word != "--json"], quiet="--parent" in rest)
    try:
        with _signals(call):
            result = verb.run(call)
    except Stopped:
        return _stopped(call)
    except ValueError as error:
        print(f"xtra {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if as_json:
        print(json.dumps(plain(result)), flush=True)
    return _stopped(call) if call.signal else call.exit_code


def _help() -> str:
    lines = [
        "xtra: from a list of image URLs to a scaling curve",
        "",
        "usage: xtra VERB [WORD] [--flags]",
        "",
        *(f"  {f'{name} {verb.takes}':<16}  {verb.help}" for name, verb in VERBS.items()),
        "",
        "xtra VERB --help describes a verb's flags. --json: end with one JSON object.",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _signals(call: Call) -> Iterator[None]:
    """SIGINT and SIGTERM reach the call until the block ends."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    call.listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(call: Call) -> int:
    name = signal.Signals(call.signal).name
    if not call.quiet:
        print(f"xtra {call.verb}: stopped by {name}: rerun the same command to go on", file=sys.stderr)
    return 128 + call.signal


def plain(value: Any) -> Any:
    """JSON of a result: dataclasses as objects, numbers that JSON does not have as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
