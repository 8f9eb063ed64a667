"""Softmax attention under the block-causal mask: several ways (arms) of computing the same numbers, behind `attend`.

dense     one call under a dense mask. Kernels that skip what is masked take no such mask, so all pairs are computed
halves    the queries in 2 runs of whole blocks, each against the keys up to its own end: 3/4 of the pairs
quarters  the same in 4 runs: 5/8 of the pairs
blocks    a run for each block, which needs no mask at all: 17/32 of the pairs of 16 blocks, in as many calls
flex128   torch's FlexAttention, which leaves out tiles of 128 x 128 pairs in which nothing is visible;
          smaller ones fit no setting of its kernels on an H100

Blocks of one token are plain causal attention, which kernels know without a mask: there all arms are the same. Which
arm is the fastest depends on the machine: "auto" takes what was measured (`chosen`).

Shapes: B images, H heads, N tokens in block order, E width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from xtra.blocks import block_causal_mask

Arm = Literal["auto", "dense", "halves", "quarters", "blocks", "flex128"]
ARMS: tuple[str, ...] = get_args(Arm)[1:]

HALVED: int = 128  # tokens from which on a CPU computes attention in two halves
# (tokens, width of a head) -> what was fastest in training on a GPU by `make bench-gpu` (docs/perf.md); else: dense.
ON_GPU: Mapping[tuple[int, int], str] = MappingProxyType({})

_RUNS = {"halves": 2, "quarters": 4}  # of queries
_TILES = {"flex128": 128}


class Causal(NamedTuple):
    """Which tokens attend to which, and how that is computed."""

    mask_NN: Tensor | None  # True: may attend; None: plain causal, where kernels need no mask
    ends: tuple[int, ...] = ()  # queries are taken in runs up to these, each against the keys up to the same end
    flex: Any = None  # FlexAttention's BlockMask, where it computes
    masked: bool = True  # False: within a run every query sees every key that it is given


def attend(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: Causal) -> Tensor:
    """Softmax attention, [B, H, N, E]."""
    if q_BHNE.dtype == torch.bfloat16 and q_BHNE.device.type == "cpu" and q_BHNE.requires_grad:
        # torch's bfloat16 kernel takes 3.5 times the float32 one's time for the backward pass, casts included
        with torch.autocast("cpu", enabled=False):
            return attend(q_BHNE.float(), k_BHNE.float(), v_BHNE.float(), causal).bfloat16()
    mask_NN = causal.mask_NN
    if causal.flex is not None:
        return _flex(q_BHNE, k_BHNE, v_BHNE, causal.flex)
    if not causal.ends:
        return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=mask_NN, is_causal=mask_NN is None)
    assert mask_NN is not None
    parts = []
    for start, end in zip((0, *causal.ends), causal.ends):
        seen = mask_NN[start:end, :end] if causal.masked else None
        q, k, v = q_BHNE[:, :, start:end], k_BHNE[:, :, :end], v_BHNE[:, :, :end]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    return torch.cat(parts, 2)


def _flex(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Not compiled it computes every pair, in several passes: right, and no faster than the dense arm.
    if torch.compiler.is_compiling() or q_BHNE.device.type == "cpu":
        return flex_attention(q_BHNE, k_BHNE, v_BHNE, block_mask=mask)  # pyrefly: ignore
    return _compiled_flex()(q_BHNE, k_BHNE, v_BHNE, block_mask=mask)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # encoder and decoder have heads of different widths


def chosen(device: torch.device, tokens: int, head_width: int) -> str:
    """The arm that "auto" means.

    On CPUs two halves take 0.84 to 0.95 of the dense arm's time at 240 tokens; finer cuts save pairs and lose time.
    """
    if device.type == "cpu":
        return "halves" if tokens >= HALVED else "dense"
    return ON_GPU.get((tokens, head_width), "dense")


def causal_of(tokens: int, per_block: int, head_width: int, device: torch.device, arm: str = "auto") -> Causal:
    """What `attend` needs for so many tokens in block order; made once for each set of arguments."""
    return _made(tokens, per_block, device, chosen(device, tokens, head_width) if arm == "auto" else arm)


@functools.lru_cache(maxsize=32)
def _made(tokens: int, per_block: int, device: torch.device, arm: str) -> Causal:
    if per_block == 1:
        return Causal(None)
    with torch.inference_mode(False):  # what is kept for later steps may have to be kept for a backward pass
        mask = block_causal_mask(tokens, per_block, device)
        if arm in _TILES:
            return Causal(mask, flex=_block_mask(tokens, per_block, device, _TILES[arm]))
    ends = run_ends(tokens, per_block, arm)
    return Causal(mask, ends if len(ends) > 1 else (), masked=arm != "blocks")


def _block_mask(tokens: int, per_block: int, device: torch.device, tile: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // per_block >= key // per_block

    return create_block_mask(visible, None, None, tokens, tokens, device=device, BLOCK_SIZE=tile)


def run_ends(tokens: int, per_block: int, arm: str) -> tuple[int, ...]:
    """Where the arm's runs of queries end; each meets the keys up to its own end. One run: every pair is computed."""
    if per_block == 1 or arm == "dense":
        return (tokens,)
    if arm in _TILES:
        size = _TILES[arm]
    else:
        size = -(-tokens // per_block // _RUNS.get(arm, tokens)) * per_block  # whole blocks, rounded up
    return (*range(size, tokens, size), tokens)
