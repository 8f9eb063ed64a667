"""Kills, pictures that kill their process, slow hosts, a full scratch, two runs at once: nothing lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ingesting import FETCH, balance, rows_of, tars_of, write_list
from origin import Origin, picture
from places import ROOT

from ingest.config import Config
from ingest.crawl import Assignment, Crawl
from ingest.events import read_events
from ingest.record import Verdict
from ingest.run import IngestResult, Work, run
from ingest.scratch import Scratch
from ingest.unit import UnitWriter
from shards import manifest, store
from shards.dataset import (
    Commit,
    committed_units,
    read_commits,
)

KILLED = """
import sys
from ingest.http.fetcher import FetchConfig
from ingest.config import Config
from ingest.crawl import Assignment, Crawl
from ingest.run import run

if __name__ == "__main__":
    urls, out, scratch = sys.argv[1:]
    fetch = FetchConfig(allow_private=("127.0.0.1",), connections=8, max_bytes=1 << 20)
    run(Config(urls, out, unit=10, fetch=fetch, scratch=scratch))
"""


def test_killed_and_rerun_nothing_is_lost_and_nothing_twice(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/slow/0.1/{n}.jpg" for n in range(100)]
    urls = write_list(tmp_path / "list.txt", origin, paths)
    out, scratch = str(tmp_path / "out"), tmp_path / "scratch"
    (tmp_path / "killed.py").write_text(KILLED)
    words = [sys.executable, str(tmp_path / "killed.py"), urls, out, str(scratch)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(committed_units(out)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    committed = committed_units(out)
    assert 2 <= len(committed) < 10
    before, tars = Counter(origin.requests), tars_of(out)

    balance(run(Config(urls, out, unit=10, fetch=FETCH, scratch=str(scratch))), 100)
    assert [row["reason"] for row in rows_of(out)] == ["kept"] * 100
    again = origin.requests - before
    assert set(again.values()) == {1}
    assert set(again) == {path for n, path in enumerate(paths) if n // 10 not in committed}
    assert [tar for unit, tar in enumerate(tars_of(out)) if unit in committed] == tars
    assert list(scratch.iterdir()) == []  # the killed run's too


# Loaded by Python itself at the start of a process: pictures with these last bytes end the process that decodes them.
HOLE = """
import ctypes, io
from PIL import ImageFile
load = ImageFile.ImageFile.load
def holed(self):
    if isinstance(self.fp, io.BytesIO) and self.fp.getvalue().endswith(b"SEGV"):
        ctypes.string_at(0)
    return load(self)
ImageFile.ImageFile.load = holed
"""


@pytest.mark.slow
def test_what_kills_its_process_is_found_named_and_passed_over(origin: Origin, tmp_path: Path) -> None:
    origin.files["poison"] = picture("poison", "gif") + b"SEGV"
    paths = [*(f"/ok/{n}.jpg" for n in range(14)), "/file/poison", "/ok/x.gif"]
    urls, out, scratch = write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), tmp_path / "scratch"
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "sitecustomize.py").write_text(HOLE)
    words = [sys.executable, str(tmp_path / "killed.py"), urls, out, str(scratch)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    first = subprocess.run(words, env=environment, timeout=60, stderr=subprocess.DEVNULL)
    assert first.returncode == -signal.SIGSEGV
    subprocess.run(words, env=environment, timeout=60, check=True)
    found = {path: (row["reason"], row["detail"]) for path, row in zip(paths, rows_of(out))}
    assert found.pop("/file/poison") == ("undecodable", "kills its decoder (SIGSEGV)")
    assert set(found.values()) == {("kept", "")}
    (killed,) = [event for event in read_events(out) if event.kind == "killed"]
    assert (killed.about, killed.detail) == ("n00000000_14 of unit 1", "kills its decoder (SIGSEGV)")
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_slow_hosts_do_not_hold_up_the_units_after_them(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.crawl.IDLE_SECONDS", 0.05)
    monkeypatch.setattr("ingest.crawl.TICK", 0.05)
    # The first two units have one link each that waits for its host, a name of its own that asked for a pause.
    port = origin.url("/").split(":")[2]
    slow = [f"http://localhost:{port}busy/2/{n}.jpg" for n in range(2)]
    paths = [slow[n // 8] if n in (7, 15) else f"/ok/{n}.jpg" for n in range(64)]
    fetch = replace(FETCH, allow_private=("127.0.0.1", "::1"))
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 8, fetch=fetch)
    result = run(config)
    assert result.kept == 64
    ended = [int(event.about) for event in read_events(config.out) if event.kind == "unit"]
    assert sorted(ended) == list(range(8))
    assert set(ended[:4]).isdisjoint({0, 1})


def test_a_full_scratch_makes_links_wait(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While scratch has no room, no unit is begun and no link of another one is fetched, however much is under way."""
    monkeypatch.setattr("ingest.crawl.TICK", 0.01)
    begin, begun, full_since, seen = Crawl._begin, 0, 0.0, []

    def counted(crawl: Crawl, task: Assignment) -> object:
        nonlocal begun
        begun += 1
        return begin(crawl, task)

    def room(scratch: Scratch) -> int:
        nonlocal full_since
        if not full_since and origin.requests.total():
            full_since = time.monotonic()
        if not full_since or time.monotonic() - full_since > 0.5:
            return 1 << 30
        seen.append((begun, origin.requests.total()))
        return 0

    monkeypatch.setattr(Crawl, "_begin", counted)
    monkeypatch.setattr(Scratch, "room", room)
    paths = [f"/slow/0.02/{n}.jpg" for n in range(48)]
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 8, fetch=FETCH)
    assert run(config).kept == 48
    assert {units for units, _ in seen} == {seen[0][0]}
    assert max(asked for _, asked in seen) <= 8 * seen[0][0] < 48


def test_a_scratch_that_is_too_small_says_so(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.scratch.BYTES_A_LINK", 10)
    monkeypatch.setattr("ingest.crawl.BYTES_A_LINK", 1500)
    monkeypatch.setattr("ingest.crawl.TICK", 0.01)
    monkeypatch.setattr("ingest.crawl.ROOM_SECONDS", 0.2)
    paths = [f"/slow/0.02/{n}.jpg" for n in range(48)]
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 8, fetch=FETCH)
    assert run(replace(config, out=str(tmp_path / "one_by_one"), scratch_bytes=40_000)).kept == 48
    one_unit = replace(config, unit=48, fetch=replace(FETCH, connections=2), scratch_bytes=20_000)
    with pytest.raises(ValueError, match="is full with one unit alone: free space, set --scratch"):
        run(one_unit)
    with pytest.raises(ValueError, match=r"scratch_bytes is 100: a unit of 8 links may need 160: allow more"):
        run(replace(config, out=str(tmp_path / "new"), scratch_bytes=100))


@pytest.mark.slow
def test_units_that_wait_for_slow_hosts_share_what_they_may_hold_in_memory(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.unit.HELD", 40_000)
    monkeypatch.setattr("ingest.crawl.IDLE_SECONDS", 0.02)
    monkeypatch.setattr("ingest.crawl.TICK", 0.01)
    most = units = 0
    put = UnitWriter.add
    writers: set[UnitWriter] = set()

    def measured(writer: UnitWriter, verdict: Verdict, show: bool = True) -> None:
        nonlocal most, units
        put(writer, verdict, show)
        writers.add(writer)
        held = [writer._tar._held for writer in writers if writer._tar._held]
        most, units = max(most, sum(held)), max(units, len(held))

    monkeypatch.setattr(UnitWriter, "add", measured)
    with Origin("127.0.0.2") as other:
        urls = [other.url(f"/slow/3/{n}.jpg") if n % 50 == 0 else f"/ok/{n}.jpg" for n in range(500)]
        fetch = replace(FETCH, allow_private=("127.0.0.1", "127.0.0.2"), deadline=30, connections=64)
        config = Config(write_list(tmp_path / "list.txt", origin, urls), str(tmp_path / "out"), 50, fetch=fetch)
        balance(run(config), 500)
    assert units > 4
    assert 40_000 < most < 3 * 40_000


def test_two_runs_on_one_dataset_are_harmless(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, [f"/slow/0.02/{n}.jpg" for n in range(40)])
    config = Config(urls, str(tmp_path / "out"), unit=10, fetch=FETCH)
    results: list[IngestResult] = []
    runs = [threading.Thread(target=lambda: results.append(run(config))) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert results[0].version == results[1].version
    for result in results:
        balance(result, 40)
    assert len(store.names(str(tmp_path / "out" / "shards"))) == 2 * 4  # the slower one took its own back


def test_a_run_that_another_has_overtaken_ends_with_what_there_is(origin: Origin, tmp_path: Path) -> None:
    """The other one has done the units, and a retry, while this one was at its first."""
    paths = ["/ok/1.jpg", "/ok/2.jpg", "/flaky/1/x.jpg", "/status/500"]
    fetch = replace(FETCH, retries=0)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), unit=2, fetch=fetch)

    def overtaken(work: Work) -> Iterator[Commit]:
        run(config)
        run(replace(config, retry=True))
        yield from read_commits(config.out, work.units)

    result = run(config, crawl=overtaken)
    assert (result.kept, result.reasons, result.samples) == (3, {"http_5xx": 1}, 3)
    assert manifest.read_manifest(config.out).digest == result.version
