"""Ingest by Ray actors: the same dataset as in one process, through kills, stops and the user's mistakes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
from origin import picture

from ingest.config import Config
from ingest.events import read_events
from ingest.http.fetcher import FetchConfig
from ingest.journal import JOURNAL
from ingest.run import IngestResult, Progress, run
from jobs.bench.origin import Served, serving, verdict
from jobs.cluster.group import ingest_all
from jobs.cluster.ingest import crawl_on_actors
from shards import store
from shards.dataset import committed_units, read_commits, read_table

pytestmark = pytest.mark.usefixtures("ray_cluster")

FETCH = FetchConfig(allow_private=("127.0.0.0/8",), backoff=0.05, connections=16)
KINDS = ["ok", "ok", "404", "html", "redirect", "flaky"]


@pytest.fixture(scope="module")
def origin() -> Iterator[Served]:
    with serving(bodies=8, bytes=1500, hosts=2) as served:
        yield served


def write_list(path: Path, urls: list[str]) -> str:
    path.write_text("".join(f"n{row % 7:08d}_{row}\t{url}\n" for row, url in enumerate(urls)))
    return str(path)


def mixed(origin: Served, links: int) -> list[str]:
    return [origin.url(f"/{KINDS[row % len(KINDS)]}/{row}.jpg", row) for row in range(links)]


def rows_of(dataset: str) -> list[dict[str, Any]]:
    rows = []
    for commit in read_commits(dataset, committed_units(dataset)):
        rows += read_table(store.join(dataset, "shards", commit.index)).to_pylist()
    return rows


def balanced(result: IngestResult, urls: list[str]) -> None:
    """Every link has exactly one verdict, and it is the right one."""
    assert not result.stopped
    rows = sorted(rows_of(result.dataset), key=lambda row: row["row"])
    assert [row["row"] for row in rows] == list(range(len(urls)))
    assert [row["reason"] for row in rows] == [verdict("/" + url.split("/", 3)[3]) for url in urls]
    assert result.links == len(urls) == result.kept + sum(result.reasons.values())


@pytest.mark.slow
def test_two_workers_make_the_dataset_that_one_makes(origin: Served, tmp_path: Path) -> None:
    urls = mixed(origin, 300)
    config = Config(write_list(tmp_path / "list.txt", urls), str(tmp_path / "one"), unit=40, fetch=FETCH)
    seen: list[Progress] = []
    results = [
        ingest_all(config, 1),
        ingest_all(replace(config, out=str(tmp_path / "two"), scratch=str(tmp_path / "scratch")), 2, None, seen.append),
    ]
    for result in results:
        balanced(result, urls)
    commits = [read_commits(result.dataset, range(8)) for result in results]
    assert [commit.tar_sha256 for commit in commits[0]] == [commit.tar_sha256 for commit in commits[1]]
    assert seen[-1].done == seen[-1].done_now == 300
    assert all(p.done == p.kept + sum(p.reasons.values()) <= 300 for p in seen)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert {event.kind for event in read_events(results[1].dataset)} >= {"started", "unit", "finished"}


def gauges(run: str) -> dict[str, float]:
    """Ours of a run on the metrics ports of all nodes, those with a reason under NAME:REASON."""
    said = ""
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=60) as reply:
            said += reply.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^ray_xtra_(\w+)\{(.*)\} (\S+)$", said, re.M):
        has = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if has["run"] == run:
            found[f"{name}:{has['reason']}" if "reason" in has else name] = float(value)
    return found


@pytest.mark.slow
def test_prometheus_finds_its_links_on_the_nodes_metrics_port(origin: Served, tmp_path: Path) -> None:
    config = Config(write_list(tmp_path / "list.txt", mixed(origin, 60)), str(tmp_path / "out"), unit=20, fetch=FETCH)
    result = ingest_all(config, 2)
    assert set(result.reasons) == {"http_404", "not_an_image"}
    expected = {"links": 60, "links_done": 60, "links_kept": result.kept}
    expected |= {f"links_rejected:{reason}": count for reason, count in result.reasons.items()}
    deadline = time.monotonic() + 300
    while not (found := gauges(config.out)).items() >= expected.items():
        assert time.monotonic() < deadline, found  # Ray exports them every 10 s
        time.sleep(0.5)
    assert found.keys() - expected.keys() == {"links_per_s"}
    assert found["links_per_s"] > 0


def slow(origin: Served, links: int) -> list[str]:
    return [origin.url(f"/slow/0.1/{row}.jpg", row) for row in range(links)]


def ingesters(scratch: Path) -> set[int]:
    """Processes, by id, that have begun a unit in this scratch folder: they have its journal open."""
    found = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            at = Path(os.readlink(fd))
        except OSError:
            continue
        if at.is_relative_to(scratch) and at.name == JOURNAL:
            found.add(int(fd.parts[2]))
    return found


@pytest.mark.slow
def test_killed_workers_are_replaced_and_nothing_is_lost_or_twice(origin: Served, tmp_path: Path) -> None:
    urls = slow(origin, 240)
    scratch = tmp_path / "scratch"
    config = Config(
        write_list(tmp_path / "list.txt", urls), str(tmp_path / "out"), 20, fetch=FETCH, scratch=str(scratch)
    )
    killed: list[int] = []

    def kill(done: Progress) -> None:
        alive = ingesters(scratch) - set(killed)
        if len(killed) < 2 and done.units_done >= 2 * len(killed) + 1 and alive:
            killed.append(alive.pop())
            os.kill(killed[-1], signal.SIGKILL)

    balanced(ingest_all(config, 2, None, kill), urls)
    assert len(killed) == 2, "the run was over before the kills"
    assert [event.kind for event in read_events(config.out)].count("worker lost") == 2
    assert list(scratch.iterdir()) == []  # those of the killed, too
    assert len(store.names(str(tmp_path / "out" / "shards"))) >= 2 * 12


def isolated() -> bool:
    """Whether some process judges apart."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"ingest.isolate" in command.read_bytes():
                return True
    return False


class _Held(ThreadingHTTPServer):
    """Serves pictures at once, apart from /ok/held/…, which wait until `release` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Holding)
        self.release = threading.Event()


class _Holding(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Held

    def do_GET(self) -> None:
        if self.path.startswith("/ok/held/"):
            self.server.release.wait()
        body = picture(self.path)
        with contextlib.suppress(OSError):  # whoever asked has been killed
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_where_two_workers_died_links_are_judged_apart(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    killed: list[int] = []
    apart, over = threading.Event(), threading.Event()
    with _Held() as server:

        def kill(now: Progress) -> None:
            alive = ingesters(scratch) - set(killed)
            if len(killed) < 2 and now.done > 5 and alive:
                killed.append(alive.pop())
                os.kill(killed[-1], signal.SIGKILL)

        def watch() -> None:
            until = time.monotonic() + 300
            while not over.wait(0.05):
                if len(killed) == 2 and isolated():
                    apart.set()
                if apart.is_set() or time.monotonic() > until:
                    server.release.set()  # until here the unit cannot end

        threading.Thread(target=server.serve_forever, daemon=True).start()
        watching = threading.Thread(target=watch)
        watching.start()
        at = f"http://127.0.0.1:{server.server_address[1]}/ok"
        urls = [f"{at}/{row}.jpg" for row in range(40)] + [f"{at}/held/{row}.jpg" for row in range(40, 60)]
        config = Config(
            write_list(tmp_path / "list.txt", urls),
            str(tmp_path / "out"),
            unit=60,
            fetch=replace(FETCH, deadline=600, low_speed_seconds=600, robots=False),
            scratch=str(scratch),
        )
        try:
            balanced(run(config, kill, crawl=partial(crawl_on_actors, workers=1)), urls)
        finally:
            over.set()
            watching.join()
            server.release.set()
            server.shutdown()
    assert (len(killed), apart.is_set()) == (2, True)


@pytest.mark.slow
def test_a_stop_ends_in_seconds_and_a_rerun_does_the_rest(origin: Served, tmp_path: Path) -> None:
    urls = slow(origin, 400)
    scratch = tmp_path / "scratch"
    config = Config(
        write_list(tmp_path / "list.txt", urls), str(tmp_path / "out"), 20, fetch=FETCH, scratch=str(scratch)
    )
    stop = threading.Event()
    stopped_at = 0.0

    def progress(done: Progress) -> None:
        nonlocal stopped_at
        if done.units_done >= 2 and not stop.is_set():
            stop.set()
            stopped_at = time.monotonic()

    result = ingest_all(config, 2, stop, progress)
    assert result.stopped
    assert time.monotonic() - stopped_at < 30  # LAST_WORDS of workers, and what Ray takes on a busy machine
    assert 2 <= result.units_done < 20
    # A worker that is too slow to end within its last words is killed. What it began is in no committed unit; its
    # scratch is removed by the next run.
    commits = read_commits(config.out, committed_units(config.out))
    named = {name for commit in commits for name in (commit.tar, commit.index)}
    there = set(store.names(str(tmp_path / "out" / "shards")))
    assert named <= there
    assert not {int(name[:6]) for name in there - named} & {commit.unit for commit in commits}
    balanced(ingest_all(config, 1), urls)
    assert list(scratch.iterdir()) == []


class _Counting(ThreadingHTTPServer):
    """Knows how many requests it has in hand at most."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Slow)
        self.lock, self.active, self.most = threading.Lock(), 0, 0


class _Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Counting

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.active += 1
            self.server.most = max(self.server.most, self.server.active)
        time.sleep(0.05)
        body = picture(self.path) if self.path.startswith("/ok") else b""
        with self.server.lock:
            self.server.active -= 1
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_workers_share_what_a_host_allows(tmp_path: Path) -> None:
    with _Counting() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_address[1]}/ok/{row}.jpg" for row in range(120)]
        config = Config(
            write_list(tmp_path / "list.txt", urls), str(tmp_path / "out"), 20, fetch=replace(FETCH, per_host=3)
        )
        result = ingest_all(config, 2)
        server.shutdown()
    assert result.kept == 120
    assert server.most == 3


@pytest.mark.slow
def test_the_users_mistakes_come_back_as_one_line(origin: Served, tmp_path: Path) -> None:
    config = Config(write_list(tmp_path / "list.txt", mixed(origin, 60)), str(tmp_path / "out"), unit=10, fetch=FETCH)
    with pytest.raises(ValueError, match=r"workers is 99; this cluster has \d+ CPUs"):
        ingest_all(config, 99)
    with pytest.raises(ValueError, match="workers is 0"):
        ingest_all(config, 0)
    with pytest.raises(ValueError, match="/proc/none: cannot hold scratch files"):
        ingest_all(replace(config, scratch="/proc/none"), 2)
    with pytest.raises(ValueError, match=r"scratch_bytes is 1,000: a unit of 10 links may need") as held:
        ingest_all(replace(config, scratch_bytes=1000), 2)
    until = time.monotonic() + 60  # the cores come back although the traceback in `held` has references to the workers
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < until, f"{ray.available_resources()} is free after {held.value}"
        time.sleep(0.2)
