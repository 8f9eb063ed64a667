from __future__ import annotations

import dataclasses

from made_datasets import make_dataset
from test_train import MODEL

from jobs.bench import precision
from xtra import recipes, train


def test_the_precisions_of_one_recipe_are_trained_once_and_compared(tmp_path, monkeypatch):
    small = dataclasses.replace(recipes.get("small64"), model=MODEL, batch=10, checkpoint_every=100)
    monkeypatch.setattr(recipes, "get", lambda name: small)
    data = make_dataset(tmp_path / "data", [40]).dataset
    held = make_dataset(tmp_path / "held", [9]).dataset
    config = precision.Config(data, str(tmp_path / "out"), samples=100, val=held)
    result = precision.run(config)
    rows = {row["run"]: row for row in result["rows"]}
    assert set(rows) == {"fp32", "fp32_seed1", "fp32_seed2", "bf16_decoder_fp32", "bf16"}
    assert {row["steps"] for row in rows.values()} == {10}
    finals = {row["final_loss"] for row in rows.values()}
    assert len(finals) == 5  # neither precision is another's by mistake
    assert all(0.9 < result["ratios"][f"{name}_vs_fp32"] < 1.1 for name in ("bf16", "bf16_decoder_fp32"))
    assert all(row["val_loss"] for row in rows.values())
    assert (tmp_path / "out" / "precision.svg").read_bytes().startswith(b"<?xml")
    monkeypatch.setattr(train, "run", None)  # all are there
    assert precision.run(config)["rows"] == result["rows"]
