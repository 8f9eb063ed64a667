"""A running ingest can be seen from its dataset's folder, inside a unit and from its first second; logs go forwards."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ingesting import FETCH, write_list
from origin import Origin

from ingest.config import Config
from ingest.crawl import Underway
from ingest.events import EventLog, read_events
from ingest.record import Event
from ingest.run import Progress, Tally, run
from ingest.underway import FOLDER, STALE, Beats, here, read_beats
from jobs import status
from shards import store, sweep
from shards.store import StoreError


def test_status_sees_inside_a_unit_while_it_runs_and_nothing_after(origin: Origin, tmp_path: Path) -> None:
    paths = [*(f"/ok/{n}.jpg" for n in range(8)), "/status/404", "/slow/3/last.jpg"]
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), unit=64, fetch=FETCH)
    seen: list[tuple[float, status.DatasetStatus]] = []  # before the unit's commit
    begun = time.monotonic()

    def look(p: Progress) -> None:
        if read_beats(config.out):
            (found,) = status.read_status(config.out)
            assert isinstance(found, status.DatasetStatus)
            if not found.committed:
                seen.append((time.monotonic() - begun, found))

    result = run(config, look)
    assert not result.stopped
    (at, _), (_, last) = seen[0], seen[-1]
    assert at < 2
    assert (last.underway[0].done, last.underway[0].kept, last.underway[0].links) == (9, 8, 10)
    said = status.text(last)
    assert "running  9 of 10 links done (90.0 %), 8 kept" in said
    assert "units to do, by the running ingest" in " ".join(said.split())
    assert not Path(config.out, FOLDER).exists()
    (after,) = status.read_status(config.out)
    assert "running" not in status.text(after)


def test_the_last_words_of_a_killed_run_are_called_so_and_go_with_the_next_or_a_sweep(tmp_path: Path) -> None:
    from made_datasets import make_dataset

    make_dataset(tmp_path, [5])
    beat = replace(here(links=10, done=4, kept=3), at=time.time() - STALE - 60)
    left = tmp_path / FOLDER / "x.json"
    store.put_json(str(left), vars(beat))
    (found,) = status.read_status(str(tmp_path))
    said = " ".join(status.text(found, datetime.now(UTC)).split())
    assert "died 4 of 10 links done (40.0 %), 3 kept; no word from process" in said
    old = time.time() - 30 * 86_400
    os.utime(left, (old, old))
    assert sweep.run(sweep.Config(str(tmp_path), dry_run=True)).objects == (f"{FOLDER}/x.json",)
    with Beats(str(tmp_path)) as beats:
        beats.update(here())
        wait_for(lambda: [b.process for b in read_beats(str(tmp_path))] == [os.getpid()])


def test_a_store_that_takes_nothing_stops_no_ingest(monkeypatch, tmp_path: Path) -> None:
    tried = []

    def full(url: str, value: object) -> None:
        tried.append(url)
        raise StoreError(f"{url}: cannot be written")

    monkeypatch.setattr(store, "put_json", full)
    with Beats(str(tmp_path)) as beats:
        beats.update(here())
        wait_for(lambda: bool(tried))
    assert read_beats(str(tmp_path)) == []


def wait_for(true) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_worker_that_dies_takes_nothing_back_from_the_log() -> None:
    shown: list[Progress] = []
    tally = Tally(100, 2, shown.append)
    for under in (Underway(kept=30, reasons={"dns": 10}), Underway(), Underway(kept=20), Underway(kept=45)):
        tally.underway([under])
        tally.report(force=True)
    counts = [(p.done, p.kept, p.reasons.get("dns", 0)) for p in shown]
    assert counts == sorted(counts, key=lambda c: c[0])
    assert counts[-1] == (45, 45, 0)
    assert {p.done == p.kept + sum(p.reasons.values()) for p in shown} == {True}
    assert any(p.note == "40 links are being done again" for p in shown)


def test_events_of_clocks_that_differ_are_written_in_order(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), every=1000)
    for part in ([5.0, 3.0, 4.0], [2.0, 9.0]):
        for at in part:
            log.record(Event(at, "unit", str(at), ""))
        log.flush()
    log.close()
    found = [(event.at, event.about) for event in read_events(str(tmp_path))]
    assert found == [(3.0, "3.0"), (4.0, "4.0"), (5.0, "5.0"), (5.0, "2.0"), (9.0, "9.0")]
