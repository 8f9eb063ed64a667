"""XTRA: encoder, bridge, decoder and heads as plain torch modules (arXiv 2411.15648, section 3 and appendix A).

    images -> patches -> Encoder (block-causal ViT) -> bridge MLP -> Decoder (block-causal ViT) -> one head per offset

The encoder is what probes use; the rest exists for pretraining. Unusual here: all tokens are in block order from the
patch embedding on (xtra/blocks.py); a head reads a block's tokens side by side, token-major; position tables are stored
in block order; the last block, which is never an input to any loss, is not computed in training. Weights of the
official code differ by fixed permutations that `xtra.official.from_official` applies.

Shape suffixes: B images, N tokens, D width, H heads, E width of a head, K blocks, P pixel values of a block, L encoder
layers, S = 2 residual branches of a layer (attention, MLP). In images_B3HW, H and W are pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtra.attention import Causal, attend, both_ways, causal_of, prefixed
from xtra.blocks import patches, take_blocks
from xtra.config import SIZES as SIZES, Mask, ModelConfig, model_config as model_config
from xtra.drop_path import Branch, Drop, added, branch_of, drops_of, mark_kept

NORM_EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, causal: Causal) -> Tensor:
        b, n, d = x_BND.shape
        q, k, v = self.qkv(x_BND).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v, causal).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int, last_bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out, bias=last_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, round(width * mlp_ratio), width)

    def forward(
        self,
        x_BND: Tensor,
        causal: Causal,
        attn_drop: Drop | None = None,
        mlp_drop: Drop | None = None,
        before: Branch | None = None,
    ) -> tuple[Tensor, Branch]:
        """The stream, and the MLP's branch, which the next layer adds as its `before`, so that a sum and the following
        norm are always in one compiled layer. `drop_path.added` adds the two."""
        x_BND = added(x_BND, before)
        x_BND = added(x_BND, branch_of(x_BND, lambda x: self.attn(self.norm1(x), causal), attn_drop))
        return x_BND, branch_of(x_BND, lambda x: self.mlp(self.norm2(x)), mlp_drop)


class LastNorm(nn.LayerNorm):
    """The norm of the whole stream, after the last layer."""

    def forward(self, input: Tensor, before: Branch | None = None) -> Tensor:  # noqa: A002  (torch's name)
        return super().forward(added(input, before))


class PatchEmbed(nn.Module):
    """A convolution with kernel = stride = patch, as one matrix product on patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, patches_BNV: Tensor) -> Tensor:
        return F.linear(patches_BNV, self.weight.flatten(1), self.bias)


class Encoder(nn.Module):
    """The vision transformer: no class token, learned positions, block-causal attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.skip_dropped = False  # see drop_path.drops_of
        self.attention = "auto"  # or one of xtra.attention.IMPLEMENTATIONS, with the same result
        self.compiled = False
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = LastNorm(config.width, eps=NORM_EPS)

    def forward(
        self,
        images_B3HW: Tensor,
        drop_LSB: Tensor | None = None,
        last_block: bool = True,
        perm_K: Tensor | None = None,
        prefix_B: Tensor | None = None,
    ) -> Tensor:
        """[B, N, D] after the final norm, tokens in block order, N short of the last block unless `last_block`.

        images_B3HW: floats, normalised by ImageNet mean and std. drop_LSB: each residual branch's factor, 0 or 1/keep
        (`drop_path.scales`). perm_K: the order of the blocks. prefix_B: each image's number of blocks that attend to
        each other in both directions (`prefix.draws`).
        """
        x = self.embed(images_B3HW, last_block, perm_K)
        causal, before = prefixed(self._causal(x), prefix_B, x.shape[1], self.config.per_block), None
        for block, drops in zip(self.blocks, drops_of(drop_LSB, len(self.blocks), x.device, self.skip_dropped)):
            if self.compiled:
                mark_kept(*drops, before)
            x, before = block(x, causal, *drops, before)
        if self.compiled:
            mark_kept(before)
        return self.norm(x, before)

    def layers(self, images_B3HW: Tensor, last: int, perm_K: Tensor | None = None, mask: Mask = "own") -> list[Tensor]:
        """The un-normalised residual streams [B, N, D] after each of the last `last` layers, tokens in block order.

        After prefix attention, every token attends to all others here, as when AIM's encoder is probed; `mask` replaces
        that by the block-causal mask or none. Raises ValueError if the encoder has fewer layers.
        """
        if not 1 <= last <= len(self.blocks):
            raise ValueError(f"layers is {last}; this encoder has 1..{len(self.blocks)}")
        x = self.embed(images_B3HW, True, perm_K)
        both = mask == "none" or (mask == "own" and self.config.prefix)
        causal = both_ways(x.device) if both else self._causal(x)
        streams = []
        for block in self.blocks:
            x = added(*block(x, causal))
            streams.append(x)
        return streams[-last:]

    def _causal(self, x_BND: Tensor) -> Causal:
        c = self.config
        return causal_of(x_BND.shape[1], c.per_block, c.width // c.heads, x_BND.device, self.attention)

    def embed(self, images_B3HW: Tensor, last_block: bool, perm_K: Tensor | None) -> Tensor:
        """Patches and their positions, [B, N, D]."""
        c = self.config
        if images_B3HW.shape[1:] != (3, c.image, c.image):
            raise ValueError(f"images are {list(images_B3HW.shape)}; this model takes [B, 3, {c.image}, {c.image}]")
        blocks = c.blocks if last_block else c.blocks - 1
        x = self.patch_embed(take_blocks(patches(images_B3HW, c.patch, c.block), blocks, c.per_block, perm_K))
        return x + take_blocks(self.pos_embed, blocks, c.per_block, perm_K)


class Decoder(nn.Module):
    """A second block-causal transformer, with its own positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = "auto"
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.dec_width))
        self.blocks = nn.ModuleList(
            Block(config.dec_width, config.dec_heads, config.dec_mlp_ratio or config.mlp_ratio)
            for _ in range(config.dec_depth)
        )
        self.norm = LastNorm(config.dec_width, eps=NORM_EPS)

    def forward(self, x_BND: Tensor, perm_K: Tensor | None = None, prefix_B: Tensor | None = None) -> Tensor:
        c = self.config
        x = x_BND + take_blocks(self.pos_embed, x_BND.shape[1] // c.per_block, c.per_block, perm_K)
        causal = causal_of(x.shape[1], c.per_block, c.dec_width // c.dec_heads, x.device, self.attention)
        causal = prefixed(causal, prefix_B, x.shape[1], c.per_block)
        before = None
        for block in self.blocks:
            x, before = block(x, causal, before=before)
        return self.norm(x, before)


class Xtra(nn.Module):
    """The whole pretraining model. Make it with `build`, which also sets the weights."""

    def __init__(self, config: ModelConfig, decoder_fp32: bool = False) -> None:
        """`decoder_fp32`: under autocast, run the decoder in float32 as the official code does (NaN in float16)."""
        super().__init__()
        self.config = config
        self.decoder_fp32 = decoder_fp32
        self.compiled = False  # by xtra/compiled.py
        self.encoder = Encoder(config)
        self.bridge = Mlp(config.width, config.bridge, config.dec_width, last_bias=False)
        self.decoder = Decoder(config)
        width = config.per_block * config.dec_width
        self.heads = nn.ModuleList(Mlp(width, config.head, config.block_pixels) for _ in range(config.predict))

    def forward(
        self,
        images_B3HW: Tensor,
        drop_LSB: Tensor | None = None,
        last_block: bool = False,
        perm_K: Tensor | None = None,
        prefix_B: Tensor | None = None,
    ) -> list[Tensor]:
        """Predicted normalised pixels, one tensor per head: head i at position k predicts block k+1+i.

        Each is [B, K-1-i, P], or [B, K, P] with `last_block`. Arguments as for `Encoder.forward`.
        """
        x = self.bridge(self.encoder(images_B3HW, drop_LSB, last_block, perm_K, prefix_B))
        x_BKD = (
            self.decode(x, perm_K, prefix_B).unflatten(1, (-1, self.config.per_block)).flatten(2)
        )  # token-major: a view
        if last_block:
            return [head(x_BKD) for head in self.heads]
        return [head(x_BKD[:, : self.config.blocks - 1 - ahead]) for ahead, head in enumerate(self.heads)]

    def decode(self, x_BND: Tensor, perm_K: Tensor | None = None, prefix_B: Tensor | None = None) -> Tensor:
        """Run the decoder in its configured precision; the output has the input's."""
        if not (self.decoder_fp32 and torch.is_autocast_enabled(x_BND.device.type)):
            return self.decoder(x_BND, perm_K, prefix_B)
        with torch.autocast(x_BND.device.type, enabled=False):
            return self.decoder(x_BND.float(), perm_K, prefix_B).to(x_BND.dtype)


def build(config: ModelConfig, seed: int = 0, device: torch.device | str = "cpu", decoder_fp32: bool = False) -> Xtra:
    """A model with its initial weights, which depend only on the config and the seed, not on rank or device."""
    with torch.device("meta"):
        model = Xtra(config, decoder_fp32)
    model.to_empty(device=device)
    init_weights(model, seed)
    return model


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision, "highest" or "high" (TF32), restored at exit, as it affects the process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def made_constant(name: str, parameter: nn.Parameter) -> bool:
    """Set a bias to 0 or a norm to 1; False for all else, which begins at random."""
    if constant := name.endswith("bias") or parameter.ndim == 1:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return constant


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """The official initialisation: linear weights and position tables N(0, 0.02), patch weights by Kaiming (fan-in,
    ReLU), biases 0, norms 1.

    The official truncation at +-2 is 100 standard deviations away and is omitted. Each parameter has its own generator,
    seeded by seed and name, so models that share a part start from the same weights there (paired ablations).
    """
    for name, p in model.named_parameters():
        if not made_constant(name, p):
            std = (2 / p[0].numel()) ** 0.5 if name.endswith("patch_embed.weight") else 0.02
            digest = hashlib.sha256(f"{seed}/{name.removeprefix('encoder.')}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            p.copy_(torch.empty(p.shape, dtype=p.dtype).normal_(0.0, std, generator=generator))
