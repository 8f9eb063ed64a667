"""Probes on real (tiny) runs and datasets: what trains on what, that counts balance, and that mistakes are named."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import made_datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from shards import selection, store
from shards.dataset import PLAN_SCHEMA, DatasetInfo, write_info, write_plan
from shards.manifest import Manifest, make_version
from xtra.augment import Augment
from xtra.model import ModelConfig, build
from xtra.probe import features, official_evaluation, probe
from xtra.probe.augmented_features import Augmented
from xtra.probe.encoders import of_xtra
from xtra.probe.heads import Head, correct
from xtra.probe.official_probe import OfficialProbe
from xtra.probe.result import edge
from xtra.run import checkpoint

MODEL = ModelConfig(16, 4, 2, 32, 3, 2, bridge=32, dec_width=32, dec_depth=1, dec_heads=2, head=32)
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


def picture(label: str, number: int) -> bytes:
    """16x16 noise around the colour of its class."""
    noise = np.random.default_rng(number).normal(0, 60, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def labelled_set(
    folder: Path, name: str, labels: list[list[str]], first: int = 0, classes: tuple[str, ...] | None = None
) -> Manifest:
    rows = [
        made_datasets.rows_of(first + i, 1, side=16)[0]
        | {"key": f"{name}-{i:04d}", "labels": found, "body": picture((found or ["red"])[0], first + i)}
        for i, found in enumerate(labels)
    ]
    plan = [{column: row.get(column) for column in PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, PLAN_SCHEMA))
    made_datasets.write_unit(str(folder), 0, rows)
    write_info(str(folder), DatasetInfo(name, "0" * 64, 1, len(rows), "c", "t", classes=classes))
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
    assert store.names(str(tmp_path / "probes")) == [f"colours_eval-linear-trained-{result.fingerprint}-640.json"]


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
    encoder = probe.open_probed(config).encoder.encoder
    initial = build(MODEL, seed=3).encoder
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, initial.get_parameter(name)), name
        assert not parameter.requires_grad
    assert not encoder.training


TOKENS, POOLED, PIXELS = features.Feature("tokens", 2), features.Feature("pooled", 1), features.Feature("pixels")


def encode_of(world: Any, *wanted: features.Feature, encoder: Any = None) -> features.Encode:
    frozen = of_xtra((encoder or world["model"].encoder).requires_grad_(False), "ours")
    return dataclasses.replace(probe._encode(world["config"], frozen), wanted=wanted)


def test_features_are_the_unnormalised_streams_of_every_layer_set(world: Any) -> None:
    wanted = (TOKENS, features.Feature("tokens", 3), POOLED, features.Feature("pooled", 2), PIXELS)
    encode = encode_of(world, *wanted)
    batch = next(encode.batches(world["train"]))
    found = encode(batch.images_B3HW, np.arange(50))
    with torch.no_grad():
        streams = world["model"].encoder.layers(features.data.normalise(batch.images_B3HW), 3)
    for feature, expected in (
        (wanted[0], (streams[1] + streams[2]) / 2),
        (wanted[1], sum(streams) / 3),
        (wanted[2], streams[2].mean(1)),
        (wanted[3], ((streams[1] + streams[2]) / 2).mean(1)),
    ):
        assert torch.allclose(found.of(feature), expected, atol=1e-5), feature
    assert torch.equal(found.of(PIXELS).view(50, 3, 16, 16).to(torch.uint8), batch.images_B3HW)
    alone = encode_of(world, POOLED)(batch.images_B3HW, np.arange(50))
    assert torch.equal(alone.of(POOLED), found.of(POOLED))


def test_the_cache_shows_each_image_once_an_epoch_and_each_view_in_turn(world: Any) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    encode = encode_of(world, PIXELS)
    cache = features.Cache(encode, train, views=2, batch=32, limit_gb=1)
    cache.fill(lambda *_: None)
    assert cache.images + len(train.held) == 240
    assert 5 <= len(train.held) <= 50
    shown = []
    for epoch in (0, 1):
        batches = list(cache.epoch(epoch))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) - min(sizes) <= 1, "a short last batch"
        assert sum(map(len, batches)) == cache.images
        shown.append(_images(batches))
    every = {row.numpy().tobytes() for row in cache.features.values[PIXELS]}
    alike = 2 * cache.images - len(every)  # random crops that happened to be the whole picture
    assert alike < 0.05 * cache.images, "the second view should crop"
    assert len(shown[0] & shown[1]) == alike
    assert shown[0] | shown[1] == every
    held = _images(encode.evaluation(train, "choose", lambda *_: None, only=train.held))
    assert len(held) == len(train.held)
    assert not held & every
    order = [batch.labels_B.tolist() for batch in cache.epoch(0)]
    assert (
        order == [batch.labels_B.tolist() for batch in cache.epoch(0)] != [b.labels_B.tolist() for b in cache.epoch(1)]
    )


def _images(batches: Any) -> set[bytes]:
    return {row.numpy().tobytes() for batch in batches for row in batch.values[PIXELS]}


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
    rows = made_datasets.rows_of(0, 2, side=16)
    bad = [rows[0] | {"key": "x-1", "labels": ["red"]}, rows[1] | {"key": "x-2", "labels": ["purple", "red"]}]
    strange = _one_unit(tmp_path / "strange", bad)
    with pytest.raises(ValueError, match="label 'purple' of x-2 is not among the 3 classes"):
        probe.run(dataclasses.replace(world["config"], eval=strange))
    bare = _one_unit(
        tmp_path / "bare", [rows[0] | {"key": "y-1", "labels": ["red"]}, rows[1] | {"key": "y-2", "labels": []}]
    )
    with pytest.raises(ValueError, match="y-2 has no label"):
        probe.run(dataclasses.replace(world["config"], train=bare))
    with pytest.raises(ValueError, match=r"a hold-out of 0.1 takes \d of 3 samples"):
        probe.run(dataclasses.replace(world["config"], train=other.dataset))


def _one_unit(folder: Path, rows: list[dict[str, Any]]) -> str:
    plan = [{column: row.get(column) for column in PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, PLAN_SCHEMA))
    made_datasets.write_unit(str(folder), 0, rows)
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
    cache = features.Cache(encode_of(world, TOKENS, encoder=encoder), train, views=1, batch=32, limit_gb=1)
    with pytest.raises(ValueError, match="use cache_dtype bfloat16"):
        cache.fill(lambda *_: None)


def test_mistakes_in_the_config_are_named(world: Any, tmp_path: Path) -> None:
    for change, said in (
        ({"views": 0}, "views is 0"),
        ({"lrs": ()}, "the grid is empty"),
        ({"heads": ()}, "nothing to probe"),
        ({"holdout": 0.0}, "holdout is 0"),
        ({"heads": ("knn",), "knn": ()}, "the grid is empty"),
        ({"layer_sets": (0,)}, "layer_sets has 0"),
        ({"lrs": (1e-3, -1.0)}, "lrs has -1.0; each must be above 0"),
        ({"lrs": (1e-3, 1e-3)}, "lrs has 0.001 twice"),
        ({"heads": ("linear", "linear")}, "heads has linear twice"),
        ({"betas": (1.0, 1.0)}, "betas are 1 1"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"cache_gb": -1.0}, "cache_gb is -1.0"),
        ({"min_lr": -1e-5}, "min_lr has -1e-05"),
        ({"weight_decays": (float("nan"),)}, "weight_decays has nan"),
        ({"warmup_epochs": 5.0}, "warmup_epochs is 5; it must be 0 to 4"),
        ({"encoder": "timm"}, "encoder is 'timm'; it must be trained, random, timm:NAME or torch:FILE"),
    ):
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(world["config"], **change)
    with pytest.raises(ValueError, match="eval is empty"):
        probe.run(dataclasses.replace(world["config"], eval=""))
    with pytest.raises(ValueError, match="out is empty: name the folder"):
        probe.run(dataclasses.replace(world["config"], encoder="timm:vit", out=""))
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=f"device is {device}: .*give one of this machine"):
            probe.run(dataclasses.replace(world["config"], device=device))
    (tmp_path / "junk.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"junk.ckpt: is a file: give a run folder"):
        probe.run(dataclasses.replace(world["config"], checkpoint=str(tmp_path / "junk.ckpt")))
    for where, said in ((str(tmp_path / "no"), "holds no committed checkpoint"), ("", "checkpoint is empty")):
        with pytest.raises(ValueError, match=said):
            probe.run(dataclasses.replace(world["config"], checkpoint=where))


def test_a_batch_of_one_is_refused_before_anything_is_encoded(world: Any) -> None:
    def never(what: str, done: int, total: int) -> None:
        raise AssertionError(what)

    for change in ({"batch": 1}, {"batch": 1, "augment": AUGMENT}):
        with pytest.raises(ValueError, match=r"batch is 1 and \d+ images train, .* batch norm needs 2"):
            probe.run(dataclasses.replace(world["config"], **change), never)
    with pytest.raises(ValueError, match="batch is 2 and 3 images train"):
        probe._check_batches(dataclasses.replace(world["config"], batch=2), 3)


def test_a_head_that_diverged_is_right_about_nothing() -> None:
    logits_GBC = torch.tensor([[[float("nan")] * 2, [1.0, 0.0]]])
    assert correct(logits_GBC, torch.tensor([0, 0])).tolist() == [[False, True]]


def test_features_that_are_not_finite_are_refused(world: Any) -> None:
    encoder = build(MODEL, seed=1).encoder
    with torch.no_grad():
        encoder.pos_embed.fill_(float("nan"))
    encode = encode_of(world, POOLED, encoder=encoder)
    with pytest.raises(ValueError, match="the ours encoder's features of some images are not finite in fp32"):
        encode(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), np.zeros(2, np.int64))


def test_a_learning_rate_at_the_edge_of_the_grid_is_remarked(results: dict[str, probe.ProbeResult]) -> None:
    assert results["linear"].remark.startswith("lr is the largest of the grid")

    def of(*accuracies: float) -> str:
        return edge([{"lr": 10.0**n, "accuracy": a} for n, a in enumerate(accuracies)])

    assert of(0.9, 0.5, 0.1).endswith("may lie below it")
    assert of(0.5, 0.9, 0.1) == of(0.9, 0.9, 0.1) == of(0.9, 0.1, 0.9) == of(0.9) == ""


def test_encoders_in_one_folder_overwrite_nobody(world: Any, tmp_path: Path) -> None:
    """Two runs' random encoders, which have the same label and no samples seen; pixels of two sizes."""
    base = dataclasses.replace(
        world["config"], encoder="random", heads=("knn",), pixels=True, epochs=1, out=str(tmp_path / "o")
    )
    for run, seed, side in (("a", 3, 16), ("b", 4, 16), ("c", 4, 24)):
        model = dataclasses.replace(MODEL, image=side)
        store.put_json(str(tmp_path / run / "config.json"), {"model": dataclasses.asdict(model), "seed": seed})
        config = dataclasses.replace(base, checkpoint=str(tmp_path / run), warmup_defect=run == "b")
        pixels, knn = probe.run(config)
        assert (knn.warmup_defect, pixels.warmup_defect) == (False, run == "b"), "no schedule, no defect"
    names = store.names(str(tmp_path / "o" / "probes"))
    assert sum("knn-random" in name for name in names) == 3
    assert [name for name in names if "pixels" in name] == [
        "colours_eval-pixels-none-16px-0-warmup-defect.json",
        "colours_eval-pixels-none-16px-0.json",
        "colours_eval-pixels-none-24px-0.json",
    ]


def test_the_published_protocol_trains_on_all_and_chooses_on_eval(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(world["config"], protocol="published", out=str(tmp_path), heads=("linear",))
    shown: list[int] = []
    (result,) = probe.run(config, lambda what, done, total: shown.append(total) if what == "train heads" else None)
    assert set(shown) == {4 * 240}, "nothing is held out"
    assert result.selected_on == "eval"
    assert "grid point chosen on eval itself" in result.protocol
    assert max(point["accuracy"] for point in result.selection) == result.accuracy
    assert store.names(str(tmp_path / "probes")) == [
        f"colours_eval-linear-trained-{result.fingerprint}-1280-published.json"
    ]


def test_the_defect_of_the_published_warm_up_is_said(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        world["config"],
        protocol="published",
        warmup_defect=True,
        out=str(tmp_path / "defect"),
        lrs=(1e-3, 1e-1),
        epochs=1,
    )
    tenth = dataclasses.replace(config, warmup_defect=False, lrs=(1e-4, 1e-2), out=str(tmp_path / "tenth"))
    for result, honest in zip(probe.run(config), probe.run(tenth), strict=True):
        assert [p["accuracy"] for p in result.selection] == [p["accuracy"] for p in honest.selection]
        assert "no warm-up and its published defect: peaks are 0.1 of the rates named" in result.protocol
    (name,) = (n for n in store.names(str(tmp_path / "defect" / "probes")) if "linear" in n)
    assert name.endswith("-1280-published-warmup-defect.json")
    with pytest.raises(ValueError, match="warmup_defect is of schedules without warm-up"):
        dataclasses.replace(config, warmup_epochs=1.0)


def test_layer_sets_are_an_axis_of_the_grid(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        world["config"], layer_sets=(1, 3), linear_layer_sets=(2, 1), epochs=2, out=str(tmp_path)
    )
    for result in probe.run(config):
        sets = (1, 3) if result.head == "attentive" else (2, 1)
        assert [(point["layers"], point["lr"]) for point in result.selection] == [
            (n, lr) for n in sets for lr in (1e-5, 1e-2)
        ]
        best = max(result.selection, key=lambda point: point["accuracy"])
        assert {name: best[name] for name in result.chosen} == result.chosen
        assert result.layers == result.chosen["layers"]
    with pytest.raises(ValueError, match="resize is 8, but the encoder takes images of 16 pixels"):
        probe.run(dataclasses.replace(config, resize=8))
    with pytest.raises(ValueError, match="a layer set of 4 is deeper than the encoder, which has 3 layers"):
        probe.run(dataclasses.replace(config, layer_sets=(2, 4)))


def test_neighbours_and_logistic_regression_are_probed_with_the_rest(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(
        world["config"], heads=("knn", "logreg"), knn=(3, 9, 999), logreg=(0.1, 10.0), views=3, out=str(tmp_path)
    )
    said: list[str] = []
    knn, logreg = probe.run(config, lambda what, done, total: said.append(what))
    assert not any("view 2" in what for what in said), "one view is enough"
    assert (knn.head, knn.lr, [point["k"] for point in knn.selection]) == ("knn", None, [3, 9])
    assert "fewer images train than k 999: left out" in knn.protocol
    assert (logreg.head, [point["c"] for point in logreg.selection]) == ("logreg", [0.1, 10.0])
    assert min(knn.accuracy, logreg.accuracy) > 0.8


AUGMENT = Augment(scale=(0.5, 1.0))


def test_augmented_batches_are_exact_and_show_what_trains_once_an_epoch(world: Any) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    whole = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    source = Augmented(encode_of(world, PIXELS), train, whole, batch=32, epochs=3, position=None)
    batches = list(source)
    assert {len(batch) for batch in batches} == {32}
    assert sum(map(len, batches)) == source.samples == source.position.trained == 3 * len(train.kept) // 32 * 32
    held = _images(encode_of(world, PIXELS).evaluation(train, "choose", lambda *_: None, only=train.held))
    assert not _images(batches) & held
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


def test_what_fails_after_training_does_not_cost_it_and_another_encoder_starts_anew(
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
    assert "train heads 32" in said, "the state is of another encoder"
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


def test_shared_images_are_counted_and_refused_if_strict(world: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(world["config"], heads=("linear",), epochs=1, out=str(tmp_path))
    (apart,) = probe.run(config)
    assert apart.shared_sha256 == 0
    config = dataclasses.replace(config, eval=world["train"].dataset)
    (same,) = probe.run(config)
    assert same.shared_sha256 == 240
    with pytest.raises(ValueError, match="240 evaluation images are in the training set too"):
        probe.run(dataclasses.replace(config, strict=True))


def test_classes_are_those_of_the_dataset_where_it_names_them(world: Any) -> None:
    named = dataclasses.replace(world["train"], classes=("blue", "green", "red", "violet"))
    train, _, labels = features.labelled(named, world["eval"], 0.1)
    assert labels == ("blue", "green", "red", "violet")
    assert set(train.class_N.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="label 'blue' of train-0002 is not among the 2 classes"):
        features.labelled(dataclasses.replace(named, classes=("green", "red")), world["eval"], 0.1)


def test_an_official_probe_is_evaluated_as_it_came(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that was trained here, as xtra/probe/official_probe.py gives one that it read from an official file."""
    config = dataclasses.replace(world["config"], heads=("linear",), lrs=(1e-2,), out=str(tmp_path))
    (expected,) = probe.run(config)
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    probed = probe.open_probed(config)
    unfinished = probe._unfinished(config, probed, train.manifest, 0.0)
    (found,) = probe._fit(config, unfinished, probe._encode(config, probed.encoder), train, 3, lambda *_: None)
    head = found.logits.state_dict()
    state = {"0.running_mean": head["norm.running_mean"], "0.running_var": head["norm.running_var"]}
    state |= {"1.weight": head["weight_GCD"][0], "1.bias": head["bias_GC"][0]}
    given = OfficialProbe(probed.encoder.encoder, "linear", 1, 0, state, ("assumed: this", "head: linear"))
    monkeypatch.setattr(official_evaluation, "read_probe", lambda path: given)

    config = probe.Config("last.ckpt", eval=world["eval"].dataset, resize=16, out=str(tmp_path))
    with pytest.raises(ValueError, match="eval: names no classes"):
        probe.run(config)
    named = labelled_set(tmp_path / "named", "colours eval", labels(61), 1000, tuple(sorted(COLOURS)))
    config = dataclasses.replace(config, eval=named.dataset)
    (result,) = probe.run(config)
    assert (result.head, result.encoder, result.samples_seen, result.lr) == ("linear", "official", 0, None)
    assert (result.correct, result.per_class, result.labels) == (expected.correct, expected.per_class, expected.labels)
    assert (result.selected_on, result.manifest_train, result.layers) == ("nothing", "", 1)
    assert result.protocol.endswith("assumed: this")
    assert f"colours_eval-linear-official-{result.fingerprint}-0.json" in store.names(str(tmp_path / "probes"))
    two = labelled_set(tmp_path / "two", "two", labels(60)[:2] * 9, classes=("green", "red"))
    for change in ({"heads": ("linear",)}, {"strict": True}, {"protocol": "published"}):
        with pytest.raises(ValueError, match="is evaluated as it came: leave it out"):
            probe.run(dataclasses.replace(config, **change))
    with pytest.raises(ValueError, match=r"last.ckpt: tells 3 classes apart, .*two has 2"):
        probe.run(dataclasses.replace(config, eval=two.dataset))
    with pytest.raises(ValueError, match="train is empty"):
        probe.run(dataclasses.replace(config, checkpoint=world["run"]))


def test_wilson_is_the_published_interval() -> None:
    assert probe.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert probe.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert probe.wilson(10, 10)[1] == pytest.approx(1.0)
