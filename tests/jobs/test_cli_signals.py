"""Signals: the first asks a verb to wind down, the second ends it, and the same command goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_datasets import make_dataset
from places import ROOT

from jobs import cli, flags, stuck_reads, verbs
from shards import store
from xtra.train import TrainResult


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals, code: int):
    make_dataset(tmp_path / "set", [40])
    run, data = tmp_path / "run", str(tmp_path / "set")
    words = ["train", "demo32", "--data", data, "--out", str(run), "--samples", "100000000"]
    words += ["--batch", "32", "--checkpoint-every", "32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # a loaded machine crawls with more threads than cores
    )
    try:
        wait_for(lambda: list(run.glob("checkpoints/*/COMMIT.json")), process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert err.splitlines()[-1].startswith(f"xtra train: stopped by {number.name}: rerun the same command")
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_train_is_refused_while_the_first_lives_and_takes_over_where_it_is_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_dataset(tmp_path / "set", [40])
    run = tmp_path / "run"
    words = ["train", "demo32", "--data", str(tmp_path / "set"), "--out", str(run), "--samples", "1000000", "--batch"]
    words += ["32", "--checkpoint-every", "32", "--device", "cpu", "--threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as first:
        try:
            wait_for(lambda: list(run.glob("checkpoints/*/COMMIT.json")), first)
            assert cli.main(words) == 2
            assert f"attempt 1 is at work on it (process {first.pid} on " in capsys.readouterr().err
            assert store.names(str(run / "attempts")) == ["000001.json"], "it was not disturbed"
            with subprocess.Popen([sys.executable, "-m", "jobs.cli", *words, "--take-over"], cwd=ROOT) as second:
                _, err = first.communicate(timeout=120)
                second.send_signal(signal.SIGINT)
                second.wait(60)
        finally:
            first.kill()
    assert first.returncode == 1
    assert "a later attempt has taken" in err
    assert second.returncode == 130


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_a_verb_that_cannot_wind_down_ends_at_the_first_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def forever(call: flags.Call) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(verbs.VERBS, "forever", verbs.Verb("", "", forever))
    assert cli.main(["forever"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_ends_a_probe_between_two_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from xtra import probe

    def step(config: Any, progress: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        progress("train heads", 32, 64)
        raise AssertionError("went on")

    monkeypatch.setattr(probe, "run", step)
    assert cli.main(["probe", "run", "--train", "a", "--eval", "b"]) == 130
    assert "xtra probe: stopped by SIGINT: rerun the same command" in capsys.readouterr().err


def test_the_second_signal_ends_a_verb_that_is_winding_down(monkeypatch: pytest.MonkeyPatch):
    def slow(call: flags.Call) -> None:
        stop = call.stoppable()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setitem(verbs.VERBS, "slow", verbs.Verb("", "", slow))
    assert cli.main(["slow"]) == 130


def test_a_signal_still_stops_a_run_when_ray_has_taken_it(monkeypatch: pytest.MonkeyPatch):
    from jobs import cluster

    def start_ray() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("Ray got the signal"))

    def train_all(configs: Any, workers: int, stop: Any, *_: Any) -> list[TrainResult]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        return [TrainResult("run", 1, 64, 0.5, 1.0, stopped=True)]

    monkeypatch.setattr(cluster, "start_ray", start_ray)
    monkeypatch.setattr(cluster, "train_all", train_all)
    assert cli.main(["train", "demo32", "--data", "d", "--out", "o", "--workers", "2"]) == 143


@pytest.mark.slow
def test_one_sigterm_ends_a_verb_whose_store_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.stuck_reads.watch", partial(stuck_reads.watch, patience=0.6, still=0.3))
    silent = threading.Event()
    monkeypatch.setattr("shards.store.is_local", lambda url: False)
    monkeypatch.setattr("shards.store_remote.client", lambda url: silent.wait(60))

    began = time.monotonic()
    call = flags.Call("status", "", [])
    call.stoppable()
    before = signal.getsignal(signal.SIGTERM)
    call.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(flags.Stopped):
            store.read("s3://b/a")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 30


def test_a_verb_that_reads_on_and_on_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: list[int] = []
    monkeypatch.setattr("jobs.stuck_reads.signal.pthread_kill", lambda thread, number: given.append(number))
    (tmp_path / "a").write_bytes(b"x")
    stuck_reads.watch(signal.SIGTERM, patience=0.4, still=0.2)
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        store.read(str(tmp_path / "a"))
    assert given == []
