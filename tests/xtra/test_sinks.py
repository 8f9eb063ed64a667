"""Sinks: every row goes to each of them under its samples seen; a missing library is named."""

from __future__ import annotations

import sys
import types

import pytest
from datasets import make_dataset
from test_train import config, metrics

from xtra import train
from xtra.sinks import flat, open_sinks


@pytest.fixture
def libraries(monkeypatch) -> list[tuple]:
    """Stand-ins for the three libraries, which write down how they are called."""
    calls: list[tuple] = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    writer = types.SimpleNamespace(add_scalar=note("scalar"), close=note("closed"))
    board = types.SimpleNamespace(SummaryWriter=lambda folder: calls.append(("folder", folder)) or writer)
    mlflow = types.SimpleNamespace(start_run=note("start"), log_params=note("params"), log_metrics=note("metrics"))
    mlflow.end_run = note("end")
    run = types.SimpleNamespace(log=note("log"), finish=note("finish"))
    wandb = types.SimpleNamespace(init=lambda **kwargs: calls.append(("init", kwargs)) or run)
    for name, module in (("torch.utils.tensorboard", board), ("mlflow", mlflow), ("wandb", wandb)):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_run_tells_every_sink_every_row_and_closes_them(tmp_path, libraries):
    data = make_dataset(tmp_path / "data", [40]).dataset
    out = tmp_path / "run"
    train.run(config(data, out, samples=30, sinks=("tensorboard", "mlflow", "wandb")))
    rows = metrics(out)
    assert ("folder", str(out / "tensorboard")) in libraries
    losses = [(args[1], args[2]) for name, args, _ in of(libraries, "scalar") if args[0] == "loss"]
    assert losses == [(row["loss"], row["samples_seen"]) for row in rows]
    assert [(args[0]["loss"], kwargs["step"]) for _, args, kwargs in of(libraries, "metrics")] == losses
    assert [(args[0]["loss"], args[0]["samples_seen"]) for _, args, _ in of(libraries, "log")] == losses
    assert of(libraries, "params")[0][1][0]["optim.lr"] == 1e-3
    assert next(call[1] for call in libraries if call[0] == "init")["id"] == "run"
    assert {call[0] for call in libraries[-3:]} == {"closed", "end", "finish"}


def of(calls: list[tuple], name: str) -> list[tuple]:
    return [call for call in calls if call[0] == name]


def test_a_library_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"sinks has wandb, which is not installed .*: pip install wandb"):
        open_sinks(("wandb",), str(tmp_path), {})
    with pytest.raises(ValueError, match="tensorboard, which writes to a local folder: s3://b/run is none"):
        open_sinks(("tensorboard",), "s3://b/run", {})


def test_settings_are_flat_for_those_that_want_them_so():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}
