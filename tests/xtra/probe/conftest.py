"""A tiny run, its sets, and a probe of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from colour_sets import MODEL, labelled_set, labels

from shards import store
from xtra.model import build
from xtra.probe import probe
from xtra.run import checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with one checkpoint whose weights are not its initial ones, a training set and an evaluation set."""
    root = tmp_path_factory.mktemp("probe")
    run = str(root / "run")
    store.put_json(store.join(run, "config.json"), {"model": dataclasses.asdict(MODEL), "seed": 3})
    model = build(MODEL, seed=99)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(run, 1, 640, model, optimizer, {"cursor": {"manifest": "m" * 64}})
    checkpoint.save(run, 1, 1280, model, optimizer, {"cursor": {"manifest": "m" * 64}})
    train = labelled_set(root / "train", "train", labels(240))
    evaluation = labelled_set(root / "eval", "colours eval", labels(61), first=1000)
    config = probe.Config(
        checkpoint=run,
        train=train.dataset,
        eval=evaluation.dataset,
        lrs=(1e-5, 1e-2),
        layer_sets=(2,),
        attention_heads=4,
        batch=32,
        epochs=4,
        encode_batch=50,
    )
    return {"run": run, "model": model, "train": train, "eval": evaluation, "config": config}


@pytest.fixture(scope="module")
def results(world: dict[str, Any]) -> dict[str, probe.ProbeResult]:
    said: list[tuple[str, int, int]] = []
    config = dataclasses.replace(world["config"], pixels=True)
    found = probe.run(config, lambda what, done, total: said.append((what, done, total)))
    assert {"train heads", "evaluate"} < {what for what, _, _ in said}
    assert all(0 < done <= total for _, done, total in said)
    return {result.head: result for result in found}
