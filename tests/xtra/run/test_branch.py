"""Branches of a trunk: what a whole run of that length would be, to the bit; refused where the trunk is another's."""

import dataclasses

import pytest
from made_datasets import make_dataset
from test_train import config, losses, metrics

from shards import store
from xtra import train
from xtra.optim import OptimConfig
from xtra.run import checkpoint

CONSTANT = OptimConfig(lr=1e-3, warmup_lr=0.0, warmup=20, schedule="constant", decay=0.25)
TRUNK = dataclasses.replace(CONSTANT, decay=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37], bad=(5,))
    return base


@pytest.fixture(scope="module")
def trunk(data, tmp_path_factory):
    """A trunk of 90 samples, from which runs of 40 and 120 branch at 30 and 90."""
    out = str(tmp_path_factory.mktemp("trunk") / "run")
    settings = config(data, out, samples=90, optim=TRUNK, keep_at=(30, 90), checkpoint_every=20, keep=1)
    train.run(settings)
    assert checkpoint.committed(out) == [30, 90], "pruning leaves those that runs branch from"
    return settings


@pytest.mark.parametrize(("samples", "fork"), [(40, 30), (120, 90)])
def test_a_branch_is_the_whole_run_to_the_bit(data, trunk, tmp_path, samples, fork):
    whole = config(data, tmp_path / "whole", samples=samples, optim=CONSTANT)
    train.run(whole)
    branch = dataclasses.replace(whole, out=str(tmp_path / "branch"), branch=trunk.out)
    assert train.run(branch).samples_seen == samples
    assert losses(branch.out) == losses(whole.out)[fork // 10 :]
    assert [row["lr"] for row in metrics(branch.out)] == [row["lr"] for row in metrics(whole.out)][fork // 10 :]
    assert losses(trunk.out)[: fork // 10] == losses(whole.out)[: fork // 10]


def test_a_stopped_branch_goes_on_from_its_own_checkpoint(data, trunk, tmp_path):
    branch = config(data, tmp_path / "branch", optim=CONSTANT, branch=trunk.out)
    steps = iter(range(99))
    assert train.run(branch, stop=lambda: next(steps) == 1).stopped
    moved = dataclasses.replace(branch, branch=str(tmp_path / "gone"))
    assert train.run(moved).samples_seen == 120, "it needs its trunk no more"
    whole = config(data, tmp_path / "whole", optim=CONSTANT)
    train.run(whole)
    assert losses(branch.out) == losses(whole.out)[9:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"samples": 80},
            "has no checkpoint after 60 samples, where the decay begins: train it that far with --keep-at",
        ),
        (
            {"optim": dataclasses.replace(CONSTANT, lr=2e-3)},
            r"was trained with optim\.lr = 0\.001, its branch has 0\.002",
        ),
        ({"seed": 7}, "was trained with seed = 0, its branch has 7"),
        ({"batch": 5}, "was trained with batch = 10, its branch has 5"),
        ({"branch": "/nowhere"}, "/nowhere: is not a run"),
    ],
)
def test_a_branch_of_another_trunk_is_refused_and_writes_nothing(data, trunk, tmp_path, changes, message):
    branch = config(data, tmp_path / "branch", optim=CONSTANT, branch=trunk.out)
    with pytest.raises(ValueError, match=message) as refused:
        train.run(dataclasses.replace(branch, **changes))
    assert "\n" not in str(refused.value)
    assert store.names(branch.out) == []


def test_a_branch_on_other_data_is_refused(trunk, tmp_path):
    make_dataset(tmp_path / "other", [30])
    branch = config(tmp_path / "other", tmp_path / "branch", optim=CONSTANT, branch=trunk.out)
    with pytest.raises(ValueError, match="was trained on manifest"):
        train.run(branch)


def test_a_trunk_may_grow_and_no_other_run_may(data, tmp_path):
    short = config(data, tmp_path / "run", samples=50, optim=TRUNK, keep_at=(30,))
    train.run(short)
    longer = dataclasses.replace(short, samples=90, keep_at=(30, 90))
    assert train.run(longer).samples_seen == 90
    at_once = dataclasses.replace(longer, out=str(tmp_path / "at-once"))
    train.run(at_once)
    assert losses(longer.out) == losses(at_once.out)
    cosine = config(data, tmp_path / "cosine", samples=50)
    train.run(cosine)
    with pytest.raises(ValueError, match="was begun with samples = 50, now 90"):
        train.run(dataclasses.replace(cosine, samples=90))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="branch needs a constant rate that decays"):
        config("d", "o", branch="trunk")
    with pytest.raises(ValueError, match="keep_at has 15; each must be a multiple of the batch, which is 10"):
        config("d", "o", keep_at=(10, 15))
