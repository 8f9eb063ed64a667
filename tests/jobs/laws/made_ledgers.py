"""Ledgers of known laws, with noise."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = tuple(2000 * 2**k for k in range(6))
Rows = list[dict[str, Any]]


def rows(
    arm: str,
    E: float = 0.3,
    A: float = 6.0,
    a: float = 0.35,
    n0: float = 0.0,
    counts: Sequence[int] = COUNTS,
    seeds: int = 3,
    noise: float = 0.0,
    draw: int = 0,
) -> Rows:
    """One arm; noise is the standard deviation of a trunk's offset and of a point, each."""
    rng = np.random.default_rng(draw)
    found: Rows = []
    for seed in range(seeds):
        moved = rng.normal(0, noise) if noise else 0.0
        for n in counts:
            error = E + A * (n + n0) ** -a + moved + (rng.normal(0, noise) if noise else 0.0)
            found.append({"arm": arm, "seed": seed, "samples_seen": n, "accuracy": 1 - error})
    return found


def write(path: Path, table: Rows) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return str(path)
