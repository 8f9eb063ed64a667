"""What killed attempts left goes when the work is done, and nothing of what lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import made_datasets
import pytest
from test_train import config

from shards import store
from xtra import train
from xtra.probe import result as probe_result
from xtra.run import checkpoint
from xtra.run.folder import Attempt
from xtra.run.leftovers import remove_leftovers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    made_datasets.make_dataset(base, [40])
    return base


def half(folder: Path, name: str = ".aside-dead") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (1, 1))
    return path


def test_a_run_that_is_done_holds_nothing_of_killed_attempts(data, tmp_path):
    run = tmp_path / "run"
    dead = [
        half(run),
        half(run / "attempts"),
        half(run / "metrics"),
        half(run / "events"),
        half(run / "probes"),
        half(run / "checkpoints" / "000000000060"),
        half(run / "checkpoints" / "000000000060" / "000000"),
        half(run / "checkpoints" / "000000000060" / "000000", "model.safetensors"),  # of a checkpoint that another made
        half(run / "checkpoints" / "000000000045" / "000000", "model.safetensors"),  # that nobody made
    ]
    later = half(run / "checkpoints" / "000000000999" / "000000", "model.safetensors")
    train.run(config(data, run, samples=60, checkpoint_every=30, keep=2))
    assert [str(path) for path in dead if path.exists()] == []
    assert later.exists(), "somebody may be writing it"
    assert checkpoint.committed(str(run)) == [30, 60]
    assert len(checkpoint.load_encoder(str(run)).state_dict()) > 0


def test_a_rerun_of_a_finished_run_prunes_what_a_killed_one_did_not(data, tmp_path):
    wanted = config(data, tmp_path / "run", samples=60, checkpoint_every=30, keep=2)
    train.run(wanted)
    dead = half(tmp_path / "run" / "metrics")
    train.run(config(data, tmp_path / "run", samples=60, checkpoint_every=30, keep=1))
    assert checkpoint.committed(str(tmp_path / "run")) == [60]
    assert not dead.exists()


def test_what_is_damaged_or_being_written_or_another_attempts_stays(data, tmp_path):
    run = tmp_path / "run"
    train.run(config(data, run, samples=60, checkpoint_every=30, keep=2))
    aside = half(run / "checkpoints" / "000000000060" / "000000", "model.safetensors")
    store.put_json(f"{run}/checkpoints/000000000060/COMMIT-damaged-000001.json", {})
    held = half(run / "metrics")
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(Attempt(str(run), 1), 2, 0)
        assert held.exists()
    assert aside.exists(), "next to a checkpoint that was set aside"
    store.put_json(f"{run}/attempts/000002.json", {"attempt": 2})
    remove_leftovers(Attempt(str(run), 1), 1, 0)
    assert checkpoint.committed(str(run)) == [30, 60], "a later attempt has taken over"
    assert held.exists()


def test_a_checkpoint_that_is_being_written_is_not_taken_for_a_dead_ones(tmp_path):
    with checkpoint._scratch(str(tmp_path / "000001" / "model.safetensors")) as path:
        os.utime(path, (1, 1))
        store.remove_left_aside(str(path.parent))
        assert path.exists()
    assert not path.exists()


def test_a_probes_result_takes_a_dead_ones_half_with_it(tmp_path, monkeypatch):
    dead = half(tmp_path / "probes")
    monkeypatch.setattr(probe_result.ProbeResult, "name", lambda self, own: "one.json")
    monkeypatch.setattr(probe_result.dataclasses, "asdict", lambda result: {})
    probe_result.write(str(tmp_path), object.__new__(probe_result.ProbeResult))
    assert [path.name for path in dead.parent.iterdir()] == ["one.json"]
