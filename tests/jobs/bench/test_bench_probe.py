"""The probe bench on a model that takes no time: what it reports, not how fast anything is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made_datasets import make_dataset

from jobs.bench import probe
from jobs.lab import study
from xtra.probe import Config as probe_config

SETS = ("tin-train", "tin-val", "cifar10-train", "cifar10-test", "grocery-train", "grocery-test")


def test_it_reports_every_arm_and_the_ratio_that_others_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = probe.run(probe.Config(size="tiny32", batch=3, classes=5, layers=2, rounds=2))
    assert found["subject"] == "probe"
    assert [(row["arm"], row["heads"], row["rounds"]) for row in found["rows"]] == [
        ("linear", 1, 2),
        ("attentive", 1, 2),
        ("grid", 20, 2),
    ]
    linear, attentive, grid = found["rows"]
    assert grid["parameters"] == 10 * (linear["parameters"] + attentive["parameters"])
    assert all(0 < row["encoder_seconds"] < row["seconds"] for row in found["rows"])
    assert found["ratios"]["grid_vs_single"] == linear["grid_ratio"] > 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_the_probes_of_a_run_take_turns_with_another_build_and_are_split_by_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETS:
        make_dataset(tmp_path / name, [40], name=name)
    asked: list[tuple[str, str]] = []
    real = probe._probed

    def probed(tree: Path, settings: dict) -> dict:
        name = Path(settings["eval"].partition("@")[0]).name
        asked.append((tree.name, name))
        if name == "grocery-test":
            return real(tree, settings)
        seconds = {"encoder": 3.0, "decoding": 0.5, "heads": 0.25, "rest": 0.25, "cpu": 40.0 if tree == other else 20.0}
        return {f"{part}_seconds": value for part, value in seconds.items()} | {"right": {}}

    monkeypatch.setattr(probe, "_probed", probed)
    other = tmp_path / "other"
    other.symlink_to(probe.HERE)
    monkeypatch.setattr(Path, "resolve", lambda path: path)
    found = probe.run(probe.Config(data=str(tmp_path), images=0, rounds=2, checkout=str(other)))
    turns = [
        (tree, name) for name in ("cifar10-test", "tin-val", "grocery-test") for tree in (probe.HERE.name, "other")
    ]
    assert asked == turns + turns[::-1]
    rows = {(row["set"], row["build"]): row for row in found["rows"]}
    assert (rows["tin", "this"]["cpu_seconds"], rows["tin", "checkout"]["cpu_seconds"]) == (20, 40)
    whole = rows["grocery", "this"]
    assert sum(whole[part] for part in probe.PARTS) == pytest.approx(whole["cpu_seconds"], rel=0.2)  # medians
    assert min(whole[part] for part in ("encoder", "heads", "rest")) > 0
    ratios = found["ratios"]
    assert ratios["cpu_seconds"] == 20 + 20 + whole["cpu_seconds"]
    assert ratios["cpu_vs_checkout_least"] <= ratios["cpu_vs_checkout"] < 0.9


def test_the_timed_probes_are_the_study_s(tmp_path: Path) -> None:
    for name in SETS:
        make_dataset(tmp_path / name, [40], name=name)
    config = study.Config(str(tmp_path), str(tmp_path / "runs"))
    chain, *_ = study._grid(config, study._sets(config), {"block1": 1e-3, "block2": 1e-3, "block4": 1e-3}, 64_000)
    whole = chain.trials[-1]
    assert whole.run.recipe == probe.RECIPE
    for theirs, name in zip(whole.probes, probe.STUDY_SETS, strict=True):
        ours = probe_config(**probe._settings(probe.Config(data=str(tmp_path), images=0), name))
        assert dataclasses.replace(theirs, checkpoint="", out="") == ours
    assert config.head_images == probe.STUDY_IMAGES


def test_mistakes_are_named(tmp_path: Path) -> None:
    for change, said in (
        ({"size": "b17"}, "size is 'b17'"),
        ({"batch": 1}, "batch is 1; it must be at least 2"),
        ({"data": "x", "checkout": str(tmp_path)}, "it has no xtra/probe"),
        ({"checkout": str(probe.HERE)}, "give --data as well"),
    ):
        with pytest.raises(ValueError, match=said):
            probe.Config(**change)
