"""How many images a GPU's memory holds in one pass: by a formula from the shapes, and then by one try.

What the forward pass keeps for the backward one is the formula that `xtra bench memory` compares with autograd's count.
On top come the largest temporaries of the backward pass, the pixels, and what every parameter needs. A tenth of the
free memory is left for buffers of kernels, for communication and for the allocator's gaps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch

from xtra.model import ModelConfig

FILL = 0.9  # of the free memory


def kept_bytes(c: ModelConfig, bf16: bool, decoder_fp32: bool) -> int:
    """Bytes an image, from the shapes alone, for N tokens (the last block is not computed) and K - 1 predictions.

    A layer of width D keeps of each token: the inputs of both norms and their mean and spread in float32; and in the
    precision of the products, both norms' outputs (D each), queries, keys and values (3 D), attention's output (D) and
    the logarithm of its sum for each head (float32), and the hidden values of the MLP before and after GELU. The loss
    keeps predictions and normalised targets in float32.
    """
    half = 2 if bf16 else 4
    n, k = c.tokens - c.per_block, c.blocks - 1

    def norm(width: int) -> int:
        return n * (4 * width + 8)

    def layers(width: int, depth: int, heads: int, size: int, ratio: float) -> int:
        products = (6 + 2 * ratio) * width * size
        return depth * (2 * norm(width) + round(n * products) + n * heads * 4)

    def mlp(rows: int, width: int, hidden: int, size: int) -> int:
        return rows * (width + 2 * hidden) * size

    encoder = layers(c.width, c.depth, c.heads, half, c.mlp_ratio) + norm(c.width) + n * 3 * c.patch**2 * half
    size, ratio = 4 if decoder_fp32 else half, c.dec_mlp_ratio or c.mlp_ratio
    decoder = layers(c.dec_width, c.dec_depth, c.dec_heads, size, ratio) + norm(c.dec_width)
    bridge = mlp(n, c.width, c.bridge, half)
    heads = sum(
        mlp(k - ahead, c.per_block * c.dec_width, c.head, half) + (k - ahead) * c.block_pixels * 4
        for ahead in range(c.predict)
    )
    return encoder + bridge + decoder + heads + k * c.block_pixels * 4


def image_bytes(c: ModelConfig, bf16: bool, decoder_fp32: bool) -> int:
    """`kept_bytes`, the pixels as bytes and twice as floats, and the gradients of one layer's or MLP's hidden values
    while the backward pass is there: before and after GELU, and in float32 once."""
    n, k = c.tokens - c.per_block, c.blocks - 1
    widest = max(c.mlp_ratio * c.width, (c.dec_mlp_ratio or c.mlp_ratio) * c.dec_width, c.bridge)
    hidden = max(n * widest, k * max(c.head, c.block_pixels))
    return kept_bytes(c, bf16, decoder_fp32) + 9 * 3 * c.image**2 + round(8 * hidden)


def free_bytes(device: torch.device) -> int | None:
    """What a GPU can still give, with what this process holds unused; None for a CPU, whose memory is everybody's."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def fixed_bytes(parameters: int, world: int, missing: int) -> int:
    """What a step holds besides images and weights: gradients, their bfloat16 pieces, buckets where several ranks sum
    them, and moments of the optimiser that are not there yet (`missing` parameters')."""
    return parameters * (4 + 2 + (4 if world > 1 else 0)) + 8 * missing


def images_that_fit(c: ModelConfig, bf16: bool, decoder_fp32: bool, free: int) -> int:
    """By the formula; at least 1. `free`: bytes for images."""
    return max(1, int(FILL * free / image_bytes(c, bf16, decoder_fp32)))


def even_parts(share: int, fits: int) -> int:
    """The size of the fewest equal parts of `share` images that fit, rounded up to a multiple of 8 where that fits."""
    part = math.ceil(share / math.ceil(share / fits))
    rounded = math.ceil(part / 8) * 8
    return rounded if part < share and rounded <= fits else part


def tried(images: int, once: Callable[[int], None]) -> int:
    """The most images, halved as often as needed, that `once` has memory for: one try where the formula is right."""
    while True:
        try:
            once(images)
            return images
        except torch.OutOfMemoryError:
            if images == 1:
                raise
        # Outside of the handler: its traceback holds the tensors of the pass.
        images = math.ceil(images / 2)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def in_one_line(run: str, micro: int) -> Iterator[None]:
    """Raises ValueError that names --micro where the block has not enough of a GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{run}: the GPU's memory does not hold a step of {micro} images in one pass: give --micro "
            f"{max(1, micro // 2)} or less ({said[:120]})"
        ) from None
