"""A run on several datasets: the shares are those that were asked for, it resumes exactly, and says what it read."""

import dataclasses
import json

import pytest
from made_datasets import make_dataset, rows_of, write_unit
from test_train import config, losses

from jobs import cli
from jobs.report import ledger
from shards import store
from shards.manifest import make_version, read_manifest
from shards.stream.mixture import MixedSequence, Mixture, read_mixture
from xtra import train
from xtra.run import checkpoint
from xtra.run.folder import terms


@pytest.fixture
def sets(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two=2")
    make_dataset(one, [40, 30])
    make_dataset(two, [25])
    return one, two


def test_a_mixed_run_resumes_to_the_bit_on_the_versions_it_began_with(sets, tmp_path):
    one, two = sets
    said = []
    whole = config(one, tmp_path / "whole", mix=(f"{two}=0.25",), samples=40)
    train.run(whole, progress=lambda row: said.append(row.get("remark")))
    mixed = read_mixture(one, (f"{two}=0.25",))
    addresses = [manifest.address for manifest in mixed.manifests]
    assert said[0].endswith(f"; mixed from 3,072/4,096 {addresses[0]}, 1,024/4,096 {addresses[1]}")
    facts = store.read_json(str(tmp_path / "whole" / "run.json"))
    assert facts["manifest"] == mixed.digest
    assert [(part["manifest"], part["of_4096"]) for part in facts["mixture"]] == [
        (manifest.digest, quota) for manifest, quota in zip(mixed.manifests, mixed.quotas)
    ]
    steps = iter(range(99))
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"))
    assert train.run(parts, stop=lambda: next(steps) == 1).stopped
    write_unit(two, 1, rows_of(25, 10))
    make_version(two, "more")
    train.run(parts)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    commit = store.read_json(store.join(checkpoint.latest(parts.out), checkpoint.COMMIT))
    assert commit["manifest"] == mixed.digest
    (row,) = ledger.read_runs(parts.out).rows
    assert (row.manifest, row.selected) == (mixed.digest, 95)
    shown = MixedSequence(mixed, whole.order).at(0, 40).sample
    assert row.unique_images == len(set(shown.tolist()))
    assert row.dataset == f"{one} + {two}"


def test_another_share_is_another_stream_and_refused_unless_asked_for(sets, tmp_path):
    one, two = sets
    begun = config(one, tmp_path / "run", mix=(f"{two}=0.25",), samples=10)
    train.run(begun)
    for mix in ((f"{two}=0.5",), ()):
        with pytest.raises(ValueError, match="was begun on manifest"):
            terms(begun.out, dataclasses.replace(begun, mix=mix))
    same = dataclasses.replace(begun, mix=(f"{read_manifest(two).address}=0.25",))
    assert isinstance(terms(begun.out, same)[0], Mixture)


@pytest.mark.parametrize("part", ["b", "b=", "=0.5", "b=1", "b=0", "b=-0.5", "b=half", "b=nan"])
def test_what_is_no_share_is_the_users_mistake(sets, part):
    with pytest.raises(ValueError, match=r"^mix: '.*' is not DATASET=SHARE with a share between 0 and 1"):
        read_mixture(sets[0], (part,))


def test_shares_that_leave_nothing_are_refused(sets):
    with pytest.raises(ValueError, match=r"sum to 1\.2: .*/one gets the rest: sum to less than 1"):
        read_mixture(sets[0], (f"{sets[1]}=0.6", f"{sets[1]}=0.6"))


def test_the_command_takes_several(sets, tmp_path, capsys):
    one, two = sets
    words = f"train demo32 --data {one} --mix {two}=0.2 {two}=0.1 --out {tmp_path}/run --samples 8 --batch 8 --json"
    assert cli.main(words.split()) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["samples_seen"] == 8
    facts = store.read_json(str(tmp_path / "run" / "run.json"))
    assert [part["of_4096"] for part in facts["mixture"]] == [2867, 819, 410]
