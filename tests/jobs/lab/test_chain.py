"""What a chain says that it did: its own work, and not that of another study on the same folder."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from jobs.lab import chain
from xtra import recipes, train
from xtra.train import TrainResult


@pytest.mark.parametrize(("loss", "trained"), [(0.5, 1), (None, 0)])
def test_a_run_that_another_study_finished_is_not_trained_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float | None, trained: int
) -> None:
    def run(config: train.Config, *_: object) -> TrainResult:
        return TrainResult(config.out, 2, config.samples, loss, 0.1, stopped=False)

    monkeypatch.setattr("xtra.train.run", run)
    config = dataclasses.replace(recipes.get("demo32"), data="d", out=str(tmp_path / "r"), samples=64)
    assert chain.work(chain.Chain((chain.Trial(config),)), threading.Event()).trained == trained
