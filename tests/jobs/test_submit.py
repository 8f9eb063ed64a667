"""`xtra submit` on a real cluster with a bucket: exit statuses, a stop that saves, jobs that lose their supervisor or
their head, and no key in anything that Ray shows or keeps.

Nothing here waits for a time: what a run waits for happens long before its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from buckets import bucket
from cluster_runs import pids_of
from made_datasets import make_dataset
from nodes import Cluster, cluster
from places import ROOT

from jobs.cluster.head import VERSION_LABEL
from jobs.cluster.wanted import version
from shards import store, store_remote
from shards.pixels import crop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
T = TypeVar("T")
PATIENCE = 800.0  # on a busy machine
ENDLESS = 10**7  # samples
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
API = ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status", "/logical/actors", "/api/v0/actors")
API += ("/api/v0/tasks?detail=1", "/api/v0/workers?detail=1", "/api/v0/runtime_envs?detail=1", "/api/v0/jobs?detail=1")


class Place:
    """A cluster, a bucket, and all that `xtra submit` has said of them."""

    def __init__(self, made: Cluster, base: str, keys: dict[str, str]) -> None:
        self.cluster, self.base, self.keys = made, base, keys
        self.address = made.jobs["RAY_API_SERVER_ADDRESS"]
        self.said: list[str] = []
        self.shown: dict[str, str] = {}
        self.begun: list[subprocess.Popen[str]] = []

    def begin(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.cli", "submit", *words]
        env = {**self.cluster.jobs, **self.keys, "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.begun.append(subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **pipes))
        return self.begun[-1]

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=PATIENCE)
        self.said += [out, err]
        print(out, err)
        assert "Traceback" not in out + err, out + err
        return process.returncode, out, err

    def run(self, *words: str) -> tuple[int, str, str]:
        return self.end(self.begin(*words))

    def train(self, run: str, *words: str) -> list[str]:
        return [
            *("train", "demo32", "--data", f"{self.base}/data", "--out", f"{self.base}/{run}", "--device=cpu"),
            *("--batch=16", "--threads=1", "--keep=1", *words),
        ]

    def commits(self, run: str) -> list[int]:
        folder = f"{self.base}/{run}/checkpoints"
        return [int(name) for name in store.names(folder) if store.exists(f"{folder}/{name}/COMMIT.json")]

    def status(self, job: str) -> str:
        return next((row["status"] for row in self.jobs() if row["job"] == job), "")

    def gauges(self, run: str) -> dict[str, float]:
        """Ours on every node's metrics port, by the addresses that Ray leaves for Prometheus."""
        found = json.loads((self.cluster.folder / "head" / "prom_metrics_service_discovery.json").read_text())
        said = ""
        for target in (target for group in found for target in group["targets"]):
            url = f"http://{target}/metrics"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=60) as reply:  # not up yet
                said += reply.read().decode()
        ours = re.findall(rf'^ray_xtra_(\w+)\{{[^}}]*run="{self.base}/{run}"[^}}]*\}} (\S+)$', said, re.M)
        return {name: float(value) for name, value in ours}

    def jobs(self) -> list[dict]:
        code, out, _ = self.run("list", "--json")
        assert code == 0
        return json.loads(out.splitlines()[-1])["jobs"]

    @property
    def token(self) -> str:
        return (self.cluster.folder / "home/.ray/auth_token").read_text().strip()

    def look(self, jobs: list[dict]) -> None:
        """Keep all that the dashboard shows of these jobs."""
        for path in (*API, *(f"/api/jobs/{job['job']}{more}" for job in jobs for more in ("", "/logs"))):
            self.shown[path] = self.shown.get(path, "") + self.ask(path)

    def ask(self, path: str) -> str:
        """What the dashboard answers."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace")


@pytest.fixture(scope="module")
def place(moto_endpoint: str) -> Iterator[Place]:
    keys = {name: secrets.token_hex(16) for name in KEYS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
        for name, value in keys.items():
            patch.setenv(name, value)
        patch.setattr(store_remote, "_filesystems", {})
        base = bucket()
        make_dataset(f"{base}/data", [160, 160])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"AWS_ENDPOINT_URL": moto_endpoint, "PATH": path, **keys}
        env["RAY_OVERRIDE_LABELS"] = json.dumps({VERSION_LABEL: version()})
        with cluster(1, cpus=2, env=env, dashboard=True) as made:
            place = Place(made, base, keys)
            yield place
            for process in place.begun:
                process.kill()
                process.communicate()


def until(happened: Callable[[], T], process: subprocess.Popen[str] | None = None) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_the_exit_status_the_last_line_and_the_json_are_the_verbs_own(place: Place):
    make_dataset(f"{place.base}/hurt", [20])
    tar = next(name for name in store.names(f"{place.base}/hurt/shards") if name.endswith(".tar"))
    store.put(f"{place.base}/hurt/shards/{tar}", b"cut short")
    sound = place.begin("check", f"{place.base}/data", "--json")
    code, _, err = place.run("--code", "here", "check", f"{place.base}/nothing")  # a mistake that only the store shows
    assert code == 2
    last = err.rstrip().splitlines()[-1]
    assert last.startswith("xtra check: ")
    assert "nothing" in last
    code, out, err = place.end(sound)
    assert code == 0
    assert (json.loads(out)["samples"], json.loads(out)["problems"]) == (320, [])
    assert "320 samples" in err
    assert place.run("--code", "here", "check", f"{place.base}/hurt")[0] == 1
    jobs = {row["job"]: row for row in place.jobs()}
    assert jobs["check-nothing-1"]["status"] == jobs["check-hurt-1"]["status"] == "FAILED"
    assert jobs["check-hurt-1"]["entrypoint"].startswith("python -m jobs.cli check ")


def test_what_a_node_would_run_otherwise_is_refused_before_a_job_is_sent(place: Place):
    before = place.jobs()
    labels = {"RAY_OVERRIDE_LABELS": json.dumps({VERSION_LABEL: "0.0.1"})}
    shared = place.cluster.folder / "node1"
    node = place.cluster.node(env=labels, more=(f"--temp-dir={shared}",))
    until(lambda: f'"nodeName": "{node.name}"' in place.ask("/nodes?view=summary"))
    words = ["check", f"{place.base}/data"]
    for more, complaint in (
        ([], f"node {node.name} has xtra-pretrain 0.0.1, this is {version()}: use the xtra of that version"),
        (["--code", "here"], f" share {shared}/session_"),
    ):
        code, out, err = place.run(*more, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert complaint in err
    assert place.jobs() == before
    node.kill()
    until(lambda: '"state": "DEAD"' in place.ask("/nodes?view=summary"))


def test_a_stop_saves_and_an_id_in_use_is_refused_meanwhile(place: Place):
    words = place.train("stopped", f"--samples={ENDLESS}", f"--checkpoint-every={ENDLESS}", "--workers=1")
    code, _, err = place.run("--no-wait", *words)
    assert code == 0, err
    until(lambda: store.names(f"{place.base}/stopped/attempts"))
    code, out, err = place.run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "train-stopped-1 is running: xtra submit logs train-stopped-1" in err
    following = place.begin("wait", "train-stopped-1")
    assert following.stdout is not None
    assert following.stdout.readline()  # it follows
    following.send_signal(signal.SIGINT)
    names = {"loss", "samples_seen", "samples", "samples_per_s", "data_wait_seconds", "checkpoint_age_seconds"}
    names |= {"attempts"}

    def gauges() -> dict[str, float]:
        found = place.gauges("stopped")
        return found if names <= found.keys() else {}

    found = until(gauges)  # Ray exports them every 10 s
    assert all(value > 0 for value in found.values())
    assert found["samples"] == ENDLESS
    code, out, err = place.end(following)
    assert code == 130
    assert "train-stopped-1 goes on: xtra submit wait train-stopped-1" in err
    assert place.status("train-stopped-1") == "RUNNING"
    assert place.commits("stopped") == []
    assert place.run("stop", "train-stopped-1")[0] == 0
    assert len(place.commits("stopped")) == 1
    assert 0 < place.commits("stopped")[0] < ENDLESS
    assert place.run("wait", "train-stopped-1")[0] == 130


def test_a_job_whose_supervisor_dies_is_submitted_again_with_the_code_of_this_checkout(place: Place):
    words = place.train("lost", "--samples=3200", "--checkpoint-every=320", "--workers=1", "--json")
    waiting = place.begin("--code", "here", *words)
    until(lambda: place.commits("lost"), waiting)
    (supervisor,) = [pid for node in place.cluster.nodes for pid in pids_of(node, "ray::JobSupervisor")]
    os.kill(supervisor, signal.SIGKILL)
    code, out, err = place.end(waiting)
    assert code == 0, err
    assert "train-lost-1 was lost" in err
    assert "submitted again as train-lost-2" in err
    assert json.loads(out.splitlines()[-1])["samples_seen"] == max(place.commits("lost")) == 3200
    assert place.status("train-lost-2") == "SUCCEEDED"
    facts = store.read_json(f"{place.base}/lost/run.json")
    assert facts["git"] is None  # the package is no checkout
    assert ("crop.c" in facts["image_build"]) == crop.library().is_file()


def test_a_job_outlives_its_head(place: Place):
    words = place.train("orphan", "--samples=3200", "--checkpoint-every=320", "--workers=1", "--json")
    waiting = place.begin(*words)
    until(lambda: store.names(f"{place.base}/orphan/attempts"), waiting)
    place.look(place.jobs())
    place.cluster.again(1)
    code, out, err = place.end(waiting)
    assert code == 0, err
    assert "train-orphan-1 was lost (the cluster no longer has this job): submitted again as train-orphan-2" in err
    assert json.loads(out.splitlines()[-1])["samples_seen"] == max(place.commits("orphan")) == 3200
    assert [row["job"] for row in place.jobs()] == ["train-orphan-2"]


def test_no_key_is_in_what_ray_shows_or_keeps_or_in_what_we_say(place: Place):
    jobs = place.jobs()
    assert jobs
    place.look(jobs)
    searched = {"our own output": "\n".join(place.said), **place.shown}
    folders = [folder for folder in place.cluster.folder.iterdir() if (folder / "session_latest").exists()]
    assert {folder.name for folder in folders} >= {"head", "node1"}
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 40
    for path in [*files, *place.cluster.folder.glob("*.log")]:
        searched[str(path)] = path.read_bytes().decode(errors="replace")
    assert "train demo32" in searched["/api/jobs/"]
    secret = {**place.keys, "the token": place.token}
    hits = [(where, name) for where, text in searched.items() for name, value in secret.items() if value in text]
    assert hits == []
