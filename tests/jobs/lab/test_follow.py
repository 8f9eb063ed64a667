"""Probes during a pretraining: each due checkpoint is probed once, whatever stops, fails or starts late."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from made_datasets import make_dataset

from jobs import cli
from jobs.lab import existing, follow
from shards import store
from xtra import probe, recipes, train
from xtra.run import checkpoint

SMALL = {"width": 32, "depth": 2, "heads": 2, "bridge": 32, "head": 32}
PROBE = {"epochs": 1, "lrs": (1e-2,), "heads": ("linear",), "views": 1, "batch": 20}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A loaded machine crawls with more threads than cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    make_dataset(base / "data", [60])
    make_dataset(base / "eval", [20])
    return base


@pytest.fixture
def config(sets, tmp_path):
    """Ten checkpoints, 16 samples apart: those at 48, 80, 128 and 160 are the first at or after a multiple of 40."""
    model = dataclasses.replace(recipes.demo32().model, **SMALL)
    return dataclasses.replace(
        recipes.demo32(),
        model=model,
        data=str(sets / "data"),
        out=str(tmp_path / "run"),
        samples=160,
        batch=16,
        checkpoint_every=16,
        keep=1,
        keep_every=40,
        device="cpu",
    )


def following(sets, run: str, **other) -> follow.Config:
    settings = probe.Config(run, train=str(sets / "data"), eval=str(sets / "eval"), **PROBE)
    return follow.Config(settings, **{"every": 40, "poll": 0.05, **other})


def probed_at(run: str) -> list[int]:
    return sorted(result["samples_seen"] for result in existing.results(run))


def test_every_due_checkpoint_is_probed_once_and_the_last_as_well(sets, config):
    train.run(config)
    assert checkpoint.committed(config.out) == [48, 80, 128, 160]
    remarks = []
    result = follow.run(following(sets, config.out), remarks.append)
    assert (result.probed, result.failed, result.finished) == ((48, 80, 128, 160), (), True)
    assert probed_at(config.out) == [48, 80, 128, 160]
    assert remarks[0].startswith("48 samples seen: test linear ")
    assert follow.run(following(sets, config.out)).probed == (), "nothing is done twice"
    assert follow.run(following(sets, config.out, every=80)).probed == (), "80 and 160 have their probes"


def test_it_may_start_before_the_run_and_takes_checkpoints_as_they_come(sets, config):
    results = []
    thread = threading.Thread(target=lambda: results.append(follow.run(following(sets, config.out))))
    thread.start()
    first = train.run(dataclasses.replace(config), stop=lambda: bool(checkpoint.committed(config.out)))
    assert first.stopped
    train.run(config)  # the same run, resumed
    thread.join(60)
    assert results[0].finished
    assert results[0].probed[-1] == 160
    assert sorted({seen // 40 for seen in results[0].probed}) == [1, 2, 3, 4]


def test_a_probe_that_fails_is_reported_and_the_next_one_is_made(sets, config, monkeypatch):
    train.run(config)
    real = probe.run

    def run(settings, progress=None):
        if settings.checkpoint.endswith("000000000080"):
            raise ValueError("no memory")
        return real(settings, progress)

    monkeypatch.setattr(probe, "run", run)
    remarks = []
    result = follow.run(following(sets, config.out), remarks.append)
    assert (result.probed, result.failed, result.finished) == ((48, 128, 160), (80,), True)
    assert any("000000000080: was not probed: no memory" in line for line in remarks)
    monkeypatch.setattr(probe, "run", real)
    assert follow.run(following(sets, config.out)).probed == (80,), "a later call makes up for it"


def test_of_a_multiple_whose_first_checkpoint_is_gone_the_next_is_not_due_again(sets, config):
    config = dataclasses.replace(config, keep=3, keep_every=0, samples=96)
    train.run(config)
    remarks = []
    assert checkpoint.committed(config.out) == [64, 80, 96]
    assert follow.run(following(sets, config.out), remarks.append).probed == (64, 80, 96)
    assert "with --keep-every 40 a slow probe misses none" in remarks[0]
    store.delete(store.join(config.out, "checkpoints", "000000000080", "COMMIT.json"))
    store.delete(store.join(config.out, "probes", "test-linear-trained-64.json"))
    assert follow.run(following(sets, config.out)).probed == (64,), "96 has its probe, and stands for no other"


def test_it_ends_when_it_is_asked_to_or_its_parent_has_gone(sets, tmp_path):
    stop = threading.Event()
    stop.set()
    assert not follow.run(following(sets, str(tmp_path / "none")), stop=stop).finished
    assert not follow.run(following(sets, str(tmp_path / "none"), parent=os.getpid())).finished


def words(config: train.Config, sets, **other) -> list[str]:
    model = [word for name, value in SMALL.items() for word in (f"--model.{name}", str(value))]
    plain = {"data": config.data, "out": config.out, "samples": 160, "batch": 16, "checkpoint-every": 16, "keep": 1}
    probing = {"every": 40, "train": sets / "data", "eval": sets / "eval", "epochs": 1, "lrs": 1e-2, "views": 1}
    probing |= {"heads": "linear", **other}
    flags = {**{f"--{k}": v for k, v in plain.items()}, **{f"--probe.{k}": v for k, v in probing.items()}}
    return ["train", "demo32", "--device", "cpu", *model, *(str(word) for pair in flags.items() for word in pair)]


@pytest.mark.slow
def test_one_command_trains_and_probes(sets, config, capfd):
    assert cli.main(words(config, sets)) == 0
    err = capfd.readouterr().err
    assert probed_at(config.out) == [48, 80, 128, 160]
    assert "48 samples seen: test linear" in err
    assert "4 checkpoints probed, 0 failed" in err


@pytest.mark.slow
def test_ctrl_c_ends_both(sets, config):
    command = [sys.executable, "-m", "jobs.cli", *words(config, sets)]
    command[command.index("160")] = "100000"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
    until = time.monotonic() + 120
    while not (checkpoint.committed(config.out) and processes(config.out, "--follow")) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(config.out, "--follow")
    os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert said.count("stopped by SIG") == said.count("stopping after") == 1, "the follower leaves it to the training"
    assert "ended early" not in said
    assert not processes(config.out, "--follow")


def processes(*words: str) -> list[str]:
    """The command lines that have all these words."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            line = Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace")
            found += [line] if all(word in line.split("\0") for word in words) else []
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"every": 0}, "in the flags --probe.FLAG: --every is 0"),
        ({"epoch": 1}, "--epoch is not a flag; did you mean --epochs?"),
        ({"train": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(sets, config, change, said, capsys):
    assert cli.main(words(config, sets, **change)) == 2
    assert said in capsys.readouterr().err
    assert not store.exists(store.join(config.out, "config.json"))


def test_a_training_that_would_not_keep_what_is_to_be_probed_is_refused(sets, config, capsys):
    assert cli.main([*words(config, sets), "--keep-every", "30"]) == 2
    assert "--keep-every 30 deletes checkpoints that --probe.every 40 needs" in capsys.readouterr().err
