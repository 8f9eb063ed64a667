"""Probes on real (tiny) runs and datasets: what trains on what, that counts balance, and that mistakes are named."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from shards import manifest, selection, store
from shards.manifest import DatasetInfo, Manifest, make_version, write_info, write_plan
from xtra import checkpoint, features, probe
from xtra.model import ModelConfig, build

MODEL = ModelConfig(16, 4, 2, 32, 3, 2, bridge=32, dec_width=32, dec_depth=1, dec_heads=2, head=32)
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


def picture(label: str, number: int) -> bytes:
    """16x16 noise around the colour of its class."""
    noise = np.random.default_rng(number).normal(0, 60, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def labelled_set(folder: Path, name: str, labels: list[list[str]], first: int = 0) -> Manifest:
    rows = [
        datasets.rows_of(first + i, 1, side=16)[0]
        | {"key": f"{name}-{i:04d}", "labels": found, "body": picture((found or ["red"])[0], first + i)}
        for i, found in enumerate(labels)
    ]
    plan = [{column: row.get(column) for column in manifest.PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, manifest.PLAN_SCHEMA))
    datasets.write_unit(str(folder), 0, rows)
    write_info(str(folder), DatasetInfo(name, "0" * 64, 1, len(rows), "c", "t"))
    return make_version(str(folder), "test")


def labels(count: int) -> list[list[str]]:
    return [[list(COLOURS)[i % 3]] for i in range(count)]


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


def test_every_head_is_evaluated_once_on_every_sample(results: dict[str, probe.ProbeResult], world: Any) -> None:
    assert set(results) == {"attentive", "linear", "pixels"}
    for result in results.values():
        assert (result.total, result.classes, result.labels) == (61, 3, ("blue", "green", "red"))
        assert result.accuracy == result.correct / 61 > 0.8, result.head
        assert 0 <= result.low < result.accuracy <= result.high <= 1
        per_class = [share * n for share, n in zip(result.per_class, (20, 20, 21)) if share is not None]
        assert sum(per_class) == pytest.approx(result.correct)
        assert (result.manifest_train, result.manifest_eval) == (world["train"].digest, world["eval"].digest)
        assert result.seconds > 0
    assert (results["linear"].encoder, results["linear"].samples_seen) == ("trained", 1280)
    assert results["linear"].checkpoint == checkpoint.latest(world["run"])
    assert (results["pixels"].encoder, results["pixels"].samples_seen, results["pixels"].checkpoint) == ("none", 0, "")


def test_the_grid_point_is_the_best_on_the_hold_out(results: dict[str, probe.ProbeResult]) -> None:
    for result in results.values():
        assert [point["lr"] for point in result.selection] == [1e-5, 1e-2]
        small, large = (point["accuracy"] for point in result.selection)
        assert large > small, "learning rates three orders apart should not train alike"
        assert (result.lr, result.weight_decay) == (1e-2, 0.1)


def test_results_are_files_of_the_run(results: dict[str, probe.ProbeResult], world: Any) -> None:
    folder = store.join(world["run"], "probes")
    assert store.names(folder)[:2] == [
        "colours_eval-attentive-trained-1280.json",
        "colours_eval-linear-trained-1280.json",
    ]
    written = store.read_json(store.join(folder, "colours_eval-linear-trained-1280.json"))
    expected = dataclasses.asdict(results["linear"])
    assert {name: written[name] for name in expected} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in expected.items()
    }


def test_an_older_checkpoint_can_be_named_and_out_chosen(world: Any, tmp_path: Path) -> None:
    older = checkpoint.checkpoint_folder(world["run"], 640)
    config = dataclasses.replace(world["config"], checkpoint=older, out=str(tmp_path), heads=("linear",), epochs=1)
    (result,) = probe.run(config)
    assert (result.samples_seen, result.checkpoint) == (640, older)
    assert store.names(str(tmp_path / "probes")) == ["colours_eval-linear-trained-640.json"]


def test_probing_twice_gives_the_same_numbers(
    results: dict[str, probe.ProbeResult], world: Any, tmp_path: Path
) -> None:
    again = probe.run(dataclasses.replace(world["config"], out=str(tmp_path)))
    for result in again:
        first = results[result.head]
        assert (result.correct, result.selection, result.per_class) == (first.correct, first.selection, first.per_class)


def test_a_random_encoder_has_the_initial_weights_and_needs_no_checkpoint(world: Any, tmp_path: Path) -> None:
    store.put_json(str(tmp_path / "config.json"), {"model": dataclasses.asdict(MODEL), "seed": 3})
    config = dataclasses.replace(world["config"], checkpoint="", out=str(tmp_path), encoder="random", epochs=1)
    linear = {result.head: result for result in probe.run(config)}["linear"]
    assert (linear.encoder, linear.checkpoint, linear.samples_seen) == ("random", "", 0)
    encoder = probe._encoder(config, probe._find(config))
    initial = build(MODEL, seed=3).encoder
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, initial.get_parameter(name)), name
        assert not parameter.requires_grad
    assert not encoder.training


def encode_of(world: Any, kinds: tuple[str, ...] = ("attentive", "linear", "pixels")) -> features.Encode:
    return probe._encode(world["config"], world["model"].encoder, kinds)


def test_features_are_the_unnormalised_streams(world: Any) -> None:
    batch = next(encode_of(world).batches(world["train"], view=0))
    found = encode_of(world)(batch.images_B3HW, np.arange(50))
    with torch.no_grad():
        streams = world["model"].encoder.layers(features.data.normalise(batch.images_B3HW), 2)
    assert torch.allclose(found.of("attentive"), (streams[0] + streams[1]) / 2, atol=1e-6)
    assert torch.allclose(found.of("linear"), streams[1].mean(1), atol=1e-6)
    assert torch.equal(found.of("pixels").view(50, 3, 16, 16).to(torch.uint8), batch.images_B3HW)
    assert torch.equal(encode_of(world, ("linear",))(batch.images_B3HW, np.arange(50)).of("linear"), found.of("linear"))


def test_the_cache_shows_each_image_once_an_epoch_and_each_view_in_turn(world: Any) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    cache = features.Cache(encode_of(world, ("pixels",)), train, views=2, batch=32, limit_gb=1)
    cache.fill(lambda *_: None)
    assert cache.images + cache.held_images == 240
    assert 5 <= cache.held_images <= 50
    shown = []
    for epoch in (0, 1):
        batches = list(cache.epoch(epoch))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) - min(sizes) <= 1, "a short last batch"
        assert sum(map(len, batches)) == cache.images
        shown.append({row.numpy().tobytes() for batch in batches for row in batch.by_kind["pixels"]})
    every = {row.numpy().tobytes() for row in cache.kept.by_kind["pixels"]}
    alike = 2 * cache.images - len(every)  # random crops that happened to be the whole picture
    assert alike < 0.05 * cache.images, "the second view should crop"
    assert len(shown[0] & shown[1]) == alike
    assert shown[0] | shown[1] == every
    held = {row.numpy().tobytes() for batch in cache.hold_out() for row in batch.by_kind["pixels"]}
    assert len(held) == cache.held_images
    assert not held & every
    order = [batch.labels_B.tolist() for batch in cache.epoch(0)]
    assert (
        order == [batch.labels_B.tolist() for batch in cache.epoch(0)] != [b.labels_B.tolist() for b in cache.epoch(1)]
    )


def test_the_hold_out_is_independent_of_subsets(tmp_path: Path) -> None:
    """Both are thresholds on a hash of the key; a 10 % subset must not be the hold-out itself."""
    full = labelled_set(tmp_path / "a", "a", labels(900))
    part = selection.subset(full, 90)
    whole, _, _ = features.labelled(full, full, 0.1)
    few, _, _ = features.labelled(part, part, 0.1)
    assert whole.held_N.mean() == pytest.approx(0.1, abs=0.05)
    assert few.held_N.mean() < 0.3
    keys = [k for n in range(1) for k in selection.selected_index(part, n)["key"].to_pylist()]
    all_keys = selection.selected_index(full, 0)["key"].to_pylist()
    held = {k for k, h in zip(all_keys, whole.held_N) if h}
    assert [k in held for k in keys] == few.held_N.tolist(), "a sample is held out in every subset or in none"


def test_labels_are_checked_before_any_work(world: Any, tmp_path: Path) -> None:
    other = labelled_set(tmp_path / "other", "other", [["red"], ["green"], ["blue"]])
    rows = datasets.rows_of(0, 2, side=16)
    bad = [rows[0] | {"key": "x-1", "labels": ["red"]}, rows[1] | {"key": "x-2", "labels": ["purple", "red"]}]
    strange = _one_unit(tmp_path / "strange", bad)
    with pytest.raises(ValueError, match="label 'purple' of x-2 is not among the 3 labels"):
        probe.run(dataclasses.replace(world["config"], eval=strange))
    bare = _one_unit(
        tmp_path / "bare", [rows[0] | {"key": "y-1", "labels": ["red"]}, rows[1] | {"key": "y-2", "labels": []}]
    )
    with pytest.raises(ValueError, match="y-2 has no label"):
        probe.run(dataclasses.replace(world["config"], train=bare))
    with pytest.raises(ValueError, match=r"a hold-out of 0.1 takes \d of 3 samples"):
        probe.run(dataclasses.replace(world["config"], train=other.dataset))


def _one_unit(folder: Path, rows: list[dict[str, Any]]) -> str:
    plan = [{column: row.get(column) for column in manifest.PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, manifest.PLAN_SCHEMA))
    datasets.write_unit(str(folder), 0, rows)
    write_info(str(folder), DatasetInfo("t", "0" * 64, 1, len(rows), "c", "t"))
    return make_version(str(folder), "test").dataset


def test_the_first_of_several_labels_counts(tmp_path: Path) -> None:
    several = labelled_set(tmp_path / "several", "s", [["red", "blue"], ["green", "red"]] * 30)
    found, _, classes = features.labelled(several, several, 0.2)
    assert classes == ("green", "red")
    assert found.class_N.tolist() == [1, 0] * 30


def test_a_cache_that_would_not_fit_is_refused_with_its_size(world: Any) -> None:
    with pytest.raises(ValueError, match="cache_gb is 1e-06: lower views"):
        probe.run(dataclasses.replace(world["config"], cache_gb=1e-6))


def test_features_outside_the_storage_type_are_refused(world: Any) -> None:
    encoder = build(MODEL, seed=1).encoder
    with torch.no_grad():
        encoder.pos_embed.add_(1e5)
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    encode = probe._encode(world["config"], encoder.requires_grad_(False), ("attentive",))
    cache = features.Cache(encode, train, views=1, batch=32, limit_gb=1)
    with pytest.raises(ValueError, match="use cache_dtype bfloat16"):
        cache.fill(lambda *_: None)


def test_mistakes_in_the_config_are_named(world: Any, tmp_path: Path) -> None:
    for change, said in (
        ({"views": 0}, "views is 0"),
        ({"lrs": ()}, "the grid is empty"),
        ({"heads": ()}, "nothing to probe"),
        ({"holdout": 0.0}, "holdout is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(world["config"], **change)
    for where, said in ((str(tmp_path / "no"), "holds no committed checkpoint"), ("", "checkpoint is empty")):
        with pytest.raises(ValueError, match=said):
            probe.run(dataclasses.replace(world["config"], checkpoint=where))


def test_wilson_is_the_published_interval() -> None:
    assert probe.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert probe.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert probe.wilson(10, 10)[1] == pytest.approx(1.0)
