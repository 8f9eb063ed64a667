"""The command `xtra`: words -> a Config -> its run(). Packages are imported only by the verb that needs them.

A verb's flags are the fields of its Config, nested ones with dots (`--optim.lr 1e-3`). A user's mistake is one line on
stderr and exit 2, or 75 if the same command may work later; a finished verb that found something wrong exits 1; a verb
stopped by a signal exits 130 or 143 and can be rerun; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from jobs import cluster
from jobs.flags import SIGNALS, Call, Stopped, nearest
from jobs.terminal import say
from jobs.verbs import VERBS


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help", "help"):
        say(_help())
        return 0
    if words[0] == "--version":
        say(f"xtra-pretrain {cluster.version()}")
        return 0
    name, rest = words[0], words[1:]
    verb = VERBS.get(name)
    if verb is None:
        say(f"xtra: {name!r} is not a verb{nearest(name, list(VERBS))}: xtra --help lists them", file=sys.stderr)
        return 2
    as_json = "--json" in rest
    words = [word for word in rest if word != "--json"]
    call = Call(name, verb.takes, words, verb.examples, json=as_json, quiet="--parent" in rest)
    try:
        _refuse_skew()
        _refuse_empty(call.words)
        _refuse_secrets(call.words)
        # No core dump: this process decodes untrusted pictures with a store's keys in its environment.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with _signals(call), _remarks(name):
            result = verb.run(call)
    except Stopped:
        return _stopped(call)
    except ValueError as error:
        if not call.shown:
            say(f"xtra {name}: {' '.join(str(error).split())}", file=sys.stderr)
        code = getattr(error, "exit_code", 2)  # 75: nothing is wrong, and the same command may work later
        if getattr(error, "at_once", False):
            sys.stdout.flush()
            os._exit(code)
        return code
    except (MemoryError, ImportError, RuntimeError, SystemError) as error:
        if (why := _too_small(error)) is None:
            raise
        say(f"xtra {name}: {why}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if as_json and result is not None:
        print(json.dumps(plain(result)), flush=True)
    return _stopped(call) if call.signal else call.exit_code


def _too_small(error: BaseException) -> str | None:
    """Which resource this machine is short of, in one line, if the error means that; else None."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError):
        return "there is too little memory: allow more (ulimit -v), or use less at once (--threads, --batch, --unit)"
    if isinstance(error, ImportError) and "failed to map" in str(error):
        return f"there is too little memory to load a library ({text}): allow more (ulimit -v)"
    if isinstance(error, SystemError) and "without exception set" in text:  # out of memory in a library
        return f"a library failed without a message ({text}), probably for lack of memory: allow more (ulimit -v)"
    if "can't start new thread" in text:
        return "no thread can be started: allow more memory (ulimit -v) or processes (ulimit -u)"
    return None


@contextlib.contextmanager
def _remarks(verb: str) -> Iterator[None]:
    """Show our UserWarnings as one line each, without their place in the code."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if category is UserWarning:
            say(f"xtra {verb}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _refuse_skew() -> None:
    """Refuse a version that differs from the one whose parser checked the job when it was submitted."""
    submitted = os.environ.get(cluster.SUBMITTED_WITH)
    if submitted is not None and submitted != cluster.version():
        raise ValueError(
            f"this image has xtra-pretrain {cluster.version()}, and the job was submitted with {submitted}: use the "
            "image of that version, or xtra submit --code here"
        )


def _refuse_secrets(words: Sequence[str]) -> None:
    """Refuse secrets before anything is opened, because the words would be stored in configs, pages and metadata."""
    from shards.url_secrets import refuse_secrets

    for before, word in itertools.pairwise(["", *words]):
        flag, equals, value = word.partition("=")
        name = flag if equals and flag.startswith("--") else before if before.startswith("--") else "a word"
        refuse_secrets(**{name: value if equals and flag.startswith("--") else word})


def _refuse_empty(words: Sequence[str]) -> None:
    """`--out "$OUT"` with OUT not set must not mean the root folder, nor the default."""
    for before, word in itertools.pairwise(["", *words]):
        if not word.strip() or re.fullmatch(r"--[^=]+=\s*", word):
            name = word.partition("=")[0] if "=" in word else before if before.startswith("--") else "a word"
            raise ValueError(f"{name} is empty: give a value (was a shell variable not set?)")


def _help() -> str:
    lines = [
        "xtra: from a list of image URLs to a scaling curve",
        "",
        "usage: xtra VERB [WORD] [--flags]",
        "",
        *(f"  {f'{name} {verb.takes}':<16}  {verb.help}" for name, verb in VERBS.items()),
        "",
        "xtra VERB --help describes a verb's flags. --json: end with one JSON object.",
        "xtra --version prints the version.",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _signals(call: Call) -> Iterator[None]:
    """Send SIGINT and SIGTERM to the call until the block ends."""
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
        say(f"xtra {call.verb}: stopped by {name}: rerun the same command to go on", file=sys.stderr)
    return 128 + call.signal


def plain(value: Any) -> Any:
    """A result as JSON values: dataclasses as objects, non-finite numbers as null."""
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
