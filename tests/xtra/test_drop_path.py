"""Residual branches that drop path zeroes, left out: the same numbers, in few shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xtra import drop_path
from xtra.blocks import target_blocks
from xtra.drop_path import added, branch_of, drops_of
from xtra.loss import next_block_loss
from xtra.model import SIZES, build

CPU = torch.device("cpu")


def scales_of(images: int, rate: float, layers: int, seed: int = 0) -> torch.Tensor:
    return drop_path.scales(rate, layers, seed, np.zeros(images, int), np.arange(images))


@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.99])
def test_a_pruned_branch_and_its_gradients_are_those_of_the_whole_one(step, rate):
    """In float64, where rounding is far below any mistake; rate 0.99 has branches of which no image is kept."""
    scale_LSB = scales_of(20, rate, 4, seed=3)
    x = torch.randn(20, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    asked = torch.randn_like(x)

    def found(skip: bool) -> list[torch.Tensor]:
        stream, before = x, None
        for attn, mlp in drops_of(scale_LSB, 4, CPU, skip, step):
            stream = added(stream, before)
            stream = added(stream, branch_of(stream, lambda y: (y @ weight).tanh(), attn))
            before = branch_of(stream, lambda y: (y @ weight).sin(), mlp)
        out = added(stream, before)
        return [out, *torch.autograd.grad((out * asked).sum(), (x, weight))]

    for ours, theirs in zip(found(True), found(False)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("step", [1, 16])
def test_what_is_computed_holds_all_that_is_kept_in_multiples_of_the_step(step):
    scale_LSB = scales_of(100, 0.4, 6)
    for layer, drops in enumerate(drops_of(scale_LSB, 6, CPU, True, step)):
        for branch, drop in enumerate(drops):
            assert drop is not None
            scale_B = scale_LSB[layer, branch]
            wanted = scale_B.nonzero().flatten().tolist()
            torch.testing.assert_close(drop.scale_B, scale_B)
            if drop.kept is None or drop.place_B is None:
                assert -(-len(wanted) // step) * step >= 100
                continue
            assert drop.kept[: len(wanted)].tolist() == wanted
            assert len(set(drop.kept.tolist())) == len(drop.kept) == min(100, -(-len(wanted) // step) * step)
            assert [drop.kept[drop.place_B[i]].item() for i in wanted] == wanted


def test_branches_meet_few_shapes_where_they_are_rounded():
    """B/16 with 256 images and H/14 with 128, 20 steps of each: 16 is what a GPU rounds to for 256, 8 for 128."""
    for images, layers, step, exact, few in ((256, 12, 16, 40, 6), (128, 32, 8, 25, 6)):
        shapes: dict[int, set[int]] = {1: set(), step: set()}
        for seed in range(20):
            scale_LSB = scales_of(images, 0.2, layers, seed)
            for one, met in shapes.items():
                for drop in (drop for drops in drops_of(scale_LSB, layers, CPU, True, one) for drop in drops):
                    assert drop is not None
                    met.add(images if drop.kept is None else len(drop.kept))
        assert len(shapes[1]) > exact
        assert len(shapes[step]) <= few


def test_a_model_with_pruned_branches_has_the_loss_and_gradients_of_the_whole_one():
    config = replace(SIZES["tiny32"], drop_path=0.6, depth=3)
    model, x = build(config, 0).double(), torch.randn(24, 3, 32, 32).double()
    drop_LSB = scales_of(24, 0.6, 3)

    def found(skip: bool) -> list[torch.Tensor]:
        model.encoder.skip_dropped = skip
        loss = next_block_loss(model(x, drop_LSB), target_blocks(x, config.side))
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    for ours, theirs in zip(found(True), found(False)):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
