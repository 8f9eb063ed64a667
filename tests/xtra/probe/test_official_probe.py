"""Official probe checkpoints: files made here in their exact layout, read strictly and without running them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from xtra.model import SIZES, build
from xtra.official import weights as official
from xtra.official.weights import to_official
from xtra.probe.official_probe import OfficialProbe, read_probe

CONFIG = SIZES["tiny32"]
CLASSES = 7


class AttentionPooling(nn.Module):
    """Parameters and buffers of the official head, by name (facts: src/modules/cls.py)."""

    def __init__(self, width: int, queries: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, queries, width))
        self.k, self.v = nn.Linear(width, width, bias=bias), nn.Linear(width, width, bias=bias)
        self.linear = nn.Linear(width, CLASSES)
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)


def attentive(**changes) -> nn.Module:
    return trained(AttentionPooling(64, **changes))


def linear() -> nn.Module:
    return trained(nn.Sequential(nn.BatchNorm1d(64, affine=False, eps=1e-6), nn.Linear(64, CLASSES)))


def trained(head: nn.Module) -> nn.Module:
    """Its batch norm has seen something."""
    (norm,) = (module for module in head.modules() if isinstance(module, nn.BatchNorm1d))
    norm(torch.randn(50, 64) * 3 + 1)
    return head


SETTINGS = {
    "attentive": {"cls_n_last_blocks": 2, "cls_avgpool_layers": True, "attentive_pooling_num_heads": 8},
    "linear": {"cls": {"n_last_blocks": 1, "avgpool_patchtokens": True}},
}
BLOCKS = {"enc_is_block_causal": True, "enc_block_size": 2}


def save(folder: Path, head: nn.Module, settings: dict | None, config=CONFIG, **more) -> str:
    """As Lightning writes it, with an optimiser of the head alone."""
    ours = {name: p.detach() for name, p in build(config, 3).named_parameters() if name.startswith("encoder.")}
    optimizer = torch.optim.AdamW(head.parameters())
    content = {
        "epoch": 99,
        "global_step": 31_200,
        "state_dict": to_official(ours, config) | {f"classifier.{n}": t for n, t in head.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        **({"hyper_parameters": settings} if settings is not None else {}),
    }
    content["state_dict"].update(more)
    torch.save(content, folder / "last.ckpt")
    return str(folder / "last.ckpt")


@pytest.mark.parametrize(("kind", "head"), [("attentive", attentive), ("linear", linear)])
def test_encoder_and_head_come_back_to_the_bit(tmp_path, kind, head):
    made = head()
    found = read_probe(save(tmp_path, made, SETTINGS[kind] | BLOCKS))
    assert isinstance(found, OfficialProbe)
    assert (found.kind, found.classes) == (kind, CLASSES)
    assert (found.layers, found.attention_heads) == ((2, 8) if kind == "attentive" else (1, 0))
    wanted = made.state_dict()
    assert found.state.keys() == wanted.keys()
    assert all(torch.equal(found.state[name], t) for name, t in wanted.items())
    assert not found.encoder.training
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.encoder(images), build(CONFIG, 3).encoder(images))
    said = "\n".join(found.report)
    assert f"head: {kind}, 7 classes, last {found.layers} layers" in said
    assert "read from its settings: blocks of 2 x 2 patches" in said
    assert "not taken: optimizer_states: no tensors" in said
    assert "hyper_parameters" not in said
    assert "classifier" not in said.split("head: ")[1]


def test_what_the_file_does_not_say_is_assumed_and_reported(tmp_path):
    deep = replace(CONFIG, depth=6, mlp_ratio=3.0)
    with pytest.raises(ValueError, match=r"last\.ckpt: no model of these sizes is known"):
        read_probe(save(tmp_path, attentive(), None, deep))
    with pytest.raises(ValueError, match=r"last\.ckpt: its head reads the last 6 layers; the encoder has 2"):
        read_probe(save(tmp_path, attentive(), None))
    found = read_probe(save(tmp_path, attentive(), {"cls_n_last_blocks": 2}))
    assert (found.layers, found.attention_heads) == (2, 16)
    assert any(line.startswith("assumed: 16 attention heads") for line in found.report)
    assert any(line.startswith("assumed: 2 heads and blocks of 2 x 2") for line in found.report)
    assert read_probe(save(tmp_path, linear(), None)).layers == 1


def test_the_mask_is_that_of_the_settings(tmp_path):
    """A probe of the plain causal arm has the same tensors, and other features."""
    aim = replace(CONFIG, block=1)
    settings = SETTINGS["linear"] | {"enc": {"is_causal": True, "is_block_causal": False, "block_size": 4}}
    found = read_probe(save(tmp_path, linear(), settings, aim))
    assert found.encoder.config.block == 1
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.encoder(images), build(aim, 3).encoder(images))
    with pytest.raises(ValueError, match=r"last\.ckpt: its encoder attends without a mask"):
        read_probe(save(tmp_path, linear(), {"enc_is_block_causal": False}))


@pytest.mark.parametrize(
    ("head", "settings", "said"),
    [
        (lambda: attentive(queries=2), {}, r"1 of another shape: cls_token \[1, 2, 64\], not \[1, 1, 64\], first"),
        (lambda: attentive(bias=True), {}, r"2 unexpected: k\.bias first"),
        (lambda: trained(nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 7))), {}, r"2 unexpected: 0\.weight first"),
        (lambda: nn.Linear(64, 7), {}, r"4 missing: 0\.running_mean first; 2 unexpected: weight first"),
        (linear, {"cls_norm_enc_output": True}, r"its setting cls\.norm_enc_output is True; .* has it False"),
        (linear, {"cls_avgpool_patchtokens": False}, r"its setting cls\.avgpool_patchtokens is False"),
        (attentive, {"attentive_pooling": {"num_heads": 7}}, "7 attention heads, which do not divide the width 64"),
        (attentive, {"cls_avgpool_layers": False}, r"its setting cls\.avgpool_layers is False"),
    ],
)
def test_a_head_that_ours_is_not_is_refused_by_name(tmp_path, head, settings, said):
    with pytest.raises(ValueError, match=rf"last\.ckpt: .*{said}"):
        read_probe(save(tmp_path, head(), {"cls_n_last_blocks": 2} | settings))


def test_missing_encoder_tensors_are_counted(tmp_path):
    path = save(tmp_path, linear(), None, **{"enc.cls_token": torch.zeros(1, 1, 64)})
    with pytest.raises(ValueError, match=r"1 unexpected: enc\.cls_token first"):
        read_probe(path)


def test_a_pretraining_checkpoint_is_no_probe(tmp_path):
    model = build(CONFIG, 0)
    weights = to_official({name: p.detach() for name, p in model.named_parameters()}, CONFIG)
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt: has no classifier\.\*: is it a pretraining checkpoint\?"):
        read_probe(str(tmp_path / "last.ckpt"))
    with pytest.raises(ValueError, match="no such file or folder"):
        read_probe(str(tmp_path / "absent.ckpt"))


def test_nothing_that_is_pickled_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    found = read_probe(save(tmp_path, linear(), SETTINGS["linear"] | {"trap": Trap()}))
    assert any("getattr: not loaded" in line for line in found.report)
    assert not (tmp_path / "ran").exists()


def test_an_import_names_the_head_that_it_leaves(tmp_path):
    found = official.read_official(save(tmp_path, linear(), SETTINGS["linear"]))
    assert found.encoder_only
    assert "not taken: classifier.*: a probe's head, 5 tensors" in found.report
