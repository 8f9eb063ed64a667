"""XTRA: encoder, bridge, decoder and heads as plain torch modules (arXiv 2411.15648, section 3 and appendix A).

    images -> patches -> Encoder (block-causal ViT) -> bridge MLP -> Decoder (block-causal ViT) -> one head per offset

The encoder is what probes use; the rest exists for pretraining. Unusual here: all tokens are in block order from the
patch embedding on (xtra/blocks.py); a head reads a block's tokens side by side, token-major; position tables are stored
in block order; the last block, which is never an input to any loss, is not computed in training. Weights of the
official code differ by fixed permutations that `xtra.run.checkpoint.from_official` applies.

Shape suffixes: B images, N tokens, D width, H heads, E width of a head, K blocks, P pixel values of a block, L encoder
layers, S = 2 residual branches of a layer (attention, MLP). In images_B3HW, H and W are pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtra.attention import Causal, attend, both_ways, causal_of, prefixed
from xtra.blocks import patches, take_blocks
from xtra.drop_path import Branch, Drop, added, branch_of, drops_of, mark_kept

NORM_EPS = 1e-6
ORDERS = ("raster", "random")
Mask = Literal["own", "causal", "none"]  # of a frozen encoder; own: causal, or none after prefix attention


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model. Pixels: image, patch. Patches a side: block (1 is plain causal AIM). The rest are widths."""

    image: int
    patch: int
    block: int
    width: int
    depth: int
    heads: int
    bridge: int  # hidden width of the MLP between encoder and decoder
    dec_width: int
    dec_depth: int
    dec_heads: int
    head: int  # hidden width of the pixel head
    predict: int = 1  # heads: head i predicts block k+1+i from block k
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # rate of the last encoder layer, rising linearly from 0; the decoder has none
    order: str = "raster"  # of the blocks; "random" trains on `blocks.block_orders`
    dec_mlp_ratio: float = 0.0  # of the decoder; 0: as mlp_ratio
    prefix: bool = False  # AIM's prefix attention (xtra/prefix.py)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"model.{field.name} is {value!r}; it must be a whole number of at least 1")
        for whole, part in (("image", "patch"), ("grid", "block"), ("width", "heads"), ("dec_width", "dec_heads")):
            size, divisor = getattr(self, whole), getattr(self, part)
            if size % divisor:
                raise ValueError(f"model.{part} is {divisor}; it must divide the {whole}, which is {size}")
        for whole, part in (("width", "heads"), ("dec_width", "dec_heads")):
            if getattr(self, whole) // getattr(self, part) % 2:
                size, heads = getattr(self, whole), getattr(self, part)
                raise ValueError(
                    f"model.{part} is {heads}; {whole} {size} / {heads} = {size // heads} a head, which must be even"
                )
        if not 1 <= self.predict < self.blocks:
            raise ValueError(
                f"model.predict is {self.predict}; with {self.blocks} blocks it must be 1..{self.blocks - 1}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path is {self.drop_path}; it must be at least 0 and below 1")
        if self.mlp_ratio <= 0:
            raise ValueError(f"model.mlp_ratio is {self.mlp_ratio}; it must be above 0")
        if self.dec_mlp_ratio < 0:
            raise ValueError(f"model.dec_mlp_ratio is {self.dec_mlp_ratio}; it must be above 0, or 0 for mlp_ratio")
        if self.order not in ORDERS:
            raise ValueError(f"model.order is {self.order!r}; it must be one of {', '.join(ORDERS)}")

    @property
    def grid(self) -> int:
        """Patches a side of the image."""
        return self.image // self.patch

    @property
    def blocks(self) -> int:
        """K, blocks of an image."""
        return (self.grid // self.block) ** 2

    @property
    def per_block(self) -> int:
        """Tokens of a block."""
        return self.block**2

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def side(self) -> int:
        """Pixels a side of a block."""
        return self.patch * self.block

    @property
    def block_pixels(self) -> int:
        """P, values of a block: 3 channels of side x side pixels."""
        return 3 * self.side**2


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The config from its JSON form. Raises ValueError naming an unknown or missing field."""
    names = [field.name for field in fields(ModelConfig)]
    for name in values:
        if name not in names:
            raise ValueError(f"model.{name} is unknown; the fields are {', '.join(names)}")
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise ValueError(f"the model config misses a field: {error}") from None


def _sizes() -> dict[str, ModelConfig]:
    tiny = ModelConfig(32, 4, 2, 64, 2, 2, bridge=128, dec_width=64, dec_depth=1, dec_heads=2, head=128)
    small = ModelConfig(32, 4, 2, 128, 4, 4, bridge=256, dec_width=128, dec_depth=2, dec_heads=2, head=256)
    base = ModelConfig(32, 4, 2, 192, 6, 6, bridge=384, dec_width=128, dec_depth=2, dec_heads=2, head=512)
    b16 = ModelConfig(256, 16, 4, 768, 12, 12, bridge=4096, dec_width=768, dec_depth=8, dec_heads=6, head=6144)
    h14 = ModelConfig(224, 14, 4, 1280, 32, 16, bridge=5120, dec_width=640, dec_depth=8, dec_heads=8, head=9408)
    b16_ablation = replace(b16, dec_width=384)
    # Encoders as in the official code (src/modules/vit.py); decoders, bridges and heads are ours.
    ti16 = replace(b16, width=192, heads=3, bridge=1024, dec_width=192, dec_heads=3, head=1536)
    s16 = replace(b16, width=384, heads=6, bridge=2048, dec_width=384, head=3072)
    l16 = replace(b16, width=1024, depth=24, heads=16)
    g14 = replace(h14, width=1408, depth=40, bridge=5632, dec_width=704, mlp_ratio=48 / 11, dec_mlp_ratio=4.0)
    return {
        "tiny32": tiny,
        "small32": small,
        "base32": base,
        "tiny64": replace(tiny, image=64, block=4),
        "small64": replace(small, image=64, block=4),
        "base64": replace(base, image=64, block=4),
        "ti16": ti16,
        "s16": s16,
        "b16": b16,
        "l16": l16,
        "h14": h14,
        "g14": g14,
        "b16_ablation": b16_ablation,
        "b16_aim": replace(b16_ablation, block=1),
    }


SIZES: Mapping[str, ModelConfig] = MappingProxyType(_sizes())
"""b16 and h14 are the paper's XTRA-B/16@256 and XTRA-H/14@224; b16_ablation and b16_aim its ablation baseline and
plain-causal variant; ti16, s16, l16 and g14 are not in the paper; *32 and *64 train on a CPU. All have drop_path 0:
recipes set it."""


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
        self.attention = "auto"  # or one of xtra.attention.ARMS, with the same result
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
def init_weights(model: nn.Module, seed: int) -> None:
    """The official initialisation: linear weights and position tables N(0, 0.02), patch weights by Kaiming (fan-in,
    ReLU), biases 0, norms 1.

    The official truncation at +-2 is 100 standard deviations away and is omitted. Each parameter has its own generator,
    seeded by seed and name, so models that share a part start from the same weights there (paired ablations).
    """
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif p.ndim == 1:
            p.fill_(1.0)
        else:
            std = (2 / p[0].numel()) ** 0.5 if name.endswith("patch_embed.weight") else 0.02
            digest = hashlib.sha256(f"{seed}/{name.removeprefix('encoder.')}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            p.copy_(torch.empty(p.shape, dtype=p.dtype).normal_(0.0, std, generator=generator))
