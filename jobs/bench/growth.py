"""How the cost of fetch, plan, select, stream and status grows with rows, units and hosts: at 1x, 10x and 100x.

All three grow together, on made data. A cost is CPU seconds of one process, the least of several rounds. The exponent
between neighbouring sizes is log(cost ratio) / log(size ratio): 1 if the cost is proportional to the size. What a tenth
of 1x costs is subtracted from each first, and its size likewise, so that start-up does not count.

fetch is a whole ingest of small pictures from a local origin, one host for every 100 links; plan writes the plan of a
URL list; select applies the default rules; stream opens a version and reads one epoch; status is what `xtra status`
prints.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest import plan, run as ingest
from ingest.config import Config as IngestConfig
from ingest.http import FetchConfig
from ingest.select import SelectConfig, select as select_in
from jobs import status as status_of
from jobs.bench import result, select as made, stream_data
from jobs.bench.origin import photographs, serving
from jobs.bench.rounds import in_a_child
from shards.manifest import make_version, read_manifest
from shards.stream import Order, Stream

TIMES = (1, 10, 100)
LINKS_A_HOST = 100
PICTURE = 1_500  # bytes
ALLOWED = 1.05  # exponent
ROWS = {"fetch": 400, "plan": 10_000, "select": 10_000, "stream": 1_000, "status": 10_000}  # at 1x
UNIT = {"fetch": 100, "plan": 500, "select": 500, "stream": 50, "status": 500}  # rows

Measure = Callable[[int], object]  # one round; its number keeps the outputs apart


@dataclass(frozen=True)
class Config:
    """What to measure."""

    verbs: tuple[str, ...] = tuple(ROWS)
    rounds: int = 3
    scale: float = 1.0  # of all sizes
    scratch: str | None = None  # a folder for some GB; one in memory (/dev/shm) saves minutes of fsync

    def __post_init__(self) -> None:
        if unknown := [verb for verb in self.verbs if verb not in ROWS]:
            raise ValueError(f"verbs has {unknown[0]!r}: give some of {', '.join(ROWS)}")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; it must be at least 1")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale:g}; it must be more than 0")

    def rows(self, verb: str, times: float) -> int:
        return max(1, round(ROWS[verb] * self.scale * times))


def run(config: Config) -> dict[str, Any]:
    """Measure the verbs, each size in a process of its own, and print a line for each."""
    rows = []
    for verb in config.verbs:
        sizes = [config.rows(verb, times) for times in (TIMES[0] / 10, *TIMES)]
        costs = []
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as folder:
                costs.append(in_a_child("growth", f"{verb}:{size}", folder, config)["cpu_s"])
        rows.append(grown(verb, sizes, costs))
        print(_line(rows[-1]), flush=True)
    ratios = {f"{row['verb']}_exponent_{at}": row[f"exponent_{at}"] for row in rows for at in ("10x", "100x")}
    return result("growth", rows, ratios)


def grown(verb: str, sizes: list[int], costs: list[float]) -> dict[str, Any]:
    """The row of a verb: its costs, and the exponents to 10x and 100x without what the smallest size costs."""
    size = [each - sizes[0] for each in sizes[1:]]
    cost = [max(1e-6, each - costs[0]) for each in costs[1:]]
    exponents = [math.log(cost[k + 1] / cost[k]) / math.log(size[k + 1] / size[k]) for k in (0, 1)]
    return {
        "verb": verb,
        "rows": sizes[1:],
        "unit": UNIT[verb],
        "start_up_s": costs[0],
        "cpu_s": costs[1:],
        "exponent_10x": exponents[0],
        "exponent_100x": exponents[1],
    }


def _line(row: dict[str, Any]) -> str:
    costs = "  ".join(f"{rows:9,} {cost:8.3f} s" for rows, cost in zip(row["rows"], row["cpu_s"]))
    ends = [row["exponent_10x"], row["exponent_100x"]]
    mark = "" if max(ends) <= ALLOWED else f"  above {ALLOWED}"
    return f"{row['verb']:7} {costs}   exponents {ends[0]:.2f} {ends[1]:.2f}{mark}"


# --- one size, in a process of its own -----------------------------------------------------------------------------


def measured(verb: str, size: int, folder: Path, rounds: int) -> dict[str, float]:
    """The least CPU seconds of a verb over data of this size; data is made and modules are imported before."""
    least = math.inf
    with contextlib.ExitStack() as stack:
        once = _VERBS[verb](size, folder, stack)
        for number in range(rounds):
            begun = time.process_time()
            once(number)
            least = min(least, time.process_time() - begun)
    return {"cpu_s": least}


def _fetch(links: int, folder: Path, stack: contextlib.ExitStack) -> Measure:
    hosts = max(1, links // LINKS_A_HOST)
    origin = stack.enter_context(serving(bytes=str(PICTURE), bodies=16, hosts=hosts))
    urls = folder / "list.txt"
    urls.write_text("".join(origin.url(f"/ok/{k}.jpg", k) + "\n" for k in range(links)))
    return lambda number: ingest.run(_config(urls, folder / f"{number}", UNIT["fetch"]))


def _plan(rows: int, folder: Path, _stack: contextlib.ExitStack) -> Measure:
    hosts, urls = max(1, rows // LINKS_A_HOST), folder / "list.txt"
    with urls.open("w") as file:
        file.writelines(f"http://h{k % hosts}.example.org/{k * 7919 % 10007}/{k}.jpg\n" for k in range(rows))
    return lambda number: plan.make(_config(urls, folder / f"{number}", UNIT["plan"]))


def _config(urls: Path, out: Path, unit: int) -> IngestConfig:
    fetch = FetchConfig(allow_private=("127.0.0.0/8",), contact="bench@example.org")
    return IngestConfig(urls=str(urls), out=str(out), unit=unit, fetch=fetch, scratch=str(out.parent))


def _select(rows: int, folder: Path, _stack: contextlib.ExitStack) -> Measure:
    made.make(str(folder), made.Config(rows=max(1000, rows), unit=UNIT["select"]))
    manifest = read_manifest(str(folder / "dataset"))
    return lambda number: select_in(manifest, SelectConfig(), folder)


def _stream(samples: int, folder: Path, _stack: contextlib.ExitStack) -> Measure:
    data = folder / "dataset"
    stream_data.written(data, samples, photographs(16, PICTURE), UNIT["stream"])

    def once(_number: int) -> None:
        stream = Stream(read_manifest(str(data)), Order(), 64, stop_at=samples)
        with contextlib.closing(stream):
            for batch in stream:
                batch.release()

    return once


def _status(rows: int, folder: Path, _stack: contextlib.ExitStack) -> Measure:
    made.make(str(folder), made.Config(rows=max(1000, rows), unit=UNIT["status"]))
    make_version(str(folder / "dataset"), "bench")
    return lambda number: [status_of.text(each) for each in status_of.read_status(str(folder / "dataset"))]


_VERBS: dict[str, Callable[[int, Path, contextlib.ExitStack], Measure]] = {
    "fetch": _fetch,
    "plan": _plan,
    "select": _select,
    "stream": _stream,
    "status": _status,
}


if __name__ == "__main__":
    name, _, rows_asked = sys.argv[1].partition(":")
    settings = json.loads(sys.argv[3])
    print(json.dumps(measured(name, int(rows_asked), Path(sys.argv[2]), settings["rounds"])))
