"""What subjects share: torch's threads, paired ratios, medians of rounds, and a server beside the measurement."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Spent = tuple[float, float]  # seconds of the clock and of the CPU


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
