"""A study trains and probes what is missing, and only that."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_datasets import make_dataset

from jobs.lab import scale
from jobs.report import ledger
from shards import store
from xtra import probe, recipes, train
from xtra.optim import OptimConfig


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    make_dataset(base / "data", [60])
    make_dataset(base / "eval", [40])
    return base


@pytest.fixture
def study(sets, tmp_path, monkeypatch):
    small = dataclasses.replace(recipes.demo32().model, width=32, depth=2, heads=2, bridge=32, head=32)
    monkeypatch.setattr(
        recipes, "get", lambda name: dataclasses.replace(recipes.demo32(), recipe=name, model=small, batch=16)
    )
    data, evaluation = str(sets / "data"), str(sets / "eval")
    settings = probe.Config("", train=data, eval=evaluation, lrs=(1e-2,), epochs=2, views=1, batch=20)
    return scale.Config(data, str(tmp_path / "study"), recipes=("one",), samples=(32, 64), probe=settings)


def test_the_grid_is_trained_probed_and_not_done_twice(study):
    first = scale.run(study)
    assert (first.runs, first.trained, first.probed) == (2, 2, 3)
    rows = ledger.read_runs(study.out).rows
    cells = {(row.samples_seen, row.head, row.encoder) for row in rows}
    trained = {(n, head, "trained") for n in (32, 64) for head in ("attentive", "linear")}
    assert cells == trained | {(0, "attentive", "random"), (0, "linear", "random"), (0, "pixels", "none")}
    again = scale.run(study)
    assert (again.trained, again.probed) == (0, 0)
    wider = scale.run(dataclasses.replace(study, samples=(16, 32, 64)))
    assert (wider.trained, wider.probed) == (1, 2), "one new run, and the baselines are now next to it"


def test_a_lost_probe_is_made_again_alone(study):
    scale.run(dataclasses.replace(study, samples=(32,)))
    folder = f"{study.out}/one-000000032-s0/probes"
    lost = next(name for name in store.names(folder) if "linear-trained" in name)
    store.delete(f"{folder}/{lost}")
    assert scale.run(dataclasses.replace(study, samples=(32,))).probed == 1
    assert lost in store.names(folder)


def test_a_study_over_other_data_is_refused_before_anything_is_trained(study, tmp_path):
    scale.run(dataclasses.replace(study, samples=(32,)))
    make_dataset(tmp_path / "other", [30])
    with pytest.raises(ValueError, match="was begun on manifest"):
        scale.run(dataclasses.replace(study, data=str(tmp_path / "other"), samples=(32, 64)))
    assert store.names(study.out) == ["one-000000032-s0"]


def test_what_a_study_misses_is_named(study):
    with pytest.raises(ValueError, match=r"--probe\.train is missing"):
        scale.run(dataclasses.replace(study, probe=probe.Config("", train="", eval="x")))
    with pytest.raises(ValueError, match="samples is empty"):
        dataclasses.replace(study, samples=())


# ---- a trunk with branches ----

CONSTANT = OptimConfig(lr=1e-3, warmup_lr=0.0, warmup=32, schedule="constant", decay=0.25)


def constant(name: str) -> train.Config:
    small = dataclasses.replace(recipes.demo32().model, width=32, depth=2, heads=2, bridge=32, head=32)
    return dataclasses.replace(
        recipes.demo32(), recipe=name, model=small, batch=16, optim=CONSTANT, checkpoint_every=32, threads=1
    )


@pytest.fixture
def trunks(study, monkeypatch):
    monkeypatch.setattr(recipes, "get", constant)
    return dataclasses.replace(study, samples=(64, 128), random=False, pixels=False)


def test_one_trunk_serves_every_count_and_its_cost_is_counted_once(trunks):
    first = scale.run(trunks)
    assert (first.runs, first.trained, first.probed) == (3, 3, 2)
    found = ledger.read_runs(trunks.out)
    costs = {row.name: (row.trunk, row.samples_seen, row.trained) for row in found.rows}
    assert costs == {
        "one-trunk-s0": ("", 96, 96),
        "one-000000064-s0": ("one-trunk-s0", 64, 16),
        "one-000000128-s0": ("one-trunk-s0", 128, 32),
    }
    branch = next(row for row in found.rows if row.samples_seen == 64)
    assert (branch.unique_images, branch.selected) == (60, 60), "an epoch of 60, and 4 that were seen before"
    assert branch.val_loss is not None
    assert branch.cpu_seconds is not None
    assert scale.run(trunks).trained == 0
    longer = scale.run(dataclasses.replace(trunks, samples=(64, 128, 256)))
    assert (longer.runs, longer.trained) == (4, 2), "the trunk grows, and has one more branch"
    assert {run.name: len(run.attempts) for run in ledger.read_runs(trunks.out).runs}["one-trunk-s0"] == 2


def test_a_trunk_with_other_settings_is_refused(trunks, monkeypatch):
    scale.run(dataclasses.replace(trunks, samples=(64,)))
    other = dataclasses.replace(CONSTANT, weight_decay=0.5)
    monkeypatch.setattr(recipes, "get", lambda name: dataclasses.replace(constant(name), optim=other))
    with pytest.raises(ValueError, match=r"was begun with optim\.weight_decay = 0\.05, now 0\.5"):
        scale.run(trunks)


def test_a_sweep_is_arms_of_their_own(trunks):
    scale.run(dataclasses.replace(trunks, samples=(32,), lrs=(1e-3, 4e-3)))
    rows = [row for row in ledger.read_runs(trunks.out).rows if row.head == "linear"]
    assert sorted(row.arm for row in rows) == ["one lr 0.001", "one lr 0.004"]
    assert len({row.settings for row in rows}) == 2


@pytest.mark.parametrize(
    ("vary", "same"),
    [("all", set()), ("weights", {"order", "probe"}), ("data", {"weights", "probe"}), ("probe", {"weights", "order"})],
)
def test_seeds_vary_what_they_are_asked_to(trunks, vary, same):
    study = dataclasses.replace(trunks, samples=(32,), seeds=(0, 5), seeds_vary=vary)
    chains = scale._chains(study, "data")
    (one, other) = (chain.trials[-1] for chain in chains)
    seeds = {
        "weights": (one.run.seed, other.run.seed),
        "order": (one.run.order.seed, other.run.order.seed),
        "probe": (one.probes[0].seed, other.probes[0].seed),
    }
    assert {name for name, (a, b) in seeds.items() if a == b} == same
    assert all(pair == (0, 5) for name, pair in seeds.items() if name not in same)
    assert (one.run.out == other.run.out) == (vary == "probe"), "probes of several seeds share their run"


def test_a_probe_of_another_grid_or_seed_is_made_again(trunks):
    study = dataclasses.replace(trunks, samples=(32,))
    assert scale.run(study).probed == 1
    assert scale.run(study).probed == 0
    wider = dataclasses.replace(study, probe=dataclasses.replace(study.probe, lrs=(1e-2, 3e-2)))
    assert scale.run(wider).probed == 1
    assert scale.run(dataclasses.replace(study, seeds=(0, 1), seeds_vary="probe")).probed == 2


KILLED = """
import sys
sys.path[:0] = {paths!r}
import dataclasses
from jobs.lab import scale
from test_scale import constant
from xtra import probe, recipes
if __name__ == "__main__":
    recipes.get = constant
    settings = probe.Config("", train={data!r}, eval={eval!r}, lrs=(1e-2,), epochs=2, views=1, batch=20)
    scale.run(scale.Config({data!r}, {out!r}, ("one",), (64, 256), (0, 1), probe=settings, random=False, pixels=False))
"""


@pytest.mark.slow
def test_a_study_killed_ten_times_gives_the_same_ledger_and_no_run_twice(trunks, sets, tmp_path):
    study = dataclasses.replace(trunks, samples=(64, 256), seeds=(0, 1), out=str(tmp_path / "whole"))
    scale.run(study)
    script = tmp_path / "study.py"
    root = Path(__file__).parents[3]
    paths = [str(Path(__file__).parent), str(root / "tests" / "shards")]
    out, data = str(tmp_path / "killed"), str(sets / "data")
    script.write_text(KILLED.format(paths=paths, data=data, eval=str(sets / "eval"), out=out))
    draw = random.Random(5)
    for _ in range(10):  # killed after so many more files, however fast the machine is
        process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(root)})
        until = _files(out) + draw.randint(1, 15)
        while process.poll() is None and _files(out) < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": str(root)}, check=True)
    whole, killed = (ledger.read_runs(folder) for folder in (study.out, out))
    differ = {"run", "seconds", "samples_per_s", "cpu_seconds", "probe_seconds", "git"}

    def outcome(found):
        rows = [{k: v for k, v in dataclasses.asdict(row).items() if k not in differ} for row in found.rows]
        return sorted(rows, key=lambda row: (row["name"], row["head"]))

    assert outcome(whole) == outcome(killed)
    for run in killed.runs:
        seen = [metric.samples_seen for metric in run.metrics]
        assert seen == sorted(set(seen)), f"{run.name} counts a step twice"


def _files(folder: str) -> int:
    return sum(path.is_file() for path in Path(folder).rglob("*"))
