"""Probes on real (tiny) runs and datasets: what trains on what, that counts balance, and that mistakes are named."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import made_datasets
import numpy as np
import pytest
import torch
from colour_sets import (
    AUGMENT,
    COLOURS,
    MODEL,
    POOLED,
    encode_of,
    labelled_set,
    labels,
    one_unit,
)

from shards import store
from xtra.model import build
from xtra.probe import features, official_evaluation, probe
from xtra.probe.heads import answers
from xtra.probe.official_probe import OfficialProbe
from xtra.probe.result import edge, pack, unpack
from xtra.run import checkpoint


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


def test_labels_are_checked_before_any_work(world: Any, tmp_path: Path) -> None:
    other = labelled_set(tmp_path / "other", "other", [["red"], ["green"], ["blue"]])
    rows = made_datasets.rows_of(0, 2, side=16)
    bad = [rows[0] | {"key": "x-1", "labels": ["red"]}, rows[1] | {"key": "x-2", "labels": ["purple", "red"]}]
    strange = one_unit(tmp_path / "strange", bad)
    with pytest.raises(ValueError, match="label 'purple' of x-2 is not among the 3 classes"):
        probe.run(dataclasses.replace(world["config"], eval=strange))
    bare = one_unit(
        tmp_path / "bare", [rows[0] | {"key": "y-1", "labels": ["red"]}, rows[1] | {"key": "y-2", "labels": []}]
    )
    with pytest.raises(ValueError, match="y-2 has no label"):
        probe.run(dataclasses.replace(world["config"], train=bare))
    with pytest.raises(ValueError, match=r"a validation split of 0.1 has \d of 3 samples"):
        probe.run(dataclasses.replace(world["config"], train=other.dataset))


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
    with pytest.raises(ValueError, match="out is empty: give the folder"):
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
    assert answers(logits_GBC).tolist() == [[-1, 0]]


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
    with pytest.raises(ValueError, match="warmup_defect needs a schedule without warm-up"):
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
    kept = probe._kept_views(config, probed, train.manifest, 0.0, lambda *_: None)
    (found,) = probe._fit(config, unfinished, kept, probe._encode(config, probed.encoder), train, 3, kept.say)
    head = found.logits.state_dict()
    state = {"0.running_mean": head["norm.running_mean"], "0.running_var": head["norm.running_var"]}
    state |= {"1.weight": head["weight_GCD"][0], "1.bias": head["bias_GC"][0]}
    given = OfficialProbe(probed.encoder.encoder, "linear", 1, 0, state, ("assumed: this", "head: linear"))
    monkeypatch.setattr(official_evaluation, "read_probe", lambda path: given)

    config = probe.Config("last.ckpt", eval=world["eval"].dataset, resize=16, out=str(tmp_path))
    with pytest.raises(ValueError, match="eval: has no class list"):
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
        with pytest.raises(ValueError, match="is only evaluated: leave it out"):
            probe.run(dataclasses.replace(config, **change))
    with pytest.raises(ValueError, match=r"last.ckpt: has 3 classes, .*two has 2"):
        probe.run(dataclasses.replace(config, eval=two.dataset))
    with pytest.raises(ValueError, match="train is empty"):
        probe.run(dataclasses.replace(config, checkpoint=world["run"]))


def test_a_result_says_which_images_were_right(results: dict[str, probe.ProbeResult], world: Any) -> None:
    _, evaluation, names = features.labelled(world["train"], world["eval"], 0.1)
    for result in results.values():
        right = unpack(result.right, result.total)
        assert (right.dtype, int(right.sum())) == (bool, result.correct)
        for number, share in enumerate(result.per_class):
            assert right[evaluation.class_N == number].mean() == pytest.approx(share), names[number]
    linear, pixels = (unpack(results[head].right, 61) for head in ("linear", "pixels"))
    assert np.array_equal(linear, unpack(pack(linear), 61))
    stored = store.read_json(store.join(world["run"], "probes", "colours_eval-linear-trained-1280.json"))
    assert (stored["right"], stored["seed"]) == (results["linear"].right, 0)
    with pytest.raises(ValueError, match="right has 8 bytes, but 80 images have 10"):
        unpack(pack(pixels), 80)
    with pytest.raises(ValueError, match="right has 0 bytes"):
        unpack("?", 8)


def test_the_bits_are_in_the_order_of_the_rows(world: Any) -> None:
    right = np.zeros(61, bool)
    right[[0, 9, 60]] = True
    assert pack(right) == base64.b64encode(bytes([0b10000000, 0b01000000, 0, 0, 0, 0, 0, 0b00001000])).decode()
