"""`xtra bench stream` on little data, with a stand-in for the peers: what is read, compared and refused."""

import json
import subprocess
import sys

import pytest

from jobs.bench import bucket, stream, stream_data, stream_ours
from jobs.bench.peers import environments, stream as stream_peers
from shards import check, store_remote
from shards.manifest import read_manifest

STANDIN = """#!{python}
import importlib.util, json, sys
from glob import glob
found = importlib.util.spec_from_file_location("stream_peers", {path!r})
stream_peers = importlib.util.module_from_spec(found)
found.loader.exec_module(stream_peers)
stream_peers.prepare = lambda who: None
stream_peers.READERS = dict.fromkeys(stream_peers.READERS, lambda spec: bodies(spec))
stream_peers.hf = lambda spec: stream_peers.batches(bodies(spec), spec["batch"])
def bodies(spec):
    tars = spec.get("tars") or sorted(glob({tars!r}))
    while True:
        for sample in stream_peers._samples(tars):
            yield sample["jpg"]
if json.loads(sys.argv[-1])["verb"] == "write":
    print("{{}}")
else:
    stream_peers.main()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pictures = [b"\xff\xd8\xff\xd9" + bytes([k]) * (3000 + 400 * k) for k in range(5)]
    return stream_data.written(tmp_path_factory.mktemp("root") / "bench" / "ours", 70, pictures, unit=30)


def spec(made, **more):
    return {"batch": 16, "largest": made.largest, "images": made.images, "passes": 1, "data": str(made.folder)} | more


def test_the_dataset_is_sound_and_any_webdataset_reader_reads_it(made):
    assert len(made.tars) == 3
    assert not check.run(check.Config(str(made.folder))).problems
    tars = [str(made.folder / "shards" / name) for name in made.tars]
    words = json.dumps(spec(made, verb="read", who="webdataset", tars=tars))
    command = [sys.executable, "-P", "-W", "ignore", stream_peers.__file__, words]
    done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    assert done["images"] in range(70 - 16, 70 + 16)


def test_our_reader_reads_every_sample_as_often_as_asked(made):
    done = stream_ours.read(spec(made, passes=2))
    assert done["images"] in range(140 - 16, 140 + 16)  # from a batch's end to a batch's end
    assert done["bytes"] / done["images"] == pytest.approx(made.bytes / 70, rel=0.1)
    assert done["cpu"] > 0


def test_whoever_reads_a_sample_twice_or_never_is_found(made):
    bodies = [stream_data.body_of([bytes(4000)], f"{k:08d}") for k in range(70)]
    right = stream_peers.drain(lambda: stream_peers.batches(bodies * 3, 16), spec(made))
    assert right["images"] == 64
    for wrong in ([*bodies[:-1], bodies[0]], [*bodies[:-1], bodies[0][:6] + b"00000099" + bodies[0][14:]]):
        with pytest.raises(AssertionError, match=r"samples were read|never written"):
            stream_peers.drain(lambda wrong=wrong: stream_peers.batches(wrong * 3, 16), spec(made))
    with pytest.raises(AssertionError, match="ended after 70"):
        stream_peers.drain(lambda: stream_peers.batches(bodies, 16), spec(made))


def test_a_wide_set_is_read_like_a_real_one(tmp_path):
    made = stream_data.cloned(tmp_path / "bench" / "wide", shards=5, links=40)
    manifest = read_manifest(f"{made.folder}@{(made.folder / 'address').read_text()}")
    assert (manifest.samples, len(manifest.shards), made.images) == (200, 5, 200)
    with bucket.serving(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables().items():
            patch.setenv(name, value)
        patch.setattr(store_remote, "_filesystems", {})  # this process may know another store by now
        address = f"s3://bench/wide@{manifest.digest[:16]}"
        asked = {"data": address, "batch": 40, "largest": made.largest, "images": 200}
        assert stream_ours.first(asked)["bytes"] > 40 * 20_000
        done = stream_ours.epochs(asked | {"passes": 2})
    assert done["bytes"] == 2 * made.bytes
    assert len(done["resident"]) == 2


def test_a_run_gives_rows_and_ratios(tmp_path, monkeypatch):
    script = tmp_path / "python"
    tars = str(tmp_path / "xtra-bench-*" / "bench" / "ours" / "shards" / "*.tar")
    script.write_text(STANDIN.format(python=sys.executable, path=stream_peers.__file__, tars=tars))
    script.chmod(0o755)
    monkeypatch.setattr(environments, "build", lambda _peer: script)
    monkeypatch.setattr(stream_data, "pool", lambda _data: [bytes(5000)])
    done = stream.run(stream.Config(only=("local",), images=40, rounds=1, passes=1, scratch=str(tmp_path)))
    rows = {row["reader"]: row for row in json.loads(json.dumps(done))["rows"]}
    assert set(rows) == set(stream.READERS)
    ratio = rows["ours"]["cpu_us"] / rows["webdataset"]["cpu_us"]
    assert done["ratios"]["local_cpu_vs_webdataset"] == pytest.approx(ratio)
    assert not list(tmp_path.glob("xtra-bench-*"))


def test_whole_epochs_are_counted_in_uneven_batches_and_in_a_mixture_too(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "WORLDS", (1, 2))
    monkeypatch.setattr(stream, "LINKS", 48)
    asked = []

    def here(_bench, _who, spec, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        asked.append(spec)
        return stream_ours.epochs(spec)

    monkeypatch.setattr(stream.Bench, "client", here)
    monkeypatch.setattr(store_remote, "_filesystems", {})
    rows, ratios = stream._epochs(stream.Bench(stream.Config(epoch_images=192, batch=32), tmp_path))
    assert [(row["what"], row["world"], row["batch"]) for row in rows] == [
        *(("epoch", 1, 32), ("epoch", 2, 32), ("uneven", 2, 26), ("mixture", 2, 32))
    ]
    assert (rows[0]["images"], rows[3]["images"]) == (192, 240)
    assert sum("mix" in spec for spec in asked) == 2
    assert all(ratio >= 1 for name, ratio in ratios.items() if name.startswith("read_ratio"))
    assert {"read_ratio_w1", "read_ratio_uneven_w2", "read_ratio_mixture_w2"} < set(ratios)
    assert ratios["rank_memory_mb"] == rows[0]["peak_rss_mb"]


def test_a_waiting_consumer_is_measured(made):
    done = stream_ours.wait(spec(made, share=0.8, turns=2, count=200))
    assert 0 <= done["wait"] < 1
    assert len(done["waits"]) == 2
    assert 0 < done["taken"] < done["rate"]


def test_mixing_needs_no_data(tmp_path):
    rows, ratios = stream.mixing(stream.Bench(stream.Config(), tmp_path))
    assert ratios["mixing"] == pytest.approx(rows[0]["distinct"] / rows[0]["random"])
    assert ratios["mixing"] >= 0.6


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="only has 'lokal': give some of local, s3, delayed, mixing, wait"):
        stream.Config(only=("lokal",))
    with pytest.raises(ValueError, match="rounds is 0"):
        stream.Config(rounds=0)
