"""`shards.open`: a version as a sequence, by number and by key, in row order and in training's."""

from __future__ import annotations

import io
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from made_datasets import jpeg, make_dataset, plan_unit, rows_of, write_unit
from PIL import Image
from places import ROOT

import shards
from shards import store
from shards.dataset import DatasetInfo, write_info
from shards.manifest import make_version
from shards.selection import subset
from shards.stream.order import Order, Sequence
from shards.stream.stream import Stream


def test_samples_by_number_by_key_and_by_slice_are_those_of_the_tars(base):
    make_dataset(base, [30, 20, 23], bad=(3, 40))
    found = shards.open(base)
    keys = [f"k{row:06d}" for row in range(73) if row not in (3, 40)]
    assert len(found) == 71
    assert [found[n].key for n in range(71)] == [sample.key for sample in found] == keys
    for number in (0, 2, 3, 29, 70):
        row = int(keys[number][1:])
        assert found[number] == found[keys[number]] == found[number - 71]
        assert found[number].body == jpeg(row)
        assert (found[number].number, found[number].label) == (number, f"c{row % 5}")
    assert found[np.int64(5)] == found[5]
    assert [sample.number for sample in found[60:80:4]] == [60, 64, 68]
    assert "k000003" not in found
    assert "k000004" in found
    assert 4 not in found


def test_what_is_not_there_is_named(tmp_path):
    manifest = make_dataset(tmp_path / "set", [10])
    found = shards.open(str(tmp_path / "set"))
    for number in (10, -11):
        with pytest.raises(IndexError, match=rf"has 10 samples, so there is no number {number}$"):
            found[number]
    with pytest.raises(KeyError, match=r"has no sample 'k000010'"):
        found["k000010"]
    with pytest.raises(ValueError, match="has no version 7: it has versions 1"):
        shards.open(f"{tmp_path}/set@7")
    with pytest.raises(ValueError, match="is not a dataset"):
        shards.open(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="epoch is -1"):
        list(found.shuffled(epoch=-1))
    store.delete(store.join(manifest.dataset, "shards", manifest.shards[0].tar))
    with pytest.raises(ValueError, match=manifest.shards[0].tar):
        found[2]


def test_the_picture_is_decoded_and_a_sample_without_label_has_none(tmp_path):
    rows = [row | {"labels": []} for row in rows_of(0, 2)]
    plan_unit(str(tmp_path), 0, rows)
    write_unit(str(tmp_path), 0, rows)
    write_info(str(tmp_path), DatasetInfo("t", "0" * 64, 1, 2, "c", "t"))
    make_version(str(tmp_path), "test")
    found = shards.open(str(tmp_path))
    assert (found[1].label, found[1].labels) == (None, ())
    expected = np.asarray(Image.open(io.BytesIO(jpeg(1))))
    assert np.array_equal(np.asarray(found[1].image()), expected)


def test_a_version_stays_what_it_is_and_a_subset_has_only_its_own(tmp_path):
    manifest = make_dataset(tmp_path, [60, 60])
    chosen = subset(manifest, 40)
    found = shards.open(chosen.address)
    assert len(found) == chosen.samples < 120
    assert [found[sample.key] for sample in found] == list(found)
    again = pickle.loads(pickle.dumps(found))
    assert list(again) == list(found)
    assert repr(found) == f"<{tmp_path}@{chosen.digest[:16]}: {chosen.samples} samples>"


@pytest.mark.parametrize("counts", [[40, 33], [5], [64, 64, 64]])
def test_shuffled_is_the_order_of_positions_in_every_epoch(tmp_path, counts):
    manifest = make_dataset(tmp_path, counts)
    found, total = shards.open(str(tmp_path)), sum(counts)
    for seed, epoch in itertools.product((0, 7), (0, 2)):
        numbers = [sample.number for sample in found.shuffled(seed, epoch)]
        place = Sequence(manifest.counts, Order(seed=seed)).at(epoch * total, (epoch + 1) * total)
        assert numbers == place.sample.tolist()
        assert sorted(numbers) == list(range(total))
    one = next(found.shuffled(3, 1))
    assert one == found[one.number]


def test_what_it_shows_first_is_the_first_batch_of_a_training(tmp_path):
    manifest = make_dataset(tmp_path, [90, 80])
    stream = Stream(manifest, Order(seed=5), 32)
    first = next(iter(stream))
    stream.close()
    shown = itertools.islice(shards.open(str(tmp_path)).shuffled(5), 32)
    assert {sample.number for sample in shown} == set(first.place.sample.tolist())


def test_a_bar_counts_every_sample_and_without_it_there_is_none(tmp_path, capsys):
    make_dataset(tmp_path, [70])
    found = shards.open(str(tmp_path))
    assert len(list(found.in_order(progress=True))) == len(list(found.shuffled(progress=True))) == 70
    assert capsys.readouterr().err.count("70/70") == 2
    assert len(list(found)) == 70
    assert capsys.readouterr().err == ""


def test_a_dataset_without_samples_is_empty(tmp_path):
    make_dataset(tmp_path, [2], bad=(0, 1))
    found = shards.open(str(tmp_path))
    assert (len(found), list(found), list(found.shuffled()), "k000000" in found) == (0, [], [], False)


def test_looking_at_it_needs_neither_torch_nor_ray(tmp_path):
    make_dataset(tmp_path, [70])
    script = f"""
import sys, shards
found = shards.open({str(tmp_path)!r})
seen = [found[3], found["k000003"], *found, *found.shuffled(progress=True)]
print(len(seen), sorted({{"torch", "ray", "ingest", "xtra", "jobs"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "142 []\n"
