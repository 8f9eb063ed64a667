"""Sinks: every row goes to each of them once, under its samples seen; one that fails is left out, a missing one named.

The libraries are fakes here, except in the last tests, which run where the real ones are installed.
"""

from __future__ import annotations

import json
import sys
import types

import pytest
from made_datasets import make_dataset
from test_train import config, metrics

from xtra import train
from xtra.run.folder import attempts
from xtra.run.sinks import flat, open_sinks
from xtra.run.steps import Steps


@pytest.fixture
def libraries(monkeypatch) -> list[tuple]:
    """Fakes of the three libraries, which record their calls."""
    calls: list[tuple] = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    writer = types.SimpleNamespace(add_scalar=note("scalar"), close=note("closed"))
    board = types.SimpleNamespace(SummaryWriter=lambda folder: calls.append(("folder", folder)) or writer)
    mlflow = types.SimpleNamespace(start_run=note("start"), log_params=note("params"), log_metrics=note("metrics"))
    mlflow.end_run, mlflow.search_runs = note("end"), lambda **kwargs: calls.append(("search", (), kwargs)) or []
    run = types.SimpleNamespace(log=note("log"), finish=note("finish"), define_metric=note("define"))
    wandb = types.SimpleNamespace(init=lambda **kwargs: calls.append(("init", kwargs)) or run)
    for name, module in (("torch.utils.tensorboard", board), ("mlflow", mlflow), ("wandb", wandb)):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_run_sends_every_row_to_every_sink_and_closes_them(tmp_path, libraries):
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
    assert next(call[1] for call in libraries if call[0] == "init")["name"] == "run"
    assert {call[0] for call in libraries[-3:]} == {"closed", "end", "finish"}


def of(calls: list[tuple], name: str) -> list[tuple]:
    return [call for call in calls if call[0] == name]


def test_a_continued_run_sends_no_step_twice(tmp_path, libraries, monkeypatch):
    """Killed between two checkpoints, it takes steps again that the sinks have had."""
    interrupted(tmp_path, ("mlflow", "wandb"), monkeypatch)
    assert [kwargs["step"] for _, _, kwargs in of(libraries, "metrics")] == [10, 20, 30, 40, 50, 60]
    assert [args[0]["samples_seen"] for _, args, _ in of(libraries, "log")] == [10, 20, 30, 40, 50, 60]
    one, two = (call[1] for call in libraries if call[0] == "init")
    assert one["id"] == two["id"] != "run"  # a folder of that name elsewhere is another run


def test_a_sink_that_fails_is_left_out_and_the_run_goes_on(tmp_path, libraries, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", full)
    data = make_dataset(tmp_path / "data", [40]).dataset
    said: list[dict] = []
    settings = config(data, tmp_path / "run", samples=30, sinks=("mlflow", "wandb"))
    assert train.run(settings, progress=said.append).samples_seen == 30
    assert "the run goes on without mlflow, which failed: OSError: no space left" in [row.get("remark") for row in said]
    assert len(of(libraries, "log")) == len(metrics(tmp_path / "run")) == 3
    events = [
        json.loads(line) for part in (tmp_path / "run" / "events").iterdir() for line in part.read_text().splitlines()
    ]
    assert [event["sink"] for event in events if event["event"] == "sink lost"] == ["mlflow"]


def test_a_continued_run_says_what_a_sink_misses(tmp_path, libraries, monkeypatch):
    data = make_dataset(tmp_path / "data", [40]).dataset
    settings = config(data, tmp_path / "run", samples=30, sinks=("mlflow", "wandb"))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["mlflow"], "log_metrics", lambda *args, **kwargs: 1 / 0)
        train.run(settings)
    said: list[dict] = []
    train.run(settings, progress=said.append)
    (gap,) = [row["remark"] for row in said if "misses rows" in row.get("remark", "")]
    assert gap.startswith(f"{tmp_path}/run: mlflow misses rows, because an earlier attempt dropped it (ZeroDivision")


def test_a_start_without_the_library_leaves_the_run_alone(tmp_path, libraries, monkeypatch):
    data = make_dataset(tmp_path / "data", [40]).dataset
    train.run(config(data, tmp_path / "run", samples=10))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="sinks has wandb, which is not installed"):
        train.run(config(data, tmp_path / "run", samples=10, sinks=("wandb",)))
    assert attempts(str(tmp_path / "run")) == [1]


def test_a_library_that_is_missing_or_does_not_start_is_named(monkeypatch, tmp_path, libraries):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **kwargs: 1 / 0)
    with pytest.raises(
        ValueError, match=r"sinks has wandb, which does not start \(ZeroDivisionError: division by zero"
    ):
        open_sinks(("wandb",), str(tmp_path), {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"sinks has wandb, which is not installed .*: pip install 'xtra-pretrain\[wandb"
    ):
        open_sinks(("wandb",), str(tmp_path), {})
    with pytest.raises(ValueError, match="tensorboard, which writes to a local folder, but s3://b/run is not one"):
        open_sinks(("tensorboard",), "s3://b/run", {})


def test_settings_are_flat_for_those_that_want_them_so():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


# ---- the real libraries, where they are ----


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_step_once(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    interrupted(tmp_path, ("tensorboard",), monkeypatch)
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = metrics(tmp_path / "run")
    assert [event.step for event in board.Scalars("loss")] == [row["samples_seen"] for row in rows]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.filterwarnings("ignore")  # of its own database library
def test_mlflow_has_one_run_with_every_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/ml.db")
    interrupted(tmp_path, ("mlflow",), monkeypatch)
    (found,) = mlflow.search_runs(output_format="list")
    assert (found.info.run_name, found.data.params["optim.lr"]) == ("run", "0.001")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [10, 20, 30, 40, 50, 60]


@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_every_step_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    interrupted(tmp_path, ("wandb",), monkeypatch)
    attempts = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(attempts) == 2
    assert len({name.split("-", 3)[3] for name in attempts}) == 1  # `wandb sync` joins them: one id


def interrupted(tmp_path, sinks: tuple[str, ...], monkeypatch) -> None:
    """A run killed between two checkpoints and run again."""
    data = make_dataset(tmp_path / "data", [40]).dataset
    settings = config(data, tmp_path / "run", samples=60, checkpoint_every=30, sinks=sinks)
    honest = Steps.look

    def killed(steps, seen, *rest):
        if seen == 60:
            raise KeyboardInterrupt
        honest(steps, seen, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "look", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(settings)
    train.run(settings)
