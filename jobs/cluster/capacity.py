"""The capacity of a cluster: places for workers, nodes that are about to go, what its autoscaler may add."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.wanted import HeadLost, on_a_cluster

CONNECT_SECONDS = 2.0
HEAD_SECONDS = 20.0  # within which the head must answer
ASK_SECONDS = 30.0  # within which a task on the head must report what its autoscaler may add
# The preface of an HTTP/2 client and its settings, to which a working server replies. A hanging server still accepts
# connections, because the kernel does.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@dataclass(frozen=True)
class Room:
    """Places for workers of one `kind` (CPU or GPU), on nodes that stay."""

    kind: str
    total: int
    free: int
    jobs: int  # other jobs on the cluster
    limit: float | None  # places after growth by the autoscaler; inf: unknown; None: no autoscaler

    def may_have(self, workers: int) -> bool:
        """Whether there can ever be so many places, as far as known."""
        return max(self.total, self.limit or 0) >= workers

    def waiting(self, workers: str) -> str:
        """One line on why the workers have no place yet."""
        others = f" by {self.jobs} other job{'s' * (self.jobs != 1)}" if self.jobs else ""
        line = f"waiting for {workers} {self.kind}s: {self.total - self.free} of {self.total} in use{others}"
        if self.limit is None:
            return line
        return f"{line}; the cluster may grow" + (f" to {self.limit:.0f}" if math.isfinite(self.limit) else "")


class Head:
    """Whether the cluster's head answers, checked without Ray, whose calls wait for a lost head and end the process
    after a minute."""

    def __init__(self) -> None:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._at = (host.strip("[]"), int(port))
        self._heard = time.monotonic()

    def answers(self) -> bool:
        """Raises HeadLost if it has not answered for some time."""
        try:
            with socket.create_connection(self._at, CONNECT_SECONDS) as line:
                line.sendall(GREETING)
                heard = line.recv(1)
        except OSError:
            heard = b""
        if not heard:
            silent = time.monotonic() - self._heard
            if silent > HEAD_SECONDS:
                raise HeadLost(
                    f"the cluster's head at {self._at[0]}:{self._at[1]} has not answered for {silent:.0f} s: what is "
                    "committed is kept, and the same command resumes when the cluster is back"
                )
            return False
        self._heard = time.monotonic()
        return True

    def wait(self) -> None:
        """Wait until it answers. Raises HeadLost."""
        while not self.answers():
            time.sleep(CONNECT_SECONDS / 4)


def look(kind: str, wanted: int = 0) -> Room:
    """The room for workers that need one CPU or GPU each; with its limit if fewer than `wanted` are free."""
    total, free, going = _per_node()
    stay = [node for node in total if node not in going]
    places = sum(math.floor(free.get(node, {}).get(kind, 0) + 1e-6) for node in stay)
    most = _growth(ray.get_runtime_context().gcs_address) if places < wanted and on_a_cluster() else None
    return Room(
        kind,
        total=sum(math.floor(total[node].get(kind, 0)) for node in stay),
        free=places,
        jobs=_other_jobs(),
        limit=None if most is None else most.get(kind, 0 if most else math.inf),
    )


def going() -> Mapping[str, float]:
    """The nodes that are being drained, by id, and when they end (UNIX seconds; 0: unknown)."""
    return _per_node()[2]


def ask_autoscaler(kind: str, workers: int) -> None:
    """Request so many places; 0 withdraws the request. Without an autoscaler it has no effect."""
    request_resources(bundles=[{kind: 1}] * workers)


def _per_node() -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Total and free resources of every live node, and the nodes that go. Private calls of Ray 2.60, which has no
    public ones per node or for drains."""
    state = ray._private.state.state
    draining = {node: deadline / 1e3 for node, deadline in state.get_draining_nodes().items()}
    return state.total_resources_per_node(), state.available_resources_per_node(), draining


@cache
def _growth(address: str) -> Mapping[str, float] | None:
    """What the cluster may grow to, by kind; empty if unknown, None without an autoscaler.

    The head is asked once. Ray 2.60 has a call for it, but only hosted clusters answer it.
    """
    heads = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
    if not heads:
        return None
    there = NodeAffinitySchedulingStrategy(heads[0]["NodeID"], soft=False)
    ask = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_read_growth)
    try:
        return ray.get(ask.remote(address.rpartition(":")[2]), timeout=ASK_SECONDS)
    except ray.exceptions.RayError:
        return {}


def _read_growth(port: str) -> Mapping[str, float] | None:
    """Runs on the head: what the autoscaler's configuration allows. Its process has it as an argument (`ray up`);
    without such a process the autoscaler is elsewhere (KubeRay), and its limits are unknown."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_text(errors="replace").split("\0"))
    monitors = [
        words
        for program in ("/autoscaler/_private/monitor.py", "/autoscaler/v2/monitor.py")
        for words in commands
        if any(word.endswith(program) for word in words)
    ]
    for words in monitors:
        given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if given.get("--gcs-address", "").rpartition(":")[2] == port:
            file = given.get("--autoscaling-config")
            return _most(yaml.safe_load(Path(file).expanduser().read_text())) if file else None
    return {}


def _most(config: Mapping[str, Any]) -> Mapping[str, float]:
    """The most that all nodes together can have, by kind: the largest nodes first, up to the allowed number."""
    kinds = {name: dict(of) for name, of in config["available_node_types"].items()}
    head = kinds.pop(config.get("head_node_type", ""), {})
    most = config.get("max_workers", 0)
    found: dict[str, float] = {}
    for kind in ("CPU", "GPU"):
        left, found[kind] = most, head.get("resources", {}).get(kind, 0)
        for of in sorted(kinds.values(), key=lambda of: -of.get("resources", {}).get(kind, 0)):
            nodes = min(left, of.get("max_workers", most))
            found[kind] += nodes * of.get("resources", {}).get(kind, 0)
            left -= nodes
    return found


def _other_jobs() -> int:
    """The number of other running drivers. A private call of Ray 2.60; the public one needs a dashboard."""
    mine = ray.get_runtime_context().get_job_id()
    return sum(not job["IsDead"] and job["JobID"] != mine for job in ray._private.state.jobs())
