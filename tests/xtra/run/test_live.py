"""Who is at work on a run: proved by a process that lives, disproved by one that does not, else not known."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from xtra.run import at_work, live, this_process
from xtra.run.live import Driver


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def driver_of(process: subprocess.Popen[bytes], **changes: Any) -> Driver:
    started = live._started(process.pid)
    assert started
    return dataclasses.replace(this_process(), pid=process.pid, started=started, **changes)


def begun(run: Path, driver: Driver | None, *events: str) -> str:
    """Attempt 2 of a run, with these as its last events."""
    facts = {"attempt": 2, "host": "node-3", "pid": 17, "world": 1, "since": "2026-11-21T10:00:00+00:00"}
    if driver:
        facts["driver"] = dataclasses.asdict(driver)
    (run / "attempts/000002.json").write_text(json.dumps(facts))
    lines = [json.dumps({"at": "2026-11-21T11:00:00+00:00", "event": event}) for event in events]
    (run / "events/000002-000000.jsonl").write_text("\n".join(lines))
    return str(run)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_that_lives_is_at_work_until_it_has_ended_and_its_number_alone_proves_nothing(run, other):
    theirs = driver_of(other)
    found = at_work(begun(run, theirs, "start"), 2)
    assert found is not None
    assert found.proved
    assert str(found).endswith(
        f"attempt 2 is at work on it (process {other.pid} on {socket.gethostname()}, since 2026-11-21T10:00:00)"
    )
    assert at_work(begun(run, dataclasses.replace(theirs, started=theirs.started + 1)), 2) is None, "a later process"
    for end in ("done", "stop", "failed"):
        assert at_work(begun(run, theirs, "start", end), 2) is None, end
    other.send_signal(signal.SIGSTOP)
    assert at_work(begun(run, theirs, "start"), 2) == found, "it is only held"
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked how it ended
    assert at_work(begun(run, theirs, "start"), 2) is None


def test_between_two_groups_of_a_driver_the_run_is_still_its_own(run, other):
    theirs = driver_of(other, cluster="session", job="01000000")
    assert at_work(begun(run, theirs, "start", "stop", "drained"), 2) is not None
    for end in ("done", "stopped", "mistake"):
        assert at_work(begun(run, theirs, "start", "stop", end), 2) is None, end


@pytest.mark.parametrize(("said", "proved"), [(True, True), (False, None), (None, False)])
def test_of_another_machine_ray_knows_whether_the_job_has_ended(run, other, said, proved):
    theirs = driver_of(other, cluster="session", job="01000000", host="elsewhere")
    asked: list[tuple[str, str]] = []

    def job_lives(*job: str) -> bool | None:
        asked.append(job)  # type: ignore[arg-type]
        return said

    found = at_work(begun(run, theirs, "start"), 2, job_lives)
    assert (found.proved if found else None) == proved
    assert asked == [("session", "01000000")]


def test_what_an_older_build_began_may_be_at_work_and_nobody_is_refused_for_it(run):
    found = at_work(begun(run, None, "start"), 2)
    assert found is not None
    assert not found.proved
    assert "may still be at work on it (process 17 on node-3" in str(found)
    assert at_work(begun(run, None, "start", "stop"), 2) is None


def test_a_driver_does_not_stand_in_its_own_way(run, other, monkeypatch):
    assert at_work(begun(run, this_process(), "start"), 2) is None
    theirs = driver_of(other, cluster="session", job="01000000")
    assert at_work(begun(run, theirs, "start"), 2) is not None
    monkeypatch.setenv(live.VARIABLE, json.dumps(dataclasses.asdict(theirs)))  # as a rank of its next group has it
    assert at_work(begun(run, theirs, "start"), 2) is None


def test_a_damaged_attempt_keeps_nobody_from_going_on(run):
    (run / "attempts/000002.json").write_text("{")
    assert at_work(str(run), 2) is None
