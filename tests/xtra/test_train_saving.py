"""What a training run saves: nothing that is not finite, nothing of an overtaken attempt, and without waiting."""

import dataclasses
import json
import threading

import made_datasets
import pytest
import torch
from test_train import config, same_weights

from shards import store
from xtra import train
from xtra.optim import OptimConfig
from xtra.run import checkpoint
from xtra.run.steps import Steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    made_datasets.make_dataset(base, [40, 37], bad=(5,))
    return base


def test_a_diverging_run_stops_with_the_step_named(data, tmp_path):
    wild = config(data, tmp_path / "run", optim=OptimConfig(lr=1e25, warmup_lr=1e25, warmup=0.0, clip=1e30))
    with pytest.raises(ValueError, match=r"the loss is .* at \d+ samples seen"):
        train.run(wild)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (2.0, float("inf"))])
def test_what_is_not_finite_is_never_saved(data, tmp_path, monkeypatch, loss, norm):
    honest = Steps.look

    def poisoned(steps, seen, *rest):
        if seen == 60:  # a step that is due to be saved
            step = steps.pending[-1]
            steps.pending[-1] = dataclasses.replace(step, summed=step.summed.clone(), grad_norm=torch.tensor(norm))
            steps.pending[-1].summed[0] = loss
        honest(steps, seen, *rest)

    monkeypatch.setattr(Steps, "look", poisoned)
    with pytest.raises(ValueError, match="at 60 samples seen"):
        train.run(config(data, tmp_path / "run"))
    assert checkpoint.committed(str(tmp_path / "run")) == [30]


@pytest.mark.parametrize("cleared", [False, True])
def test_an_attempt_overtaken_while_it_uploads_does_not_commit(data, tmp_path, monkeypatch, cleared):
    """Nor does it fail when the later one has pruned what it was writing."""
    out, upload = tmp_path / "run", store.put_file

    def slow(url, path, move):
        if cleared:
            path.unlink()
            store.put_json_if_absent(str(out / "attempts" / "000002.json"), {"attempt": 2})
        upload(url, path, move)
        store.put_json_if_absent(str(out / "attempts" / "000002.json"), {"attempt": 2})

    monkeypatch.setattr(store, "put_file", slow)
    result = train.run(config(data, out))
    assert (result.stopped, result.superseded) == (True, True)
    assert checkpoint.committed(str(out)) == []


def test_a_step_that_is_not_finite_names_its_samples(data, tmp_path):
    wild = config(data, tmp_path / "run", optim=OptimConfig(lr=1e25, warmup_lr=1e25, warmup=0.0, clip=1e30))
    with pytest.raises(
        ValueError, match=r"this rank's 10 samples of the step, all in the events: \w+, \w+.*, …"
    ) as error:
        train.run(wild)
    events = [
        json.loads(line) for part in (tmp_path / "run" / "events").iterdir() for line in part.read_text().splitlines()
    ]
    (named,) = [event for event in events if event["event"] == "not finite"]
    assert len(named["keys"]) == 10
    assert ", ".join(named["keys"][:8]) in str(error.value)


def test_some_checkpoints_stay_for_good(data, tmp_path):
    train.run(config(data, tmp_path / "run", samples=240, checkpoint_every=30, keep=1, keep_every=100))
    assert checkpoint.committed(str(tmp_path / "run")) == [120, 210, 240]


def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch):
    upload, written, seen = store.put_file, threading.Event(), []

    def slow(url, path, move):
        if "000000000030" in url:
            assert written.wait(60)
        upload(url, path, move)

    def stop() -> bool:
        seen.append(len(checkpoint.committed(str(tmp_path / "run"))))
        if len(seen) == 5:  # two steps after the checkpoint was due
            written.set()
        return False

    monkeypatch.setattr(store, "put_file", slow)
    train.run(config(data, tmp_path / "run"), stop=stop)
    assert seen[:5] == [0] * 5
    alone = config(data, tmp_path / "alone")
    train.run(alone)
    assert same_weights(tmp_path / "run", tmp_path / "alone")
    assert checkpoint.committed(str(tmp_path / "run")) == [90, 120]


def test_a_checkpoint_that_cannot_be_written_ends_the_run(data, tmp_path, monkeypatch):
    def full(url, path, move):
        raise store.StoreError(f"{url}: cannot write: no space left")

    monkeypatch.setattr(store, "put_file", full)
    with pytest.raises(store.StoreError, match="no space left"):
        train.run(config(data, tmp_path / "run"))
    assert checkpoint.committed(str(tmp_path / "run")) == []
