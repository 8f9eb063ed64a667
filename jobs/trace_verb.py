"""`xtra trace`: the words of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.progress import Progress
from jobs.terminal import say

if TYPE_CHECKING:
    from jobs.flags import Call


def trace(call: Call) -> Any:
    from jobs import trace as tracing

    place, named = call.first(), []
    while (word := call.first()) is not None:
        named.append(word)
    if named:
        call.words = ["--what", *named, *call.words]
    call.words = ([] if place is None else [place]) + call.words
    config = call.config(tracing.Config, "place")

    with Progress("") as progress:
        result = tracing.run(config, progress)
    for problem in result.problems:
        say(f"xtra trace: {problem}", file=sys.stderr)
    say(tracing.text(result))
    call.exit_code = 1 if result.problems or result.unknown else 0
    return result
