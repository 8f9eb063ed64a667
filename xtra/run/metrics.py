"""A run's measurements, read back: the segments of its metrics as one log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shards import store, typed_json
from xtra.run import records

READERS = 16  # metrics segments are many small objects: read them in parallel


@dataclass(frozen=True)
class Metric:
    """One row of the training log, at the end of a step."""

    samples_seen: int
    loss: float
    seconds: float  # since the attempt's start
    samples_per_s: float  # since the attempt's start
    val_loss: float | None
    attempt: int
    cpu_seconds: float | None = None  # of rank 0 since the attempt's start
    lr: float | None = None
    grad_norm: float | None = None
    data_wait: float | None = None  # seconds that the step waited for its batch
    mfu: float | None = None  # in the FLOPs of the paper's code; None if the machine's peak is unknown

    @property
    def began_at(self) -> int:
        """Samples seen when the attempt started."""
        return self.samples_seen - round(self.seconds * self.samples_per_s)


def read_metrics(run: str, problems: list[str]) -> tuple[Metric, ...]:
    """The segments of all attempts as one log. An attempt replaces what earlier attempts logged from its start on."""
    folder = store.join(run, "metrics")
    names = records.ours(store.names(folder), records.PART)
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda n: _read_segment(store.join(folder, n), int(n.split("-")[0]), problems), names))
    by_attempt: dict[int, list[Metric]] = {}
    for metric in (m for part in parts for m in part):
        by_attempt.setdefault(metric.attempt, []).append(metric)
    log: list[Metric] = []
    for attempt in sorted(by_attempt):
        newer = sorted(by_attempt[attempt], key=lambda m: m.samples_seen)
        log = [m for m in log if m.samples_seen <= newer[0].began_at] + newer
    return tuple(log)


def _read_segment(url: str, attempt: int, problems: list[str]) -> list[Metric]:
    found: list[Metric] = []
    for number, line in enumerate(store.read(url).splitlines(), 1):
        where = f"{url} line {number}"
        try:
            row = _object(line, where)
            found.append(
                Metric(
                    samples_seen=typed_json.get(row, "samples_seen", int, where),
                    loss=typed_json.get(row, "loss", float, where),
                    seconds=typed_json.get(row, "seconds", float, where),
                    samples_per_s=typed_json.get(row, "samples_per_s", float, where),
                    val_loss=typed_json.maybe(row, "val_loss", where),
                    attempt=attempt,
                    cpu_seconds=typed_json.maybe(row, "cpu_seconds", where),
                    lr=typed_json.maybe(row, "lr", where),
                    grad_norm=typed_json.maybe(row, "grad_norm", where),
                    data_wait=typed_json.maybe(row, "data_wait", where),
                    mfu=typed_json.maybe(row, "mfu_paper", where),
                )
            )
        except ValueError as error:
            problems.append(f"{error} (line skipped)")
    return found


def _object(text: bytes, where: str) -> dict[str, Any]:
    value = typed_json.parse(text, where, finite=False)
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: holds {type(value).__name__}, expected an object: it was not written by this program"
        )
    return value
