"""What a model costs: the paper's FLOPs of one training image, and its parameters, from its sizes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a model needs, under the names of `xtra.model.ModelConfig` but without importing torch."""

    image: int
    patch: int
    block: int
    width: int
    depth: int
    bridge: int
    dec_width: int
    dec_depth: int
    head: int
    predict: int = 1
    mlp_ratio: float = 4.0

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def blocks(self) -> int:
        return self.tokens // self.block**2

    @property
    def variant(self) -> str:
        return "aim" if self.block == 1 else "xtra"

    @property
    def size(self) -> str:
        """The usual letter where width and depth are the usual ones ("B/16"), else both ("192x4/8")."""
        name = _SIZE_NAMES.get((self.width, self.depth), f"{self.width}x{self.depth}")
        return f"{name}/{self.patch}"


_SIZE_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g"}


def flops_per_image(shape: Shape) -> int:
    """The paper's FLOPs of one training image, forward and backward: what the official code computes, masks dense.

    2mnk a matmul; the backward pass is twice the forward one, except that pixels need no gradient (equal to torch's
    FlopCounterMode on the official modules: 254,275,485,696 for B/16 at 256, 1,096,620,048,384 for H/14 at 224).
    Savings of our own (last block dropped, sparse attention) do not lower it: it is the x-axis shared with peers.
    """

    def transformer(width: int, depth: int) -> int:
        linears = 2 * shape.tokens * width * (4 * width + 2 * round(width * shape.mlp_ratio))  # qkv, projection, MLP
        attention = 4 * shape.tokens**2 * width
        return depth * (linears + attention)

    pixels = 3 * shape.patch**2
    embed = 2 * shape.tokens * pixels * shape.width
    bridge = 2 * shape.tokens * shape.bridge * (shape.width + shape.dec_width)
    block_in = shape.block**2 * shape.dec_width
    block_out = shape.block**2 * pixels
    heads = shape.predict * 2 * shape.blocks * shape.head * (block_in + block_out)
    trunk = transformer(shape.width, shape.depth) + transformer(shape.dec_width, shape.dec_depth)
    return 2 * embed + 3 * (trunk + bridge + heads)


def flops_done(shape: Shape, half: int = 0, keep: float = 1.0) -> int:
    """FLOPs that one training image really takes here: without the last block, and heads without positions that have no
    target.

    half: of attention in two halves (`model.Causal`), the tokens of the first. keep: the mean share of the encoder's
    residual branches that are computed, below 1 where drop path skips the others.
    """
    tokens = shape.tokens - shape.block**2
    pairs = half**2 + (tokens - half) * tokens if half else tokens**2

    def transformer(width: int, depth: int) -> int:
        linears = 2 * tokens * width * (4 * width + 2 * round(width * shape.mlp_ratio))
        return depth * (linears + 4 * pairs * width)

    pixels = 3 * shape.patch**2
    embed = 2 * tokens * pixels * shape.width
    bridge = 2 * tokens * shape.bridge * (shape.width + shape.dec_width)
    positions = sum(shape.blocks - 1 - ahead for ahead in range(shape.predict))
    heads = 2 * positions * shape.head * shape.block**2 * (shape.dec_width + pixels)
    encoder = round(keep * transformer(shape.width, shape.depth))
    return 2 * embed + 3 * (encoder + transformer(shape.dec_width, shape.dec_depth) + bridge + heads)


# Dense bfloat16 FLOP/s that the makers state, by a part of the name that torch gives the GPU.
PEAKS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
    "V100": 125e12,  # float16: it has no bfloat16
}


def peak_flops(gpu: str) -> float | None:
    """The peak of a GPU by its name; None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu)), None)


def parameters(shape: Shape) -> int:
    """Weights of the whole pretraining model: encoder, bridge, decoder, heads."""

    def transformer(width: int, depth: int) -> int:
        hidden = round(width * shape.mlp_ratio)
        attention = 4 * width**2 + 4 * width  # qkv and projection, with biases
        block = attention + 2 * width * hidden + hidden + width + 4 * width  # ... MLP, two LayerNorms
        return depth * block + 2 * width + shape.tokens * width  # final LayerNorm, position table

    pixels = 3 * shape.patch**2
    embed = pixels * shape.width + shape.width
    bridge = shape.width * shape.bridge + shape.bridge + shape.bridge * shape.dec_width  # second layer has no bias
    block_in = shape.block**2 * shape.dec_width
    block_out = shape.block**2 * pixels
    head = block_in * shape.head + shape.head + shape.head * block_out + block_out
    trunk = transformer(shape.width, shape.depth) + transformer(shape.dec_width, shape.dec_depth)
    return embed + trunk + bridge + shape.predict * head
