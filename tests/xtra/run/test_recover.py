"""A run whose newest checkpoint is damaged goes on from the newest whole one, and ends as if nothing had happened."""

import json
import shutil
from pathlib import Path

import pytest
from forked import run_ranks
from made_datasets import make_dataset
from test_train import config, losses, one_rank

from shards import store
from xtra import train
from xtra.run import checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37], bad=(5,))
    return base


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run that was stopped at 90 of 120 samples, with checkpoints of 30, 60 and 90, and one that was not."""
    base = tmp_path_factory.mktemp("runs")
    train.run(config(data, base / "whole"))
    seen: list[int] = []
    settings = config(data, base / "stopped", keep=9)
    train.run(settings, stop=lambda: len(seen) == 8, progress=lambda row: seen.append(1) if "loss" in row else None)
    assert checkpoint.committed(settings.out) == [30, 60, 90]
    return base


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


DAMAGE = {
    "a bit": lambda folder: flip(folder / "000001" / "model.safetensors"),
    "a cut state": lambda folder: (folder / "000001" / "state.json").write_bytes(b"{"),
    "no optimiser": lambda folder: (folder / "000001" / "optim.safetensors").unlink(),
    "a torn COMMIT": lambda folder: (folder / "COMMIT.json").write_bytes(b'{"attempt": 1, "fil'),
    "a COMMIT of nothing": lambda folder: (folder / "COMMIT.json").write_bytes(b"{}"),
    "a COMMIT without files": lambda folder: commit_without_files(folder / "COMMIT.json"),
}


def commit_without_files(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_costs_only_its_own_samples(data, stopped, tmp_path, damage):
    shutil.copytree(stopped / "stopped", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / f"{90:012d}"
    DAMAGE[damage](newest)
    remarks: list[str] = []
    settings = config(data, tmp_path / "run", keep=9)
    result = train.run(settings, progress=lambda row: remarks.append(row.get("remark", "")))
    assert (result.samples_seen, result.stopped) == (120, False)
    (said,) = [remark for remark in remarks if "set aside" in remark]
    assert f"{90:012d}" in said
    assert said.endswith("set aside: the run goes on from 60 samples")
    assert losses(tmp_path / "run") == losses(stopped / "whole")
    assert checkpoint.committed(settings.out) == [30, 60, 90, 120]
    assert checkpoint.read_commit(str(newest))["attempt"] == 2
    assert [path.name for path in newest.glob("COMMIT-*")] == ["COMMIT-damaged-000002.json"]
    again: list[str] = []
    assert train.run(settings, progress=lambda row: again.append(row.get("remark", ""))).samples_seen == 120
    assert not [remark for remark in again if "set aside" in remark]


def test_several_damaged_ones_are_passed_over_and_pruned_in_their_turn(data, stopped, tmp_path):
    shutil.copytree(stopped / "stopped", tmp_path / "run")
    for samples in (60, 90):
        flip(tmp_path / "run" / "checkpoints" / f"{samples:012d}" / "000001" / "model.safetensors")
    train.run(config(data, tmp_path / "run", keep=1))
    assert losses(tmp_path / "run") == losses(stopped / "whole")
    left = [path for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "run" / "checkpoints").parts[0] for path in left} == {f"{120:012d}"}


def test_where_none_is_whole_nothing_is_touched(data, stopped, tmp_path):
    shutil.copytree(stopped / "stopped", tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        flip(folder / "000001" / "model.safetensors")
    with pytest.raises(ValueError, match=r"none of its 3 checkpoints is complete \(.*sha256 is .*\): restore one"):
        train.run(config(data, tmp_path / "run"))
    assert checkpoint.committed(str(tmp_path / "run")) == [30, 60, 90]


def test_a_store_that_fails_is_no_damage(data, stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped / "stopped", tmp_path / "run")

    def fails(*_: object) -> None:
        raise store.StoreError("s3://bucket: does not answer: rerun later")

    monkeypatch.setattr(checkpoint, "load", fails)
    with pytest.raises(store.StoreError, match="does not answer"):
        train.run(config(data, tmp_path / "run"))
    assert checkpoint.committed(str(tmp_path / "run")) == [30, 60, 90]


def test_two_ranks_agree_on_what_is_damaged(data, stopped, tmp_path):
    run_ranks(one_rank, 2, str(tmp_path / "whole-setup"), config(data, tmp_path / "whole"))
    shutil.copytree(stopped / "stopped", tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / f"{90:012d}" / "000001" / "model.safetensors")
    run_ranks(one_rank, 2, str(tmp_path / "setup"), config(data, tmp_path / "run", keep=9))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
    assert checkpoint.committed(str(tmp_path / "run")) == [30, 60, 90, 120]
