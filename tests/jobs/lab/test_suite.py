"""A suite probes the sets below its root that are not done, with each set's own settings, and names missing ones."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import run_folders
from made_datasets import make_dataset

from ingest.sets.benchmarks import BENCHMARKS
from jobs import cli
from jobs.lab import existing, suite
from shards import store
from shards.manifest import read_manifest
from xtra import probe
from xtra.augment import PROBE, PROBE_LINEAR_B


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    base = tmp_path_factory.mktemp("root")
    for name, images in (("cifar10", 30), ("dtd", 24)):
        make_dataset(base / name / "train", [images])
        make_dataset(base / name / "eval", [images - 10])
    make_dataset(base / "pets" / "train", [30])  # its eval is not there
    return base


@pytest.fixture
def run_folder(tmp_path):
    return str(run_folders.write_run(tmp_path / "run", samples=12800))


@pytest.fixture
def probed(root, monkeypatch):
    """Probes that take no time: their configs, and results as probe.run leaves them."""
    asked: list[probe.Config] = []
    sets = {read_manifest(str(root / name / "eval")).dataset: name for name in ("cifar10", "dtd")}

    def run(config, progress=None):
        asked.append(config)
        if "broken" in config.out:
            raise (RuntimeError if "dtd" in config.train else ValueError)(f"{config.train}:\nhas 1 class")
        for head in config.heads:
            result = {"set": sets[config.eval], "head": head, "encoder": config.encoder, "accuracy": 0.5, "total": 20}
            result |= {"low": 0.3, "high": 0.7, "samples_seen": 12800}
            result |= {"epochs": config.epochs, "warmup_defect": config.warmup_defect}
            points = [{"lr": lr, "weight_decay": decay} for decay in config.weight_decays for lr in config.lrs]
            result |= {"selection": points}
            result |= {"selected_on": "eval" if config.protocol == "published" else "holdout"}
            result |= {"manifest_train": read_manifest(config.train).digest}
            result |= {"manifest_eval": read_manifest(config.eval).digest}
            name = f"{sets[config.eval]}-{head}-{config.protocol}.json"
            store.put_json(store.join(config.out, "probes", name), result)
        return []

    monkeypatch.setattr(probe, "run", run)
    return asked


def config(root, run_folder, **other) -> suite.Config:
    settings = probe.Config(run_folder, **{"heads": ("attentive", "linear"), **other})
    return suite.Config(str(root), settings)


def test_sets_that_are_there_are_probed_once_and_missing_ones_are_named(root, run_folder, probed):
    first = suite.run(config(root, run_folder))
    assert [(c.train.split("/")[-2], c.heads) for c in probed] == [
        ("cifar10", ("attentive",)),
        ("cifar10", ("linear",)),
        ("dtd", ("attentive",)),
        ("dtd", ("linear",)),
    ]
    assert (first.probed, len(first.probes), first.failed) == (4, 4, {})
    assert first.missing == tuple(
        "pets/eval" if name == "pets" else name for name in BENCHMARKS if name not in ("cifar10", "dtd")
    )
    again = suite.run(config(root, run_folder))
    assert (again.probed, len(again.probes)) == (0, 4)
    store.delete(store.join(run_folder, "probes", "dtd-linear-holdout.json"))
    assert suite.run(config(root, run_folder)).probed == 1
    assert (probed[-1].heads, probed[-1].batch) == (("linear",), 128)


def test_another_protocol_is_not_done_by_the_first(root, run_folder, probed):
    suite.run(config(root, run_folder))
    published = suite.run(config(root, run_folder, protocol="published"))
    assert published.probed == 4
    assert {r["selected_on"] for r in published.probes} == {"eval"}
    assert all(c.warmup_defect for c in probed[4:]), "sets without warm-up, as they were published"
    assert not any(c.warmup_defect for c in probed[:4])


def test_a_short_trial_is_not_the_real_probe(root, run_folder, probed):
    trial = dataclasses.replace(config(root, run_folder, epochs=20), kept=frozenset({"epochs"}))
    assert suite.run(trial).probed == 4
    assert suite.run(trial).probed == 0
    assert suite.run(config(root, run_folder)).probed == 4


def test_a_result_of_another_grid_is_not_taken_for_this_one(root, run_folder, probed):
    assert suite.run(config(root, run_folder)).probed == 4
    other = dataclasses.replace(config(root, run_folder, lrs=(1e-4, 7e-1)), kept=frozenset({"lrs"}))
    assert suite.run(other).probed == 4
    assert suite.run(other).probed == 0


def test_each_set_has_the_settings_of_its_official_configs():
    base = probe.Config("run", heads=("attentive", "linear", "knn"))
    made = {name: suite.configs(name, base, 256) for name in BENCHMARKS}
    assert suite.SETTINGS.keys() == BENCHMARKS.keys()
    attentive, linear = made["imagenet1k"]
    assert (attentive.heads, linear.heads) == (("attentive",), ("linear", "knn"))
    assert (attentive.batch, attentive.warmup_epochs, max(attentive.lrs), len(attentive.lrs)) == (4096, 10, 4e-3, 7)
    assert (attentive.epochs, attentive.clip, attentive.min_lr, attentive.warmup_start) == (100, 3.0, 1e-5, 0.1)
    assert (attentive.augment, attentive.weight_decays) == (PROBE, (0.1,))
    assert (linear.augment, linear.weight_decays) == (PROBE_LINEAR_B, (0.0,))
    (both,) = suite.configs("imagenet1k", base, 224)  # H/14: seven configs each, equal except for the head
    assert (both.heads, both.augment, both.weight_decays) == (("attentive", "linear", "knn"), PROBE, (0.1,))
    assert {name: c[0].batch for name, c in made.items() if c[0].batch != 512} == {
        "imagenet1k": 4096, "inat18": 4096, "pcam": 4096, "dtd": 128, "pets": 128, "cars": 128, "infograph": 256,
    }  # fmt: skip
    assert {name for name, c in made.items() if 0.1 in c[0].lrs} == {"inat18", "cars", "infograph"}
    assert {name for name, c in made.items() if c[0].warmup_epochs} == {"imagenet1k", "inat18"}
    assert [suite.configs("dtd", base, side)[0].resize for side in (224, 256)] == [256, 300]


def test_a_flag_that_was_given_holds_for_every_set():
    base = probe.Config("run", epochs=3, lrs=(1e-2,))
    for settings in suite.configs("cars", base, 224, kept={"epochs", "lrs"}):
        assert (settings.epochs, settings.lrs, settings.batch) == (3, (1e-2,), 128)


def test_a_set_that_cannot_be_probed_is_reported_and_the_others_go_on(root, tmp_path, probed):
    broken = str(run_folders.write_run(tmp_path / "broken"))
    result = suite.run(config(root, broken))
    assert result.failed.keys() == {"cifar10", "dtd"}
    assert all(" has 1 class" in why for why in result.failed.values())
    assert any(line.startswith("failed   dtd: ") for line in suite.text(result, ("linear",)))


def test_a_batch_that_the_images_cannot_fill_is_refused_before_anything_is_probed(root, run_folder, probed):
    trial = dataclasses.replace(config(root, run_folder, epochs=5), kept=frozenset({"epochs"}))
    result = suite.run(trial)
    assert result.failed == {
        "cifar10": "--batch is 512, but 5 epochs show only 150 images: lower it",
        "dtd": "--batch is 128, but 5 epochs show only 120 images: lower it",
    }
    assert (result.probed, probed) == (0, [])


def test_the_table_has_all_fifteen_and_an_average_of_no_fewer():
    def result(names):
        cells = [
            {"set": name, "head": head, "accuracy": 0.512, "low": 0.5, "high": 0.521, "total": BENCHMARKS[name].eval}
            for name in names
            for head in ("attentive", "linear")
        ]
        return suite.SuiteResult(tuple(cells), (), {}, 0, False)

    lines = suite.table(result(BENCHMARKS), ("attentive", "linear"))
    assert len(lines) == 17
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split() == ["ImageNet-1k", "50,000", "51.2", "(50.0", "to", "52.1)", "51.2", "(50.0", "to", "52.1)"]
    assert lines[-1].split() == ["average", "of", "15", "51.2", "51.2"]
    assert suite.table(result(list(BENCHMARKS)[1:]), ("linear",))[-1] == "average of 15"
    assert max(map(len, suite.table(result(BENCHMARKS), ("attentive", "linear", "knn", "logreg")))) <= 80
    small = dataclasses.replace(result(BENCHMARKS), probes=({**result(["dtd"]).probes[0], "total": 7},))
    assert suite.table(small, ("attentive",))[6].split()[:3] == ["DTD", "1,880", "51.2*"]


def test_the_command_probes_a_suite(root, run_folder, probed, capsys):
    words = ["probe", run_folder, "--suite", "paper15", "--root", str(root), "--only", "dtd", "pets", "--epochs", "6"]
    assert cli.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert {(c.epochs, c.batch, c.train.split("/")[-2]) for c in probed} == {(6, 128, "dtd")}
    assert "missing  pets/eval: xtra import" in out
    assert json.loads(out.splitlines()[-1])["missing"] == ["pets/eval"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "paper16", "--root", "x"], "--suite is 'paper16'; it must be one of paper15"),
        (["--suite", "paper15"], "--root must be given, such as --root s3://"),
        (["--suite", "paper15", "--root", "nowhere"], "has none of imagenet1k"),
        (["--suite", "paper15", "--root", "x", "--only", "cifar"], "--only cifar is not a benchmark"),
        (["--suite", "paper15", "--root", "x", "--train", "y"], "--train and --eval name one set"),
        (["--suite", "paper15", "--root", "x", "--epoch", "1"], "--epoch is not a flag; did you mean --epochs?"),
    ],
)
def test_mistakes_are_one_line(run_folder, words, said, capsys):
    assert cli.main(["probe", run_folder, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_result_counts_for_its_own_heads_sets_and_encoder_alone(root, run_folder, probed):
    suite.run(config(root, run_folder, heads=("linear",)))
    train, evaluation = str(root / "dtd" / "train"), str(root / "dtd" / "eval")
    (done,) = (settings for settings in probed if settings.eval == evaluation)
    both = dataclasses.replace(done, heads=("linear", "attentive"))
    settings = dataclasses.replace(both, train=train)
    assert existing.only_missing(dataclasses.replace(settings, lrs=(*done.lrs, 0.3)), 12800).heads == both.heads
    assert existing.only_missing(settings, 12800).heads == ("attentive",)
    assert existing.only_missing(settings, 6400) == settings
    assert existing.only_missing(dataclasses.replace(settings, encoder="random"), 0).heads == settings.heads
    assert existing.only_missing(dataclasses.replace(settings, heads=("linear",)), 12800) is None
    assert (
        existing.label(dataclasses.replace(settings, encoder="timm:vit:/w/b.safetensors")) == "timm:vit:b.safetensors"
    )
    assert existing.label(dataclasses.replace(settings, encoder="timm:vit_base.mae")) == "timm:vit_base.mae"


def test_another_file_of_the_same_name_is_another_encoder(root, run_folder, tmp_path, monkeypatch):
    """In a folder that several encoders share: torch:a/model.pt2 is not done because torch:b/model.pt2 is."""
    train, evaluation = str(root / "dtd" / "train"), str(root / "dtd" / "eval")
    out = str(tmp_path / "out")
    settings = probe.Config("", train, evaluation, out, encoder="torch:a/model.pt2", heads=("linear",), epochs=100)
    digests = {f"manifest_{part}": read_manifest(url).digest for part, url in (("train", train), ("eval", evaluation))}
    result = {"head": "linear", "encoder": "torch:model.pt2", "samples_seen": 0, "fingerprint": "0000000a"}
    store.put_json(store.join(out, "probes", "x.json"), digests | result)
    assert existing.only_missing(settings, 0, "0000000a") is None
    assert existing.only_missing(settings, 0, "0000000b") == settings
    monkeypatch.setattr(probe, "open_probed", lambda config: SimpleNamespace(fingerprint="0000000b"))
    assert existing.fingerprint(settings) == "0000000b"
    own = probe.Config(run_folder, train, evaluation)
    assert existing.fingerprint(own) == "", "in a run's folder the samples seen say it"
    assert existing.fingerprint(dataclasses.replace(own, out=out)) == "0000000b"
