"""The events file: parts that are never rewritten, and an ingest that does not fail for its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest import events
from ingest.events import EventLog, read_events
from ingest.record import Event
from shards import store


def test_events_come_back_in_order_in_parts(base: str) -> None:
    log = EventLog(base, "one")
    log.tell(Event(1.5, "paused", "a.example", "Retry-After: 60 s"))
    log.flush()
    log.flush()
    log.tell(Event(2.5, "killed", "k1", "ü\n"))
    log.close()
    EventLog(base, "two").close()
    assert store.names(store.join(base, "events")) == ["one-000000.jsonl", "one-000001.jsonl"]
    assert list(read_events(base)) == [
        Event(1.5, "paused", "a.example", "Retry-After: 60 s"),
        Event(2.5, "killed", "k1", "ü\n"),
    ]


def test_they_are_flushed_while_the_run_goes_on(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), every=0.01)
    log.say("started", "x")
    while not (found := list(read_events(str(tmp_path)))):
        pass
    assert [(event.kind, event.about) for event in found] == [("started", "x")]
    log.close()


def test_a_store_that_fails_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PENDING", 3)
    log = EventLog(str(tmp_path / "d"), "a")
    (tmp_path / "d").write_text("in the way")
    for n in range(5):
        log.say("unit", str(n))
    log.flush()
    (tmp_path / "d").unlink()
    log.close()
    found = list(read_events(str(tmp_path / "d")))
    assert [event.about for event in found[:3]] == ["0", "1", "2"]
