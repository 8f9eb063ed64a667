from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from xtra import blocks

GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda gb: (gb[0] * gb[1], gb[1]))  # (grid, block)


@given(GRIDS)
def test_block_order_lists_each_block_as_a_run_in_raster_order(grid_block):
    grid, block = grid_block
    raster = blocks.block_order(grid, block)
    i, j = raster // grid, raster % grid
    number = (i // block) * (grid // block) + j // block
    assert number.tolist() == [k for k in range((grid // block) ** 2) for _ in range(block * block)]
    within = (i % block) * block + j % block
    assert within.tolist() == list(range(block * block)) * (grid // block) ** 2
    assert raster[blocks.raster_order(grid, block)].tolist() == list(range(grid * grid))


def test_mask_is_the_raster_rule_of_the_paper_after_sorting_by_block():
    grid, block = 16, 4
    i, j = torch.arange(256) // grid, torch.arange(256) % grid
    number = (i // block) * (grid // block) + j // block
    raster_mask = number[:, None] >= number[None, :]
    order = blocks.block_order(grid, block)
    mask = blocks.block_causal_mask(256, 16)
    assert torch.equal(mask, raster_mask[order][:, order])
    assert mask.float().mean() == 0.53125
    assert torch.equal(blocks.block_causal_mask(9, 1), torch.ones(9, 9).tril().bool())


@given(GRIDS, st.integers(1, 3))
def test_pixels_land_in_their_patch_and_block(grid_block, patch):
    grid, block = grid_block
    size, side = grid * patch, block * patch
    images = torch.arange(2 * 3 * size * size).view(2, 3, size, size)
    folded = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [2, 3, grid, grid, patch, patch]
    raster = folded.permute(0, 2, 3, 1, 4, 5).reshape(2, grid * grid, -1)
    assert torch.equal(blocks.patches(images, patch, block), raster[:, blocks.block_order(grid, block)])
    folded = images.unfold(2, side, side).unfold(3, side, side)
    targets = blocks.target_blocks(images, side)
    assert torch.equal(targets, folded.permute(0, 2, 3, 1, 4, 5).reshape(2, (grid // block) ** 2, -1))
    assert torch.equal(blocks.join_blocks(targets, side), images)


def test_take_blocks_is_a_slice_or_a_gather_of_whole_blocks():
    x = torch.arange(2 * 12 * 5).view(2, 12, 5)
    assert torch.equal(blocks.take_blocks(x, 2, 4), x[:, :8])
    permuted = blocks.take_blocks(x, 2, 4, torch.tensor([2, 0, 1]))
    assert torch.equal(permuted, torch.cat([x[:, 8:12], x[:, 0:4]], dim=1))


@pytest.mark.parametrize("k", [2, 16, 64])
def test_block_orders_share_no_prefix_and_depend_only_on_the_seed(k):
    orders = blocks.block_orders(k, seed=3)
    assert orders.dtype == torch.int64
    for row in orders.tolist():
        assert sorted(row) == list(range(k))
    for length in range(1, k):
        assert len({tuple(row[:length]) for row in orders.tolist()}) == k
    assert torch.equal(orders, blocks.block_orders(k, seed=3))
    if k > 2:
        assert not torch.equal(orders, blocks.block_orders(k, seed=4))


def test_pick_order_uses_every_order_about_equally():
    orders = blocks.block_orders(16, seed=0)
    firsts = [int(blocks.pick_order(orders, seed=0, samples_seen=512 * t)[0]) for t in range(1600)]
    counts = torch.bincount(torch.tensor(firsts), minlength=16)
    assert counts.min() > 60  # 100 expected, standard deviation 9.7
    assert counts.max() < 145
