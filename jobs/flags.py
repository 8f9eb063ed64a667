"""Words -> a Config: a verb's call, and the flags, which are the fields of its Config.

Nested fields are flags with dots (`--optim.lr 1e-3`). A verb that takes more than its Config has a
second dataclass for that, and both are parsed together. Whole numbers may be written `1e6`, `100k` or `1.5M`. A mistake
is a ValueError in one line that names the flag, the nearest valid one and the next step. Only this file uses the CLI
library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import os
import re
import shutil
import signal
import threading
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

C = TypeVar("C")
W = TypeVar("W")
REQUIRED = dataclasses.MISSING
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal that must end the verb at once: the second one, or the first where the verb cannot wind down."""


@dataclass
class Call:
    """One invocation: the words after the verb, and what the verb reports back."""

    verb: str
    takes: str
    words: list[str]
    examples: tuple[str, ...] = ()  # at the end of the verb's help
    exit_code: int = 0
    signal: int = 0
    can_stop: bool = False
    on_stop: Callable[[], None] | None = None  # shows that a stop was requested, where a table covers the terminal
    stop: threading.Event = field(default_factory=threading.Event)
    json: bool = False  # the command ends with one JSON object
    quiet: bool = False  # no remarks about signals: it runs next to another command, which makes them
    echo: float = 0.0  # seconds after a signal in which another one counts as the same
    shown: bool = False  # its error has been printed, or another rank prints it
    place: Any = None  # this process's rank among those that a launcher has started (jobs/launch)
    _since: float = 0.0

    def first(self) -> str | None:
        """Remove and return the leading word, if it is not a flag."""
        return self.words.pop(0) if self.words and not self.words[0].startswith("-") else None

    def prefixed(self, name: str) -> list[str]:
        """Remove the flags --NAME.FLAG with their values, and return them as --FLAG."""
        taken, left, ours = [], [], False
        for word in self.words:
            if word.startswith("--"):
                ours = word.startswith(f"--{name}.")
            (taken if ours else left).append(word.replace(f"--{name}.", "--", 1) if ours else word)
        self.words = left
        return taken

    def config(self, kind: type[C], first: str = "", default: C | None = None, needs: Sequence[str] = ()) -> C:
        """The words as a Config; `first` names the field that the leading plain word sets, `needs` the fields that
        must be given although they have a default."""
        config: C = self._read((kind,), (default,), first, needs)[0]
        return config

    def both(
        self, own: type[W], kind: type[C], first: str = "", default: C | None = None, needs: Sequence[str] = ()
    ) -> tuple[W, C]:
        """The words as the verb's second dataclass and its Config."""
        mine, config = self._read((own, kind), (None, default), first, needs)
        return mine, config

    def _read(self, kinds: Sequence[type], defaults: Sequence[Any], first: str, needs: Sequence[str]) -> list[Any]:
        flag, prog = f"--{_dashed(first)}", f"xtra {self.verb}"
        if first and (word := self.first()) is not None:
            self.words = [flag, word, *self.words]
        asks = "--help" in self.words or "-h" in self.words
        missing = first and self.takes and not _has(self.words, flag)
        if missing and not asks and _flags(kinds, defaults, needs)[flag].required:
            raise ValueError(f"{self.takes} is missing: {prog} {self.takes}; --help describes the flags")
        also = "--json: end with one JSON object on the last line of stdout."
        if first and self.takes:
            also = f"{self.takes} is short for {flag} {self.takes}.\n{also}"
        page = Help(f"{prog} {self.takes}".strip(), also, self.examples)
        return parse_all(kinds, self.words, prog, defaults, needs, page)

    def stoppable(self) -> threading.Event:
        """From here on a signal asks the verb to stop by itself."""
        self.can_stop = True
        return self.stop

    def raise_if_stopped(self) -> None:
        """Raises Stopped between two steps of the verb if a signal has arrived."""
        if self.stop.is_set():
            raise Stopped

    def listen(self) -> None:
        """Handle SIGINT and SIGTERM; call it again after starting a library that takes them over (Ray does)."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        """The first signal asks a verb that can to stop by itself; any other ends it at once."""
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
            os.write(2, b"stopping after the work in progress; again to stop at once\n")
        else:
            self.on_stop()


def nearest(word: str, words: Iterable[str]) -> str:
    """The most likely intended word, as the end of a sentence; "" if none is similar.

    Words that start with `word` come first, and `--lr` means `--optim.lr`.
    """
    words = list(words)
    longer = [other for other in words if len(word) > 3 and other.startswith(word)]
    nested = [other for other in words if word.startswith("--") and other.endswith(f".{word[2:]}")]
    near = longer or nested or difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


# ---- words -> Config ----

# Example values of flags that must be given, by the last part of their name.
EXAMPLES = {
    "urls": "list.txt",
    "data": "s3://bucket/set",
    "out": "s3://bucket/new",
    "train": "s3://bucket/labelled/train",
    "eval": "s3://bucket/labelled/eval",
    "root": "s3://bucket/suite",
    "price": "2.50",
}
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Help:
    """The text of a help page around the flags."""

    usage: str
    also: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    required: bool
    values: float  # number of words that follow it; inf: all up to the next flag
    kind: Any = str  # type of each: int, a Literal, ...


def parse(kind: type[C], words: Sequence[str], prog: str, default: C | None = None, page: Help | None = None) -> C:
    """A Config from flags; see `parse_all`."""
    config: C = parse_all((kind,), words, prog, (default,), (), page)[0]
    return config


def parse_all(
    kinds: Sequence[type],
    words: Sequence[str],
    prog: str,
    defaults: Sequence[Any],
    needs: Sequence[str] = (),
    page: Help | None = None,
) -> list[Any]:
    """One object of each kind from the flags of all; `needs` names fields that must be given although they have a
    default. Raises ValueError, in one line, naming the flag, the nearest valid one and the next step; with --help it
    prints every flag and raises SystemExit."""
    if "--help" in words or "-h" in words:
        print(describe(kinds, defaults, needs, page or Help(prog)))
        raise SystemExit(0)
    flags = _flags(kinds, defaults, needs)
    checked = _checked(words, flags, prog)
    missing = [flag for flag, about in flags.items() if about.required and not _has(words, flag)]
    if {flag[2:] for flag in missing} <= {*needs}:  # they have a default, so the given flags can be checked first
        starts = [_start(kind, default, ()) for kind, default in zip(kinds, defaults)]
        made, said = _tyro(kinds, checked, prog, starts, columns=10_000)  # wide, so that an error is one line
        if made is None:
            raise ValueError(f"{_complaint(said)}: {prog} --help describes the flags")
        if not missing:
            return made
    shown = [f"{flag} {EXAMPLES[name]}" for flag in missing if (name := re.split(r"[-.]", flag)[-1]) in EXAMPLES]
    such = f", such as {' '.join(shown)}" if shown else ""
    raise ValueError(f"{' and '.join(missing)} must be given{such}: {prog} --help describes the flags")


def describe(kinds: Sequence[type], defaults: Sequence[Any], needs: Sequence[str], page: Help) -> str:
    """The help of one verb: our usage line, then every flag in a box of its group, then examples."""
    starts = [_start(kind, default, needs) for kind, default in zip(kinds, defaults)]
    columns = min(80, shutil.get_terminal_size().columns)
    text = _tyro(kinds, ["--help"], page.usage, starts, columns)[1]
    boxes = text[text.index("╭") :].rstrip()
    examples = "\n".join(["examples:", *(f"  {example}" for example in page.examples)]) if page.examples else ""
    return "\n\n".join(part for part in (f"usage: {page.usage} [--flags]", page.also, boxes, examples) if part)


def _tyro(
    kinds: Sequence[type], words: Sequence[str], prog: str, starts: Sequence[Any], columns: int
) -> tuple[list[Any] | None, str]:
    """The parsed objects, or None if the parser ended with help or an error; and what it printed."""
    import tyro

    flat = tyro.conf.arg(name="")  # no prefix for the flags of each kind
    names = [f"part{n}" for n in range(len(kinds))]
    group = dataclasses.make_dataclass("Words", [(name, Annotated[kind, flat]) for name, kind in zip(names, kinds)])
    # Only help needs the comments beside the fields, for which sources are read.
    config = (tyro.conf.AvoidSubcommands, *(() if "--help" in words else (tyro.conf.HelptextFromCommentsOff,)))
    before, said = os.environ.get("COLUMNS"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    os.environ["COLUMNS"] = str(columns)
    made = None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            made = tyro.cli(group, args=list(words), prog=prog, default=group(*starts), config=config)
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    said.seek(0)
    return None if made is None else [getattr(made, name) for name in names], said.read()


def _start(kind: type[C], default: C | None, needs: Sequence[str], prefix: str = "") -> C:
    """The values before any flag, with required ones marked for the parser. Nothing is checked yet."""
    import tyro

    hints, made = typing.get_type_hints(kind), object.__new__(kind)
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = tyro.MISSING_NONPROP
        if default is not None:
            value = getattr(default, f.name)
        elif f.default is not REQUIRED:
            value = f.default
        elif f.default_factory is not REQUIRED:
            value = f.default_factory()
        name = f"{prefix}{_dashed(f.name)}"
        if name in needs:
            value = tyro.MISSING_NONPROP
        elif dataclasses.is_dataclass(hints[f.name]) and any(need.startswith(f"{name}.") for need in needs):
            value = _start(hints[f.name], value, needs, f"{name}.")
        object.__setattr__(made, f.name, value)
    return made


def _checked(words: Sequence[str], flags: Mapping[str, Flag], prog: str) -> list[str]:
    """The words, with whole numbers written out. Raises ValueError for an unknown flag, an invalid value, and a word
    that no flag takes."""
    checked, flag, left = list[str](), "", 0.0
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag, left = _dashed(flag), 0.0
            if flag not in flags:
                raise ValueError(f"{flag} is not a flag{nearest(flag, flags)}: {prog} --help lists them")
            if equals:
                checked.append(f"{flag}={_value(flag, value, flags[flag].kind)}")
            else:
                checked.append(flag)
                left = flags[flag].values
        elif left:
            left -= 1
            checked.append(_value(flag, word, flags[flag].kind))
        else:
            due = next((name for name, about in flags.items() if about.required and not _has(words, name)), "")
            meant = f"; did you mean {due} {word}?" if due else ""
            raise ValueError(f"{word!r} is not a flag, and no flag before it takes it{meant}: {prog} --help lists them")
    return checked


def _has(words: Sequence[str], flag: str) -> bool:
    return any(_dashed(word.partition("=")[0]) == flag for word in words)


def _value(flag: str, text: str, kind: Any) -> str:
    """The word as the parser takes it, 1000000 for 1e6, 1000k and 1M. Raises ValueError for a word that is not one of
    the choices, and for a number that is not whole."""
    choices = [str(choice) for choice in typing.get_args(kind)]
    if text == "None" or not (choices or kind is int):
        return text
    if choices:
        if text not in choices:
            raise ValueError(f"{flag} is {text!r}; it must be one of {', '.join(choices)}{nearest(text, choices)}")
        return text
    found = re.fullmatch(r"([-+]?\d[\d_]*(?:\.\d+)?(?:e\+?\d{1,3})?)([kMG]?)", text)
    number = Fraction(found[1]) * UNITS[found[2]] if found else Fraction(1, 2)
    if number.denominator > 1:
        raise ValueError(f"{flag} is {text!r}; it must be a whole number, such as 1500, 1.5k or 1e6")
    return str(number)


def _flags(kinds: Sequence[type], defaults: Sequence[Any], needs: Sequence[str], prefix: str = "") -> dict[str, Flag]:
    """Every flag of the kinds, with its values and whether it is required."""
    flags: dict[str, Flag] = {}
    for kind, default in zip(kinds, defaults):
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            name, hint = f"{prefix}{_dashed(f.name)}", hints[f.name]
            if any(dataclasses.is_dataclass(choice) for choice in typing.get_args(hint)):
                continue  # a whole Config or None: filled by the verb
            required = name in needs or (default is None and f.default is f.default_factory is REQUIRED)
            if dataclasses.is_dataclass(hint):
                inner = _flags((typing.cast(type, hint),), (default,), needs, f"{name}.")
                flags |= {
                    flag: dataclasses.replace(about, required=flag[2:] in needs or (about.required and required))
                    for flag, about in inner.items()
                }
                continue
            flags[f"--{name}"] = Flag(required, *_taken(hint))
            if hint is bool:
                head, _, last = name.rpartition(".")
                flags[f"--{head + '.' if head else ''}no-{last}"] = Flag(False, 0)
    return flags


def _taken(hint: Any) -> tuple[float, Any]:
    """How many words a flag of this type takes, and the type of each."""
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if hint is bool:
        return 0, bool
    if typing.get_origin(hint) is tuple:
        return (math.inf if Ellipsis in parts else len(parts)), parts[0]
    if parts and typing.get_origin(hint) is not Literal:
        return _taken(parts[0])
    return 1, hint


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
