"""Progress of a run or an ingest as metrics (Prometheus) that Ray exports on a port of the process's node.

Ray puts `ray_` before each name. Every value has the label `run`, the command's output folder. Prometheus polls
every few seconds, so no process sets its values more than once a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray.util.metrics

EVERY_SECONDS = 1.0
GAUGES = {
    "xtra_samples_seen": "samples that a run has seen",
    "xtra_samples": "samples that a run will see in total",
    "xtra_samples_per_s": "samples a second since the attempt's start",
    "xtra_loss": "loss of the last step",
    "xtra_data_wait_seconds": "seconds that the last step waited for its batch",
    "xtra_checkpoint_age_seconds": "seconds since the attempt's newest checkpoint, or since its start",
    "xtra_attempts": "groups of workers that the driver has started",
    "xtra_links": "links of an ingest's list",
    "xtra_links_done": "links with a verdict",
    "xtra_links_kept": "links whose picture was kept",
    "xtra_links_per_s": "links a second since the ingest's start",
    "xtra_links_rejected": "links without a picture, by reason",
}


class Gauges:
    """The gauges of one process, which has one run at a time."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._at = float("-inf")

    def due(self) -> bool:
        """Whether a second has passed since this was last true."""
        now = time.monotonic()
        if now - self._at < EVERY_SECONDS:
            return False
        self._at = now
        return True

    def set(self, run: str, values: Mapping[str, float | None], reasons: Mapping[str, int] = {}) -> None:
        for name, value in values.items():
            if value is not None:
                self._gauge(name).set(float(value), {"run": run})
        for reason, count in reasons.items():
            self._gauge("xtra_links_rejected").set(float(count), {"run": run, "reason": reason})

    def _gauge(self, name: str) -> Any:
        if name not in self._made:
            labels = ("run", "reason") if name == "xtra_links_rejected" else ("run",)
            self._made[name] = ray.util.metrics.Gauge(name, GAUGES[name], tag_keys=labels)
        return self._made[name]


def of_step(row: Mapping[str, Any], began: float) -> dict[str, float | None]:
    """The values of a row of a run's progress; `began` is the attempt's start (UNIX seconds)."""
    return {
        "xtra_samples_seen": row["samples_seen"],
        "xtra_samples": row["samples"],
        "xtra_samples_per_s": row.get("samples_per_s"),
        "xtra_loss": row.get("loss"),
        "xtra_data_wait_seconds": row.get("data_wait"),
        "xtra_checkpoint_age_seconds": time.time() - (row.get("saved_at") or began),
    }


def of_ingest(now: Any) -> dict[str, float | None]:
    """The values of an ingest's progress (ingest.run.Progress)."""
    return {
        "xtra_links": now.links,
        "xtra_links_done": now.done,
        "xtra_links_kept": now.kept,
        "xtra_links_per_s": now.done_now / now.seconds if now.seconds else None,
    }
