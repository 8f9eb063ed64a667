"""Exported encoders in the libraries that they are for: the same tokens as `xtra.load`, or a refusal.

transformers and timm are opened where they import. timm's whole package does not without a torchvision built for this
torch, so its forward pass is also written out here, by the formulas of its VisionTransformer.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exporting import SMALL, run_of, trained
from safetensors.torch import load_file

import xtra
from jobs import cli
from shards import store
from xtra.blocks import raster_order
from xtra.model import ModelConfig
from xtra.official import export
from xtra.official.encoder_files import Masked, tokens
from xtra.probe import open_encoder
from xtra.recipes import get, names

NEAR = {"rtol": 0.0, "atol": 1e-5}
MODELS = {
    "blocks of 2": SMALL,
    "blocks of 4": replace(SMALL, block=4),
    "plain causal": replace(SMALL, block=1),
    "random order": replace(SMALL, order="random"),
    "prefix": replace(SMALL, prefix=True),
    "wide MLPs": replace(SMALL, mlp_ratio=48 / 11, dec_mlp_ratio=4.0),
    "large patches": replace(SMALL, image=64, patch=8),
}
CASES = [(name, mask) for name in MODELS for mask in ("causal", "none")]


def exported(tmp_path: Path, config: ModelConfig, **settings: Any) -> Path:
    run = run_of(tmp_path / "run", config)
    export.run(export.Config(run, str(tmp_path / "out"), **settings))
    return tmp_path / "out"


def images_of(config: ModelConfig) -> torch.Tensor:
    return torch.randn(3, 3, config.image, config.image, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def wanted(tmp_path: Path, mask: Masked) -> torch.Tensor:
    encoder = xtra.load(str(tmp_path / "run"))
    return tokens(encoder, images_of(encoder.config), mask)


@pytest.fixture
def modeling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The export's folder as the current one, from which its modelling file is imported."""
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.syspath_prepend(str(tmp_path / "out"))
    yield
    sys.modules.pop("modeling_xtra", None)


# ---- torch alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mask"), CASES)
@pytest.mark.usefixtures("modeling")
def test_the_modelling_file_gives_the_tokens_of_xtra_load(tmp_path: Path, name: str, mask: Masked) -> None:
    exported(tmp_path, MODELS[name], mask=mask)
    model = importlib.import_module("modeling_xtra").load(".")
    with torch.no_grad():
        torch.testing.assert_close(model(images_of(MODELS[name])), wanted(tmp_path, mask), **NEAR)
    assert not model.training


def test_what_is_compared_with_is_what_the_encoder_gives(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SMALL)
    encoder, images = xtra.load(run), images_of(SMALL)
    raster = raster_order(SMALL.grid, SMALL.block)
    torch.testing.assert_close(wanted(tmp_path, "causal"), encoder(images)[:, raster], **NEAR)
    assert (wanted(tmp_path, "causal") - wanted(tmp_path, "none")).abs().max() > 0.1


@pytest.mark.usefixtures("modeling")
def test_the_layers_are_those_that_probes_read(tmp_path: Path) -> None:
    exported(tmp_path, SMALL)
    encoder, images = xtra.load(str(tmp_path / "run")), images_of(SMALL)
    theirs = importlib.import_module("modeling_xtra").load(".").layers(images)
    assert len(theirs) == 1 + SMALL.depth
    raster = raster_order(SMALL.grid, SMALL.block)
    for ours, layer in zip(encoder.layers(images, SMALL.depth), theirs[1:]):
        torch.testing.assert_close(layer, ours[:, raster], **NEAR)


def test_the_modelling_file_needs_torch_alone(tmp_path: Path) -> None:
    tree = ast.parse((exported(tmp_path, SMALL) / "modeling_xtra.py").read_text())
    found = set()
    for node in tree.body:  # of the module: transformers is imported inside a function
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    assert found - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.usefixtures("modeling")
def test_the_modelling_file_names_what_does_not_fit(tmp_path: Path) -> None:
    out = exported(tmp_path, SMALL)
    code = importlib.import_module("modeling_xtra")
    with pytest.raises(ValueError, match=r"images are \[1, 3, 16, 16\]; this model takes \[B, 3, 32, 32\]"):
        code.load(".")(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="mask is 'both'; it must be one of causal, none"):
        code.XtraEncoder(mask="both")
    with pytest.raises(AttributeError, match="has no attribute 'Vit'"):
        code.Vit  # noqa: B018
    config = store.read_json(str(out / "config.json"))
    store.put_json(str(out / "config.json"), config | {"model_type": "vit"})
    with pytest.raises(ValueError, match=r"config\.json has model_type 'vit', not 'xtra'"):
        code.load(".")


# ---- transformers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """With a cache of its own, and offline. Skips where transformers is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers", reason="transformers, which opens exports, is not installed")


@pytest.mark.parametrize(("name", "mask"), CASES)
def test_transformers_gives_the_tokens_of_xtra_load(tmp_path: Path, transformers: Any, name: str, mask: Masked) -> None:
    out = str(exported(tmp_path, MODELS[name], mask=mask, to="transformers"))
    model = transformers.AutoModel.from_pretrained(out, trust_remote_code=True)
    images = images_of(MODELS[name])
    with torch.no_grad():
        said = model(images, output_hidden_states=True)
        torch.testing.assert_close(said.last_hidden_state, wanted(tmp_path, mask), **NEAR)
        torch.testing.assert_close(said.pooler_output, said.hidden_states[-1].mean(1), **NEAR)
    assert model.config.mask == mask
    model.save_pretrained(str(tmp_path / "again"))
    again = transformers.AutoModel.from_pretrained(str(tmp_path / "again"), trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(images).last_hidden_state, said.last_hidden_state)


def test_transformers_refuses_the_export_without_its_code(tmp_path: Path, transformers: Any) -> None:
    out = str(exported(tmp_path, SMALL))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModel.from_pretrained(out, trust_remote_code=False)
    assert "xtra" not in transformers.CONFIG_MAPPING


def test_transformers_prepares_pictures_as_the_card_says(tmp_path: Path, transformers: Any) -> None:
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(str(exported(tmp_path, SMALL)))
    ramp = torch.linspace(0, 255, 100).to(torch.uint8).expand(50, 100).contiguous()  # 100 wide, 50 high
    made = processor(Image.fromarray(ramp.numpy()), return_tensors="pt")["pixel_values"]
    assert made.shape == (1, 3, 32, 32)
    grey = made[0, 0].mean(0) * 0.229 + 0.485
    middle = torch.linspace(0, 1, 74)[21:53]  # short side 37, central 32 of 74
    torch.testing.assert_close(grey, middle, rtol=0, atol=0.02)


# ---- timm ----------------------------------------------------------------------------------------------------------


def timm_forward(w: dict[str, torch.Tensor], args: dict, x: torch.Tensor, mask_NN: torch.Tensor | None) -> torch.Tensor:
    """What timm's VisionTransformer.forward_features computes from such weights: a convolution, no class token, raster
    order, a boolean attention mask, the final norm."""
    b, heads = len(x), args["num_heads"]
    h = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=args["patch_size"])
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]
    n, d = h.shape[1:]

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(h, (d,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(h: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(args["depth"]):
        block = f"blocks.{i}"
        q, k, v = linear(norm(h, f"{block}.norm1"), f"{block}.attn.qkv").view(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NN).transpose(1, 2).reshape(b, n, d)
        h = h + linear(a, f"{block}.attn.proj")
        h = h + linear(F.gelu(linear(norm(h, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(h, "norm")


def code_of(out: Path) -> list[str]:
    """The Python blocks of the model card."""
    return re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", MODELS)
def test_timms_formulas_give_the_tokens_of_xtra_load(tmp_path: Path, name: str) -> None:
    config = MODELS[name]
    out = exported(tmp_path, config, to="timm", mask="none")
    args, weights = store.read_json(str(out / "config.json"))["model_args"], load_file(out / "model.safetensors")
    images = images_of(config)
    torch.testing.assert_close(timm_forward(weights, args, images, None), wanted(tmp_path, "none"), **NEAR)
    masking = "\n".join(line for line in code_of(out)[1].splitlines() if line.startswith(("row", "block", "mask")))
    made: dict = {"torch": torch}
    exec(masking, made)  # the model card's own words
    causal = timm_forward(weights, args, images, made["mask"])
    torch.testing.assert_close(causal, wanted(tmp_path, "causal"), **NEAR)
    hidden = int(args["embed_dim"] * args["mlp_ratio"])  # timm rounds down
    assert weights["blocks.0.mlp.fc1.weight"].shape == (hidden, args["embed_dim"])


def test_timm_makes_the_mlps_of_every_recipe() -> None:
    for name in names():
        c = get(name).model
        assert int(c.width * c.mlp_ratio) == round(c.width * c.mlp_ratio), name


def test_timm_itself_gives_the_tokens_of_xtra_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        importlib.import_module("timm")
    except Exception as error:  # torchvision for another torch raises RuntimeError
        pytest.skip(f"timm does not import here: {error}")
    out = exported(tmp_path, SMALL, to="timm", mask="none")
    monkeypatch.chdir(out)
    made: dict = {"images": images_of(SMALL)}
    with torch.no_grad():
        for code in code_of(out):
            exec(code, made)
    torch.testing.assert_close(made["tokens"], wanted(tmp_path, "none"), **NEAR)
    torch.testing.assert_close(made["causal"], wanted(tmp_path, "causal"), **NEAR)


# ---- torch.export --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("blocks of 2", "causal"),
        pytest.param("plain causal", "causal", marks=pytest.mark.slow),
        pytest.param("prefix", "none", marks=pytest.mark.slow),
    ],
)
def test_the_program_gives_the_tokens_of_xtra_load(tmp_path: Path, name: str, mask: Masked) -> None:
    out = exported(tmp_path, MODELS[name], to="torch", mask=mask)
    program = torch.export.load(out / "encoder.pt2").module()
    images = images_of(MODELS[name])
    torch.testing.assert_close(program(images), wanted(tmp_path, mask), **NEAR)
    torch.testing.assert_close(program(images[:1]), wanted(tmp_path, mask)[:1], **NEAR)


@pytest.mark.slow
def test_a_probe_opens_the_program(tmp_path: Path) -> None:
    out = exported(tmp_path, SMALL, to="torch")
    frozen = open_encoder(f"torch:{out / 'encoder.pt2'}")
    assert (frozen.image, frozen.tokens, frozen.width, frozen.depth) == (32, 64, 48, 1)
    torch.testing.assert_close(frozen.layers(images_of(SMALL), 1)[0], wanted(tmp_path, "causal"), **NEAR)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (SMALL, ["--to", "timm"], "timm's VisionTransformer has no such mask: use --to encoder, or --mask none"),
        (SMALL, ["--to", "timm", "--mask", "causal"], "its attention is block-causal, and timm's"),
        (replace(SMALL, prefix=True), ["--to", "official"], "prefix attention, but the official code would apply"),
        (SMALL, ["--to", "official", "--mask", "none"], "the official code always applies the block-causal one"),
        (SMALL, ["--to", "run", "--mask", "none"], "mask is none, but a run has its model's own"),
        (SMALL, ["--license", "My Licence"], "license is 'My Licence'; it must be an identifier such as apache-2.0"),
        (SMALL, ["--to", "official", "--license", "mit"], "goes into a model card: --to official writes none"),
    ],
    ids=["timm", "timm-causal", "official-prefix", "official-none", "run-none", "license", "license-official"],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: ModelConfig, words: list[str], said: str
) -> None:
    run = run_of(tmp_path / "run", config)
    assert cli.main(["export", run, "--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["encoder", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_run_that_diverged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str) -> None:
    model = trained(SMALL)
    with torch.no_grad():
        model.encoder.norm.bias[3] = float("nan")
    run = run_of(tmp_path / "run", SMALL, model)
    assert cli.main(["export", run, "--out", str(tmp_path / "out"), "--to", to]) == 2
    assert "gives non-finite tokens: export an earlier checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_says_how_far_the_tokens_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", SMALL)
    assert cli.main(["export", run, "--out", str(tmp_path / "out")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compared: ")]
    found = re.fullmatch(r"compared: tokens .* under mask causal by at most (\S+), where the largest is (\S+)", line)
    assert found is not None
    assert float(found[1]) <= 1e-5 < 1 < float(found[2])


def test_an_encoder_that_was_pretrained_with_a_prefix_goes_to_timm_as_it_is(tmp_path: Path) -> None:
    out = exported(tmp_path, replace(SMALL, prefix=True), to="timm")
    args, weights = store.read_json(str(out / "config.json"))["model_args"], load_file(out / "model.safetensors")
    theirs = timm_forward(weights, args, images_of(SMALL), None)
    torch.testing.assert_close(theirs, wanted(tmp_path, "none"), **NEAR)
