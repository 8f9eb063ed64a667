"""Encoders of every origin under one face."""

import importlib
import json
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xtra.data import MEAN, STD
from xtra.model import SIZES, build
from xtra.probe.encoders import of_xtra, open_encoder


def test_our_own_encoder_shows_its_streams():
    encoder = build(SIZES["tiny32"], seed=0).encoder
    frozen = of_xtra(encoder, "mine")
    assert (frozen.name, frozen.image, frozen.tokens, frozen.width, frozen.depth) == ("mine", 32, 64, 64, 2)
    assert (frozen.mean, frozen.std) == (MEAN, STD)
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(frozen.to("cpu").layers(images, 2), encoder.layers(images, 2)):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="layers is 3"):
        frozen.layers(images, 3)


def test_a_fingerprint_is_of_the_weights():
    marks = [of_xtra(build(SIZES["tiny32"], seed).encoder, "mine").fingerprint() for seed in (0, 0, 1)]
    assert marks[0] == marks[1] != marks[2]
    assert all(len(mark) == 8 for mark in marks)


def test_a_program_elsewhere_is_not_looked_for_here():
    with pytest.raises(ValueError, match=r"'torch:s3://b/m\.pt2'; a program must be on this machine"):
        open_encoder("torch:s3://b/m.pt2")


@pytest.mark.parametrize("spec", ["", "timm:", "torch:", "mae", "hub:facebook/dino"])
def test_an_unknown_origin_is_named(spec):
    with pytest.raises(ValueError, match=f"encoder is '{spec}'; it must be timm:NAME"):
        open_encoder(spec)


# ---- programs ------------------------------------------------------------------------------------------------------


class Theirs(nn.Module):
    """Two layers after a patch embedding and a class token; `kind` is what it gives."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        a = x + self.one(x)
        b = self.drop(a + self.two(a))
        if self.kind == "layers":
            return [a, b]
        return b if self.kind == "tokens" else b.mean(1)


SETTINGS = {"image": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5]}


def write_settings(file: Path, **settings) -> str:
    file.with_name(file.name + ".json").write_text(json.dumps(settings))
    return f"torch:{file}"


def script(module: nn.Module, file: Path, images: int = 2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files are about
        torch.jit.save(torch.jit.trace(module, torch.randn(images, 3, 16, 16), check_trace=False), str(file))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(module, file of torch.export.save, another one that was exported for two images)."""
    folder, module = tmp_path_factory.mktemp("exported"), Theirs("layers").eval()
    for name, shapes in (("any.pt2", {"x": {0: torch.export.Dim("images")}}), ("two.pt2", None)):
        program = torch.export.export(module, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes)
        torch.export.save(program, folder / name)
    return module, folder / "any.pt2", folder / "two.pt2"


def test_an_exported_program_shows_its_layers_without_its_class_token(exported):
    module, file, _ = exported
    frozen = open_encoder(write_settings(file, **SETTINGS, prefix=1))
    assert (frozen.name, frozen.image, frozen.tokens, frozen.width, frozen.depth) == ("torch:any.pt2", 16, 16, 8, 2)
    assert (frozen.mean, frozen.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    for images in (torch.randn(n, 3, 16, 16) for n in (1, 2, 5)):
        wanted = [stream[:, 1:] for stream in module(images)]
        torch.testing.assert_close(frozen.layers(images, 2), wanted)
        (last,) = frozen.to("cpu").layers(images, 1)
        torch.testing.assert_close(last, wanted[1])
    mark = frozen.fingerprint()
    assert mark == open_encoder(f"torch:{file}").fingerprint()
    assert mark != open_encoder(write_settings(file, **SETTINGS, prefix=0)).fingerprint(), "it shows other tokens"
    with pytest.raises(ValueError, match=r"layers is 3; torch:any\.pt2 has 1\.\.2"):
        frozen.layers(images, 3)
    (elsewhere,) = frozen.to("meta").layers(images.to("meta"), 1)  # the one other device that is everywhere
    assert (elsewhere.device.type, elsewhere.shape) == ("meta", last.shape)


def test_a_program_for_a_fixed_number_of_images_is_refused(exported):
    with pytest.raises(ValueError, match=r"two\.pt2: does not run on images .*export with a dynamic number"):
        open_encoder(write_settings(exported[2], **SETTINGS))


@pytest.mark.parametrize(("kind", "tokens"), [("tokens", 17), ("features", 1)])
def test_torchscript_gives_tokens_or_features(tmp_path, kind, tokens):
    module, file = Theirs(kind).eval(), tmp_path / "theirs.pt"
    script(module, file)
    frozen = open_encoder(write_settings(file, **SETTINGS))
    assert (frozen.tokens, frozen.width, frozen.depth) == (tokens, 8, 1)
    images = torch.randn(3, 3, 16, 16)
    (given,) = frozen.to("cpu").layers(images, 1)
    torch.testing.assert_close(given, module(images).view(3, tokens, 8))


def test_a_program_in_training_mode_is_refused(tmp_path):
    script(Theirs("tokens").train(), tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match="export it in eval mode"):
        open_encoder(write_settings(tmp_path / "theirs.pt", **SETTINGS))


def test_images_of_another_size_and_odd_outcomes_are_named(tmp_path):
    script(Theirs("tokens").eval(), file := tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"theirs\.pt: returns \[\(3, 0, 8\)\] for 3 images"):
        open_encoder(write_settings(file, **SETTINGS, prefix=17))
    script(nn.Conv2d(3, 4, 16), file)
    with pytest.raises(ValueError, match=r"returns \[\(3, 4, 1, 1\)\] for 3 images; it must be \[3, tokens, width\]"):
        open_encoder(write_settings(file, **SETTINGS))
    with pytest.raises(ValueError, match=r"does not run on images \[3, 3, 8, 8\]"):
        open_encoder(write_settings(file, **SETTINGS | {"image": 8}))


def test_pickles_are_refused_unopened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for what in (Bomb(), Theirs("tokens").state_dict()):
        torch.save(what, tmp_path / "module.pt")
        with pytest.raises(
            ValueError, match=r"module\.pt: is not an exported program; a pickled module.*torch\.export\.save"
        ):
            open_encoder(f"torch:{tmp_path}/module.pt")
    (tmp_path / "module.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not an exported program"):
        open_encoder(f"torch:{tmp_path}/module.pt")
    with pytest.raises(ValueError, match=r"absent\.pt: no such file"):
        open_encoder(f"torch:{tmp_path}/absent.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": 16, "mean": [0.5] * 3}, "std is missing"),
        (SETTINGS | {"image": "16"}, "image is '16'"),
        (SETTINGS | {"std": [1, 0, 1]}, r"std is \[1, 0, 1\]"),
        (SETTINGS | {"mean": 0.5}, "mean is 0.5"),
        (SETTINGS | {"size": 16}, "size is 16"),
    ],
)
def test_the_settings_next_to_a_program_are_checked(tmp_path, settings, said):
    script(nn.Conv2d(3, 4, 16), tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=rf"theirs\.pt\.json: {said}: give image, mean, std"):
        open_encoder(write_settings(tmp_path / "theirs.pt", **settings))


def test_a_program_without_settings_is_refused(tmp_path):
    script(nn.Conv2d(3, 4, 16), tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"theirs\.pt\.json: is missing: it describes the encoder's input"):
        open_encoder(f"torch:{tmp_path}/theirs.pt")
    (tmp_path / "theirs.pt.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_encoder(f"torch:{tmp_path}/theirs.pt")


# ---- timm ----------------------------------------------------------------------------------------------------------


class Vit(nn.Module):
    """What is used of a timm model: its shape, its card, and `forward_intermediates` with timm's arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 8, 8)
        self.patch_embed.num_patches = 16
        self.embed_dim = 8
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}

    def forward_intermediates(self, x, indices, norm, output_fmt, intermediates_only):
        assert (norm, output_fmt, intermediates_only) == (False, "NLC", True)
        x, streams = self.patch_embed(x).flatten(2).transpose(1, 2), []
        for block in self.blocks:
            x = x + block(x)
            streams.append(x)
        return streams[-indices:]


@pytest.fixture
def timm(monkeypatch):
    """A fake of the package, which imports only with a torchvision built for this torch."""
    asked = []

    def create_model(name, pretrained, num_classes):
        asked.append((name, pretrained, num_classes))
        if pretrained:
            raise OSError("the hub is out of reach\nand more")
        return Vit() if name == "vit_small" else nn.Linear(2, 2)

    module = types.ModuleType("timm")
    module.__dict__.update(create_model=create_model, asked=asked)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_a_timm_model_shows_its_streams(timm, tmp_path):
    frozen = open_encoder("timm:vit_small:random")
    assert (frozen.name, frozen.image, frozen.tokens, frozen.width, frozen.depth) == (
        "timm:vit_small:random",
        32,
        16,
        8,
        3,
    )
    assert (frozen.mean, frozen.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.randn(2, 3, 32, 32)
    streams = frozen.to("cpu").layers(images, 2)
    assert [x.shape for x in streams] == [(2, 16, 8)] * 2
    assert not streams[0].requires_grad
    assert torch.equal(open_encoder("timm:vit_small:random").layers(images, 1)[0], streams[1])
    with pytest.raises(ValueError, match=r"layers is 4; timm:vit_small:random has 1\.\.3"):
        frozen.layers(images, 4)

    other = Vit()
    save_file(other.state_dict() | {"head.weight": torch.zeros(5, 8)}, tmp_path / "w.safetensors")
    loaded = open_encoder(f"timm:vit_small:{tmp_path}/w.safetensors")
    assert loaded.name == "timm:vit_small:w.safetensors"
    wanted = other.forward_intermediates(images, 3, False, "NLC", True)
    torch.testing.assert_close(loaded.layers(images, 3), wanted)
    assert timm.asked == [("vit_small", False, 0)] * 3


def test_weights_that_do_not_fit_a_timm_model_are_refused(timm, tmp_path):
    state = Vit().state_dict()
    del state["blocks.1.bias"]
    state |= {"blocks.7.bias": torch.zeros(8), "blocks.2.bias": torch.zeros(9)}
    save_file(state, tmp_path / "w.safetensors")
    found = ("1 missing: blocks.1.bias first", "1 unexpected: blocks.7.bias first", "1 of another shape: blocks.2.bias")
    with pytest.raises(ValueError, match=re.escape("; ".join(found))):
        open_encoder(f"timm:vit_small:{tmp_path}/w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"w\.safetensors: cannot be read as safetensors"):
        open_encoder(f"timm:vit_small:{tmp_path}/w.safetensors")


def test_random_weights_are_never_a_fallback(timm):
    with pytest.raises(
        ValueError, match=r"\(the hub is out of reach\): give a local file, .* or timm:vit_small:random$"
    ):
        open_encoder("timm:vit_small")
    with pytest.raises(ValueError, match="timm:resnet: has no blocks: only vision transformers"):
        open_encoder("timm:resnet:random")


def test_a_timm_that_does_not_import_is_one_line(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(
        ValueError, match=r"timm cannot be imported \(operator torchvision::nms .* pip install timm, and"
    ):
        open_encoder("timm:vit_small")


def test_a_real_timm_model_shows_the_streams_of_its_blocks():
    try:
        real = importlib.import_module("timm")
    except Exception as error:
        pytest.skip(f"timm imports only with a torchvision built for this torch: {error}")
    model = real.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    frozen = open_encoder("timm:vit_tiny_patch16_224:random")
    frozen.model.load_state_dict(model.state_dict())
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model(images)
        streams = frozen.layers(images, 12)
    assert all(torch.equal(x, y[:, 1:]) for x, y in zip(streams, seen))
