"""The checkpoint bench: its figures are those of the files written, and it starts nothing that does not fit."""

from __future__ import annotations

import json

import pytest

from jobs import cli
from jobs.bench import checkpoint
from shards import store
from xtra.model import SIZES, build
from xtra.optim import OptimConfig, make_optimizer
from xtra.run.checkpoint import save


def test_bytes_are_those_of_a_checkpoint_and_nothing_is_left(tmp_path, capsys):
    out = str(tmp_path / "out")
    model = build(SIZES["tiny32"])
    theirs = store.join(out, "checkpoints", "000000000000", "COMMIT.json")  # a user's, or of a run that was killed
    save(out, 1, 0, model, make_optimizer(model, OptimConfig()), {})
    words = ["bench", "checkpoint", "--size", "tiny32", "--images", "1", "--rate", "5", "--out", out, "--json"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("tiny32: needs ")
    result = json.loads(said[-1])
    rows = {row["what"]: row for row in result["rows"] if "what" in row}
    parameters = result["rows"][0]["parameters"]
    assert rows["copy"]["bytes"] >= 12 * parameters
    assert rows["model.safetensors"]["bytes"] == pytest.approx(4 * parameters, rel=0.1)
    assert rows["optim.safetensors"]["bytes"] == pytest.approx(8 * parameters, rel=0.1)
    shares = {"waiting_share_measured", "contended_share_measured", "waiting_share_given"}
    loads = {f"load{where}_s{which}" for where in ("", "_from_disk") for which in ("", "_least", "_most")}
    assert result["ratios"].keys() == shares | loads
    copies = [row["seconds"] for row in result["rows"] if row.get("what") == "copy"]
    assert result["ratios"]["waiting_share_given"] == pytest.approx(sum(copies) / 2 / 200_000, rel=1e-3)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoints"]
    assert store.exists(theirs)


def test_for_loading_alone_there_is_no_copy_and_each_load_is_a_row(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(checkpoint, "_drop", dropped.append)
    loaded = []
    real = checkpoint.checkpoint.load

    def load(folder, model, optimizer):
        assert not optimizer.state
        loaded.append(len(dropped))
        real(folder, model, optimizer)
        assert len(optimizer.state) == len(list(model.parameters()))

    monkeypatch.setattr(checkpoint.checkpoint, "load", load)
    config = checkpoint.Config(size="tiny32", images=0, rounds=0, loads=2, out=str(tmp_path))
    found = checkpoint.run(config)
    what = [row["what"] for row in found["rows"] if "what" in row]
    assert [name for name in what if "load" in name] == ["load", "load, from disk"] * 2
    assert not [name for name in what if "copy" in name or "rate" in name]
    assert loaded == [0, 3, 3, 6]  # model, optimiser and state, each time from the disk
    assert found["ratios"]["load_s_least"] <= found["ratios"]["load_s"] <= found["ratios"]["load_s_most"]


def test_writing_that_takes_longer_than_the_interval_is_waited_for():
    rows = [{"what": "copy", "seconds": 1.0}, {"what": "write, hash, put", "seconds": 12.0, "cpu_seconds": 0.0}]
    assert checkpoint.shares(rows, every=100, rate=10.0)["waiting"] == pytest.approx(3 / 13)
    assert checkpoint.shares(rows, every=1000, rate=10.0)["waiting"] == pytest.approx(1 / 101)


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: 20_000_000_000)
    monkeypatch.setattr(checkpoint, "build", None)
    with pytest.raises(
        ValueError, match=r"size h14 needs 21\.\d+ GB of memory, but 20\.000 GB are free: take a smaller"
    ):
        checkpoint.run(checkpoint.Config(size="h14", out=store.join(str(tmp_path), "x")))
    monkeypatch.setattr(checkpoint, "build", lambda *_: (_ for _ in ()).throw(KeyError("begun")))
    with pytest.raises(KeyError, match="begun"):  # half of it suffices for loading alone
        checkpoint.run(checkpoint.Config(size="h14", images=0, rounds=0, out=store.join(str(tmp_path), "x")))
    with pytest.raises(ValueError, match="size is 'b15'; it must be one of tiny32"):
        checkpoint.Config(size="b15")
    with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
        checkpoint.Config(every=0)
