"""How often intervals contain the truth, and how often equal arms are called different, on simulated data.

Each simulated ledger has two arms with a known law (E, a and the multiplier drawn at random) and noise of one kind: an
offset shared by a trunk's counts, noise of each point, both, or a drift along the trunk. It goes through all of
`xtra fit`. Each experiment has equal arms whose image, seed and arm-by-image effects are drawn at random; any verdict
except "undecided" is a false claim. With --out, finished blocks are kept, and the same command continues.

    python -m jobs.bench.coverage docs/study/coverage.json docs/laws.md        # rewrite the page's tables
"""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench import result
from jobs.laws import fit, statistics, table
from shards import store
from shards.figures import percent

_BLOCK = 50  # ledgers or experiments between two writes
LEVEL = 0.9  # the intervals' nominal level


@dataclass(frozen=True)
class Config:
    out: str = ""  # JSON file of the tallies; finished designs in it are not repeated
    ledgers: int = 2000  # for each design
    experiments: int = 2000  # for each design of equal arms
    images: int = 10_000  # test images in an experiment
    seed: int = 0
    only: tuple[str, ...] = ()  # names of designs; all if empty


@dataclass(frozen=True)
class Laws:
    """A design of ledgers."""

    noise: str  # offset, point, both, drift
    trunks: tuple[int, int] = (3, 5)  # least and most
    counts: int = 6
    shallow: bool = False  # error above E starts at 4 to 15 points, not at 15 to 40
    offset: bool = False  # the true laws have an n0
    unfinished: bool = False  # the last trunk is missing its largest count


@dataclass(frozen=True)
class Equal:
    """A design of experiments with equal arms."""

    arms: int = 2
    uneven: bool = False  # the first arm's seeds vary three times as much
    seeds: int = 3


DESIGNS: Mapping[str, Laws | Equal] = {
    "offset of the trunk": Laws("offset"),
    "noise of the point": Laws("point"),
    "both": Laws("both"),
    "drift": Laws("drift"),
    "both, shallow curves": Laws("both", shallow=True),
    "both, 8 counts": Laws("both", counts=8),
    "both, 8 counts, n0": Laws("both", counts=8, offset=True),
    "both, unfinished": Laws("both", unfinished=True),
    "both, 10 to 12 trunks": Laws("both", trunks=(10, 12)),
    "2 equal arms": Equal(),
    "5 equal arms": Equal(arms=5),
    "5 equal arms, one uneven": Equal(arms=5, uneven=True),
}


def run(config: Config) -> dict[str, Any]:
    """Simulate what is missing. Raises ValueError for unknown designs, and for tallies with other settings."""
    if unknown := set(config.only) - set(DESIGNS):
        raise ValueError(f"--only {unknown.pop()!r} is not a design: give some of {', '.join(DESIGNS)}")
    tallies = _kept(config)
    rows, ratios = [], {}
    for number, (name, design) in enumerate(DESIGNS.items()):
        if config.only and name not in config.only:
            continue
        tally: dict[str, float] = tallies.setdefault(name, {"done": 0})
        wanted = config.ledgers if isinstance(design, Laws) else config.experiments
        while tally["done"] < wanted:
            for i in range(int(tally["done"]), min(int(tally["done"]) + _BLOCK, wanted)):
                rng = np.random.default_rng([config.seed, number, i])
                seen = _ledger(design, rng) if isinstance(design, Laws) else _experiment(design, rng, config.images)
                for key, value in seen.items():
                    tally[key] = tally.get(key, 0) + value
                tally["done"] += 1
            _keep(config, tallies)
        shares = {key: value / tally["done"] for key, value in tally.items() if key != "done"}
        rows.append({"design": name, "done": int(tally["done"]), **shares})
        ratios |= {f"{name}: {key}": value for key, value in shares.items()}
    found = result("coverage", rows, ratios)
    _keep(config, tallies, found)
    return found


def _settings(config: Config) -> dict[str, Any]:
    return {"seed": config.seed, "images": config.images, "level": LEVEL}


def _kept(config: Config) -> dict[str, dict[str, float]]:
    if not config.out or not store.exists(config.out):
        return {}
    kept = store.read_json(config.out)
    if kept.get("settings") != _settings(config):
        raise ValueError(
            f"{config.out}: has settings {kept.get('settings')}, not {_settings(config)}: give another --out"
        )
    return kept["tallies"]


def _keep(config: Config, tallies: Mapping[str, Any], found: Mapping[str, Any] | None = None) -> None:
    if config.out:
        about = {
            **{key: found[key] for key in ("hardware", "commit", "rows") if found},
            **({"date": datetime.date.today().isoformat()} if found else {}),
        }
        text = json.dumps({"settings": _settings(config), **about, "tallies": tallies}, indent=1)
        store.put(config.out, text.encode() + b"\n")


# ---- ledgers of known laws ----


@dataclass(frozen=True)
class Truth:
    E: float
    a: float
    top: float  # error above E at the first count
    first: float
    n0: float

    def error(self, n: np.ndarray) -> np.ndarray:
        return self.E + self.top * ((n + self.n0) / (self.first + self.n0)) ** -self.a

    def count_at(self, error: float) -> float:
        return (self.first + self.n0) * ((error - self.E) / self.top) ** (-1 / self.a) - self.n0


def _ledger(design: Laws, rng: np.random.Generator) -> dict[str, float]:
    """Whether each interval of one ledger contains the truth, 1 or 0; for multipliers and predictions, the share."""
    trunks = int(rng.integers(design.trunks[0], design.trunks[1] + 1))
    deviation = rng.uniform(0.002, 0.006)
    first, span = (2000, 32) if rng.random() < 0.5 else (10_000, 1000)
    n = np.round(np.geomspace(first, first * span, design.counts))
    floors, falls = ((0, 0.5), (0.04, 0.15)) if design.shallow else ((0.1, 0.5), (0.15, 0.4))
    E, top = rng.uniform(*floors), rng.uniform(*falls)
    truth = Truth(E, rng.uniform(0.2, 0.6), top, first, first * rng.uniform(0.3, 3) if design.offset else 0.0)
    factor = rng.uniform(0.7, 2.0)  # the other arm needs as many times fewer samples
    rows = []
    for arm, times in (("one", 1.0), ("other", factor)):
        error = truth.error(n * times) + _noise(design.noise, deviation, (trunks, design.counts), rng)
        rows += [
            {"arm": arm, "seed": k, "samples_seen": float(n[j]), "accuracy": 1 - error[k, j]}
            for k in range(trunks)
            for j in range(design.counts - (design.unfinished and k == trunks - 1))
        ]
    full = [{"unique_images": None, "flops": None, "params": None, "total": None, **row} for row in rows]
    found = fit.analyse(table.Table("simulated", tuple(full[0]), tuple(full)), "samples_seen", "one", LEVEL)
    values = found.arms[0].values
    seen = {
        "E": _holds(values["E"].low, truth.E, values["E"].high),
        "a": _holds(values["a"].low, truth.a, values["a"].high),
    }
    if not truth.n0:
        seen["A"] = _holds(values["A"].low, truth.top * truth.first**truth.a, values["A"].high)
    several = found.multipliers["samples_seen"]
    seen["multiplier"] = sum(_holds(m.low, factor, m.high) for m in several) / len(several)
    seen["held out"] = sum(_holds(h.low, h.accuracy, h.high) for h in found.held_out) / len(found.held_out)
    return seen


def _noise(kind: str, deviation: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Errors of trunks and counts, [K, counts]; an offset comes with some noise of each point: test sets are finite."""
    offset, point = rng.normal(0, deviation, (shape[0], 1)), rng.normal(0, deviation, shape)
    if kind == "offset":
        return offset + point / 10
    if kind == "drift":
        return np.cumsum(point, axis=1) / math.sqrt(shape[1])
    return point if kind == "point" else (offset + point) / math.sqrt(2)


def _holds(low: float | None, value: float, high: float | None) -> float:
    return float(low is not None and high is not None and low <= value <= high)


# ---- equal arms ----


def _experiment(design: Equal, rng: np.random.Generator, images: int) -> dict[str, float]:
    """Whether each claim about equal arms, all of them false, was made: 1 or 0."""
    easy = rng.normal(0, 1.5, images)  # logits
    bits = {}
    for arm in range(design.arms):
        deviation = rng.uniform(0.002, 0.006) * (3 if design.uneven and arm == 0 else 1)
        own = rng.normal(0, 0.5, images)
        moved = rng.normal(0, deviation / 0.16, (design.seeds, 1))  # a logit moves the mean accuracy by 0.16
        chance = 1 / (1 + np.exp(-(easy + own + moved)))
        bits[f"arm{arm}"] = rng.random((design.seeds, images)) < chance
    names = list(bits)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    found = statistics.compare(bits, pairs, primary=pairs[0])
    seen = {"primary differs": float(found[0].verdict() != "undecided")}
    if len(found) > 1:
        seen["any exploratory differs"] = float(any(c.verdict() != "undecided" for c in found[1:]))
    best = statistics.best_of(bits)
    # The true accuracy is 0.5: logits are symmetric around 0.
    return seen | {"best of many: held": _holds(best.low, 0.5, best.high)}


# ---- docs/laws.md ----


def rewritten(page: str, kept: Mapping[str, Any]) -> str:
    """The page with its tables between `<!-- coverage -->` marks made from the kept results."""
    rows = {row["design"]: row for row in kept["rows"]}
    blocks = [
        _table(["design", "ledgers", *_LAWS], [rows[n] for n, d in DESIGNS.items() if isinstance(d, Laws)], _LAWS),
        _table(
            ["design", "experiments", *_EQUAL], [rows[n] for n, d in DESIGNS.items() if isinstance(d, Equal)], _EQUAL
        ),
    ]
    made = f"(`xtra bench coverage`, {kept['date']}, commit {kept['commit']}, {kept['hardware']})"
    parts = re.split(r"(<!-- coverage -->\n)", page)
    assert len(parts) == 9, "two tables, each between two marks"
    parts[2], parts[6] = (f"{block}\n\n{made}\n" for block in blocks)
    return "".join(parts)


_LAWS = ("E", "a", "A", "multiplier", "held out")
_EQUAL = ("primary differs", "any exploratory differs", "best of many: held")


def _table(header: list[str], rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    cells = [
        [row["design"], f"{row['done']:,}", *("" if row.get(c) is None else percent(row[c]) for c in columns)]
        for row in rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in [header, *cells]]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


if __name__ == "__main__":
    results, page = map(Path, sys.argv[1:])
    page.write_text(rewritten(page.read_text(), json.loads(results.read_text())))
