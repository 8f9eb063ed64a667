"""Probes that augment in every epoch: exact batches, and an interrupted one goes on to the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import (
    AUGMENT,
    MODEL,
    PIXELS,
    POOLED,
    TOKENS,
    encode_of,
    images_of,
)

from shards import store
from xtra.augment import Augment
from xtra.probe import features, probe
from xtra.probe.augmented_features import Augmented
from xtra.probe.heads import Head


def test_augmented_batches_are_exact_and_show_what_trains_once_an_epoch(world: Any) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    source = Augmented(encode_of(world, PIXELS), train, whole, batch=32, epochs=3, position=None)
    batches = list(source)
    assert {len(batch) for batch in batches} == {32}
    assert sum(map(len, batches)) == source.samples == source.position.trained == 3 * len(train.kept) // 32 * 32
    held = images_of(encode_of(world, PIXELS).evaluation(train, "choose", lambda *_: None, only=train.held))
    assert not images_of(batches) & held
    rows = [row.numpy().tobytes() for batch in batches for row in batch.values[PIXELS]]
    assert len(set(rows[: len(train.kept)])) == len(train.kept)
    assert [b.labels_B.tolist() for b in batches] == [
        b.labels_B.tolist() for b in Augmented(encode_of(world, PIXELS), train, AUGMENT, 32, 3, None)
    ], "augmenting changes pixels alone"
    with pytest.raises(ValueError, match="batch is 9999, but 3 epochs show only"):
        Augmented(encode_of(world, PIXELS), train, whole, 9999, 3, None)


class Interrupted(Exception):
    pass


def test_an_interrupted_probe_goes_on_to_the_same_bits(world: Any, tmp_path: Path) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    config = dataclasses.replace(world["config"], augment=AUGMENT, save_minutes=0.0, encode_batch=20, epochs=2)
    encode = dataclasses.replace(encode_of(world, TOKENS, POOLED), batch=20)

    def trained(out: str, stop_at: int = 0) -> list[Head]:
        stepped = [probe.new_head(config, k, f, encode, 3) for k, f in (("attentive", TOKENS), ("linear", POOLED))]

        def say(what: str, done: int, total: int) -> None:
            if done == stop_at:
                raise Interrupted

        probed = dataclasses.replace(probe.open_probed(config), out=out)
        unfinished = probe._unfinished(config, probed, train.manifest, 0.0)
        probe._train_augmented(config, unfinished, encode, train, stepped, say)
        return stepped

    whole = trained(str(tmp_path / "a"))
    for stop_at in (96, 288):  # within an epoch, and in a later one
        with pytest.raises(Interrupted):
            trained(str(tmp_path / "b"), stop_at)
        (digest,) = store.names(str(tmp_path / "b" / "probes-unfinished"))
        state = store.read_json(str(tmp_path / "b" / "probes-unfinished" / digest / "state.json"))
        assert state["position"]["trained"] == stop_at
    again = trained(str(tmp_path / "b"))
    for ours, theirs in zip(again, whole):
        assert ours.optimiser.steps == theirs.optimiser.steps
        for name, tensor in ours.state().items():
            assert torch.equal(tensor, theirs.state()[name]), name


def test_what_fails_after_training_does_not_cost_it_and_another_encoder_starts_over(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_json(str(tmp_path / "a" / "config.json"), {"model": dataclasses.asdict(MODEL), "seed": 3})
    store.put_json(str(tmp_path / "b" / "config.json"), {"model": dataclasses.asdict(MODEL), "seed": 4})
    config = dataclasses.replace(
        world["config"], augment=AUGMENT, heads=("linear",), epochs=1, encoder="random", out=str(tmp_path / "o")
    )
    config = dataclasses.replace(config, checkpoint=str(tmp_path / "a"))

    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(probe, "write", full)
        with pytest.raises(OSError, match="disk full"):
            probe.run(config)
    said: list[str] = []
    (again,) = probe.run(dataclasses.replace(config, knn=(1,)), lambda what, done, total: said.append(what))
    assert "train heads" not in said, "the training was there already"
    assert store.names(str(tmp_path / "o")) == ["probes"]

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        probe.run(config, stop)
    assert "probes-unfinished" in store.names(str(tmp_path / "o")), "saved although save_minutes had not passed"
    (other,) = probe.run(
        dataclasses.replace(config, checkpoint=str(tmp_path / "b")),
        lambda what, done, total: said.append(f"{what} {done}"),
    )
    assert "train heads 32" in said, "the state belongs to another encoder"
    assert again.fingerprint != other.fingerprint


def test_a_probe_with_augmentation_is_a_probe(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        world["config"], augment=AUGMENT, heads=("linear", "knn"), precision="bf16", knn=(5,), out=str(tmp_path)
    )
    linear, knn = probe.run(config)
    assert linear.accuracy > 0.8
    assert "augmented anew every epoch" in linear.protocol
    assert "encoder in bf16" in linear.protocol
    assert knn.accuracy > 0.8
    assert store.names(str(tmp_path)) == ["probes"]
