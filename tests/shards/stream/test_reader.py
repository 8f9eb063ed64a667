"""How samples are fetched changes nothing about which come, in what order, with which bytes; and leases hold."""

import itertools
import os
import socket
import threading
import time

import numpy as np
import pytest
from buckets import bucket
from made_datasets import jpeg, make_dataset

from shards import store, store_ranged
from shards.stream import ReadConfig, remote_reader
from shards.stream.order import Order
from shards.stream.remote_reader import GAP, _pieces, _soon
from shards.stream.slab import Slab
from shards.stream.stream import Stream, once

ORDER = Order(seed=3, lanes=5, chunk=4, window=3)


def take(stream, n):
    taken = [[(s.key, s.epoch, bytes(s.body)) for s in batch] for batch in itertools.islice(stream, n)]
    stream.close()
    return taken


@pytest.fixture
def remote(tmp_path, on_moto):
    """The same dataset twice: in a folder and in a bucket."""
    base = bucket() + "/data"
    return make_dataset(tmp_path / "local", [30, 1, 22], bad=(3, 17, 18)), make_dataset(
        base, [30, 1, 22], bad=(3, 17, 18)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ReadConfig(),
        ReadConfig(connections=1, ahead=1),
        ReadConfig(memory=1 << 20),
        ReadConfig(memory=1 << 30),
        ReadConfig(cache="cache"),
    ],
    ids=["default", "one connection", "little memory", "all in memory", "disk cache"],
)
def test_epochs_are_the_same_from_a_bucket_however_it_is_read(remote, config, tmp_path, monkeypatch):
    local, there = remote
    monkeypatch.chdir(tmp_path)
    n = 3 * local.samples // 7
    assert take(Stream(there, ORDER, 7, config=config), n) == take(Stream(local, ORDER, 7), n)


def test_bytes_are_fetched_once_an_epoch_and_not_again_from_memory_or_disk(remote, tmp_path):
    _, there = remote

    def ratio(epochs, world=1, **config):
        read = used = 0
        for rank in range(world):
            stop = epochs * there.samples
            stream = Stream(there, ORDER, 10, stop_at=stop, rank=rank, world=world, config=ReadConfig(**config))
            for batch in stream:
                batch.release()
            stream.close()
            read, used = read + stream.reader.bytes_read, used + stream.reader.bytes_used
        return read / used

    headers = 3.0  # the pictures here are about as small as headers and JSON are
    assert 1 <= ratio(4) < headers
    assert ratio(4, memory=1 << 30) < headers / 4, "a set that fits into memory is fetched once"
    assert ratio(1, cache=str(tmp_path / "cache")) < headers
    assert ratio(4, cache=str(tmp_path / "cache")) == 0, "a later run finds everything on disk"


def test_memory_that_holds_no_batch_is_slow_but_right(remote):
    local, there = remote
    stream = Stream(there, ORDER, 20, config=ReadConfig())
    stream.reader._slab = Slab(3, 512)
    assert take(stream, 6) == take(Stream(local, ORDER, 20), 6)


def test_a_released_batch_cannot_be_read_and_a_kept_one_stays_whole(tmp_path):
    manifest = make_dataset(tmp_path, [60])
    stream = Stream(manifest, ORDER, 10)
    batches = iter(stream)
    kept, lent = next(batches), next(batches)
    body, sample = lent.bodies[0], lent[1]
    lent.release()
    lent.release()
    for gone in (body, sample.body):
        with pytest.raises(ValueError, match="released memoryview"):
            bytes(gone)
    for _ in range(40):
        next(batches).release()
    for sample in kept:
        assert sample.body == jpeg(sample.row), "a batch that was never released is never written over"
    stream.close()
    assert kept[3].body == jpeg(kept[3].row), "nor does it end with its stream"


def test_buffers_are_reused_once_released_and_not_while_an_array_holds_them(tmp_path):
    manifest = make_dataset(tmp_path, [60])
    stream = Stream(manifest, ORDER, 10, config=ReadConfig(ahead=1))
    buffers = set()
    for batch in itertools.islice(stream, 50):
        buffers.add(np.frombuffer(batch.bodies[0], np.uint8).ctypes.data)
        batch.release()
    assert len(buffers) <= 4
    stream.close()
    stream = Stream(manifest, ORDER, 10, config=ReadConfig(ahead=1))
    batches = iter(stream)
    held = next(batches)
    row, array = held[4].row, np.frombuffer(held.bodies[4], np.uint8)
    with pytest.raises(BufferError):
        held.release()
    for _ in range(20):
        next(batches).release()
    assert bytes(array) == jpeg(row), "its memory was not used again"
    stream.close()


class Lengths:
    """An index whose samples have these gaps between them."""

    def __init__(self, length, gaps):
        self.length = [length] * (len(gaps) + 1)
        self.offset = [512 + sum(gaps[:i]) + i * (length + 512) for i in range(len(gaps) + 1)]


def test_neighbours_are_read_together_as_long_as_little_is_read_in_vain():
    pieces = list(_pieces(Lengths(100_000, [1500] * 15), range(16)))
    assert len(pieces) == 1
    apart = list(_pieces(Lengths(100_000, [1500, 150_000, 1500, 1500]), range(5)))
    assert [list(numbers) for _, _, numbers in apart] == [[0, 1], [2, 3, 4]], "150 kB are over a tenth of 500 kB"
    bridged = list(_pieces(Lengths(100_000, [1500] * 7 + [120_000] + [1500] * 7), range(16)))
    assert len(bridged) == 1, "one link that was left out costs less than a request"
    small = list(_pieces(Lengths(2_000, [1500] * 15), range(16)))
    assert len(small) == 1, "of small pictures the JSON between them is much, but little"
    far = list(_pieces(Lengths(10_000_000, [GAP + 1]), range(2)))
    assert len(far) == 2


def test_what_a_state_says_goes_on_there_at_any_world_size(tmp_path):
    manifest = make_dataset(tmp_path, [60])
    stream = Stream(manifest, ORDER, 12)
    whole = take(Stream(manifest, ORDER, 12), 9)
    for _ in itertools.islice(stream, 4):
        state = stream.state_dict()
    stream.close()
    ranks = []
    for rank in range(3):
        resumed = Stream(manifest, ORDER, 12, rank=rank, world=3)
        resumed.load_state_dict(state)
        ranks.append(take(resumed, 5))
    assert [a + b + c for a, b, c in zip(*ranks)] == whole[4:]
    with pytest.raises(ValueError, match="the state was saved for order"):
        Stream(manifest, Order(seed=4), 12).load_state_dict(state)


def test_only_asked_batches_are_read(tmp_path, on_moto, monkeypatch):
    manifest = make_dataset(bucket() + "/data", [64])
    read = []
    read_into = store.read_into
    monkeypatch.setattr(
        store, "read_into", lambda url, at, to, *stop: read.append(len(to)) or read_into(url, at, to, *stop)
    )
    batches = [[s.row for s in batch] for batch in once(manifest, 16, every=(1, 3))]
    assert batches == [list(range(16, 32))]


def test_a_rank_without_samples_and_a_consumer_in_another_thread(tmp_path):
    manifest = make_dataset(tmp_path, [20])
    stream = Stream(manifest, ORDER, 2, rank=3, world=4, config=ReadConfig(ahead=1))
    for batch in itertools.islice(stream, 30):
        assert len(batch) == 0
        batch.release()
    received = []
    stream = Stream(manifest, ORDER, 2)
    batches = iter(stream)
    next(batches)
    stream.close()
    waiting = threading.Thread(target=lambda: received.append(list(batches)), daemon=True)
    waiting.start()
    waiting.join(10)
    assert received, "iteration must end for a thread that waits for a batch"
    with pytest.raises(ValueError, match="rank 5 of 2"):
        Stream(manifest, ORDER, 2, rank=5, world=2)


def test_a_closed_stream_does_not_wait_for_a_silent_store(on_moto):
    manifest = make_dataset(bucket() + "/data", [40])
    silent = socket.create_server(("127.0.0.1", 0))
    stream = Stream(manifest, ORDER, 10)
    assert len(list(once(manifest, 40))) == 1  # the store has answered: patience is that of an outage now
    where = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
    store_ranged._signatures[manifest.tar_url(0)] = (where, time.monotonic())
    threading.Timer(1.0, stream.close).start()
    begun = time.monotonic()
    assert list(stream) == []
    for thread in threading.enumerate():
        if thread.name.startswith("read"):
            thread.join(15)
    assert time.monotonic() - begun < 15, "120 s is how long an outage is borne"
    store_ranged._signatures.clear()
    silent.close()


def test_closing_from_several_threads_closes_every_file_once(tmp_path, monkeypatch):
    manifest = make_dataset(tmp_path, [5] * 30)
    closed, close = [], os.close
    monkeypatch.setattr(
        "shards.stream.local_reader.os.close", lambda file: closed.append(file) or time.sleep(0.001) or close(file)
    )
    stream = Stream(manifest, ORDER, 150, stop_at=150)
    assert len(list(stream)) == 1
    closed.clear()
    threads = [threading.Thread(target=stream.reader.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.close()
    assert len(closed) == len(set(closed)) == 30


# --- what is asked of a store ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """(url, begin, end) of every ranged read of a tar."""
    reads, read_into = [], store.read_into

    def noted(url, at, view, *stop):
        reads.append((url, at, at + len(view)))
        return read_into(url, at, view, *stop)

    monkeypatch.setattr(store, "read_into", noted)
    monkeypatch.setattr(remote_reader, "NEAR", 1536)  # what is between neighbours; the pictures are as small as that
    monkeypatch.setattr(remote_reader, "WASTE", 0.0)
    return reads


def drain(manifest, batch, stop_at, rank=0, world=1, config=None, order=ORDER):
    stream = Stream(manifest, order, batch, stop_at=stop_at, rank=rank, world=world, config=config)
    bodies = []
    for encoded in stream:
        bodies += [(s.key, bytes(s.body)) for s in encoded]
        encoded.release()
    stream.close()
    return bodies, stream.reader


def most_asked(reads):
    """How often the byte that was asked for most was."""
    edges = sorted((url, at, step) for url, begin, end in reads for at, step in ((begin, 1), (end, -1)))
    return max(itertools.accumulate(step for *_, step in edges))


@pytest.mark.parametrize("batch", [10, 7])
@pytest.mark.parametrize("world", [1, 3])
def test_every_byte_is_asked_for_once_by_all_ranks_together(tmp_path, on_moto, asked, batch, world):
    manifest = make_dataset(bucket() + "/data", [60, 60])
    found = []
    for rank in range(world):
        found += drain(manifest, batch, 120, rank, world)[0]
    assert len(found) == len(set(found)) == 120
    assert most_asked(asked) == 1
    assert sum(end - begin for _, begin, end in asked) <= sum(len(body) + 2048 for _, body in found)


def test_the_first_batch_asks_for_its_own_samples_alone(tmp_path, on_moto, asked):
    manifest = make_dataset(bucket() + "/data", [60, 60])
    stream = Stream(manifest, ORDER, 10)
    first = next(stream.batches())
    stream.reader.announce(first.place)
    batch = stream.reader.read(first.place, first.start, first.stop)
    begun = {(stream.reader.tar_url(s), stream.reader.index(s).offset[n]) for s, n in zip(batch.shard_B, batch.index_B)}
    assert sum(end - begin for _, begin, end in asked) <= sum(len(body) + 2048 for body in batch.bodies)
    assert all(any(url == u and begin < at < end for u, begin, end in asked) for url, at in begun)
    stream.close()


def test_neighbours_that_would_wait_too_long_are_read_when_they_are_used(tmp_path, on_moto, asked, monkeypatch):
    manifest = make_dataset(bucket() + "/data", [100, 100])
    order = Order(seed=3, lanes=2, chunk=10, window=10)
    whole, _ = drain(manifest, 4, 200, order=order)
    together = len(asked)
    asked.clear()
    monkeypatch.setattr(remote_reader, "_PATIENCE", 1024)  # a picture may wait for a window
    apart, reader = drain(manifest, 4, 200, order=order)
    assert apart == whole
    assert 1.5 * together < len(asked) < 150
    assert most_asked(asked) == 1
    assert not reader._waiting
    assert reader._slab.free == len(reader._slab.memory_NK), "all memory came back"


@pytest.mark.parametrize("patience", [3.0, 1.0, 0.25])
def test_memory_for_the_share_of_a_window_that_waits_is_enough(tmp_path, on_moto, asked, monkeypatch, patience):
    manifest = make_dataset(bucket() + "/data", [800, 800])
    order = Order(seed=3, lanes=8, chunk=16, window=10)
    mean = sum(shard.tar_bytes for shard in manifest.shards) / 1600
    monkeypatch.setattr(remote_reader, "_PATIENCE", patience * mean)
    window, under_way = 8 * 10 * 16, 40
    share = float(np.interp(patience, *remote_reader._WAITING))
    few = ReadConfig(connections=1)
    whole, _ = drain(manifest, 8, 1600, config=few, order=order)
    ample = len(asked)
    asked.clear()
    stream = Stream(manifest, order, 8, stop_at=1600, config=few)
    block = stream.reader._slab.block
    stream.reader._slab = Slab(int((share * window + under_way) * (mean / block + 0.5)), block)
    found = take(stream, 200)
    assert [(key, body) for batch in found for key, _, body in batch] == whole
    assert len(asked) < 1.1 * ample
    assert most_asked(asked) == 1


def test_how_many_neighbours_are_read_together():
    index, used = Lengths(1000, [1500] * 7), dict(enumerate([0, 10, 90, 20, 95, 30, 97, 99]))
    assert _soon(index, used, range(1, 8), 0, 1e9) == 7, "whatever waits"
    assert _soon(index, used, range(1, 8), 0, 150_000) == 5, "the last two would wait 97 samples each"
    assert _soon(index, used, range(1, 8), 0, 0) == 5
    assert _soon(index, used, [], 0, 0) == 0
