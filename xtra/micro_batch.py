"""How many images fit in a GPU's memory in one pass: by a formula from the shapes, then by one try.

The formula for the tensors that the forward pass keeps is the one that `xtra bench memory` compares with autograd's
count. To it are added the largest temporaries of the backward pass, the pixels, and the memory for every parameter. A
tenth of the free memory is left for kernel buffers, communication and the allocator's gaps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch

from xtra.model import ModelConfig

FILL = 0.9  # share of the free memory to use


def kept_bytes(c: ModelConfig, bf16: bool, decoder_fp32: bool) -> int:
    """Bytes per image, from the shapes alone, for N tokens (the last block is not computed) and K - 1 predictions.

    A layer of width D keeps for each token: the inputs of both norms with mean and deviation in float32; and in the
    precision of the products, both norms' outputs (D each), queries, keys and values (3 D), attention's output (D), the
    log-sum-exp of each head (float32), and the hidden values of the MLP before and after GELU. The loss keeps
    predictions and normalised targets in float32.
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
    """`kept_bytes`, plus the pixels as bytes and twice as floats, plus the backward pass's gradients of one layer's or
    MLP's hidden values: before and after GELU, and once in float32."""
    n, k = c.tokens - c.per_block, c.blocks - 1
    widest = max(c.mlp_ratio * c.width, (c.dec_mlp_ratio or c.mlp_ratio) * c.dec_width, c.bridge)
    hidden = max(n * widest, k * max(c.head, c.block_pixels))
    return kept_bytes(c, bf16, decoder_fp32) + 9 * 3 * c.image**2 + round(8 * hidden)


def free_bytes(device: torch.device) -> int | None:
    """A GPU's free memory, including this process's unused cache; None for a CPU, whose memory is shared."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def fixed_bytes(parameters: int, world: int, missing: int) -> int:
    """A step's memory apart from images and weights: gradients, their bfloat16 pieces, buckets if several ranks sum
    them, and optimiser moments that do not exist yet (for `missing` parameters)."""
    return parameters * (4 + 2 + (4 if world > 1 else 0)) + 8 * missing


def images_that_fit(c: ModelConfig, bf16: bool, decoder_fp32: bool, free: int) -> int:
    """The number of images by the formula, at least 1. `free`: bytes for images."""
    return max(1, int(FILL * free / image_bytes(c, bf16, decoder_fp32)))


def even_parts(share: int, fits: int) -> int:
    """The size of the fewest equal parts of `share` images that fit, rounded up to a multiple of 8 if that fits."""
    part = math.ceil(share / math.ceil(share / fits))
    rounded = math.ceil(part / 8) * 8
    return rounded if part < share and rounded <= fits else part


def tried(images: int, once: Callable[[int], None]) -> int:
    """The most images, halved as often as necessary, for which `once` has memory: one try if the formula is right."""
    while True:
        try:
            once(images)
            return images
        except torch.OutOfMemoryError:
            if images == 1:
                raise
        # Outside the handler: its traceback keeps the pass's tensors alive.
        images = math.ceil(images / 2)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def in_one_line(run: str, micro: int) -> Iterator[None]:
    """Raises ValueError that names --micro if the block runs out of GPU memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{run}: a step of {micro} images in one pass does not fit in the GPU's memory: give --micro "
            f"{max(1, micro // 2)} or less ({said[:120]})"
        ) from None
