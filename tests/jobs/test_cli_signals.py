"""Signals: the first asks a verb to wind down, the second ends it, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_datasets import make_dataset
from places import ROOT

from jobs import cli, flags, verbs
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

    def train_all(configs: Any, workers: int, stop: Any, progress: Any) -> list[TrainResult]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        return [TrainResult("run", 1, 64, 0.5, 1.0, stopped=True)]

    monkeypatch.setattr(cluster, "start_ray", start_ray)
    monkeypatch.setattr(cluster, "train_all", train_all)
    assert cli.main(["train", "demo32", "--data", "d", "--out", "o", "--workers", "2"]) == 143
