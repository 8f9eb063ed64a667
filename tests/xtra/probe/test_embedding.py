"""The vectors of a dataset: what probes' heads see, in parts of which a kill or a stop costs one at most."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import buckets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from colour_sets import labelled_set
from places import ROOT

import shards
import xtra
from jobs import cli, probe_verb
from shards import store
from xtra.data import centred, normalise
from xtra.model import SIZES, build
from xtra.official.weights import to_official
from xtra.probe import embedding

SMALL = {"rows": 20, "encode_batch": 10}  # 61 images: parts of 20, 20, 20 and 1


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(world: dict[str, Any], layers: int) -> torch.Tensor:
    """[61, N, D] of the centre crops, by the encoder itself."""
    found = shards.open(world["eval"].dataset)
    pixels = torch.from_numpy(np.stack([centred(sample.body, 16, 16) for sample in found]))
    with torch.no_grad():
        streams = world["model"].encoder.eval().layers(normalise(pixels), layers)
    return torch.stack(streams).mean(0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_vectors_are_the_encoders_for_every_key(world, tmp_path, layers, pooling):
    out = tmp_path / "vectors"
    made = xtra.embed(world["run"], world["eval"].dataset, out, layers=layers, pooling=pooling, progress=False, **SMALL)
    table = pq.read_table(out)
    x_BND = expected(world, layers)
    wanted = x_BND.mean(1) if pooling == "mean" else x_BND.flatten(1)
    torch.testing.assert_close(torch.from_numpy(np.stack(table["vector"].to_numpy())), wanted, rtol=1e-5, atol=1e-5)
    found = list(shards.open(world["eval"].dataset))
    assert table["key"].to_pylist() == [sample.key for sample in found]
    assert table["label"].to_pylist() == [sample.label for sample in found]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), wanted.shape[1])
    assert (made.samples, made.done, made.found, made.parts, made.vector) == (61, 61, 0, 4, wanted.shape[1])
    assert not made.stopped


def test_an_encoder_in_memory_gives_the_same_and_stays_as_it_is(world, tmp_path):
    encoder = xtra.load(world["run"]).train()
    xtra.embed(encoder, shards.open(world["eval"].dataset), tmp_path / "a", progress=False)
    assert encoder.training
    assert all(p.requires_grad for p in encoder.parameters())
    again = xtra.embed(world["run"], world["eval"].dataset, tmp_path / "a", progress=False)  # the same weights
    assert again.found == 61


def test_an_official_checkpoint_is_an_encoder_too(world, tmp_path):
    official = tmp_path / "model.ckpt"
    ours = {name: p.detach() for name, p in build(SIZES["tiny32"], 1).named_parameters()}
    torch.save({"state_dict": dict(to_official(ours, SIZES["tiny32"]))}, official)
    encoder, data = xtra.load(official), world["eval"].dataset
    xtra.embed(official, data, tmp_path / "a", progress=False)
    xtra.embed(encoder, data, tmp_path / "b", progress=False)
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


@pytest.mark.usefixtures("on_moto")
def test_in_a_bucket_the_parts_are_the_same(world, tmp_path):
    bucket = buckets.bucket()
    config = embedding.Config(world["run"], world["eval"].dataset, f"{bucket}/vectors", **SMALL)
    assert embedding.run(config).done == 61
    embedding.run(dataclasses.replace(config, out=str(tmp_path / "out")))
    store.delete(f"{bucket}/vectors/part-000002.parquet")
    assert embedding.run(config).found == 41
    there = {name: store.read(f"{bucket}/vectors/{name}") for name in store.names(f"{bucket}/vectors")}
    assert there == files(tmp_path / "out")


def test_a_lost_part_is_made_again_and_the_others_are_left(world, tmp_path):
    xtra.embed(world["run"], world["eval"].dataset, tmp_path / "out", progress=False, **SMALL)
    whole = files(tmp_path / "out")
    assert sorted(whole) == ["_embedding.json", *(f"part-00000{n}.parquet" for n in range(4))]
    for lost in (["part-000001.parquet"], ["part-000000.parquet", "part-000003.parquet"]):
        for name in lost:
            (tmp_path / "out" / name).unlink()
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
        xtra.embed(world["run"], world["eval"].dataset, tmp_path / "out", progress=False, **SMALL)
        assert files(tmp_path / "out") == whole
        assert all(path.stat().st_mtime_ns == at for path, at in kept.items())


KILLED = """
import os, sys
from xtra.probe import embedding
run, data, out, at = sys.argv[1:]
def show(done, total):
    if done >= int(at):
        os._exit(9)
embedding.run(embedding.Config(run, data, out, rows=20, encode_batch=10), show)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [10, 30, 40, 50])
def test_killed_in_the_middle_it_loses_one_part_at_most_and_goes_on_to_the_same(world, tmp_path, at):
    words = [sys.executable, "-c", KILLED, world["run"], world["eval"].dataset, str(tmp_path / "out"), str(at)]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == 9
    assert sum(name.startswith("part") for name in files(tmp_path / "out")) == at // 20
    said: list[int] = []
    config = embedding.Config(world["run"], world["eval"].dataset, str(tmp_path / "out"), **SMALL)
    made = embedding.run(config, lambda done, total: said.append(done))
    assert said[0] == made.found == at // 20 * 20
    embedding.run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_stopped_it_ends_after_a_batch_and_drops_the_part_in_hand(world, tmp_path):
    said: list[int] = []
    config = embedding.Config(world["run"], world["eval"].dataset, str(tmp_path / "out"), **SMALL)
    made = embedding.run(config, lambda done, total: said.append(done), lambda: said[-1] >= 30)
    assert said == [0, 10, 20, 30]
    assert (made.done, made.parts, made.stopped) == (20, 1, True)


def test_half_written_parts_of_the_killed_are_no_parts(world, tmp_path):
    config = embedding.Config(world["run"], world["eval"].dataset, str(tmp_path / "out"), **SMALL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".aside-1").write_bytes(b"PAR1")
    assert embedding.run(config).done == 61
    assert len(pq.read_table(tmp_path / "out")) == 61


def test_what_the_killed_left_in_an_abandoned_folder_is_swept(world, tmp_path):
    embedding.run(embedding.Config(world["run"], world["eval"].dataset, str(tmp_path / "out"), **SMALL))
    whole = files(tmp_path / "out")
    for name in (".aside-x", ".probe-1-2"):
        (tmp_path / "out" / name).write_bytes(b"half")
        os.utime(tmp_path / "out" / name, (1, 1))
    assert cli.main(["sweep", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == whole


def test_a_folder_of_something_else_or_of_other_vectors_is_refused(world, tmp_path):
    out = str(tmp_path / "out")
    data = world["eval"].dataset
    xtra.embed(world["run"], data, out, progress=False, **SMALL)
    whole = files(tmp_path / "out")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layers": 2}, "contains vectors whose layers is 1, not 2"),
        ({"rows": 40}, "contains vectors whose rows is 20, not 40"),
        ({"dtype": "float16"}, "contains vectors whose dtype is float32, not float16"),
        ({"encoder": "random"}, "contains vectors whose fingerprint is"),
        ({"layers": 9}, "layers is 9; the trained encoder has 1..3"),
        ({"pooling": "max"}, "pooling is 'max': it must be one of mean, none"),
        ({"encode_batch": 7}, "rows is 20; it must be a multiple of encode_batch, which is 7"),
        ({"device": "toaster"}, "device is toaster"),
        ({"polling": "mean"}, "polling is not a setting; did you mean pooling?"),
    ]
    for changes, said in cases:
        with pytest.raises(ValueError) as error:
            xtra.embed(world["run"], data, out, progress=False, **SMALL | changes)
        assert said in str(error.value)
    for other, to, said in [
        (world["train"].dataset, out, "contains vectors whose manifest is"),
        (data, world["run"], "contains checkpoints and no vectors"),
        (data, data, "contains commits and no vectors"),
    ]:
        with pytest.raises(ValueError, match=said):
            xtra.embed(world["run"], other, to, progress=False)
    assert files(tmp_path / "out") == whole
    assert store.names(world["run"]) == ["checkpoints", "config.json"]


def test_half_precision_and_samples_without_label(world, tmp_path):
    plain = labelled_set(tmp_path / "set", "plain", [[], ["red", "blue"], ["green"]])
    xtra.embed(world["run"], plain.dataset, tmp_path / "out", progress=False, dtype="float16")
    table = pq.read_table(tmp_path / "out")
    assert table["label"].to_pylist() == [None, "red", "green"]
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 32)


def test_the_verb_says_what_it_made_and_where_it_goes_on(world, tmp_path, capsys):
    words = ["embed", world["run"], "--data", world["eval"].dataset, "--out", str(tmp_path / "out"), "--json"]
    words += ["--rows", "20", "--encode-batch", "10"]
    assert cli.main(words) == 0
    first = capsys.readouterr()
    assert "61 of 61 vectors of 32 numbers" in first.out
    assert "going on" not in first.err
    assert json.loads(first.out.splitlines()[-1])["parts"] == 4
    (tmp_path / "out" / "part-000002.parquet").unlink()
    assert cli.main(words) == 0
    assert "xtra embed: going on at 41 of 61" in capsys.readouterr().err
    assert cli.main(["embed", "--data", world["eval"].dataset, "--out", str(tmp_path / "b")]) == 2
    assert cli.main(["embed", world["run"], "--data", "a"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("xtra embed: RUN is missing")
    assert said[1].startswith("xtra embed: --out must be given")


@pytest.mark.parametrize("at", [10, 20, 50])
def test_ctrl_c_ends_the_verb_after_a_batch_and_the_same_words_go_on(world, tmp_path, monkeypatch, capsys, at):
    shown = probe_verb.Progress.__call__

    def interrupted(self: Any, done: int, total: int) -> None:
        shown(self, done, total)
        if done == at:
            signal.raise_signal(signal.SIGINT)

    words = ["embed", world["run"], "--data", world["eval"].dataset, "--rows", "20", "--encode-batch", "10", "--out"]
    with monkeypatch.context() as patched:
        patched.setattr(probe_verb.Progress, "__call__", interrupted)
        assert cli.main([*words, str(tmp_path / "out")]) == 130
    assert f"{at // 20 * 20} of 61 vectors" in capsys.readouterr().out
    assert cli.main([*words, str(tmp_path / "out")]) == cli.main([*words, str(tmp_path / "whole")]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
