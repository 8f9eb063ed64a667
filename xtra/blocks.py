"""Orders of tokens and blocks, the block-causal mask, and pixels as patches and blocks. All functions are pure.

An image is a grid of patches (tokens); block x block neighbouring patches make one block, the unit that XTRA predicts.
Raster order reads tokens row by row over the whole image. Block order reads block after block (blocks in raster
order), and row by row inside a block: tokens of one block are neighbours, so the mask is block-lower-triangular,
dropping the last block is a slice and joining a block's tokens is a view.

Shapes: B images, K blocks of t = block * block tokens, N = K * t tokens, D width, P = 3 * side * side values per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shards.stream import permutation, uniform

_PURPOSE = 0x6F726465  # separates the draws of block orders from those of the sample order


def block_order(grid: int, block: int) -> Tensor:
    """[N] int64: the raster index of each token in block order; `x[:, block_order(g, b)]` sorts raster tokens so."""
    rows = grid // block
    raster = torch.arange(grid * grid).view(rows, block, rows, block)
    return raster.transpose(1, 2).flatten()


def raster_order(grid: int, block: int) -> Tensor:
    """[N] int64, the inverse of `block_order`: `x[:, raster_order(g, b)]` undoes it."""
    return block_order(grid, block).argsort()


def block_causal_mask(tokens: int, per_block: int, device: torch.device | str | None = None) -> Tensor:
    """[N, N] bool for N tokens in block order; True where query (row) may attend key (column).

    Attention is bidirectional inside a block and reaches all earlier blocks (paper section 3.1; 53.125 % of the pairs
    for 16 blocks of 16 tokens).
    """
    block_N = torch.arange(tokens, device=device) // per_block
    return block_N[:, None] >= block_N[None, :]


def patches(images_B3HW: Tensor, patch: int, block: int) -> Tensor:
    """[B, N, 3 * patch * patch] in block order; a patch is (channel, row, column), as in a conv weight."""
    b, c, height, width = images_B3HW.shape
    side = patch * block
    x = images_B3HW.reshape(b, c, height // side, block, patch, width // side, block, patch)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(b, -1, c * patch * patch)


def target_blocks(images_B3HW: Tensor, side: int) -> Tensor:
    """[B, K, P]: the pixels of each block in raster order of blocks, values in (channel, row, column) order."""
    b, c, height, width = images_B3HW.shape
    x = images_B3HW.reshape(b, c, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * side * side)


def join_blocks(blocks_BKP: Tensor, side: int) -> Tensor:
    """[B, 3, H, W]: the square images whose `target_blocks` these are."""
    b, k, _ = blocks_BKP.shape
    rows = round(k**0.5)
    x = blocks_BKP.reshape(b, rows, rows, 3, side, side)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, 3, rows * side, rows * side)


def take_blocks(x_BND: Tensor, blocks: int, per_block: int, perm_K: Tensor | None = None) -> Tensor:
    """The first `blocks` blocks of tokens in block order: a slice, or a gather when the blocks are permuted."""
    if perm_K is None:
        return x_BND[:, : blocks * per_block]
    return x_BND.unflatten(1, (-1, per_block))[:, perm_K[:blocks]].flatten(1, 2)


def block_orders(blocks: int, seed: int) -> Tensor:
    """[K, K] int64: K random orders of the blocks, one per row, no two with a common prefix (paper section 4.4).

    No common prefix of any length means that the first blocks all differ; given its first block, an order is uniform.
    """
    first_K = permutation(blocks, seed, _PURPOSE)
    rows = [permutation(blocks, seed, _PURPOSE, 1 + row) for row in range(blocks)]
    return torch.stack([torch.tensor([first, *(b for b in row if b != first)]) for first, row in zip(first_K, rows)])


def pick_order(orders_KK: Tensor, seed: int, samples_seen: int) -> Tensor:
    """[K]: the order of the whole batch that starts at this many samples seen. Validation uses `orders_KK[0]`."""
    draw = float(uniform(seed, "block_order", samples_seen))
    return orders_KK[int(draw * len(orders_KK))]
