"""The memory bench: what is traced without data is what a real step keeps, and the formula says the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from jobs import cli
from jobs.bench import memory
from xtra.blocks import target_blocks
from xtra.loss import next_block_loss
from xtra.model import SIZES, build

TINY = SIZES["tiny32"]


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, block=1, depth=1), replace(TINY, predict=2, dec_depth=2, dec_width=32)]
)
def test_the_formula_is_what_autograd_keeps(config):
    for bf16, decoder_fp32 in ((False, True), (True, True), (True, False)):
        assert memory.kept_bytes(config, bf16, decoder_fp32) == memory.kept(config, bf16, decoder_fp32).image


def test_a_trace_without_data_keeps_what_a_real_step_keeps():
    model = build(TINY, 0)

    def real(images: int) -> int:
        x = torch.randn(images, 3, 32, 32)
        return memory.kept_for_backward(
            lambda: next_block_loss(model(x), target_blocks(x, TINY.side)), model.parameters()
        )

    held = memory.kept(TINY, False, True)
    assert [real(images) for images in (2, 5)] == [images * held.image + held.constant for images in (2, 5)]


def test_the_bench_counts_parameters_and_images_that_fit(capsys):
    assert cli.main(["bench", "memory", "--sizes", "tiny32", "--memory", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    sizes, *traced = result["rows"]
    assert sizes["total"] == sum(sizes["parameters"].values()) == sum(p.numel() for p in build(TINY).parameters())
    assert sizes["state_bytes"] == 16 * sizes["total"]
    assert [row["precision"] for row in traced] == ["fp32", "bf16", "bf16"]
    for row in traced:
        room = 1e9 - sizes["state_bytes"] - row["constant_bytes"]
        assert row["images_that_fit"] == room // row["bytes_an_image"]
    assert result["ratios"] == {"formula_off_by_at_most": 0}
    cramped = memory.run(memory.Config(sizes=("tiny32",), memory=0.001))["rows"]
    assert [row["images_that_fit"] for row in cramped[1:]] == [0, 0, 0]
    with pytest.raises(ValueError, match="sizes has 'b15'; each must be one of tiny32"):
        memory.Config(sizes=("b15",))
