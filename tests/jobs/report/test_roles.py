"""Every setting that is stored with results says what it decides, and what follows from that stays as it was."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs.lab import study
from jobs.report.comparable import settings_digest, training_settings
from shards import roles
from xtra import probe, train
from xtra.augment import Augment
from xtra.loss import LossConfig
from xtra.model import ModelConfig
from xtra.optim import OptimConfig
from xtra.probe import embedding
from xtra.run.folder import differences

STORED = (train.Config, probe.Config, embedding.Config, study.Config)
BUILD = Path(__file__).parents[2] / "older_builds" / "c9ee78b.tar.gz"


def without_role(config: type) -> list[str]:
    found = [one.name for one in dataclasses.fields(config) if one.metadata.get("role") not in roles.ROLES]
    return found + [f"{name}.{one}" for name, inner in roles.nested(config).items() for one in without_role(inner)]


def unknown_conditions(config: type) -> list[str]:
    names = {*roles.defaults(config)} | {
        f"{n}.{k}" for n, inner in roles.nested(config).items() for k in roles.defaults(inner)
    }
    return [name for one in dataclasses.fields(config) for name in one.metadata["unless"] if name not in names]


@pytest.mark.parametrize("config", STORED, ids=[config.__module__ for config in STORED])
def test_every_setting_that_is_stored_with_results_has_a_role(config: type) -> None:
    assert without_role(config) == []
    assert unknown_conditions(config) == []


def older() -> dict[str, Any]:
    with tarfile.open(BUILD) as archive:
        file = archive.extractfile("run/config.json")
        assert file is not None
        return json.load(file)


def test_digests_of_an_older_run_are_what_they_were() -> None:
    config = older()
    assert settings_digest(config) == "990c0b5b4ea4"
    assert settings_digest(config | {"precision": "bf16", "decoder_fp32": True}) == "5ade7b63d8f5"
    optim = config["optim"] | {"schedule": "constant", "decay": 0.5}
    assert settings_digest(config | {"optim": optim, "mystery": 1}) == "bfa2a5c90e42", "names of another build count"
    assert "seed" not in training_settings(config)["order"]


def config(**changes: Any) -> train.Config:
    model = ModelConfig(16, 4, 2, 16, 2, 2, bridge=16, dec_width=16, dec_depth=1, dec_heads=2, head=16)
    return train.Config(**{"model": model, "samples": 100, "batch": 10, "data": "d", "out": "o", **changes})


def apart(before: train.Config, now: train.Config, resumed: bool = True) -> list[str]:
    stored = json.loads(json.dumps(dataclasses.asdict(before)))
    return [name for name, _, _ in differences(now, stored, dataclasses.asdict(now), resumed)]


def test_a_rerun_keeps_law_and_trial_and_may_change_all_else() -> None:
    one = config()
    assert apart(one, config(threads=3, micro=2, keep=4, data="other", arm="name", batch=20)) == []
    assert apart(one, config(batch=20), resumed=False) == ["batch"]
    assert apart(one, config(seed=1, samples=200, loss=LossConfig(l1=True))) == ["loss.l1", "samples", "seed"]
    assert apart(one, config(decoder_fp32=True)) == [], "nothing is reduced under fp32"
    assert apart(config(precision="bf16"), config(precision="bf16", decoder_fp32=True)) == ["decoder_fp32"]
    trunk = OptimConfig(schedule="constant", warmup=10, decay=0.0)
    assert apart(config(optim=trunk), config(optim=trunk, samples=500)) == [], "a trunk may grow"


def test_a_condition_is_judged_inside_its_own_config() -> None:
    def chosen(one: probe.Config) -> dict[str, Any]:
        return roles.chosen(probe.Config, dataclasses.asdict(one), "law")

    plain, augmented = (probe.Config("r", train="t", eval="e", augment=given) for given in (None, Augment()))
    gone = {"views", "cache_dtype", "knn", "logreg", "resize"}
    assert chosen(plain).keys() - chosen(augmented).keys() == gone
    assert "holdout" not in chosen(dataclasses.replace(plain, protocol="published"))
