"""A model's cost from its sizes alone: the official code's FLOPs per training image, and its parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model's sizes, by the names of `xtra.model.ModelConfig` but without importing torch."""

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
    dec_mlp_ratio: float = 0.0  # 0: as mlp_ratio
    prefix: bool = False

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def blocks(self) -> int:
        return self.tokens // self.block**2

    @property
    def variant(self) -> str:
        if self.prefix:
            return "aim-prefix" if self.block == 1 else "xtra-prefix"
        return "aim" if self.block == 1 else "xtra"

    @property
    def size(self) -> str:
        """The usual letter for a usual width and depth ("B/16"), otherwise both numbers ("192x4/8")."""
        name = _SIZE_NAMES.get((self.width, self.depth), f"{self.width}x{self.depth}")
        return f"{name}/{self.patch}"


_SIZE_NAMES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g"}


def forward_flops(
    shape: Shape, last_block: bool = True, ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
) -> dict[str, int]:
    """FLOPs of one image's forward pass by part, 2mnk per matmul; without `last_block`, only what affects the loss.

    ends: for the encoder's and the decoder's attention, the ends of the runs of queries, each against the keys up to
    the same end (`attention.run_ends`); empty: every pair is computed.
    """
    tokens = shape.tokens - (0 if last_block else shape.block**2)

    def linears(width: int, depth: int, ratio: float) -> int:
        return depth * 2 * tokens * width * (4 * width + 2 * round(width * ratio))  # qkv, projection, MLP

    def attention(width: int, depth: int, ends: tuple[int, ...]) -> int:
        ends = ends or (tokens,)
        pairs = sum((end - start) * end for start, end in zip((0, *ends), ends))
        return depth * 4 * pairs * width

    pixels = 3 * shape.patch**2
    positions = [shape.blocks if last_block else shape.blocks - 1 - ahead for ahead in range(shape.predict)]
    return {
        "patches": 2 * tokens * pixels * shape.width,
        "encoder linears": linears(shape.width, shape.depth, shape.mlp_ratio),
        "encoder attention": attention(shape.width, shape.depth, ends[0]),
        "bridge": 2 * tokens * shape.bridge * (shape.width + shape.dec_width),
        "decoder linears": linears(shape.dec_width, shape.dec_depth, shape.dec_mlp_ratio or shape.mlp_ratio),
        "decoder attention": attention(shape.dec_width, shape.dec_depth, ends[1]),
        "head": 2 * sum(positions) * shape.head * shape.block**2 * (shape.dec_width + pixels),
    }


def flops_per_image(shape: Shape) -> int:
    """FLOPs of one training image, forward and backward, as in the official code with dense masks.

    2mnk per matmul; the backward pass is twice the forward one, except that pixels need no gradient (equal to torch's
    FlopCounterMode on the official modules: 254,275,485,696 for B/16 at 256, 1,096,620,048,384 for H/14 at 224). Our
    own savings (last block dropped, sparse attention) do not lower it: it is the x-axis shared with peers.
    """
    parts = forward_flops(shape)
    return 3 * sum(parts.values()) - parts["patches"]


def flops_done(
    shape: Shape, ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()), keep: float = 1.0, last_block: bool = False
) -> int:
    """FLOPs that one training image really takes here: without the last block, and heads only at positions with a
    target.

    ends: see `forward_flops`. keep: the mean share of the encoder's residual branches that are computed, below 1 if
    drop path skips the others.
    """
    parts = forward_flops(shape, last_block, ends)
    encoder = parts["encoder linears"] + parts["encoder attention"]
    return 3 * (sum(parts.values()) - encoder + round(keep * encoder)) - parts["patches"]


# Dense bfloat16 FLOP/s stated by the makers, by a part of torch's name for the GPU.
PEAKS: dict[str, float | None] = {
    "B200": 2.25e15,
    "H200 NVL": None,  # below the SXM's; no number found from the maker
    "H100 NVL": None,
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
    """The peak of a GPU by its name; None if unknown."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu)), None)


def parameters(shape: Shape) -> int:
    """Weights of the whole pretraining model: encoder, bridge, decoder, heads."""

    def transformer(width: int, depth: int, ratio: float) -> int:
        hidden = round(width * ratio)
        attention = 4 * width**2 + 4 * width  # qkv and projection, with biases
        block = attention + 2 * width * hidden + hidden + width + 4 * width  # ... MLP, two LayerNorms
        return depth * block + 2 * width + shape.tokens * width  # final LayerNorm, position table

    pixels = 3 * shape.patch**2
    embed = pixels * shape.width + shape.width
    bridge = shape.width * shape.bridge + shape.bridge + shape.bridge * shape.dec_width  # second layer has no bias
    block_in = shape.block**2 * shape.dec_width
    block_out = shape.block**2 * pixels
    head = block_in * shape.head + shape.head + shape.head * block_out + block_out
    trunk = transformer(shape.width, shape.depth, shape.mlp_ratio)
    trunk += transformer(shape.dec_width, shape.dec_depth, shape.dec_mlp_ratio or shape.mlp_ratio)
    return embed + trunk + bridge + shape.predict * head
