"""A whole ingest against an origin on loopback: counts balance, tars repeat, and nothing is lost or done twice."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from origin import Origin, picture
from places import ROOT

from ingest import plan
from ingest.config import Config
from ingest.events import read_events
from ingest.filter import FilterConfig
from ingest.http.fetcher import FetchConfig
from ingest.record import Reason, Verdict
from ingest.run import IngestResult, Progress, Work, run
from ingest.scratch import Scratch
from ingest.select.apply import SelectConfig
from ingest.unit import UnitWriter
from ingest.wordnet import ClassConfig
from shards import manifest, store
from shards.dataset import (
    PLAN_SCHEMA,
    Commit,
    committed_units,
    planned_units,
    read_commit,
    read_commits,
    read_info,
    read_table,
    write_plan,
)
from shards.tar import read_tar

FETCH = FetchConfig(allow_private=("127.0.0.1",), backoff=0.01, deadline=5, connections=16, max_bytes=1 << 20)

# path -> verdict; a line that is no path stands as it is.
MIXED = {
    **{f"/ok/{n}.jpg": "kept" for n in range(20)},
    "/ok/a.png": "kept",
    "/ok/a.gif": "kept",
    "/status/404": "http_404",
    "/status/410": "http_410",
    "/status/403": "http_4xx",
    "/status/500": "http_5xx",
    "/status/429": "http_429",
    "/flaky/1/x": "kept",
    "/redirect/2": "kept",
    "/loop": "too_many_redirects",
    "/goto?http://10.0.0.1/": "blocked_address",
    "/truncated": "truncated_body",
    "/reset": "connect",
    "/endless": "too_large",
    "/html": "not_an_image",
    "/empty": "not_an_image",
    "/cut/a.jpg": "undecodable",
    "ftp://a/b.jpg": "bad_url",
    "no url at all": "bad_url",
}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def write_list(path: Path, origin: Origin, paths: list[str]) -> str:
    urls = [origin.url(p) if p.startswith("/") else p for p in paths]
    path.write_text("".join(f"n{row % 7:08d}_{row}\t{url}\n" for row, url in enumerate(urls)))
    return str(path)


def rows_of(dataset: str) -> list[dict[str, Any]]:
    """All index rows of the committed units."""
    found = []
    for unit in committed_units(dataset):
        index = read_commit(dataset, unit).index
        found += read_table(store.join(dataset, "shards", index)).to_pylist()
    return found


def tars_of(dataset: str) -> list[bytes]:
    commits = [read_commit(dataset, unit) for unit in committed_units(dataset)]
    return [store.read(store.join(dataset, "shards", commit.tar)) for commit in commits]


def balance(result: IngestResult, links: int) -> None:
    assert not result.stopped
    assert result.links == links == result.kept + sum(result.reasons.values())
    made = manifest.read_manifest(result.dataset)
    assert (made.digest, made.links, made.kept, made.samples) == (result.version, links, result.kept, result.kept)
    assert made.reasons == result.reasons
    assert sorted(row["row"] for row in rows_of(result.dataset)) == list(range(links))


def test_every_link_ends_with_its_verdict(base: str, origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, list(MIXED))
    result = run(Config(urls, base, unit=15, fetch=FETCH, scratch=str(tmp_path / "scratch")))
    balance(result, len(MIXED))
    assert result.units == 3
    rows = rows_of(base)
    assert {path: row["reason"] for path, row in zip(MIXED, rows)} == MIXED
    assert result.reasons == {r: n for r, n in Counter(MIXED.values()).items() if r != "kept"}
    assert all(row["detail"] for row in rows if row["reason"] != "kept")
    assert list((tmp_path / "scratch").iterdir()) == []

    (tars, kept) = tars_of(base), [row for row in rows if row["reason"] == "kept"]
    members = [member for tar in tars for member in read_tar(io.BytesIO(tar))]
    assert [name for name, _, _ in members] == [name for row in kept for name in (row["member"], row["key"] + ".json")]
    bodies = {name: body for name, _, body in members}
    for row in kept:
        body = bodies[row["member"]]
        assert tars[row["row"] // 15][row["offset"] : row["offset"] + row["length"]] == body
        about = json.loads(bodies[row["key"] + ".json"])
        assert about == {name: row[name] for name in ("url", "labels", "sha256", "width", "height")}
        assert row["labels"] == [row["key"].split("_")[0]]
    assert bodies["n00000003_3.jpg"] == picture("/ok/3.jpg")
    first = rows[0]
    assert (first["http_status"], first["attempts"], first["width"], first["height"]) == (200, 1, 64, 48)
    assert (first["source_format"], first["mode"], first["decode_checked"]) == ("jpeg", "RGB", True)
    assert abs(first["fetched_at"].timestamp() - time.time()) < 60


def test_the_same_bytes_give_the_same_tars(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/slow/{(n * 7) % 5 / 50}/{n}.jpg" for n in range(40)]  # complete in another order each time
    urls = write_list(tmp_path / "list.txt", origin, paths)
    outs = [str(tmp_path / f"out{n}") for n in range(3)]
    for out, connections in zip(outs, (3, 16, 4)):
        fetch = replace(FETCH, connections=connections)
        balance(run(Config(urls, out, unit=16, fetch=fetch)), 40)
    assert tars_of(outs[0]) == tars_of(outs[1]) == tars_of(outs[2])
    assert read_commit(outs[0], 0).tar != read_commit(outs[1], 0).tar


def test_a_rerun_asks_for_nothing_and_changes_nothing(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, [f"/ok/{n}.jpg" for n in range(10)])
    config = Config(urls, str(tmp_path / "out"), unit=4, fetch=FETCH)
    first = run(config)
    asked = origin.requests.total()
    again = run(replace(config, fetch=replace(FETCH, retries=7, per_host=1)))
    assert origin.requests.total() == asked == 10
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert store.names(str(tmp_path / "out" / "versions")) == ["000001.json", "000002.json"]  # all, then selected
    other = run(replace(config, select=SelectConfig(near_distance=0)))
    assert "was selected by other rules, and stays: xtra select" in other.note
    assert replace(other, seconds=0, note="") == replace(first, seconds=0)


def test_a_rerun_with_other_words_is_refused_by_name(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/ok/2.jpg"])
    config = Config(urls, str(tmp_path / "out"), fetch=FETCH)
    run(config)
    with pytest.raises(ValueError, match="another unit "):
        run(replace(config, unit=7))
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, filter=FilterConfig(min_side=50)))
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, fetch=replace(FETCH, max_bytes=5)))
    with pytest.raises(ValueError, match="another list_sha256"):
        run(replace(config, urls=write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg"])))


def test_stop_ends_cleanly_and_a_rerun_does_the_rest(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/slow/0.05/{n}.jpg" for n in range(60)]
    urls = write_list(tmp_path / "list.txt", origin, paths)
    config = Config(urls, str(tmp_path / "out"), unit=10, fetch=FETCH, scratch=str(tmp_path / "scratch"))
    done = 0

    def progress(now: Progress) -> None:
        nonlocal done
        assert now.links == 60
        assert now.done == now.kept + sum(now.reasons.values())
        done = max(done, now.done)

    stopped = run(config, progress, lambda: done >= 20)
    assert stopped.stopped
    assert 1 <= stopped.units_done < 6
    assert stopped.kept == 10 * stopped.units_done
    assert list((tmp_path / "scratch").iterdir()) == []
    names = store.names(str(tmp_path / "out" / "shards"))
    assert len(names) == 2 * stopped.units_done  # nothing half-written
    before = Counter(origin.requests)
    balance(run(config, progress), 60)
    assert done == 60
    again = {path for path, n in (origin.requests - before).items() if n}
    assert again == set(paths[10 * stopped.units_done :])


KILLED = """
import sys
from ingest.http.fetcher import FetchConfig
from ingest.config import Config
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


def test_a_retry_asks_for_what_may_have_passed_and_for_nothing_else(base: str, origin: Origin, tmp_path: Path) -> None:
    paths = [*MIXED, *(f"/flaky/{n}/{m}.jpg" for n in (1, 2, 3) for m in range(3))]
    fetch = replace(FETCH, retries=0)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), base, unit=12, fetch=fetch)
    first = run(config)
    expected = Counter({**Counter(MIXED.values()), "http_5xx": 1 + 9 + 1})  # /flaky/1/x fails, too, without a retry
    assert first.reasons == dict(expected - Counter(kept=99))
    old = dict(zip(paths, rows_of(base)))
    asked = Counter(origin.requests)

    again = Config(out=base, retry=True, fetch=fetch)
    second = run(again)
    failed = {path for path, row in old.items() if row["reason"] != "kept" and Reason(row["reason"]).retryable}
    assert set(origin.requests - asked) == failed
    assert second.links == len(paths) == second.kept + sum(second.reasons.values())
    assert second.kept == first.kept + 4  # /flaky/1/…
    assert (second.units, second.units_done) == (first.units + 2, first.units + 2)
    assert second.version != first.version
    made = manifest.read_manifest(base)
    assert (made.digest, made.links) == (second.version, len(paths))
    assert (made.kept, made.reasons) == (second.kept, second.reasons)
    retried = rows_of(base)[len(paths) :]
    assert [row["row"] for row in retried] == sorted(old[path]["row"] for path in failed)
    for row in retried:
        was = old[paths[row["row"]]]
        assert all(row[name] == was[name] for name in ("key", "url", "labels", "row"))

    third = run(again)  # the same words once more: what failed again is asked for again
    assert (third.kept, third.units) == (first.kept + 4 + 3, first.units + 3)
    assert third.links == third.kept + sum(third.reasons.values())
    assert run(replace(config, retry=True)).kept == first.kept + 10  # with the list, too
    assert run(config).kept == first.kept + 10  # and without --retry there is nothing left to do


def test_a_retry_that_was_cut_short_anywhere_is_finished(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/flaky/1/{n}.jpg" for n in range(30)]
    out, fetch = str(tmp_path / "out"), replace(FETCH, retries=0, breaker=1000)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), out, unit=10, fetch=fetch)
    assert run(config).kept == 0
    retry = Config(out=out, retry=True, fetch=fetch)
    assert run(retry).kept == 30
    for lost in ("generations/000001.json", "links/000005.parquet", "commits/000005.json", "commits/000004.json"):
        store.delete(store.join(out, lost))
    for version in store.names(store.join(out, "versions")):
        store.delete(store.join(out, "versions", version))
    # Killed while it planned: unit 3 was planned and, as if by another driver, done.
    assert run(retry).kept == 30
    store.delete(store.join(out, "commits/000005.json"))
    for version in store.names(store.join(out, "versions")):
        store.delete(store.join(out, "versions", version))
    done: list[Progress] = []
    result = run(retry, done.append)  # killed in its last unit
    assert (result.kept, result.units, result.note) == (30, 6, "")
    assert (done[0].done, done[0].units_done, done[-1].done, done[-1].done_now) == (20, 5, 30, 10)


def test_a_retry_with_nothing_to_ask_for_says_so(origin: Origin, tmp_path: Path) -> None:
    config = Config(
        write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/status/404"]), str(tmp_path / "out"), fetch=FETCH
    )
    first = run(config)
    result = run(replace(config, urls="", retry=True))
    assert "nothing to retry: no link ended with connect, dns, http_429" in result.note
    assert replace(result, seconds=0, note="") == replace(first, seconds=0)
    with pytest.raises(ValueError, match="was made with other filter settings: a retry must use the same"):
        run(Config(out=config.out, retry=True, fetch=FETCH, filter=FilterConfig(min_side=50)))
    with pytest.raises(ValueError, match="is not a dataset"):
        run(Config(out=str(tmp_path / "none"), retry=True))


def test_only_chosen_classes_are_planned_and_the_rest_is_counted(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/ok/{n}.jpg" for n in range(21)]
    (tmp_path / "classes.txt").write_text("n00000001\nn00000003\n")
    classes = ClassConfig(file=str(tmp_path / "classes.txt"))
    config = Config(
        write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 4, fetch=FETCH, classes=classes
    )
    result = run(config)
    assert (result.links, result.not_chosen, result.units) == (6, 15, 2)
    assert [row["row"] for row in rows_of(config.out)] == [n for n in range(21) if n % 7 in (1, 3)]
    assert read_info(config.out).classes == ("n00000001", "n00000003")
    assert replace(run(config), seconds=0) == replace(result, seconds=0)
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, classes=ClassConfig(min_count=2)))
    (tmp_path / "classes.txt").write_text("n00000009\n")
    with pytest.raises(ValueError, match=r"holds no links: none of its 21 lines is of a class .* --classes"):
        run(replace(config, out=str(tmp_path / "new")))


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


def test_what_kills_its_process_is_found_named_and_passed_over(origin: Origin, tmp_path: Path) -> None:
    origin.files["killer"] = picture("killer", "gif") + b"SEGV"
    paths = [*(f"/ok/{n}.jpg" for n in range(14)), "/file/killer", "/ok/x.gif"]
    urls, out, scratch = write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), tmp_path / "scratch"
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "sitecustomize.py").write_text(HOLE)
    words = [sys.executable, str(tmp_path / "killed.py"), urls, out, str(scratch)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    first = subprocess.run(words, env=environment, timeout=60, stderr=subprocess.DEVNULL)
    assert first.returncode == -signal.SIGSEGV
    subprocess.run(words, env=environment, timeout=60, check=True)
    found = {path: (row["reason"], row["detail"]) for path, row in zip(paths, rows_of(out))}
    assert found.pop("/file/killer") == ("undecodable", "kills its decoder (SIGSEGV)")
    assert set(found.values()) == {("kept", "")}
    (killed,) = [event for event in read_events(out) if event.kind == "killed"]
    assert (killed.about, killed.detail) == ("n00000000_14 of unit 1", "kills its decoder (SIGSEGV)")
    assert list(scratch.iterdir()) == []


def test_slow_hosts_do_not_hold_up_the_units_after_them(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.crawl.PATIENT", 0.05)
    monkeypatch.setattr("ingest.crawl.TICK", 0.05)
    # The first two units have a link each that waits for its host: a name of its own, asked to be left alone.
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


@pytest.mark.parametrize("limit", [None, 40_000])
def test_a_full_scratch_makes_links_wait_and_then_says_so(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr("ingest.scratch.BYTES_A_LINK", 10)
    monkeypatch.setattr("ingest.crawl.BYTES_A_LINK", 1500)
    monkeypatch.setattr("ingest.crawl.TICK", 0.01)
    monkeypatch.setattr("ingest.crawl.PATIENCE", 0.2)
    most = 0
    used = Scratch.used

    def measured(scratch: Scratch) -> int:
        nonlocal most
        most = max(most, used(scratch))
        return used(scratch)

    monkeypatch.setattr(Scratch, "used", measured)
    paths = [f"/slow/0.02/{n}.jpg" for n in range(48)]
    config = Config(write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 8, fetch=FETCH)
    if limit is not None:  # two units do not fit, one does
        assert run(replace(config, scratch_bytes=limit)).kept == 48
        assert 8 * 1000 < most < limit + 10_000
    else:
        with pytest.raises(ValueError, match="is full with one unit alone: free space, set --scratch"):
            run(replace(config, unit=48, fetch=replace(FETCH, connections=2), scratch_bytes=20_000))
    with pytest.raises(ValueError, match=r"scratch_bytes is 100: a unit of 8 links may need 160: allow more"):
        run(replace(config, out=str(tmp_path / "new"), scratch_bytes=100))


def test_units_that_wait_for_slow_hosts_share_what_they_may_hold_in_memory(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.unit.HELD", 40_000)
    monkeypatch.setattr("ingest.crawl.PATIENT", 0.02)
    monkeypatch.setattr("ingest.crawl.TICK", 0.01)
    most = units = 0
    put = UnitWriter.add
    writers: set[UnitWriter] = set()

    def measured(writer: UnitWriter, verdict: Verdict, show: bool = True) -> None:
        nonlocal most, units
        put(writer, verdict, show)
        writers.add(writer)
        held = [writer._held for writer in writers if writer._held]
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


def test_the_plan_of_a_driver_that_was_faster_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list was longer: this one's had not come whole when it was read."""
    urls, out = tmp_path / "list.txt", str(tmp_path / "out")
    config = Config(str(urls), out, unit=2, fetch=FETCH)
    lines = [f"http://127.0.0.1:9/{n}.jpg\n" for n in range(10)]
    planned = planned_units

    def beaten(dataset: str) -> list[int]:
        monkeypatch.setattr(manifest, "planned_units", planned)
        urls.write_text("".join(lines))
        plan.make(config)
        return planned(dataset)

    monkeypatch.setattr(manifest, "planned_units", beaten)
    urls.write_text("".join(lines[:4]))
    with pytest.raises(ValueError, match="was made with another list_sha256"):
        plan.make(config)
    assert planned(out) == list(range(5))


def test_an_interrupted_plan_is_finished_and_that_of_another_list_refused(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/ok/2.jpg"])
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    stale = pa.Table.from_pylist([{"key": "x", "url": "http://x/", "labels": [], "row": 0}], PLAN_SCHEMA)
    write_plan(other, 0, stale)
    with pytest.raises(ValueError, match="plans other links than this list gives"):
        run(Config(urls, other, unit=1, fetch=FETCH))
    balance(run(Config(urls, out, unit=1, fetch=FETCH)), 2)
    for lost in ("dataset.json", "links/000001.parquet", "commits/000001.json", "versions/000001.json"):
        store.delete(store.join(out, lost))  # as if it had been killed while planning its second unit
    balance(run(Config(urls, out, unit=1, fetch=FETCH)), 2)
    assert planned_units(out) == [0, 1]


def test_large_bodies_pass_through_scratch(origin: Origin, tmp_path: Path) -> None:
    origin.files["large"] = picture("large", "bmp", 300)
    urls = write_list(tmp_path / "list.txt", origin, ["/file/large", "/ok/1.jpg"])
    result = run(Config(urls, str(tmp_path / "out"), fetch=replace(FETCH, in_memory=1000)))
    assert result.kept == 2
    assert rows_of(result.dataset)[0]["source_format"] == "bmp"


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        (None, {}, r"list.txt: there is no such list: check --urls"),
        ("", {}, r"list.txt: holds no links: check --urls"),
        ("\n\n", {}, r"list.txt: holds no links: check --urls"),
        ("http://a/1.jpg\n" * 1001, {}, r"more than 1000 links .* set --fetch.contact"),
        ("http://a/1.jpg\n", {"out": "/etc/hostname"}, r"/etc/hostname.*: cannot write"),
        ("http://a/1.jpg\n", {"scratch": "/proc/none"}, r"/proc/none: cannot hold scratch files"),
        ("http://a/1.jpg\n", {"url_column": "x", "format": "csv"}, r"has no column 'x'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str | None, options: dict[str, str], why: str) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=why) as raised:
        run(Config(**{"urls": str(tmp_path / "list.txt"), "out": str(tmp_path / "out"), **options}))
    assert re.fullmatch(r"[^\n]+", str(raised.value))
    assert not (tmp_path / "out" / "dataset.json").exists() or "scratch" in options


def test_without_a_contact_nothing_is_written(tmp_path: Path) -> None:
    """Half a plan would refuse the next try, if that has other settings."""
    (tmp_path / "list.txt").write_text("http://a/1.jpg\n" * 1001)
    with pytest.raises(ValueError, match=r"set --fetch.contact"):
        run(Config(str(tmp_path / "list.txt"), str(tmp_path / "out"), unit=100))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_full_scratch_is_one_line(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg"])
    monkeypatch.setattr("ingest.unit.UnitWriter.add", full)
    with pytest.raises(ValueError, match=r"cannot hold a unit \(No space left on device\): free space"):
        run(Config(urls, str(tmp_path / "out"), fetch=FETCH))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="unit is 0"):
        Config("a", "b", unit=0)
    with pytest.raises(ValueError, match="scratch_bytes is 0"):
        Config("a", "b", scratch_bytes=0)
    with pytest.raises(ValueError, match="dry_run is -1"):
        Config("a", "b", dry_run=-1)


def test_reasons_of_a_run_are_of_the_closed_list() -> None:
    assert set(MIXED.values()) - {"kept"} <= {str(reason) for reason in Reason}
