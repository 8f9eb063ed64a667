"""What subjects share: checks of their settings, torch's threads, paired ratios and medians of rounds, and processes
that run during the measurement."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Spent = tuple[float, float]  # seconds of the clock and of the CPU


def require_at_least(config: object, **bounds: float) -> None:
    """Raises ValueError naming the first field of a Config that is below its bound."""
    for name, least in bounds.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least {least}")


def parsed(words: Sequence[str] | None, flags: Mapping[str, Mapping[str, Any]], **about: Any) -> argparse.Namespace:
    """The command line of a script here; each flag has the arguments of `add_argument`, `about` has the parser's."""
    parser = argparse.ArgumentParser(**about)
    for name, settings in flags.items():
        parser.add_argument(name, **settings)
    return parser.parse_args(words)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the block; 0: its own choice."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def medians(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Of each column."""
    return tuple(statistics.median(column) for column in zip(*rounds))


def paired(name: str, ours: Sequence[Spent], theirs: Sequence[Spent], device: str) -> dict[str, Any]:
    """The median over rounds of ours over theirs in the same round, and its extremes: of CPU seconds on a CPU, where
    others may be busy too, and of the clock on a GPU."""
    by = 0 if device == "cuda" else 1
    each = [mine[by] / other[by] for mine, other in zip(ours, theirs)]
    return {
        name: statistics.median(each),
        f"{name}_least": min(each),
        f"{name}_most": max(each),
        "rounds": len(each),
    }


def in_a_child(module: str, task: str, folder: str, config: Any) -> dict[str, Any]:
    """Run one task of a subject in a process of its own, so that its memory is measured separately."""
    words = [sys.executable, "-m", f"jobs.bench.{module}", task, folder, json.dumps(dataclasses.asdict(config))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def served(module: str, words: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a server of jobs.bench until the block, or this process, ends: its process id, and what it says of itself in
    its first line."""
    command = [sys.executable, "-m", f"jobs.bench.{module}", "--with-parent", *words]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise ValueError(f"the bench's {module} did not start: its error is above")
            yield process.pid, json.loads(line)
        finally:
            process.stdin.close()
            process.terminate()
            process.wait()
