"""A study trains and probes what is missing, and only that."""

import dataclasses

import pytest
from made_datasets import make_dataset

from jobs.lab import scale
from jobs.report import ledger
from shards import store
from xtra import probe, recipes


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
    assert (wider.trained, wider.probed) == (1, 2), "one new run, and the baselines now lie beside it"


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


def test_what_a_study_lacks_is_named(study):
    with pytest.raises(ValueError, match=r"--probe\.train is missing"):
        scale.run(dataclasses.replace(study, probe=probe.Config("", train="", eval="x")))
    with pytest.raises(ValueError, match="samples is empty"):
        dataclasses.replace(study, samples=())
