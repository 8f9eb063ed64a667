"""Official checkpoints: files made here in their exact layouts, read without running them, and laid out back."""

from __future__ import annotations

import collections
import pickle
import re
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import xtra
from jobs import cli
from shards import store
from xtra.model import SIZES, Xtra, build
from xtra.official import export, unpickle, weights as official
from xtra.official.weights import from_official, official_name, to_official
from xtra.run import checkpoint

CONFIG = replace(SIZES["tiny32"], predict=2)


@pytest.fixture
def model() -> Xtra:
    return build(CONFIG, 0)


def state_of(model: Xtra) -> collections.OrderedDict[str, torch.Tensor]:
    ours = {name: p.detach() for name, p in model.named_parameters()}
    return collections.OrderedDict(to_official(ours, model.config))


def foreign(name: str) -> type:
    """A class of a module that exists while a checkpoint is written only, as Lightning's callbacks for our readers."""
    module = sys.modules.setdefault("official_callbacks", types.ModuleType("official_callbacks"))
    made = type(name, (), {"__module__": "official_callbacks", "__init__": lambda self: setattr(self, "best", 0.1)})
    setattr(module, name, made)
    return made


@pytest.fixture
def lightning(model: Xtra, tmp_path: Path) -> Path:
    """As Lightning writes it: state_dict, optimiser, callbacks, hyper-parameters of foreign classes."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    model.zero_grad()
    content = {
        "epoch": 799,
        "global_step": 490_400,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state_of(model),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-3]}],
        "callbacks": {"ModelCheckpoint": foreign("ModelCheckpoint")()},
        "hyper_parameters": {"args": foreign("Namespace")()},
    }
    torch.save(content, tmp_path / "last.ckpt")
    del sys.modules["official_callbacks"]
    return tmp_path / "last.ckpt"


@pytest.fixture
def deepspeed(model: Xtra, tmp_path: Path) -> Path:
    """As DeepSpeed stage 0 under Lightning writes it: a folder, half-precision weights next to float32 masters."""
    folder = tmp_path / "epoch=99-step=629900.ckpt" / "checkpoint"
    folder.mkdir(parents=True)
    module = {f"_forward_module.{name}": w.half() for name, w in state_of(model).items()}
    content = {"module": module, "optimizer": {"fp32_groups_flat": [torch.zeros(1000)]}, "global_steps": 629_900}
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder.parent / "latest").write_text("checkpoint")
    return folder.parent


# ---- names and layouts ----


def test_official_weights_make_a_round_trip_to_the_bit():
    ours = {name: torch.randn_like(p) for name, p in build(CONFIG, 0).named_parameters()}
    official = to_official(ours, CONFIG)
    again = from_official(official, CONFIG)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], p) for name, p in ours.items())
    back = to_official(again, CONFIG)
    assert all(torch.equal(back[name], w) for name, w in official.items())


def test_official_layouts_are_raster_and_feature_major():
    ours = {name: p.detach() for name, p in build(CONFIG, 0).named_parameters()}
    official = to_official(ours, CONFIG)
    token, feature, width = 3, 17, CONFIG.dec_width  # token 3 of a block is its row 1, column 1
    mine = ours["heads.1.fc1.weight"][:, token * width + feature]
    assert torch.equal(official["aim_proj.1.mlp.0.weight"][:, feature * 4 + token], mine)
    raster = (2 * 1 + 1) * 8 + (2 * 2 + 1)  # that token of block 6 (row 1, column 2) on the 8 x 8 grid
    assert torch.equal(official["predictor.pos_embed"][0, raster], ours["decoder.pos_embed"][0, 6 * 4 + token])
    assert torch.equal(official["enc.blocks.1.attn.qkv.weight"], ours["encoder.blocks.1.attn.qkv.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "_forward_module.", "_orig_mod.", "_forward_module._orig_mod."])
def test_wrapper_prefixes_are_stripped(prefix):
    ours = {name: p.detach() for name, p in build(CONFIG, 0).named_parameters()}
    wrapped = {prefix + name: w for name, w in to_official(ours, CONFIG).items()}
    Xtra(CONFIG).load_state_dict(from_official(wrapped, CONFIG))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_forward_module", "module._orig_mod"])
@pytest.mark.parametrize("after", [r"^(enc)\.", r"^(enc\.blocks\.\d+)\.", r"^(predictor)\.", r"(mlp)\."])
def test_wrappers_of_parts_are_left_out(tmp_path, wrapper, after):
    ours = {name: p.detach() for name, p in build(CONFIG, 0).named_parameters()}
    theirs = to_official(ours, CONFIG)
    wrapped = {re.sub(after, rf"\1.{wrapper}.", name, count=1): w for name, w in theirs.items()}
    assert wrapped.keys() != theirs.keys()
    Xtra(CONFIG).load_state_dict(from_official(wrapped, CONFIG))
    torch.save({"state_dict": wrapped}, tmp_path / "x.ckpt")
    assert official.open_official(str(tmp_path / "x.ckpt")).tensors.keys() == theirs.keys()
    torch.save({"state_dict": theirs | {f"_orig_mod.{next(iter(theirs))}": torch.zeros(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="with and without a wrapper's prefix"):
        official.open_official(str(tmp_path / "x.ckpt"))


def test_an_import_reports_all_that_does_not_fit():
    official = to_official(dict(build(CONFIG, 0).named_parameters()), CONFIG)
    official["classifier.1.bias"] = torch.zeros(5)
    official["enc.pos_embed"] = torch.zeros(1, 16, 64)
    del official["proj.mlp.0.bias"], official["proj.mlp.2.weight"]
    with pytest.raises(ValueError) as error:
        from_official(official, CONFIG)
    text = str(error.value)
    assert "2 missing: proj.mlp.0.bias first" in text
    assert "1 unexpected: classifier.1.bias first" in text
    assert "1 of another shape: enc.pos_embed [1, 16, 64], not [1, 64, 64]" in text


@pytest.mark.parametrize(
    ("size", "some"),
    [
        ("b16", {"proj.mlp.2.weight": [768, 4096], "aim_proj.0.mlp.0.weight": [6144, 12288]}),
        ("h14", {"predictor.blocks.7.attn.qkv.weight": [1920, 640], "enc.patch_embed.proj.weight": [1280, 3, 14, 14]}),
    ],
)
def test_official_names_and_shapes_of_the_papers_models(size, some):
    with torch.device("meta"):
        shapes = {official_name(n): list(p.shape) for n, p in Xtra(SIZES[size]).named_parameters()}
    assert some.items() <= shapes.items()
    assert not any(name.startswith(("encoder", "decoder", "bridge", "heads")) for name in shapes)


# ---- files ----


def test_a_lightning_checkpoint_is_taken_whole_and_the_rest_is_listed(lightning, model):
    assert "official_callbacks" not in sys.modules
    found = official.read_official(str(lightning))
    assert (found.config, found.step, found.encoder_only) == (CONFIG, 490_400, False)
    for name, p in model.named_parameters():
        assert torch.equal(found.weights[name], p), name
    said = "\n".join(found.report)
    assert f"taken: {len(list(model.parameters()))} tensors" in said
    assert "float32" in said
    moments = 3 * len(list(model.parameters()))
    assert f"not taken: optimizer_states: {moments} tensors" in said
    assert "not taken: callbacks: no tensors" in said
    assert "not taken: class official_callbacks.ModelCheckpoint: not loaded" in said
    assert "assumed: 2 encoder and 2 decoder heads" in said


def test_a_deepspeed_folder_is_taken_from_its_module_weights(deepspeed, model):
    found = official.read_official(str(deepspeed))
    assert found.step == 629_900
    for name, p in model.named_parameters():
        assert torch.equal(found.weights[name], p.half().float()), name
    said = "\n".join(found.report)
    assert "float16, kept as float32" in said
    assert "not taken: optimizer: 1 tensors, 4 kB" in said
    assert "not taken: zero_pp_rank_0_mp_rank_00_optim_states.pt" in said
    nested = official.read_official(str(deepspeed / "checkpoint"))
    assert nested.weights.keys() == found.weights.keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"encoder": {f"module.{n.removeprefix('enc.')}": w for n, w in state.items()}},
        lambda state: {"state_dict": {**state, "classifier.1.weight": torch.zeros(5, 64)}},
        dict,
    ],
    ids=["stop", "probe", "bare"],
)
def test_files_with_the_encoder_alone_give_the_encoder(model, tmp_path, wrap):
    alone = {name: w for name, w in state_of(model).items() if name.startswith("enc.")}
    torch.save(wrap(alone), tmp_path / "encoder.pt")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(xtra.load(str(tmp_path / "encoder.pt"))(x), model.encoder(x))
    assert official.read_official(str(tmp_path / "encoder.pt")).encoder_only
    with pytest.raises(ValueError, match="contains only the encoder: use --to encoder"):
        export.run(export.Config(str(tmp_path / "encoder.pt"), str(tmp_path / "out"), to="run"))


def test_one_call_loads_the_encoder_of_an_official_checkpoint(lightning, deepspeed, model):
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(xtra.load(str(lightning))(x), model.encoder(x))
    assert xtra.load(str(deepspeed))(x).shape == (2, 64, 64)


def test_nothing_that_is_pickled_runs(tmp_path, model):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"state_dict": state_of(model), "trap": Trap()}, tmp_path / "trap.ckpt")
    found = official.read_official(str(tmp_path / "trap.ckpt"))
    assert any(".exec: not loaded" in line for line in found.report)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(pickle.UnpicklingError):  # torch's own guard refuses the whole file
        torch.load(tmp_path / "trap.ckpt", weights_only=True)


def test_tensors_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24, dtype=torch.float64).view(4, 6)
    made = {"view": base[1:, ::2], "half": base.half(), "empty": torch.zeros(0, 3), "whole": torch.tensor(7)}
    made |= {"parameter": torch.nn.Parameter(torch.ones(2).bfloat16()), "shared": base.t()}
    torch.save(made, tmp_path / "x.pt")
    found = unpickle.read(tmp_path / "x.pt").root
    for name, tensor in made.items():
        ours = found[name].read()
        assert torch.equal(ours, tensor.detach()), name
        assert ours.dtype == tensor.dtype


def test_import_export_import_keeps_every_bit(lightning, tmp_path):
    first = official.read_official(str(lightning))
    export.run(export.Config(str(lightning), str(tmp_path / "run"), to="run", samples_seen=1_023_955_200))
    result = export.run(export.Config(str(tmp_path / "run"), str(tmp_path / "back"), to="official"))
    assert result.files == ("xtra.ckpt",)
    again = official.read_official(str(tmp_path / "back" / "xtra.ckpt"))
    assert again.config == first.config
    assert again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[name], w) for name, w in first.weights.items())
    theirs = torch.load(lightning, weights_only=False, pickle_module=unpicklable())["state_dict"]
    ours = torch.load(tmp_path / "back" / "xtra.ckpt", weights_only=True)["state_dict"]
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], w) for name, w in theirs.items())


def unpicklable() -> types.ModuleType:
    """pickle for `torch.load`, with the fixtures' foreign classes there again."""
    for name in ("ModelCheckpoint", "Namespace"):
        foreign(name)
    return pickle


def test_an_imported_run_is_probed_and_listed_like_one_of_ours(lightning, model, tmp_path):
    from jobs.report.ledger import read_runs

    out = str(tmp_path / "run")
    result = export.run(export.Config(str(lightning), out, to="run", samples_seen=1000))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(xtra.load(out)(x), model.encoder(x))
    assert checkpoint.committed(out) == [1000]
    ledger = read_runs(out)
    assert ledger.problems == ()
    assert (ledger.rows[0].samples_seen, ledger.rows[0].recipe) == (1000, "official")
    assert any(line.startswith("not taken: optimizer_states") for line in result.report)
    assert store.read_json(store.join(out, "run.json"))["report"] == list(result.report)
    with pytest.raises(ValueError, match="is not empty"):
        export.run(export.Config(str(lightning), out, to="run"))


# ---- refusals ----


def damaged(path: Path, how: str) -> None:
    if how == "cut":
        torch.save({"state_dict": {"enc.x": torch.zeros(999)}}, path)
        path.write_bytes(path.read_bytes()[:-500])
    elif how == "page":
        path.write_text("\n <!DOCTYPE html><html><body>Sign in</body></html>" * 9)
    elif how == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "old":
        torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    elif how == "text":
        path.write_text("not a checkpoint")
    elif how == "list":
        torch.save([1, 2], path)
    elif how == "numbers":
        torch.save({"state_dict": {"epoch": 3}}, path)
    elif how == "other":
        torch.save({"state_dict": {"backbone.weight": torch.zeros(3)}}, path)
    elif how == "pickle":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", b"\x80\x02}q\x00(X")
    elif how == "packed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", pickle.dumps({}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", "is not a zip .*: it begins like one, but its end is missing: download it again"),
        ("page", "it is a web page"),
        ("pointer", "it is a Git LFS pointer"),
        ("empty", "it is empty"),
        ("old", "load it with the torch that wrote it and save it again"),
        ("text", "is not a zip"),
        ("list", "contains a list, not a dict"),
        ("numbers", "has no tensors under state_dict, module, encoder"),
        ("other", "its first is backbone.weight"),
        ("pickle", "data.pkl cannot be read"),
        ("packed", "data.pkl is compressed"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, how, words):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"\0" * 100)
    damaged(path, how)
    with pytest.raises(ValueError, match=words) as error:
        official.read_official(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.save({"x": torch.zeros(6)}, tmp_path / "x.pt")
    stored = unpickle.read(tmp_path / "x.pt").root["x"]
    with pytest.raises(ValueError, match=r"has 6 values, too few for \[7\]"):
        replace(stored, shape=(7,)).read()
    with pytest.raises(ValueError, match="too few"):
        replace(stored, offset=-1).read()
    with pytest.raises(ValueError, match="cannot be read"):
        replace(stored, storage=replace(stored.storage, member="x/data/9")).read()


def test_a_checkpoint_of_other_sizes_is_refused_by_name(lightning, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["export", str(lightning), "--out", out, "--size", "small32"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "of another shape: enc.pos_embed [1, 64, 64], not [1, 64, 128]" in err
    assert cli.main(["export", str(lightning), "--out", out, "--size", "b15"]) == 2
    assert "size is 'b15'; it must be one of tiny32, small32" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "none.ckpt"), "--out", out]) == 2
    assert "holds no committed checkpoint" in capsys.readouterr().err
    assert cli.main(["export", str(lightning), "--out", out, "--heads", "3"]) == 2
    assert "model.heads is 3; it must divide the width, which is 64" in capsys.readouterr().err


def test_the_verb_says_what_it_took_and_wrote(lightning, tmp_path, capsys):
    assert cli.main(["export", str(lightning), "--out", str(tmp_path / "out"), "--to", "official"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"read: {lightning} (file, weights under state_dict)")
    assert out[-1] == f"wrote: {tmp_path / 'out' / 'xtra.ckpt'}"


def test_model_parallel_checkpoints_are_refused(deepspeed):
    (deepspeed / "checkpoint" / "mp_rank_01_model_states.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="split over several model ranks"):
        official.read_official(str(deepspeed))


def test_sizes_that_no_recipe_has_are_read_from_the_tensors(tmp_path):
    config = replace(SIZES["tiny32"], width=192, heads=3, depth=1, dec_width=96, dec_heads=6, bridge=40, head=24)
    torch.save({"state_dict": state_of(build(config, 0))}, tmp_path / "x.ckpt")
    assert official.read_official(str(tmp_path / "x.ckpt")).config == config
    odd = replace(config, width=64, heads=4)
    torch.save({"state_dict": state_of(build(odd, 0))}, tmp_path / "y.ckpt")
    with pytest.raises(ValueError, match=r"no model of these sizes is known \(image 32, .*give --size, or --heads"):
        official.read_official(str(tmp_path / "y.ckpt"))
    assert official.read_official(str(tmp_path / "y.ckpt"), heads=4, dec_heads=6).config == odd


def test_a_deepspeed_import_goes_out_and_back_to_the_bit(deepspeed, tmp_path):
    first = official.read_official(str(deepspeed))
    export.run(export.Config(str(deepspeed), str(tmp_path / "run"), to="run", samples_seen=1_315_231_200))
    export.run(export.Config(str(tmp_path / "run"), str(tmp_path / "back"), to="official"))
    again = official.read_official(str(tmp_path / "back" / "xtra.ckpt"))
    assert (again.config, again.weights.keys()) == (first.config, first.weights.keys())
    assert all(torch.equal(again.weights[name], w) for name, w in first.weights.items())
    halves = torch.load(deepspeed / "checkpoint" / official.MODEL_STATES, weights_only=True)["module"]
    ours = torch.load(tmp_path / "back" / "xtra.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(ours[name.removeprefix("_forward_module.")].half(), w) for name, w in halves.items())
