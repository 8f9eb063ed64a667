"""From links to a report as a user goes: commands, a bucket, two Ray workers, the path of the GPU decoder, a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import bucket, need_s3
from origin import Origin
from places import ROOT
from test_fall import CLASSES, JUNK, draw, labelled_folder, reasons_of
from test_train import metrics

from jobs.cluster.reaper import below, processes
from shards import store
from shards.manifest import read_manifest
from xtra.gpu_decode import ON_CPU
from xtra.run import checkpoint

PICTURES, SAMPLES, BATCH, EVERY = 90, 3_840, 16, 480


def xtra(*words: object, ok: tuple[int, ...] = (0,)) -> dict:
    """Run a command; its JSON."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in ok, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(folder: str) -> list[dict]:
    lines = [line for name in store.names(folder) for line in store.read(store.join(folder, name)).splitlines()]
    return [json.loads(line) for line in lines]


def make_list(origin: Origin, folder: Path) -> Path:
    lines = ["url,label"]
    for number in range(PICTURES):
        out = io.BytesIO()
        draw(number).resize((96, 80)).save(out, "JPEG", quality=92)
        origin.files[f"{number}.jpg"] = out.getvalue()
        lines.append(f"{origin.url(f'/file/{number}.jpg')},class{number % CLASSES}")
    lines += [f"{origin.url(path)},junk" for path in JUNK] + ["ftp://127.0.0.1/x.jpg,junk", "not a link,junk"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


@pytest.fixture(params=["moto", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """A folder on a bucket, whose keys the commands find in their environment."""
    if request.param == "moto":
        request.getfixturevalue("on_moto")
    else:
        need_s3()
    return bucket() + "/mission"


def train(run: str, data: str) -> list[object]:
    sizes = ["--samples", SAMPLES, "--batch", BATCH, "--checkpoint-every", EVERY, "--keep", 99]
    return ["train", "demo32", "--data", data, "--out", run, "--workers", 2, "--decoder", "gpu", "--threads", 1, *sizes]


def kill_amid(run: str, data: str) -> int:
    """Start the training, kill its driver after a checkpoint; the samples of the newest checkpoint."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, train(run, data))]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(checkpoint.committed(run)) < 2:
        assert driver.poll() is None, "the training ended before the kill"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.5))
    started = below(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 60
    while started & processes().keys():  # a rank may outlive its driver long enough to commit once more
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return max(checkpoint.committed(run))


def decoded_by_rank(run: str) -> list[int]:
    """Pictures that the GPU's path decoded, of each of two ranks: what the last of its events says."""
    found = [0, 0]
    for name in store.names(store.join(run, "events")):  # a rank's parts are every second one
        for line in store.read(store.join(run, "events", name)).splitlines():
            event = json.loads(line)
            if event["event"] == "decoded":
                assert event["device"] == "cpu"  # the rank's own: a GPU's would have its number
                found[int(name[7:13]) % 2] = event["gpu"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)  # several starts of Ray, which a busy machine makes long
def test_the_mission(place, tmp_path, monkeypatch):
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu is not installed")
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # of the cluster that other tests share
    monkeypatch.setenv(ON_CPU, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, evaluation, run, whole = (store.join(place, name) for name in ("data", "eval", "runs/run", "whole/run"))

    # Wall 1, links: each has its verdict, and what is kept is in the dataset.
    with Origin() as origin:
        links = make_list(origin, tmp_path)
        fetch = ["--fetch.allow-private", "127.0.0.1", "--fetch.retries", 1, "--fetch.backoff", 0.05]
        sizes = ["--unit", 25, "--workers", 2, "--label-column", "label", "--select.near-distance", -1]
        got = xtra("ingest", "--urls", links, "--out", data, *fetch, *sizes)
    assert got["links"] == PICTURES + len(JUNK) + 2 == got["kept"] + sum(got["reasons"].values())
    manifest = read_manifest(data)
    assert got["kept"] == manifest.samples == PICTURES
    reasons = reasons_of(manifest)
    assert {path: reasons[origin.url(path)] for path in JUNK} == JUNK
    assert xtra("check", data)["problems"] == []
    assert xtra("import", labelled_folder(tmp_path / "labelled"), "--out", evaluation)["kept"] == 60

    # Wall 2, samples: two ranks, a driver killed; every step once, and the numbers of the run that nobody disturbed.
    stood = kill_amid(run, data)
    done = xtra(*train(run, data))
    assert (done["samples_seen"], done["stopped"]) == (SAMPLES, False)
    xtra(*train(whole, data))
    steps = metrics(run)
    assert [row["samples_seen"] for row in steps] == list(range(BATCH, SAMPLES + 1, BATCH))
    assert [row["loss"] for row in steps] == [row["loss"] for row in metrics(whole)]
    events = rows(store.join(run, "events"))
    assert [event["samples_seen"] for event in events if event["event"] == "resume"] == [stood]
    assert checkpoint.committed(run) == list(range(EVERY, SAMPLES + 1, EVERY))
    assert sum(decoded_by_rank(whole)) == SAMPLES

    # Wall 3, accuracy: the probe names the checkpoint, and the report's ledger what the checkpoint has seen.
    quick = ["--heads", "linear", "--lrs", 0.05, "--epochs", 4, "--views", 1, "--batch", 30, "--linear-layer-sets", 1]
    xtra("probe", run, "--train", data, "--eval", evaluation, *quick)
    (result,) = (store.read_json(store.join(run, "probes", name)) for name in store.names(store.join(run, "probes")))
    assert result["samples_seen"] == SAMPLES
    assert result["accuracy"] > 1 / CLASSES
    xtra("report", store.join(place, "runs"))
    ledger = csv.DictReader(store.read(store.join(place, "runs/ledger.csv")).decode().splitlines())
    (row,) = (row for row in ledger if row["head"] == "linear")
    assert (int(row["samples_seen"]), int(row["unique_images"])) == (SAMPLES, PICTURES)
    assert manifest.digest[:16] in store.read(store.join(place, "runs/report.html")).decode()
