"""Probes that lose their processes: with the node, for lack of memory, or otherwise."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.cluster import probes

GONE = ray.exceptions.NodeDiedError("the node died")
CRASHED = ray.exceptions.WorkerCrashedError()
MEMORY = ray.exceptions.OutOfMemoryError("killed")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next probes come to, in turn: an exception, why one cannot be done, or None."""
    script: list[Any] = []

    def get(reference: Any) -> Any:
        found = script.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    task = SimpleNamespace(remote=lambda config: object())
    monkeypatch.setattr(ray, "remote", lambda **options: lambda work: task)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references[:1], references[1:]))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(probes, "start_ray", lambda: None)
    monkeypatch.setattr(probes, "need", lambda kind, workers: None)
    monkeypatch.setattr(probes, "require_nodes", lambda read, out, progress: None)
    monkeypatch.setattr(probes, "_nodes", lambda: frozenset({"one"}))
    return script


def run(count: int = 1) -> tuple[int, list[str]]:
    configs: list[Any] = [SimpleNamespace(train="", eval=f"set{n}", out="out", device="cpu") for n in range(count)]
    failed: list[str] = []
    done = probes.probe_all(configs, 2, threading.Event(), failed=lambda config, why: failed.append(why))
    return done, failed


def test_a_probe_that_goes_with_its_node_is_tried_as_often_as_that_happens(outcomes):
    outcomes += [GONE] * 20 + [None, None]
    assert run(2) == (2, [])


@pytest.mark.parametrize(
    ("error", "times", "line"), [(CRASHED, probes.LOSSES, "worker died"), (MEMORY, probes.KILLED, "ran out of memory")]
)
def test_a_probe_whose_process_dies_has_its_tries(outcomes, error, times, line):
    outcomes += [error] * (times - 1) + [None, "no such set", None]
    assert run(2) == (1, ["no such set"])
    outcomes[:] = [error] * (2 * times)
    done, failed = run(2)
    assert (done, outcomes) == (0, [])
    assert all(line in why for why in failed)
    assert len(failed) == 2
