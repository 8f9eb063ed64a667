"""The messages of driver and workers, and that neither needs the other's answer."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.cluster.desk import STALLED, Talk, _Desk
from xtra.run import stalled


class Wire:
    """A desk that is called at once, or does not answer."""

    def __init__(self) -> None:
        self.desk, self.down = _Desk(), False
        self.speak = SimpleNamespace(remote=self._speak)

    def _speak(self, *words: Any) -> Any:
        return ray.exceptions.GetTimeoutError() if self.down else self.desk.speak(*words)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(found: Any, timeout: float) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr("jobs.cluster.desk.POLL_SECONDS", 0.02)


def until(happened: Any) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_news_go_one_way_and_the_wish_to_end_the_other():
    wire = Wire()
    talk = Talk(wire, "g", stall=60, rank=0)
    talk.note("run", {"remark": "one"})
    talk.note("run", {"samples_seen": 1, "samples": 9})
    until(lambda: len(wire.desk.rows) >= 2)
    assert not talk.stop()
    assert wire.desk.turn(False, "g")[0]
    assert not wire.desk.turn(False, "another group")[0]
    wire.down = True
    wire.desk.turn(True, "g")
    time.sleep(0.1)
    assert not talk.stop()
    wire.down = False
    until(talk.stop)
    wire.desk = _Desk()  # another one, which has not heard of the wish
    time.sleep(0.1)
    assert talk.stop()
    talk.close()


def test_only_rank_0_reports_and_only_its_newest_numbers():
    wire = Wire()
    wire.down = True
    ranks = [Talk(wire, "g", 60, rank) for rank in (0, 1)]
    for talk in ranks:
        talk._over.set()
        talk._thread.join()
        for seen in (1, 2):
            talk.note("run", {"samples_seen": seen, "samples": 9})
    wire.down = False
    for talk in ranks:
        talk.close()
    assert wire.desk.rows == [{"run": "run", "samples_seen": 2, "samples": 9}]


def test_a_rank_that_makes_no_step_leaves_its_stack_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        talk._over.set()
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "000003.json").write_text("{}")
    talk = Talk(Wire(), "g", stall=0.3, rank=1)
    talk.begin(lambda stack: stalled(str(tmp_path), 1, stack))
    for _ in range(10):  # each step counts
        time.sleep(0.1)
        talk.stop()
        assert not ended.is_set()
    where_it_hangs(ended)
    assert codes == [STALLED]
    event = json.loads((tmp_path / "events" / "000003-900001.jsonl").read_text())
    assert (event["event"], event["rank"]) == ("stalled", 1)
    assert "where_it_hangs" in event["stack"]


def where_it_hangs(ended: threading.Event) -> None:
    assert ended.wait(20)


def test_after_its_last_step_a_rank_may_take_its_time():
    talk = Talk(Wire(), "g", stall=0.1, rank=0)
    talk.note("run", {"samples_seen": 9, "samples": 9})
    time.sleep(0.4)  # it would have ended this process
    talk.close()
