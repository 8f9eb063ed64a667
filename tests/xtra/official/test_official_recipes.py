"""Every recipe goes to the official layout and back: by its names and shapes in full size, and small with weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import SMALL, run_of, trained

import xtra
from xtra.model import ModelConfig, Xtra, build
from xtra.official import export
from xtra.official.unpickle import StoredTensor
from xtra.official.weights import OURS, OfficialFile, config_of, read_official, to_official
from xtra.recipes import get, names


def small(c: ModelConfig) -> ModelConfig:
    """The same patches, blocks, heads and ratios in few parameters."""
    c = replace(c, width=22 * c.heads, depth=2, bridge=16, head=8)  # 22: whole MLPs at a ratio of 48/11
    return replace(c, dec_width=2 * c.dec_heads, dec_depth=1)


MODELS = {small(get(name).model): name for name in names()}


def as_file(config: ModelConfig, ours: bool) -> OfficialFile:
    """An official checkpoint of this model without its weights."""
    with torch.device("meta"):
        state = to_official({name: p.detach() for name, p in Xtra(config).named_parameters()}, config)
    tensors = {name: StoredTensor(None, 0, tuple(w.shape), w.stride()) for name, w in state.items()}  # type: ignore[arg-type]
    return OfficialFile("x.ckpt", "", tensors, {}, {}, (), None, vars(config) if ours else {})


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_known_again_in_full_size(name: str) -> None:
    config = get(name).model
    found, said = config_of(as_file(config, ours=True))
    assert found == config
    assert said == ["heads, dec_heads, drop_path, order, prefix: as xtra export wrote them with the weights"]


def test_the_papers_models_are_known_without_the_files_that_export_adds() -> None:
    for name in ("b16_in1k", "h14_in21k", "ablation_base", "g14_in21k"):
        config = get(name).model
        assert config_of(as_file(config, ours=False))[0] == replace(config, drop_path=0.0)
    with pytest.raises(ValueError, match=r"no model of these sizes is known \(image 32, .*give --size, or --heads"):
        config_of(as_file(get("demo32").model, ours=False))


@pytest.mark.parametrize("config", MODELS, ids=MODELS.values())
def test_weights_go_there_and_back_to_the_bit(tmp_path: Path, config: ModelConfig) -> None:
    model = build(config, 0)
    run = run_of(tmp_path / "run", config, model)
    mask = "causal" if config.prefix else "own"
    export.run(export.Config(run, str(tmp_path / "there"), to="official", mask=mask))
    found = read_official(str(tmp_path / "there" / "xtra.ckpt"))
    assert found.config == config
    assert found.weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(found.weights[name], p) for name, p in model.named_parameters())
    assert not any(OURS in line for line in found.report)


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, prefix=True)], ids=["causal", "prefix"])
def test_a_run_that_comes_back_is_probed_under_the_same_mask(tmp_path: Path, config: ModelConfig) -> None:
    run = run_of(tmp_path / "run", config, trained(config))
    mask = "causal" if config.prefix else "own"
    export.run(export.Config(run, str(tmp_path / "there"), to="official", mask=mask))
    export.run(export.Config(str(tmp_path / "there" / "xtra.ckpt"), str(tmp_path / "back"), to="run"))
    images = torch.randn(2, 3, 32, 32)
    ours, theirs = xtra.load(run), xtra.load(str(tmp_path / "back"))
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.layers(images, 1)[0], theirs.layers(images, 1)[0])


def test_what_the_official_code_does_not_build_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", replace(SMALL, prefix=True, mlp_ratio=2.0))
    said = export.run(export.Config(run, str(tmp_path / "there"), to="official", mask="causal")).report
    assert [line for line in said if line.startswith("note: ")] == [
        "note: the official code has no encoder of width 48, 3 layers and 3 heads: only xtra reads this file",
        "note: the official decoder's MLPs are 4 times its width, not 2 times",
        "note: the official code has no prefix attention: it applies the block-causal mask",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": "12"}, r"xtra_model has heads '12': it is damaged: give --size"),
        ({"prefix": 1}, r"xtra_model has prefix 1: it is damaged"),
        ({"heads": 5}, r"model.heads is 5; it must divide the width, which is 48"),
        ({"order": "spiral"}, r"model.order is 'spiral'"),
    ],
)
def test_a_damaged_config_next_to_the_weights_is_named(change: dict[str, object], said: str) -> None:
    file = as_file(SMALL, ours=True)
    with pytest.raises(ValueError, match=said):
        config_of(replace(file, ours={**file.ours, **change}))
