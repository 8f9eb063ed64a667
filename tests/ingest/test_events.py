"""The event log: segments that are never rewritten, and an ingest that never fails because of its log."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ingest import events
from ingest.events import EventLog, read_events
from ingest.record import Event
from shards import store


def test_events_come_back_in_order_from_segments(base: str) -> None:
    log = EventLog(base, "one")
    log.record(Event(1.5, "paused", "a.example", "Retry-After: 60 s"))
    log.flush()
    log.flush()
    log.record(Event(2.5, "killed", "k1", "ü\n"))
    log.close()
    EventLog(base, "two").close()
    assert store.names(store.join(base, "events")) == ["one-000000.jsonl", "one-000001.jsonl"]
    assert list(read_events(base)) == [
        Event(1.5, "paused", "a.example", "Retry-After: 60 s"),
        Event(2.5, "killed", "k1", "ü\n"),
    ]


def test_they_are_flushed_while_the_run_goes_on(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), every=0.01)
    log.record_now("started", "x")
    while not (found := list(read_events(str(tmp_path)))):
        pass
    assert [(event.kind, event.about) for event in found] == [("started", "x")]
    log.close()


def test_runs_that_begin_at_once_do_not_write_over_each_other(tmp_path: Path) -> None:
    logs = [EventLog(str(tmp_path)) for _ in range(2)]  # as two pods whose process is number 1
    for log in logs:
        log.record_now("started", "x")
        log.close()
    assert len(list(read_events(str(tmp_path)))) == 2


def test_many_segments_are_read_side_by_side_and_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(100):
        log = EventLog(str(tmp_path), f"{n:03d}")
        log.record_now("unit", str(n))
        log.close()
    now = most = 0
    lock, read = threading.Lock(), store.read

    def slow(url: str) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return read(url)

    monkeypatch.setattr(store, "read", slow)
    assert [event.about for event in read_events(str(tmp_path))] == [str(n) for n in range(100)]
    assert most > 4


def test_a_store_that_fails_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PENDING", 3)
    log = EventLog(str(tmp_path / "d"), "a")
    (tmp_path / "d").write_text("in the way")
    for n in range(5):
        log.record_now("unit", str(n))
    log.flush()
    (tmp_path / "d").unlink()
    log.close()
    found = list(read_events(str(tmp_path / "d")))
    assert [event.about for event in found[:3]] == ["0", "1", "2"]
