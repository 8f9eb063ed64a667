"""What is called from Python: the names of docs/api.md and no others, its snippets, and how settings are given."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import api_page
import pytest
from made_datasets import make_dataset
from places import ROOT

import ingest
import xtra
from ingest.config import Config
from ingest.sets import folders
from shards.typed_json import changed
from xtra import probe, recipes
from xtra.augment import PROBE

ROOMS = ("ingest", "shards", "xtra")


def test_the_page_lists_what_the_rooms_hand_out_and_nothing_else() -> None:
    assert {room: sorted(importlib.import_module(room).__all__) for room in ROOMS} == api_page.listed()
    assert list(api_page.snippets()) == [f"{room}.{name}" for room, name in order()]


def order() -> list[tuple[str, str]]:
    """As the page has them: every name once."""
    names = [tuple(name.split(".")) for name in api_page.snippets()]
    assert sorted(names) == sorted((room, name) for room, found in api_page.listed().items() for name in found)
    return names  # type: ignore[return-value]


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_is_a_module_beside_it_and_every_one_is_there(room: str) -> None:
    """Python puts a submodule into its package under its own name as soon as anybody imports it."""
    package = importlib.import_module(room)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert set(package.__all__) & modules == set()
    for name in modules - {"adapters"}:  # that one needs torch's data loading, which is slow to import
        importlib.import_module(f"{room}.{name}")
    for name in package.__all__:
        assert callable(getattr(package, name))
        assert (getattr(package, name).__doc__ or "").strip()


def test_the_rooms_are_imported_in_a_moment_and_without_libraries() -> None:
    heavy = "{'torch', 'ray', 'pyarrow', 'numpy', 'tqdm', 'fsspec', 'PIL', 'pycurl', 'msgspec'}"
    code = f"import shards, ingest, xtra, sys; ingest.ingest, xtra.load, shards.open; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_snippet_of_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    with api_page.folder(tmp_path) as at:
        said = {name: text for name, (_, text) in api_page.run_all(sys.executable, at, PYTHONPATH=str(ROOT)).items()}
    assert "kept + {" in said["ingest.ingest"]
    assert "classes: digit-0, digit-1, digit-2" in said["ingest.import_set"]
    assert "(32, 32)" in said["shards.open"]
    assert said["xtra.pretrain"].startswith("512 ")
    assert said["xtra.load"] == "torch.Size([2, 64, 96])\n"
    assert said["xtra.embed"].startswith("['key', 'label', 'vector'] ")
    assert "('knn', " in said["xtra.evaluate"]
    assert "('linear', " in said["xtra.evaluate"]


SMALLER = {  # than the README's snippet, whose links are the web's: a list on loopback, and the smallest model
    '"small64", ': '"demo32", samples=256, ',
    'fetch={"contact": "you@lab.org"}': 'fetch={"contact": "you@lab.org", "allow_private": ["127.0.0.1"]}',
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_lines_of_the_readme_run(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    for theirs, ours in SMALLER.items():
        assert snippet.count(theirs) == 1
        snippet = snippet.replace(theirs, ours)
    with api_page.folder(tmp_path) as at:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", snippet], cwd=at, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert list((at / "vectors").glob("part-*.parquet"))
        assert list((at / "runs/1/checkpoints").glob("*/COMMIT.json"))


# ---- settings as keywords ----


def test_every_config_survives_being_changed_in_nothing() -> None:
    for config in [*map(recipes.get, recipes.names()), Config("a", "b"), folders.Config("a", "b"), probe.Config()]:
        assert changed(config, {}) == config


def test_settings_change_a_config_and_dicts_what_is_within_it() -> None:
    base = recipes.get("demo32")
    got = changed(base, {"samples": 64, "optim": {"lr": 1}, "mix": ["a=0.1"], "out": Path("runs/1")})
    wanted = dataclasses.replace(base, samples=64, optim=dataclasses.replace(base.optim, lr=1.0), mix=("a=0.1",))
    assert got == dataclasses.replace(wanted, out="runs/1")
    assert isinstance(got.optim.lr, float)
    assert changed(probe.Config(), {"augment": PROBE}).augment == PROBE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampels": 3}, "sampels is not a setting; did you mean samples?: there are model, samples, batch,"),
        ({"optim": {"lrr": 3}}, "optim.lrr is not a setting; did you mean lr?: there are lr,"),
        ({"samples": "3"}, "samples is '3': expected int, got str"),
        ({"optim": {"lr": "x"}}, "optim.lr is 'x': expected float, got str"),
        ({"optim": 3}, "optim is 3: expected object, got int"),
        ({"keep_at": [32, "a"]}, "keep_at[1] is 'a': expected int, got str"),
        ({"dropped": "some"}, "dropped is 'some': it must be one of compute, skip, subset"),
        ({"sinks": ["paper"]}, "sinks[0] is 'paper': it must be one of tensorboard, mlflow, wandb"),
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"model": {"heads": 5}}, "model.heads is 5; it must divide the width"),
    ],
)
def test_a_mistaken_setting_is_named_in_one_line(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError) as error:
        xtra.pretrain("demo32", **settings)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_what_is_missing_or_elsewhere_is_named(tmp_path: Path) -> None:
    for call, said in [
        (lambda: xtra.pretrain("demo23"), "recipe 'demo23' is unknown"),
        (lambda: xtra.pretrain("demo32", out=tmp_path / "run"), "--data is missing"),
        (lambda: ingest.ingest(out=tmp_path / "set"), "--urls is missing"),
        (lambda: ingest.ingest(urls="a", out="b", dry_run=3), "dry_run is 3"),
        (lambda: ingest.import_set(tmp_path / "no", tmp_path / "set"), "there is no such folder or tar"),
        (lambda: ingest.import_set(tmp_path, tmp_path / "set", set="cifar10"), "set is cifar10"),
        (lambda: xtra.load(tmp_path / "no"), "holds no committed checkpoint"),
        (lambda: xtra.evaluate(tmp_path / "no", train="a", eval="b"), "a"),
    ]:
        with pytest.raises(ValueError) as error:
            call()
        assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


# ---- from Python and by command ----


@pytest.mark.slow
def test_pretraining_from_python_is_the_commands_to_the_bit_and_goes_on(tmp_path: Path) -> None:
    from jobs import cli

    make_dataset(tmp_path / "set", [70])
    words = {"data": str(tmp_path / "set"), "batch": 16, "checkpoint_every": 16, "progress": False}
    half = xtra.pretrain("demo32", out=tmp_path / "a", samples=64, stop=iter([False, True]).__next__, **words)
    assert (half.samples_seen, half.stopped) == (32, True)
    begun = tmp_path / "a/attempts/000002.json"
    with subprocess.Popen(["sleep", "60"]) as other:  # a command that is at work on the run
        there = json.loads((tmp_path / "a/attempts/000001.json").read_text())
        started = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        begun.write_text(json.dumps(there | {"driver": there["driver"] | {"pid": other.pid, "started": started}}))
        with pytest.raises(ValueError, match=f"attempt 2 is at work on it .process {other.pid}"):
            xtra.pretrain("demo32", out=tmp_path / "a", samples=64, **words)
        other.kill()
    begun.unlink()
    done = xtra.pretrain("demo32", out=tmp_path / "a", samples=64, **words)
    flags = ["--data", str(tmp_path / "set"), "--batch", "16", "--checkpoint-every", "16", "--samples", "64"]
    assert cli.main(["train", "demo32", "--out", str(tmp_path / "b"), *flags]) == 0
    ours, theirs = (xtra.load(tmp_path / name).state_dict() for name in "ab")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert (done.samples_seen, done.stopped) == (64, False)


@pytest.mark.slow
def test_evaluating_an_encoder_in_memory_is_probing_its_run(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", [120])
    make_dataset(tmp_path / "eval", [60], name="eval")
    sets = {"train": str(tmp_path / "train"), "eval": str(tmp_path / "eval"), "heads": ["knn"], "progress": False}
    xtra.pretrain("demo32", out=tmp_path / "run", data=sets["train"], samples=32, batch=32, progress=False)
    (named,) = xtra.evaluate(tmp_path / "run", **sets)
    (given,) = xtra.evaluate(xtra.load(tmp_path / "run"), **sets)
    (kept,) = xtra.evaluate(xtra.load(tmp_path / "run"), **sets, out=tmp_path / "results")
    aside = {"seconds": 0.0, "encoder": "", "checkpoint": "", "samples_seen": 0}
    assert len({repr(dataclasses.replace(one, **aside)) for one in (named, given, kept)}) == 1
    assert (named.encoder, given.encoder) == ("trained", "given")
    assert len(list((tmp_path / "run" / "probes").iterdir())) == len(list((tmp_path / "results/probes").iterdir())) == 1


WORKERS = """
import sys, shards
from torch.utils.data import DataLoader
if __name__ == "__main__":
    found = shards.open(sys.argv[1])
    found["k000001"], found[2]  # what this process has open is not the workers'
    for way in ("fork", "spawn"):
        batches = list(DataLoader(found, 16, shuffle=True, num_workers=2, collate_fn=list, multiprocessing_context=way))
        print(len(batches), sorted(sample.key for batch in batches for sample in batch) == [s.key for s in found])
"""


@pytest.mark.slow
def test_torchs_loader_takes_an_open_dataset_into_its_workers(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", [40, 33])
    (tmp_path / "workers.py").write_text(WORKERS)
    words = [sys.executable, tmp_path / "workers.py", tmp_path / "set"]
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout == "5 True\n5 True\n"
