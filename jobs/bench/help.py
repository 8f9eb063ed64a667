"""How long `xtra VERB --help` and a mistyped flag take, for every verb: the best of several, wall and CPU seconds.

Each is a process of its own, as a user starts it. On a busy machine the CPU seconds say more than the wait.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from jobs.bench import result

COMMAND = (sys.executable, "-m", "jobs.cli")
WORDS = {"train": ("train", "demo32")}  # whose flags are those of its leading word


@dataclass(frozen=True)
class Config:
    rounds: int = 5  # of which the best counts
    verbs: tuple[str, ...] = ()  # all if empty

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")


def run(config: Config) -> dict[str, Any]:
    """The best wall and CPU seconds of each verb's help and of a mistyped flag."""
    verbs = config.verbs or re.findall(r"^  ([a-z]+) ", subprocess.check_output(COMMAND, text=True), re.MULTILINE)
    rows: list[dict[str, Any]] = []
    for verb in verbs:
        for what, flag in (("help", "--help"), ("mistake", "--no-such-flag")):
            times = [seconds(*WORDS.get(verb, (verb,)), flag) for _ in range(config.rounds)]
            wall, cpu = (min(each) for each in zip(*times))
            rows.append({"verb": verb, "what": what, "wall_s": wall, "cpu_s": cpu})
    return result(
        "help", rows, {f"{row['verb']}_{row['what']}_{kind}": row[kind] for row in rows for kind in ("wall_s", "cpu_s")}
    )


def seconds(*words: str) -> tuple[float, float]:
    """Wall and CPU seconds of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime
