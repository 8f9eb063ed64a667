from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file

import xtra
from shards import store
from xtra.blocks import target_blocks
from xtra.loss import next_block_loss
from xtra.model import SIZES, Xtra, build
from xtra.run import checkpoint
from xtra.run.tensor_files import safetensors_bytes, save_tensors

CONFIG = replace(SIZES["tiny32"], predict=2)
STATE = {"cursor": {"manifest": "abc123", "order": {"seed": 0}, "samples_seen": 128}, "note": "kept"}


def optimizer_of(model: Xtra) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def train(model: Xtra, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        next_block_loss(model(x), target_blocks(x, model.config.side)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def run(tmp_path: Path) -> str:
    store.put_json(store.join(str(tmp_path), "config.json"), {"model": asdict(CONFIG), "seed": 0})
    return str(tmp_path)


@pytest.fixture
def trained(run: str) -> tuple[str, Xtra, torch.optim.Optimizer]:
    model = build(CONFIG, 0)
    optimizer = optimizer_of(model)
    train(model, optimizer, 2)
    assert checkpoint.save(run, 3, 128, model, optimizer, STATE)
    return run, model, optimizer


def test_training_goes_on_after_a_load_as_if_nothing_had_happened(trained):
    run, model, optimizer = trained
    other = build(CONFIG, seed=9)
    resumed = optimizer_of(other)
    url = checkpoint.latest(run)
    assert url is not None
    assert checkpoint.load(url, other, resumed) == STATE
    train(model, optimizer, 2, first=2)
    train(other, resumed, 2, first=2)
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        assert torch.equal(p, q), name


def test_the_folder_is_the_one_of_the_design_and_holds_no_pickle(trained):
    run, model, _ = trained
    folder = Path(run, "checkpoints", "000000000128")
    commit = json.loads((folder / "COMMIT.json").read_text())
    assert commit["attempt"] == 3
    assert commit["samples_seen"] == 128
    assert commit["manifest"] == "abc123"
    names = {"000003/model.safetensors", "000003/optim.safetensors", "000003/state.json"}
    assert commit["files"].keys() == names
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert on_disk == {*names, "COMMIT.json"}
    for name, promise in commit["files"].items():
        assert (folder / name).stat().st_size == promise["bytes"]
    assert load_file(folder / "000003/model.safetensors").keys() == dict(model.named_parameters()).keys()
    optim = load_file(folder / "000003/optim.safetensors")
    assert optim.keys() == {f"{n}/{k}" for n, _ in model.named_parameters() for k in ("step", "exp_avg", "exp_avg_sq")}


def test_a_snapshot_takes_the_memory_of_an_earlier_one_and_is_no_view_of_the_model():
    model = build(CONFIG, 0)
    optimizer = optimizer_of(model)
    empty = checkpoint.snapshot(model, optimizer, STATE, copy=True)  # before the first step: no moments yet
    train(model, optimizer, 1)
    first = checkpoint.snapshot(model, optimizer, STATE, copy=True, into=empty)
    places = {name: t.data_ptr() for name, t in (*first.weights.items(), *first.optim.items())}
    train(model, optimizer, 1)
    second = checkpoint.snapshot(model, optimizer, STATE, copy=True, into=first)
    assert {name: t.data_ptr() for name, t in (*second.weights.items(), *second.optim.items())} == places
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1)
    assert all(torch.equal(second.weights[name], p) for name, p in before.items())
    assert set(map(float, (t for name, t in second.optim.items() if name.endswith("/step")))) == {2.0}


def test_tensors_are_written_as_the_library_reads_them(tmp_path):
    tensors = {"odd": torch.randn(3).bfloat16(), "step": torch.tensor(7.0), "none": torch.zeros(0, 4)}
    tensors |= {"double": torch.randn(2, 5).double(), "half": torch.randn(5).half(), "a/b": torch.randn(4, 2)}
    (tmp_path / "x").write_bytes(b"".join(safetensors_bytes(tensors)))
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, t in tensors.items():
        assert torch.equal(found[name], t), name
        assert found[name].dtype == t.dtype, name


def test_a_folder_that_cannot_be_written_is_named(run):
    Path(run, "checkpoints").write_text("in the way")
    model = build(CONFIG, 0)
    with pytest.raises(store.StoreError, match=r"000000000064.*cannot be written \(Not a directory\)"):
        checkpoint.save(run, 1, 64, model, optimizer_of(model), STATE)


def test_the_first_commit_wins_and_is_never_touched_again(trained):
    run, model, optimizer = trained
    before = {p: p.read_bytes() for p in Path(run, "checkpoints").rglob("*") if p.is_file()}
    train(model, optimizer, 1)
    assert not checkpoint.save(run, 4, 128, model, optimizer, STATE)
    assert checkpoint.save(run, 3, 128, model, optimizer, STATE)
    assert {p: p.read_bytes() for p in Path(run, "checkpoints").rglob("*") if p.is_file()} == before


def test_a_slower_attempt_loses_the_commit_and_the_winner_loads(run, monkeypatch):
    model = build(CONFIG, 0)
    rival = build(CONFIG, 1)
    real = checkpoint.store.put_json_if_absent

    def rival_first(url, value):
        monkeypatch.setattr(checkpoint.store, "put_json_if_absent", real)
        assert checkpoint.save(run, 2, 64, rival, optimizer_of(rival), STATE)
        return real(url, value)

    monkeypatch.setattr(checkpoint.store, "put_json_if_absent", rival_first)
    assert not checkpoint.save(run, 1, 64, model, optimizer_of(model), STATE)
    checkpoint.load(checkpoint.checkpoint_folder(run, 64), model)
    assert torch.equal(model.bridge.fc1.weight, rival.bridge.fc1.weight)


def test_latest_passes_over_what_was_never_committed(trained):
    run, model, optimizer = trained
    checkpoint.save(run, 3, 256, model, optimizer, STATE)
    store.put(store.join(run, "checkpoints", "000000000512", "000004", "model.safetensors"), b"half")
    assert checkpoint.latest(run) == checkpoint.checkpoint_folder(run, 256)
    assert checkpoint.committed(run) == [128, 256]
    assert checkpoint.latest(run + "/nothing") is None
    with pytest.raises(store.Missing, match="000000000512"):
        checkpoint.load(checkpoint.checkpoint_folder(run, 512), model)


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named_and_nothing_is_loaded(trained, name, damage):
    run, _, _ = trained
    file = Path(run, "checkpoints", "000000000128", "000003", name)
    body = bytearray(file.read_bytes())
    body[-2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(body if damage == "flip" else body[:-1])
    other = build(CONFIG, 5)
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    words = {"flip": "sha256 is", "cut": "bytes is", "gone": "missing"}[damage]
    with pytest.raises(ValueError, match=f"000003/{name}.*{words}"):
        checkpoint.load(checkpoint.checkpoint_folder(run, 128), other, optimizer_of(other))
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_the_first_tensor_that_does_not_fit_is_named_with_both_shapes(trained):
    run, _, _ = trained
    url = checkpoint.checkpoint_folder(run, 128)
    wider = build(replace(CONFIG, bridge=96), 0)
    with pytest.raises(ValueError, match=r"bridge\.fc1\.weight \[96, 64\], the file \[128, 64\]"):
        checkpoint.load(url, wider)
    deeper = build(replace(CONFIG, depth=3), 0)
    with pytest.raises(ValueError, match=r"has encoder\.blocks\.2\.norm1\.weight \[64\], the file does not"):
        checkpoint.load(url, deeper)
    with pytest.raises(ValueError, match=r"has no heads\.1\.fc1\.weight, the file has it \[128, 256\]"):
        checkpoint.load(url, build(replace(CONFIG, predict=1), 0))


def test_a_checkpoint_from_before_the_first_step_loads_an_empty_optimiser(run):
    model = build(CONFIG, 0)
    checkpoint.save(run, 1, 0, model, optimizer_of(model), STATE)
    other = build(CONFIG, 1)
    optimizer = optimizer_of(other)
    checkpoint.load(checkpoint.checkpoint_folder(run, 0), other, optimizer)
    assert not optimizer.state
    train(model, optimizer_of(model), 1)
    train(other, optimizer, 1)
    assert torch.equal(model.bridge.fc1.weight, other.bridge.fc1.weight)


def test_names_are_those_outside_ddp_and_compile_wrappers():
    def wrap(inner: torch.nn.Module, name: str) -> torch.nn.Module:
        outer = torch.nn.Module()
        outer.add_module(name, inner)
        return outer

    model = build(CONFIG, 0)
    plain = list(checkpoint.parameters(model))
    model.encoder.blocks[1] = wrap(model.encoder.blocks[1], "_orig_mod")
    wrapped = wrap(wrap(model, "_orig_mod"), "module")
    assert next(iter(wrapped.state_dict())) == "module._orig_mod.encoder.pos_embed"
    assert list(checkpoint.parameters(wrapped)) == plain


def test_load_gives_the_encoder_of_a_run_or_of_a_checkpoint(trained):
    run, model, _ = trained
    x = torch.randn(2, 3, 32, 32)
    expected = model.encoder(x)
    for path in (run, checkpoint.checkpoint_folder(run, 128)):
        encoder = xtra.load(path)
        assert not encoder.training
        assert torch.equal(encoder(x), expected)
    with pytest.raises(ValueError, match="no committed checkpoint"):
        xtra.load(run + "/probes")


def test_load_says_which_config_is_at_fault(trained):
    run, _, _ = trained
    store.put_json(store.join(run, "config.json"), {"model": {**asdict(CONFIG), "width": 128}})
    with pytest.raises(ValueError, match=r"pos_embed \[1, 64, 128\], the file \[1, 64, 64\]"):
        xtra.load(run)
    store.put_json(store.join(run, "config.json"), {"seed": 0})
    with pytest.raises(ValueError, match=r"config\.json: .*missing required field model"):
        xtra.load(run)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, xtra; assert callable(xtra.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=str(ROOT)).returncode == 0


def test_prune_keeps_the_newest_and_removes_older_ones(trained):
    run, model, optimizer = trained
    for samples in (256, 384, 512):
        checkpoint.save(run, 3, samples, model, optimizer, STATE)
    store.put(store.join(run, "checkpoints", "000000000200", "000001", "model.safetensors"), b"left by a dead attempt")
    Path(run, "checkpoints", "000000000200", "000001", ".aside-x").write_bytes(b"killed while it was written")
    store.put(store.join(run, "checkpoints", "000000000640", "000003", "model.safetensors"), b"being written")
    assert checkpoint.prune(run, keep=2) == [128, 256]
    assert checkpoint.committed(run) == [384, 512]
    files = [p for p in Path(run, "checkpoints").rglob("*") if p.is_file()]
    assert {p.relative_to(Path(run, "checkpoints")).parts[0] for p in files} == {
        "000000000384",
        "000000000512",
        "000000000640",
    }
    checkpoint.load(checkpoint.checkpoint_folder(run, 384), model, optimizer)
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.prune(run, keep=0)
    assert checkpoint.prune(run + "/nothing", keep=1) == []


def test_prune_takes_the_commit_first(trained, monkeypatch):
    run, model, optimizer = trained
    checkpoint.save(run, 3, 256, model, optimizer, STATE)
    deleted = []
    monkeypatch.setattr(checkpoint.store, "delete", lambda url: deleted.append(url.rsplit("/", 1)[1]))
    checkpoint.prune(run, keep=1)
    assert deleted == ["COMMIT.json", "model.safetensors", "optim.safetensors", "state.json"]


def test_every_store_holds_checkpoints(base):
    store.put_json(store.join(base, "config.json"), {"model": asdict(CONFIG)})
    model = build(CONFIG, 0)
    optimizer = optimizer_of(model)
    assert checkpoint.latest(base) is None
    for samples in (64, 128):
        train(model, optimizer, 1)
        assert checkpoint.save(base, 1, samples, model, optimizer, STATE)
    assert not checkpoint.save(base, 2, 128, model, optimizer, STATE)
    other = build(CONFIG, 1)
    url = checkpoint.latest(base)
    assert url == checkpoint.checkpoint_folder(base, 128)
    assert checkpoint.load(url, other, optimizer_of(other)) == STATE
    assert torch.equal(other.bridge.fc1.weight, model.bridge.fc1.weight)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(xtra.load(base)(x), model.encoder(x))
    assert checkpoint.prune(base, keep=1) == [64]
    assert checkpoint.committed(base) == [128]
    weights = store.join(url, "000001", "model.safetensors")
    store.put(weights, store.read(weights)[:-1])
    with pytest.raises(ValueError, match=r"000001/model\.safetensors: bytes is"):
        checkpoint.load(url, other)
    store.delete(weights)
    with pytest.raises(store.Missing, match=r"model\.safetensors"):
        checkpoint.load(url, other)


def test_what_the_disk_refuses_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError, match="none/part"):
        save_tensors(tmp_path / "none" / "part", {"a": torch.zeros(2)})
