"""The stream: the order made real, from a folder and from a bucket, at any world size, resumed anywhere."""

import hashlib
import itertools
import json
import subprocess
import sys

import pytest
from buckets import bucket
from made_datasets import jpeg, make_dataset

from shards import store
from shards.selection import subset
from shards.stream.order import Order
from shards.stream.stream import Stream, once

ORDER = Order(seed=3, lanes=5, chunk=4, window=3)


def take(stream, n):
    taken = [list(batch) for batch in itertools.islice(stream, n)]
    stream.close()
    return taken


def test_bodies_keys_and_labels_belong_together(base):
    manifest = make_dataset(base, [30, 20], bad=(3,))
    (samples,) = take(Stream(manifest, ORDER, 49, stop_at=49), 1)
    assert sorted(s.key for s in samples) == [f"k{row:06d}" for row in range(50) if row != 3]
    for sample in samples:
        assert sample.body == jpeg(sample.row)
        assert sample.labels == (f"c{sample.row % 5}",)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_global_batches_are_equal_at_every_world_size_and_resume(tmp_path, world):
    manifest = make_dataset(tmp_path, [40, 33])
    whole = take(Stream(manifest, ORDER, 10), 12)
    ranks = [take(Stream(manifest, ORDER, 10, rank=r, world=world), 12) for r in range(world)]
    for step, batch in enumerate(whole):
        assert [s for rank in ranks for s in rank[step]] == batch
    resumed = take(Stream(manifest, ORDER, 10, samples_seen=70), 5)
    assert resumed == whole[7:]


def test_one_epoch_is_each_sample_once_and_the_last_batch_is_cut_to_the_total(tmp_path):
    manifest = make_dataset(tmp_path, [40, 33])
    batches = take(Stream(manifest, ORDER, 20, stop_at=73), 99)
    assert [len(b) for b in batches] == [20, 20, 20, 13]
    assert sorted(s.sample for b in batches for s in b) == list(range(73))


def test_a_subset_streams_only_its_own(tmp_path):
    manifest = make_dataset(tmp_path, [60, 60])
    chosen = subset(manifest, 40)
    (samples,) = take(Stream(chosen, ORDER, chosen.samples), 1)
    assert len({s.key for s in samples}) == chosen.samples
    assert sorted(s.sample for s in samples) == list(range(chosen.samples))


def test_a_sparse_subset_reads_little_more_than_it_uses(tmp_path, on_moto, monkeypatch):
    base = bucket() + "/data"
    manifest = make_dataset(base, [40], side=400)
    chosen = subset(manifest, 8)
    reads, read_into = [], store.read_into
    monkeypatch.setattr(
        store, "read_into", lambda url, at, to, *stop: reads.append(len(to)) or read_into(url, at, to, *stop)
    )
    used = sum(len(s.body) for batch in once(chosen, 4) for s in batch)
    assert used <= sum(reads) <= 1.1 * used
    assert len(next(iter(once(manifest, 40)))) == 40
    assert len(reads) < chosen.samples + 40, "neighbours share a read"


def test_once_is_row_order_without_repeats(base):
    manifest = make_dataset(base, [7, 6], bad=(2,))
    batches = [list(batch) for batch in once(manifest, 5)]
    assert [s.row for b in batches for s in b] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    halves = [[list(batch) for batch in once(manifest, 5, rank, 2)] for rank in range(2)]
    assert [[*a, *b] for a, b in zip(*halves)] == batches


def test_substitutes_stay_in_the_window_and_never_return_the_bad_one(tmp_path):
    manifest = make_dataset(tmp_path, [40])
    stream = Stream(manifest, ORDER, 10)
    bad = next(iter(stream))[3]
    stand_ins = list(stream.substitutes(bad))
    stream.close()
    assert bad.sample not in [s.sample for s in stand_ins]
    assert {s.lane for s in stand_ins} == {bad.lane}


def test_a_lost_or_cut_shard_is_named(tmp_path):
    manifest = make_dataset(tmp_path, [20])
    tar = tmp_path / "shards" / manifest.shards[0].tar
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(store.StoreError, match=f"{manifest.shards[0].tar}: is cut short"):
        take(Stream(manifest, ORDER, 20), 1)
    tar.unlink()
    with pytest.raises(store.Missing, match="the shard is gone"):
        take(Stream(manifest, ORDER, 20), 1)


WEBDATASET = """
import hashlib, json, sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False)
print(json.dumps({s["__key__"]: [hashlib.sha256(s["jpg"]).hexdigest(), json.loads(s["json"])["url"]] for s in samples}))
"""


def test_webdataset_finds_the_same_samples(tmp_path):
    manifest = make_dataset(tmp_path, [20, 15], bad=(4,))
    tars = [str(tmp_path / "shards" / shard.tar) for shard in manifest.shards]
    # A process of its own: webdataset leaves its files open, which is a warning, and warnings are errors here.
    found = subprocess.run([sys.executable, "-c", WEBDATASET, *tars], capture_output=True, check=True, timeout=60)
    ours = {
        s.key: [hashlib.sha256(s.body).hexdigest(), f"http://example.org/{s.row}.jpg"]
        for batch in once(manifest, 8)
        for s in batch
    }
    assert json.loads(found.stdout) == ours
