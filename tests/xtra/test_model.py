from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from xtra import drop_path
from xtra.attention import Causal
from xtra.blocks import block_orders, target_blocks
from xtra.loss import LossConfig, next_block_loss, normalise_blocks
from xtra.model import (
    SIZES,
    Encoder,
    ModelConfig,
    Xtra,
    build,
    init_weights,
    model_config,
)

TINY = replace(SIZES["tiny32"], depth=3, drop_path=0.5)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "encoder", "bridge", "decoder", "heads"),
    [  # facts: the official modules' own counts
        (SIZES["b16"], 85_843_200, 6_295_552, 56_901_120, 151_013_376),
        (SIZES["h14"], 630_762_240, 9_835_520, 39_553_280, 184_867_200),
        (SIZES["b16_ablation"], 85_843_200, 4_722_688, 14_294_784, 113_264_640),
        (SIZES["b16_aim"], 85_843_200, 4_722_688, 14_294_784, 7_084_800),
        (replace(SIZES["b16_ablation"], predict=2), 85_843_200, 4_722_688, 14_294_784, 226_529_280),
    ],
    ids=["b16", "h14", "b16_ablation", "b16_aim", "two_ahead"],
)
def test_parameter_counts_are_the_official_ones(config, encoder, bridge, decoder, heads):
    with torch.device("meta"):
        model = Xtra(config)
    parts = [parameters(part) for part in (model.encoder, model.bridge, model.decoder, model.heads)]
    assert parts == [encoder, bridge, decoder, heads]
    assert parameters(model) == sum(parts)


@pytest.mark.parametrize(("size", "tensors"), [("b16", 255), ("h14", 495)])
def test_a_state_has_the_official_number_of_tensors(size, tensors):
    with torch.device("meta"):
        assert len(Xtra(SIZES[size]).state_dict()) == tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 5}, ["model.patch is 5", "image", "32"]),
        ({"block": 3}, ["model.block is 3", "grid", "8"]),
        ({"heads": 3}, ["model.heads is 3", "width", "64"]),
        ({"dec_heads": 5}, ["model.dec_heads is 5", "dec_width", "64"]),
        ({"width": 66, "heads": 6}, ["model.heads is 6", "66 / 6 = 11", "even"]),
        ({"dec_heads": 64}, ["model.dec_heads is 64", "64 / 64 = 1", "even"]),
        ({"predict": 16}, ["model.predict is 16", "1..15"]),
        ({"depth": 0}, ["model.depth is 0", "at least 1"]),
        ({"depth": 2.5}, ["model.depth is 2.5", "whole"]),
        ({"drop_path": 1.0}, ["model.drop_path is 1.0", "below 1"]),
        ({"mlp_ratio": 0.0}, ["model.mlp_ratio is 0.0", "above 0"]),
        ({"order": "hilbert"}, ["model.order is 'hilbert'", "raster, random"]),
        ({"block": 8}, ["model.predict is 1", "1 blocks"]),
    ],
)
def test_a_bad_size_is_named_with_its_value_and_what_is_allowed(change, words):
    with pytest.raises(ValueError) as error:
        replace(TINY, **change)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_survives_json_and_refuses_unknown_and_missing_fields():
    values = json.loads(json.dumps(asdict(TINY)))
    assert model_config(values) == TINY
    with pytest.raises(ValueError, match=r"model\.colour is unknown; the fields are image, patch"):
        model_config({**values, "colour": 1})
    del values["bridge"]
    with pytest.raises(ValueError, match=r"is incomplete: .*bridge"):
        model_config(values)


def double(config: ModelConfig, seed: int = 0) -> Xtra:
    return build(config, seed).double()


def images(config: ModelConfig, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, config.image, config.image, generator=torch.Generator().manual_seed(1)).double()


def loss_and_grads(model: Xtra, x: torch.Tensor, **how) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    perm_K = how.get("perm_K")
    targets = target_blocks(x, model.config.side)
    loss = next_block_loss(model(x, **how), targets if perm_K is None else targets[:, perm_K])
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(a, b, rtol=1e-12):
    torch.testing.assert_close(a[0], b[0], rtol=rtol, atol=0)
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        torch.testing.assert_close(grad, b[1][name], rtol=0, atol=rtol * float(b[1][name].abs().max()), msg=name)


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, predict=3), replace(TINY, block=1), replace(TINY, block=4)],
    ids=["xtra", "three_ahead", "aim", "big_blocks"],
)
@pytest.mark.parametrize("permuted", [False, True], ids=["raster", "permuted"])
def test_dropping_the_last_block_changes_no_gradient(config, permuted):
    model, x = double(config), images(config)
    perm_K = block_orders(config.blocks, seed=5)[2] if permuted else None
    drop_LSB = drop_path.scales(config.drop_path, config.depth, 0, np.zeros(4, int), np.arange(4))
    full = loss_and_grads(model, x, drop_LSB=drop_LSB, perm_K=perm_K, last_block=True)
    short = loss_and_grads(model, x, drop_LSB=drop_LSB, perm_K=perm_K)
    assert len(short[1]) == len(list(model.parameters()))
    assert_same(short, full)


@pytest.mark.parametrize("rate", [0.5, 0.97])
def test_skipping_dropped_branches_changes_no_gradient(rate):
    config = replace(TINY, drop_path=rate)  # at 0.97 whole branches are dropped for every image
    model, x = double(config), images(config)
    drop_LSB = drop_path.scales(config.drop_path, config.depth, 1, np.zeros(4, int), np.arange(4))
    assert bool((drop_LSB == 0).any())
    dense = loss_and_grads(model, x, drop_LSB=drop_LSB)
    model.encoder.skip_dropped = True
    assert_same(loss_and_grads(model, x, drop_LSB=drop_LSB), dense)


def test_a_token_sees_its_own_block_and_earlier_ones_only():
    model, x = double(TINY), images(TINY, 1)
    with torch.no_grad():
        before = model(x, last_block=True)[0]
        side, changed = TINY.side, 6  # block 6 is in row 1, column 2 of the 4 x 4 blocks
        x[:, :, side, 2 * side + 3] += 1.0
        after = model(x, last_block=True)[0]
    moved = (before != after).any(-1)[0].tolist()
    assert moved == [False] * changed + [True] * (TINY.blocks - changed)


def test_drop_path_of_a_branch_is_the_formula_of_the_official_block():
    config = replace(TINY, depth=1, drop_path=0.0)
    encoder, x = build(config, 0).double().encoder, images(config, 2)
    block, stream = encoder.blocks[0], torch.randn(2, 64, 64).double()
    scale = torch.tensor([[0.0, 1.25], [1.25, 0.0]]).double()
    causal = Causal(torch.ones(64, 64).bool())
    middle = stream + scale[0][:, None, None] * block.attn(block.norm1(stream), causal)
    expected = middle + scale[1][:, None, None] * block.mlp(block.norm2(middle))
    drops = [drop_path.Drop(scale_B) for scale_B in scale]
    torch.testing.assert_close(drop_path.added(*block(stream, causal, *drops)), expected, rtol=1e-13, atol=1e-13)
    nothing = encoder(x, torch.zeros(1, 2, 2))
    torch.testing.assert_close(nothing, encoder.norm(encoder.embed(x, True, None)))


def test_drop_path_scales_are_a_pure_function_with_the_right_rates():
    config = replace(SIZES["b16"], drop_path=0.2)
    epoch, sample = np.full(4000, 7), np.arange(4000)
    scales = drop_path.scales(config.drop_path, config.depth, 11, epoch, sample)
    assert scales.shape == (12, 2, 4000)
    assert scales.dtype == torch.float32
    dropped = (scales == 0).double().mean((1, 2))
    expected = torch.linspace(0, 0.2, 12, dtype=torch.float64)
    assert dropped[0] == 0
    torch.testing.assert_close(dropped, expected, rtol=0, atol=0.02)
    for layer in range(12):
        kept = scales[layer][scales[layer] != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - float(expected[layer]))))
    # An image keeps its draws wherever it stands in whatever batch; another epoch, seed or branch has other draws.
    part = drop_path.scales(config.drop_path, config.depth, 11, epoch[100:110], sample[100:110])
    assert torch.equal(part, scales[:, :, 100:110])
    assert not torch.equal(drop_path.scales(config.drop_path, config.depth, 11, epoch + 1, sample), scales)
    assert not torch.equal(drop_path.scales(config.drop_path, config.depth, 12, epoch, sample), scales)
    assert not torch.equal(scales[:, 0], scales[:, 1])


def test_initial_weights_follow_the_rule_and_depend_on_the_seed_only():
    config = SIZES["tiny32"]
    a, b, c = build(config, 0), build(config, 0), build(config, 1)
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(p, q), name
    assert not torch.equal(a.bridge.fc1.weight, c.bridge.fc1.weight)
    for name, p in a.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            std = (2 / (3 * config.patch**2)) ** 0.5 if "patch_embed" in name else 0.02
            assert abs(float(p.detach().std()) / std - 1) < 0.1, name
    alone = Encoder(config)
    init_weights(alone, 0)
    for name, p in alone.named_parameters():
        assert torch.equal(p, a.encoder.get_parameter(name)), name
    wider = build(replace(config, dec_width=128), 0)
    assert torch.equal(wider.encoder.blocks[1].mlp.fc1.weight, a.encoder.blocks[1].mlp.fc1.weight)


def test_layers_are_the_streams_that_the_final_norm_sees():
    encoder, x = build(TINY, 0).encoder, images(TINY, 2).float()
    streams = encoder.layers(x, last=2)
    assert [tuple(s.shape) for s in streams] == [(2, 64, 64)] * 2
    torch.testing.assert_close(encoder.norm(streams[-1]), encoder(x))
    assert len(encoder.layers(x, last=3)) == 3
    with pytest.raises(ValueError, match=r"layers is 4; this encoder has 1\.\.3"):
        encoder.layers(x, last=4)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images are \[2, 3, 64, 64\]; this model takes \[B, 3, 32, 32\]"):
        build(TINY, 0).encoder(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("fp32", [True, False])
def test_the_decoder_runs_in_float32_under_autocast_unless_switched_off(fp32):
    model, x = build(SIZES["tiny32"], 0, decoder_fp32=fp32), images(TINY, 2).float()
    seen = []
    model.decoder.blocks[0].attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    model.bridge.fc1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model(x)
    assert seen == [torch.bfloat16, torch.float32 if fp32 else torch.bfloat16]
    assert predictions[0].dtype == torch.bfloat16
    reference = model(x)[0]
    assert bool(((predictions[0].float() - reference).abs() < 0.1 * reference.abs().max()).all())


def test_the_loss_normalises_each_block_by_unbiased_variance_and_averages_over_heads():
    raw = torch.randn(2, 4, 12).double() * 3 + 5
    target = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, unbiased=True, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normalise_blocks(raw), target, rtol=1e-12, atol=1e-12)
    heads = [torch.randn(2, 4, 12).double(), torch.randn(2, 2, 12).double()]
    squared = ((heads[0][:, :3] - target[:, 1:]) ** 2).mean() + ((heads[1] - target[:, 2:]) ** 2).mean()
    torch.testing.assert_close(next_block_loss(heads, raw), squared / 2)
    absolute = (heads[0][:, :3] - target[:, 1:]).abs().mean() + (heads[1] - target[:, 2:]).abs().mean()
    torch.testing.assert_close(next_block_loss(heads, raw, LossConfig(l1=True)), absolute / 2)
    assert normalise_blocks(raw.bfloat16()).dtype == torch.float32
    flat = torch.full((1, 2, 12), 3.0)
    assert not normalise_blocks(flat).any()


def test_subset_scales_keep_a_fixed_number_and_every_image_alike():
    config = replace(SIZES["b16"], drop_path=0.5)
    one = drop_path.subset_scales(config.drop_path, config.depth, 3, np.zeros(32, int), np.arange(32))
    keep = 1 - np.linspace(0, 0.5, 12)
    kept = (one != 0).sum(-1)
    assert kept.tolist() == [[max(1, round(k * 32))] * 2 for k in keep]
    torch.testing.assert_close(one.mean(-1), torch.ones(12, 2))
    many = torch.stack(
        [
            drop_path.subset_scales(config.drop_path, config.depth, 3, np.full(32, epoch), np.arange(32))
            for epoch in range(300)
        ]
    )
    share = (many[:, -1, 0] != 0).float().mean(0)
    assert bool(((share - 0.5).abs() < 0.15).all())
    assert torch.equal(
        one, drop_path.subset_scales(config.drop_path, config.depth, 3, np.zeros(32, int), np.arange(32))
    )
