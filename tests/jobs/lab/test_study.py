"""The block-size study at tiny size: the sweep chooses rates, every arm is trained and probed, and nothing changes."""

from __future__ import annotations

import csv
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from made_datasets import make_dataset

from jobs.lab import rows, study
from jobs.report import ledger
from shards import store
from xtra import recipes, train
from xtra.optim import OptimConfig
from xtra.probe import unpack

SETS = {
    "tin-train": 96,
    "tin-val": 24,
    "cifar10-train": 40,
    "cifar10-test": 30,
    "grocery-train": 40,
    "grocery-test": 21,
}
CONSTANT = OptimConfig(lr=9.0, warmup_lr=0.0, warmup=32, schedule="constant")
ORIGINAL = recipes.get
ALL_ARMS = study.ARMS


def tiny(name: str) -> train.Config:
    full = ORIGINAL(name)
    model = dataclasses.replace(full.model, image=32, width=16, depth=1, heads=1, bridge=16, dec_width=16, head=16)
    model = dataclasses.replace(model, dec_heads=1)
    return dataclasses.replace(full, model=model, optim=CONSTANT, precision="fp32")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("sets")
    for name, images in SETS.items():
        make_dataset(base / name, [images], name=name)
    return str(base)


@pytest.fixture
def config(sets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.Config:
    monkeypatch.setattr(recipes, "get", tiny)
    monkeypatch.setattr(study, "ARMS", (study.ARMS[0], study.ARMS[2], study.ARMS[4], study.ARMS[5]))
    return study.Config(
        data=sets,
        out=str(tmp_path / "runs"),
        rows=str(tmp_path / "rows"),
        samples=(80, 160, 320),
        stages=(160, 320),
        seeds=(0, 1),
        sweep_samples=64,
        lrs=(1e-3, 2e-3),
        few_images=30,
        head_images=30,
        held_out_images=12,
        probe_epochs=1,
        at_once=1,
    )


def table(folder: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(store.read(store.join(folder, f"{name}.csv")).decode().splitlines()))


def test_a_study_is_a_sweep_then_the_grid_with_its_rows(config: study.Config) -> None:
    first = study.run(dataclasses.replace(config, stages=(160,), seeds=(0,)))
    swept = table(config.rows, "sweep")
    for block, rate in first.rates.items():
        losses = {
            float(row["arm"].split()[-1]): float(row["val_loss"]) for row in swept if row["arm"].startswith(block)
        }
        assert rate == min(losses, key=losses.__getitem__)
        inside = min(losses) < rate < max(losses)
        assert inside or rate / 2 < study.LEAST_RATE or rate * 2 > study.LARGEST_RATE, "a best end is gone beyond"
    assert {row["samples_seen"] for row in table(config.rows, "grid") if row["head"] == "linear"} == {"0", "80", "160"}

    assert study.run(config).rates == first.rates
    grid = [row for row in table(config.rows, "grid") if row["encoder"] == "trained"]
    primary = {(row["arm"], int(row["samples_seen"]), row["seed"]) for row in grid if row["set"] == "cifar10-test"}
    counts = {"block4": (80, 160, 320), "block4-random-order": (80, 320), "block4-few-images": (80, 320)}
    counts["block4-cosine"] = (320,)
    assert primary == {(arm, n, seed) for arm, of in counts.items() for n in of for seed in "01"}
    for row in grid:
        few = row["arm"] == "block4-few-images"
        assert int(row["unique_images"]) == min(int(row["samples_seen"]), int(row["selected"]))
        assert (int(row["selected"]) < 96) == few
        assert row["order"] == ("random" if row["arm"] == "block4-random-order" else "raster")
        assert row["probe_seed"] == row["order_seed"] == row["seed"]
        assert (row["trunk"] == "") == (row["arm"] == "block4-cosine")
        assert "/" not in row["run"] + row["dataset"]
    again = study.run(config)
    assert (again.trained, again.probed) == (0, 0)


def test_what_a_machine_that_is_gone_found_is_not_run_again(config: study.Config, tmp_path: Path) -> None:
    small = dataclasses.replace(config, samples=(80, 160), stages=(160,), seeds=(0,))
    first = study.run(small)
    before = {name: table(config.rows, name) for name in ("sweep", "grid", "grid-right")}
    moved = dataclasses.replace(small, out=str(tmp_path / "another machine"))
    with pytest.raises(
        ValueError, match=r"rows/study.json: the study was begun with settings\.probe_epochs = 1, now 2"
    ):
        study.run(dataclasses.replace(moved, probe_epochs=2))
    assert not store.exists(moved.out)
    stated = store.read_json(store.join(config.rows, "grid-settings.json"))
    assert {row["settings"] for row in before["grid"]} == stated.keys()
    pin = store.join(config.rows, "study.json")
    store.put_json(pin, store.read_json(pin) | {"same_data": [["a" * 64, "b" * 64]]})  # declared of the rows later
    again = study.run(moved)
    assert (again.trained, again.probed, again.rates) == (0, 0, first.rates)
    wider = study.run(dataclasses.replace(moved, seeds=(0, 1)))
    assert wider.trained > 0
    for name, rows_before in before.items():
        after = table(config.rows, name)
        assert [row for row in after if row["name"] in {old["name"] for old in rows_before}] == rows_before
        assert len(after) > len(rows_before) or name == "sweep"
    assert sorted(store.names(store.join(moved.out, "grid")))[0] == "block4-000000080-s1"


def test_the_bits_of_the_rows_are_those_of_the_probes(config: study.Config) -> None:
    study.run(dataclasses.replace(config, samples=(80,), stages=(80,), seeds=(0,), lrs=(1e-3,)))
    accuracy = {(r["name"], r["head"], r["probe_eval"], r["encoder"]): r for r in table(config.rows, "grid")}
    bits = table(config.rows, "grid-right")
    assert bits
    for line in bits:
        row = accuracy[line["name"], line["head"], line["manifest_eval"], line["encoder"]]
        assert unpack(line["right"], int(line["total"])).mean() == pytest.approx(float(row["accuracy"]))


def test_a_study_whose_recipe_changed_half_way_is_refused(
    config: study.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(config, samples=(80,), stages=(80,), seeds=(0,), lrs=(1e-3,))
    study.run(small)
    before = json.dumps(sorted(str(path) for path in Path(config.out).rglob("*")))
    changed = dataclasses.replace(CONSTANT, weight_decay=0.3)
    monkeypatch.setattr(recipes, "get", lambda name: dataclasses.replace(tiny(name), optim=changed))
    with pytest.raises(
        ValueError, match=r"begun with recipes\.tiny_imagenet_block4\.optim\.weight_decay = 0\.05, now 0\.3"
    ):
        study.run(dataclasses.replace(small, seeds=(0, 1)))
    monkeypatch.setattr(recipes, "get", tiny)
    with pytest.raises(ValueError, match=r"begun with settings\.probe_epochs = 1, now 2"):
        study.run(dataclasses.replace(small, probe_epochs=2))
    assert json.dumps(sorted(str(path) for path in Path(config.out).rglob("*"))) == before


def test_a_damaged_probe_is_named(config: study.Config, tmp_path: Path) -> None:
    study.run(dataclasses.replace(config, samples=(80,), stages=(80,), seeds=(0,), lrs=(1e-3,)))
    run = next(run for run in ledger.read_runs(store.join(config.out, "grid")).runs if run.probes)
    url = run.probes[0]["_file"]
    probe: dict[str, Any] = store.read_json(url)
    store.put_json(url, probe | {"correct": probe["correct"] + 1})
    with pytest.raises(ValueError, match=f"{url}: `right` and `correct` disagree"):
        rows.write_rows(store.join(config.out, "grid"), str(tmp_path / "elsewhere"))
    assert store.names(str(tmp_path / "elsewhere")) == []


def test_a_missing_set_is_named(config: study.Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tin-train"):
        study.run(dataclasses.replace(config, data=str(tmp_path / "none")))
    assert store.names(config.out) == []


def test_a_part_of_the_arms_is_a_study_of_its_own(config: study.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "ARMS", ALL_ARMS)
    part = dataclasses.replace(config, samples=(160,), stages=(160,), seeds=(0,), arms=("block4", "block1"))
    with pytest.raises(ValueError, match="arms has 'block9'; each must be one of block4, "):
        dataclasses.replace(part, arms=("block9",))
    with pytest.raises(ValueError, match="arms must contain block4 and block1, for the primary comparison"):
        dataclasses.replace(part, arms=("block4-cosine",))
    small = dataclasses.replace(part, secondary=(), batch=20, warmup=40)
    stop = threading.Event()
    stop.set()
    study.run(small, stop=stop)
    pinned = store.read_json(store.join(small.out, "study.json"))
    assert set(pinned["manifests"]) >= {"tin", "grocery"}
    assert pinned["manifests"]["grocery"] == []
    for name, value in (("batch", 10), ("warmup", 0), ("secondary", ("tin",))):
        with pytest.raises(ValueError, match=rf"the study was begun with settings\.{name} = "):
            study.run(dataclasses.replace(small, **{name: value}), stop=stop)


def test_a_study_of_an_older_build_has_todays_defaults(config: study.Config) -> None:
    stop = threading.Event()
    stop.set()
    study.run(config, stop=stop)
    for folder in (config.out, config.rows):
        where = Path(folder, "study.json")
        pin = json.loads(where.read_text())
        for name in ("arms", "secondary", "batch", "warmup"):
            del pin["settings"][name]
        where.write_text(json.dumps(pin))
    study.run(config, stop=stop)
    with pytest.raises(ValueError, match=r"begun with settings\.batch = 0, now 20"):
        study.run(dataclasses.replace(config, batch=20), stop=stop)
