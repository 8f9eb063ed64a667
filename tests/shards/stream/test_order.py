"""The sample order: a golden vector and the properties every world size and resume rests on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from shards.stream.order import Order, Sequence, batch, chunks, cut, mix64, permutation, uniform

GOLDEN_PERMUTATION = [2, 9, 1, 7, 6, 3, 8, 4, 0, 5]
GOLDEN_UNIFORM = [0.5437230677400043, 0.9321343326718249, 0.19529420309760182]
GOLDEN_SAMPLES = [5, 15, 13, 4, 12, 10, 6, 11, 2, 0, 7, 3, 14, 8, 16, 1, 9, 3, 11, 5]

shard_counts = st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)
orders = st.builds(
    Order,
    seed=st.integers(0, 2**63),
    lanes=st.integers(1, 70),
    chunk=st.integers(1, 20),
    window=st.integers(1, 9),
)


def test_splitmix64_golden_vector():
    # First outputs of the reference generator with seed 0 are mix64 of its counter values.
    assert [int(mix64(0)), int(mix64(1)), int(mix64(2))] == [
        0xE220A8397B1DCDAF,
        0x910A2DEC89025CC1,
        0x975835DE1C9756CE,
    ]
    assert permutation(10, 7, 3).tolist() == GOLDEN_PERMUTATION
    assert uniform(5, "crop", np.arange(3)).tolist() == GOLDEN_UNIFORM


def test_order_golden_vector():
    """Any change of the order breaks resuming of every run: bump Order.version instead of editing this."""
    sequence = Sequence(np.array([5, 0, 9, 3]), Order(seed=11, lanes=3, chunk=2, window=2))
    place = sequence.at(0, 20)
    assert place.sample.tolist() == GOLDEN_SAMPLES
    assert place.epoch.tolist() == [0] * 17 + [1] * 3


@given(shard_counts, orders)
@settings(max_examples=150, deadline=None)
def test_every_epoch_holds_each_sample_exactly_once(counts, order):
    sequence = Sequence(np.array(counts), order)
    n = sequence.samples
    for epoch in (0, 1):
        samples = sequence.at(epoch * n, (epoch + 1) * n).sample
        assert sorted(samples.tolist()) == list(range(n))


@given(shard_counts, orders, st.integers(1, 50), st.integers(1, 9), st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_batches_are_the_same_set_for_every_world_size(counts, order, size, world, step):
    sequence = Sequence(np.array(counts), order)
    whole = batch(sequence, step * size, (step + 1) * size)
    cuts = [whole.take(cut(size, rank, world)) for rank in range(world)]
    assert np.concatenate([c.sample for c in cuts]).tolist() == whole.sample.tolist()
    assert max(map(len, cuts)) - min(map(len, cuts)) <= 1
    alone = Sequence(np.array(counts), order).at(step * size, (step + 1) * size)
    assert sorted(alone.sample.tolist()) == sorted(whole.sample.tolist())


@given(shard_counts, orders, st.lists(st.integers(1, 40), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_stream_does_not_depend_on_how_it_is_cut_into_batches(counts, order, sizes):
    sequence = Sequence(np.array(counts), order)
    ends = np.cumsum([0, *sizes])
    pieces = [sequence.at(a, b).sample for a, b in itertools.pairwise(ends)]
    assert np.concatenate(pieces).tolist() == sequence.at(0, int(ends[-1])).sample.tolist()


@given(shard_counts, st.integers(1, 20))
def test_chunks_cover_each_shard_in_row_order(counts, chunk):
    first, size = chunks(np.array(counts), chunk)
    covered = [s for f, n in zip(first, size) for s in range(f, f + n)]
    assert covered == list(range(sum(counts)))
    boundary = np.cumsum(counts)
    assert all(
        np.searchsorted(boundary, f, "right") == np.searchsorted(boundary, f + n - 1, "right")
        for f, n in zip(first, size)
    )


def test_lanes_mix_a_sorted_set():
    sequence = Sequence(np.full(50, 200), Order())
    place = sequence.at(0, 640)
    classes = place.sample // 100  # 100 classes of 100, sorted
    assert len(np.unique(classes)) >= 60
    assert len(np.unique(place.lane)) == 64


def test_substitutes_are_the_rest_of_the_same_lane_window():
    sequence = Sequence(np.array([40, 40]), Order(lanes=2, chunk=4, window=3))
    stand_ins = [int(p.sample[0]) for p in sequence.substitutes(0, 1, 14)]
    window = [int(s) for i in range(12, 24) for s in sequence.at(2 * i + 1, 2 * i + 2).sample]
    assert stand_ins == window[3:] + window[:2]


def test_two_epochs_and_two_seeds_differ():
    counts = np.array([100])
    a, b = Sequence(counts, Order(seed=1)), Sequence(counts, Order(seed=2))
    assert a.at(0, 100).sample.tolist() != a.at(100, 200).sample.tolist()
    assert a.at(0, 100).sample.tolist() != b.at(0, 100).sample.tolist()


def test_uniform_is_flat_and_independent_of_broadcasting():
    u = uniform(3, "flip", np.arange(20_000))
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(u.std() - 12**-0.5) < 0.01
    assert uniform(3, "flip", 77) == u[77]
    assert not np.array_equal(uniform(3, "crop", np.arange(5)), u[:5])


def test_bad_orders_are_named():
    with pytest.raises(ValueError, match=r"order\.version is 2"):
        Order(version=2)
    with pytest.raises(ValueError, match=r"order\.lanes is 0"):
        Order(lanes=0)
    with pytest.raises(ValueError, match="selects 0 samples"):
        Sequence(np.array([0, 0]), Order())
