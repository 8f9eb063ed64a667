"""What a cluster has: places for workers, nodes that are about to go, what its autoscaler may add."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from jobs.cluster.wanted import HeadLost

CONNECT_SECONDS = 2.0
HEAD_SECONDS = 20.0  # in which the head must answer


@dataclass(frozen=True)
class Room:
    """Places for workers of one `kind` (CPU or GPU), on nodes that stay."""

    kind: str
    total: int
    free: int
    jobs: int  # others that run on the cluster
    limit: int | None  # to which an autoscaler may add; None: there is no autoscaler

    def may_have(self, workers: int) -> bool:
        """Whether there can ever be so many places, as far as anybody knows."""
        return max(self.total, self.limit or 0) >= workers

    def waiting(self, workers: str) -> str:
        """One line on why the workers have no place yet."""
        others = f" by {self.jobs} other job{'s' * (self.jobs != 1)}" if self.jobs else ""
        line = f"waiting for {workers} {self.kind}s: {self.total - self.free} of {self.total} in use{others}"
        return line + (f"; the cluster may grow to {self.limit}" if self.limit is not None else "")


class Head:
    """Whether the cluster's head answers, asked without Ray: its own calls wait for a head that is gone, and after a
    minute end the process."""

    def __init__(self) -> None:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._at = (host.strip("[]"), int(port))
        self._heard = time.monotonic()

    def answers(self) -> bool:
        """Raises HeadLost when it has not for some time."""
        try:
            socket.create_connection(self._at, CONNECT_SECONDS).close()
        except OSError:
            silent = time.monotonic() - self._heard
            if silent > HEAD_SECONDS:
                raise HeadLost(
                    f"the cluster's head at {self._at[0]}:{self._at[1]} has not answered for {silent:.0f} s: what is "
                    "committed is kept, and the same command goes on when the cluster is back"
                ) from None
            return False
        self._heard = time.monotonic()
        return True

    def wait(self) -> None:
        """Until it answers. Raises HeadLost."""
        while not self.answers():
            time.sleep(CONNECT_SECONDS / 4)


def look(kind: str) -> Room:
    """The room for workers that need one CPU, or one GPU, each."""
    total, free, going = _per_node()
    stay = [node for node in total if node not in going]
    most = _autoscaler_limits()
    return Room(
        kind,
        total=sum(math.floor(total[node].get(kind, 0)) for node in stay),
        free=sum(math.floor(free.get(node, {}).get(kind, 0) + 1e-6) for node in stay),
        jobs=_other_jobs(),
        limit=None if most is None else int(most.get(kind, 0)),
    )


def going() -> Mapping[str, float]:
    """The nodes that are being drained, by id, and when they end (UNIX seconds; 0: not known)."""
    return _per_node()[2]


def ask_autoscaler(kind: str, workers: int) -> None:
    """Say how many places are wanted; 0 takes it back. Without an autoscaler nobody reads it."""
    request_resources(bundles=[{kind: 1}] * workers)


def _per_node() -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Total and free resources of every live node, and the nodes that go. Private calls of Ray 2.60, which has no
    public one by node, nor for drains."""
    state = ray._private.state.state
    draining = {node: deadline / 1e3 for node, deadline in state.get_draining_nodes().items()}
    return state.total_resources_per_node(), state.available_resources_per_node(), draining


def _autoscaler_limits() -> dict[str, int] | None:
    """What the cluster may grow to. Private in Ray 2.60."""
    return ray._private.state.state.get_max_resources_from_cluster_config()


def _other_jobs() -> int:
    """How many other drivers are at work. Private in Ray 2.60; the public one needs a dashboard."""
    mine = ray.get_runtime_context().get_job_id()
    return sum(not job["IsDead"] and job["JobID"] != mine for job in ray._private.state.jobs())
