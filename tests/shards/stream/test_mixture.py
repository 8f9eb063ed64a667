"""Mixing by weight: exact quotas, each dataset in its own order, and nothing that depends on where one starts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_datasets import make_dataset

from shards.manifest import Manifest, Shard
from shards.stream.mixture import BLOCK, MixedSequence, Mixture, quotas
from shards.stream.order import Order, Sequence, batch, cut

orders = st.builds(
    Order,
    seed=st.integers(0, 2**63),
    lanes=st.integers(1, 70),
    chunk=st.integers(1, 20),
    window=st.integers(1, 9),
)
counts_of_sets = st.lists(
    st.lists(st.integers(0, 200), min_size=1, max_size=5).filter(lambda c: sum(c) > 50), min_size=1, max_size=4
)
weights_of = st.floats(1e-6, 1e6)
GOLDEN_OWNERS = [0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]
GOLDEN_SAMPLES = [10, 20, 4, 6, 12, 15, 1, 7, 18, 0, 3, 6]
FIELDS = ("epoch", "lane", "item", "sample")


def manifest(counts, name="d"):
    shards = [Shard(u, f"{u:06d}-a.tar", f"{u:06d}-a.parquet", 0, "", n, n, n) for u, n in enumerate(counts)]
    return Manifest(name, name, "0" * 64, tuple(shards), sum(counts), sum(counts), {}, {})


def mixture(sets, weights=None):
    manifests = tuple(manifest(counts, f"d{number}") for number, counts in enumerate(sets))
    return Mixture(manifests, tuple(weights or (float(number + 1) for number in range(len(sets)))))


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@given(st.lists(weights_of, min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_quotas_are_the_weights_in_4096ths_and_none_is_nought(weights):
    given_out = quotas(tuple(weights))
    assert sum(given_out) == BLOCK
    assert min(given_out) >= 1
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    if min(exact) >= 1:
        assert all(abs(quota - share) < 1 for quota, share in zip(given_out, exact))
    assert quotas((0.7, 0.3)) == (2867, 1229)
    assert quotas((1.0, 1.0, 1.0)) == (1366, 1365, 1365)
    assert quotas((1e-9, 1.0)) == (1, 4095)


@given(counts_of_sets, orders, st.integers(0, 50), st.data())
@settings(max_examples=15, deadline=None)
def test_every_block_has_each_dataset_exactly_its_quota_in_its_own_order(sets, order, block, data):
    mixed = mixture(sets, data.draw(st.lists(weights_of, min_size=len(sets), max_size=len(sets))))
    sequence = MixedSequence(mixed, order)
    place = sequence.at(block * BLOCK, (block + 1) * BLOCK)
    first = 0
    for d, counts in enumerate(sets):
        own, quota = Sequence(np.array(counts), order), mixed.quotas[d]
        here = place.lane // order.lanes == d
        assert here.sum() == quota
        expected = own.at(block * quota, (block + 1) * quota)
        got = place.take(here)
        assert np.array_equal(got.sample - first, expected.sample)
        assert np.array_equal(got.lane - d * order.lanes, expected.lane)
        assert np.array_equal(got.epoch, expected.epoch)
        assert np.array_equal(got.item, expected.item)
        first += sum(counts)
    assert sequence.samples == first == mixed.samples


@given(counts_of_sets, orders, st.integers(0, 3 * BLOCK), st.integers(0, 2 * BLOCK), st.integers(0, 700))
@settings(max_examples=25, deadline=None)
def test_a_position_is_the_same_from_wherever_it_is_asked_for(sets, order, start, length, inside):
    mixed = mixture(sets)
    whole = MixedSequence(mixed, order).at(start, start + length)
    low = min(inside, length)
    assert same(MixedSequence(mixed, order).at(start + low, start + length), whole.take(slice(low, None)))


@given(counts_of_sets, orders, st.integers(1, 5000), st.integers(1, 9), st.integers(0, 40))
@settings(max_examples=15, deadline=None)
def test_batches_are_the_same_set_for_every_world_size(sets, order, size, world, step):
    sequence = MixedSequence(mixture(sets), order)
    whole = batch(sequence, step * size, (step + 1) * size)
    cuts = [whole.take(cut(size, rank, world)) for rank in range(world)]
    assert np.array_equal(np.concatenate([c.sample for c in cuts]), whole.sample)
    assert sorted(whole.sample.tolist()) == sorted(sequence.at(step * size, (step + 1) * size).sample.tolist())


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda c: sum(c) > 0), orders, st.integers(0, 9000))
@settings(max_examples=25, deadline=None)
def test_a_mixture_of_one_is_the_plain_order(counts, order, start):
    mixed = MixedSequence(mixture([counts], [0.25]), order)
    plain = Sequence(np.array(counts), order)
    assert same(mixed.at(start, start + 300), plain.at(start, start + 300))


def test_golden_vector():
    """Any change of the mixing breaks resuming of every run that mixes."""
    place = MixedSequence(mixture([[5, 9], [7]], [0.7, 0.3]), Order(seed=11, lanes=3)).at(4090, 4102)
    assert (place.lane // 3).tolist() == GOLDEN_OWNERS
    assert place.sample.tolist() == GOLDEN_SAMPLES


def test_substitutes_are_of_the_same_dataset_and_window():
    order = Order(seed=2, lanes=2, chunk=2, window=2)
    mixed = MixedSequence(mixture([[8], [20]]), order)
    place = mixed.at(0, 3)
    second = int(np.flatnonzero(place.lane >= 2)[0])
    epoch, lane, item, sample = (int(getattr(place, name)[second]) for name in FIELDS)
    stand_ins = [(int(p.lane[0]), int(p.sample[0])) for p in mixed.substitutes(epoch, lane, item)]
    assert len(stand_ins) == 3
    assert {at for at, _ in stand_ins} == {lane}
    assert all(8 <= other < 28 and other != sample for _, other in stand_ins)


def test_the_digest_covers_datasets_and_quotas_and_the_flat_shards_name_their_manifest(tmp_path):
    one, two = make_dataset(tmp_path / "a", [6, 4]), make_dataset(tmp_path / "b", [3])
    mixed = Mixture((one, two), (3.0, 1.0))
    assert mixed.quotas == (3072, 1024)
    assert mixed.digest == Mixture((one, two), (0.75, 0.25)).digest
    moved = dataclasses.replace(two, dataset="elsewhere")
    assert Mixture((one, moved), (3.0, 1.0)).digest == mixed.digest
    others = {Mixture((two, one), (3.0, 1.0)).digest, Mixture((one, two), (3.0, 1.1)).digest, one.digest}
    assert mixed.digest not in others
    assert mixed.counts.tolist() == [6, 4, 3]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_the_users_mistake(weight):
    with pytest.raises(ValueError, match=r"^d1@\w+: its weight is .*: give a number above 0, or leave it out$"):
        mixture([[3], [4]], [1.0, weight])


def test_what_cannot_be_mixed_is_said():
    with pytest.raises(ValueError, match="a mixture of 0 datasets"):
        Mixture((), ())
    with pytest.raises(ValueError, match="selects 0 samples"):
        mixture([[3], [0]])
