"""Which device a setting means: of "auto" the GPU where there is one, in every verb alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from jobs.cluster import probing_device
from jobs.lab import suite
from xtra import generate, probe
from xtra.device import check_device, chosen


@pytest.mark.parametrize(("there", "auto"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, auto: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert generate.Config("run", "data", "out").device == probe.Config().device == "auto"
    assert chosen("auto") == probe.Config().on == probing_device("auto") == auto
    assert [chosen(name) for name in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    precision = {"cuda": "bf16", "cpu": "fp32"}[auto]
    base = dataclasses.replace(probe.Config("run"), device=probing_device("auto"))
    assert {settings.precision for settings in suite.configs("cifar10", base, 224)} == {precision}


def test_a_probe_is_made_where_auto_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(device: str) -> None:
        asked.append(device)
        raise ValueError("seen")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("xtra.probe.probe.check_device", refuse)
    with pytest.raises(ValueError, match="seen"):
        probe.run(probe.Config("run", train="a", eval="b"))
    assert asked == ["cuda"]


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"device is gpu: .*: give one of this machine"):
        check_device("gpu")
