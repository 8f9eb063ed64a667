"""`xtra trace`: the words of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.terminal import say

if TYPE_CHECKING:
    from jobs.flags import Call

_ALSO = """xtra trace PLACE WORD …: a place is a dataset, a run or a folder of runs. A
word is a key, URL, sha256, host or phash:HEX/BITS (--what; --file for many)."""


def trace(call: Call) -> Any:
    from jobs import trace as tracing
    from jobs.progress import Progress

    place, named = call.first(), []
    while (word := call.first()) is not None:
        named.append(word)
    if named:
        call.words = ["--what", *named, *call.words]
    call.words = ([] if place is None else [place]) + call.words
    config = call.config(tracing.Config, "place", also=_ALSO)
    with Progress("") as progress:
        result = tracing.run(config, progress)
    for problem in result.problems:
        say(f"xtra trace: {problem}", file=sys.stderr)
    say(tracing.text(result))
    call.exit_code = 1 if result.problems or result.unknown else 0
    return result
