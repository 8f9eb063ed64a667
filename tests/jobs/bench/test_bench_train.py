"""The training bench: its official-shape variant is the official computation, and its variants differ in cost alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs import cli
from jobs.bench import train
from xtra import drop_path
from xtra.blocks import target_blocks
from xtra.loss import next_block_loss
from xtra.model import SIZES, build


@pytest.mark.parametrize("size", ["tiny32", "tiny64"])
def test_every_arm_computes_the_same_loss_and_gradients(size):
    config = replace(SIZES[size], depth=3, drop_path=0.5)
    xtra = build(config, 0).double()
    x = torch.randn(4, 3, config.image, config.image).double()
    drop_LSB = drop_path.scales(config.drop_path, config.depth, 0, np.zeros(4, int), np.arange(4)).double()
    wanted = next_block_loss(xtra(x, drop_LSB), target_blocks(x, config.side))
    reference = torch.autograd.grad(wanted, list(xtra.parameters()))
    for variant in train.VARIANTS:
        xtra.decoder_fp32 = False
        loss = train.loss_of(variant, xtra, x, drop_LSB)
        # the official shape brings its decoder's input to float32, and losses are compared in it
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
        for ours, theirs in zip(torch.autograd.grad(loss, list(xtra.parameters())), reference):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_the_bench_reports_the_ratios_that_others_rely_on(capsys):
    assert cli.main(["bench", "train", "--size", "tiny32", "--images", "2", "--rounds", "3", "--json"]) == 0
    import json

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["subject"] == "train"
    assert {"drop_last_vs_official_shape", "all_vs_official_shape"} <= result["ratios"].keys()
    rows = {row["arm"]: row for row in result["rows"]}
    assert rows["official"]["ratio"] == 1
    assert rows["official"]["rounds"] == 3
    assert rows["all"]["activation_bytes_per_image"] < rows["official"]["activation_bytes_per_image"]
    assert 0.2 < result["ratios"]["all_vs_official_shape"] < 5
    parts = [result["ratios"][f"{part}_share"] for part in ("products", "attention", "gelu", "norm")]
    assert min(parts) > 0.001
    assert 0.2 < sum(parts) < 1


def test_bytes_kept_for_the_backward_pass_are_counted_once_and_without_parameters():
    config = replace(SIZES["tiny32"], drop_path=0.0)
    xtra, drop_LSB = build(config, 0), torch.ones(config.depth, 2, 2)
    one = train.activation_bytes(train.VARIANTS[2], xtra, torch.randn(1, 3, 32, 32), drop_LSB)
    two = train.activation_bytes(train.VARIANTS[2], xtra, torch.randn(2, 3, 32, 32), drop_LSB)
    assert 1.8 < two / one < 2.05
    widths = config.depth * config.width + config.dec_depth * config.dec_width
    assert one > 4 * 60 * widths * 20  # float32, 60 tokens, at the least 20 of each layer's width


def test_a_bad_value_is_named():
    with pytest.raises(ValueError, match="size is 'b15'; it must be one of tiny32"):
        train.Config(size="b15")
    with pytest.raises(ValueError, match="rounds is 0; it must be at least 1"):
        train.Config(rounds=0)
