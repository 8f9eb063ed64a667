"""Which device a setting means: of "auto" the GPU where there is one, in every verb alike."""

from __future__ import annotations

import dataclasses
import platform
import resource
import subprocess
import sys
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


FAULTS = """
import resource, torch
from xtra.device import freed_memory_kept

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(10_000_000) for _ in range(4)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

for device in ("cuda", "cpu"):
    with freed_memory_kept(device):
        print(min(faults_of_a_step() for _ in range(5)))
        kept = resident()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_a_step_has_the_memory_of_the_last_one_until_the_block_ends() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    by_default, kept, given_back = map(int, done.stdout.split())
    assert kept * 20 < by_default
    assert given_back * resource.getpagesize() > 100_000_000  # of the 160 MB of a step
