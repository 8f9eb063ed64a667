"""The inverse of the order: it finds every sample where the stream shows it, and where in its batch."""

import numpy as np
import pytest
from made_datasets import make_dataset

from shards.stream import order as order_module
from shards.stream.inverse import places_in_batches, ranks, sightings
from shards.stream.mixture import MixedSequence, Mixture
from shards.stream.order import Order, Sequence, batch

ORDERS = [Order(seed=2, lanes=4, chunk=4, window=2), Order(seed=5, lanes=7, chunk=3, window=5), Order(seed=1)]
COUNTS = [[61, 0, 40, 50, 3], [5], [700, 1, 512]]


def shown(sequence, samples, start, stop):
    """[(position, asked)] as `sightings` finds it."""
    found = list(sightings(sequence, samples, start, stop))
    return sorted((int(p), int(a)) for part in found for p, a in zip(part.position, part.asked))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("counts", COUNTS)
def test_every_sample_is_found_where_the_stream_shows_it(order, counts):
    sequence = Sequence(np.array(counts), order)
    n = sequence.samples
    start, stop = n // 3, 3 * n + n // 2
    samples = np.arange(n)[::-1]
    there = sequence.at(start, stop).sample
    assert shown(sequence, samples, start, stop) == [(start + at, n - 1 - s) for at, s in enumerate(there.tolist())]
    for part in sightings(sequence, samples, start, stop):
        assert (np.diff(part.position) > 0).all()
        where = sequence.positions(int(part.position[0]), int(part.position[0]) + 1)
        assert [int(w[0]) for w in where] == [int(part.epoch[0]), int(part.lane[0]), int(part.item[0])]


def test_equal_keys_are_ordered_as_the_stable_sort_orders_them(monkeypatch):
    true = order_module.mix64
    monkeypatch.setattr(order_module, "mix64", lambda *words: true(*words) % np.uint64(5))
    sequence = Sequence(np.array([61, 40, 50, 3]), ORDERS[0])
    there = sequence.at(0, sequence.samples).sample
    assert shown(sequence, np.arange(154), 0, 154) == list(enumerate(there.tolist()))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixed")
    manifests = tuple(make_dataset(base / str(n), [n, n // 2]) for n in (30, 8, 50))
    return Mixture(manifests, (0.5, 0.1, 0.4))


@pytest.mark.parametrize(("start", "stop"), [(0, 500), (4000, 4200), (8192, 8300), (700, 700)])
def test_a_mixture_is_inverted_over_its_blocks(mixed, start, stop):
    sequence = MixedSequence(mixed, ORDERS[0])
    samples = np.arange(sequence.samples)
    there = sequence.at(start, stop).sample
    assert shown(sequence, samples, start, stop) == [(start + at, s) for at, s in enumerate(there.tolist())]


@pytest.mark.parametrize("size", [1, 10, 33, 400])
@pytest.mark.parametrize("mix", [False, True])
def test_the_index_in_the_batch_and_the_rank_are_those_of_the_stream(mixed, mix, size):
    sequence = MixedSequence(mixed, ORDERS[0]) if mix else Sequence(np.array([61, 40, 3]), ORDERS[1])
    samples = np.arange(sequence.samples)
    start, stop = 3 * size, 6 * size
    for world in (1, 2, 3):
        expected = {}
        for first in range(start, stop, size):
            for rank in range(world):
                place = batch(sequence, first, first + size, rank, world)
                for i in range(len(place)):
                    where = (int(place.epoch[i]), int(place.lane[i]), int(place.item[i]))
                    expected[where] = (int(place.sample[i]), first, rank, i)
        found = {}
        for seen in sightings(sequence, samples, start, stop):
            first = seen.position // size * size
            index = places_in_batches(sequence, seen, first, first + size)
            rank, at = ranks(index, np.full(len(seen), size), world)
            for k in range(len(seen)):
                where = (int(seen.epoch[k]), int(seen.lane[k]), int(seen.item[k]))
                found[where] = (int(seen.asked[k]), int(first[k]), int(rank[k]), int(at[k]))
        assert found == expected
