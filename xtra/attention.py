"""Softmax attention under the block-causal mask: several implementations of the same result, behind `attend`.

dense     one call with a dense mask. Kernels that skip masked pairs do not accept such a mask, so all are computed
halves    the queries in 2 runs of whole blocks, each against the keys up to its own end: 3/4 of the pairs
quarters  the same in 4 runs: 5/8 of the pairs
blocks    a run for each block, which needs no mask: 17/32 of the pairs for 16 blocks, in as many calls
flex128   torch's FlexAttention, which skips fully masked tiles of 128 x 128 pairs
flex64    the same in tiles of 64 x 64, with our own settings for its kernels: torch lists none that fit on an H100

On a GPU the kernel is part of the choice, because torch's default differs between versions and cards: the first four
use the memory-efficient kernel (FlashAttention without a mask), and with "-cudnn" cuDNN's, except where that is known
to be wrong (`kernels`). If a GPU cannot use one kernel, it uses the next in the list.

Blocks of one token are plain causal attention, for which kernels need no mask: there all implementations are the same.
The fastest depends on the machine: "auto" uses the measured one (`chosen`).

Shapes: B images, H heads, N tokens in block order, E width of a head.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xtra.blocks import block_causal_mask
from xtra.config import IMPLEMENTATIONS as IMPLEMENTATIONS, Implementation as Implementation

HALVED: int = 128  # from this many tokens on, a CPU computes attention in two halves
# (tokens, head width) -> the fastest in training on a GPU by `make bench-gpu` (docs/perf.md); otherwise dense, whose
# kernel has no known faults.
ON_GPU: Mapping[tuple[int, int], str] = MappingProxyType({})

_RUNS = {"halves": 2, "quarters": 4}  # of queries
_TILES = {"flex128": 128, "flex64": 64}


class Causal(NamedTuple):
    """Which tokens attend to which, and how attention is computed."""

    mask_NN: Tensor | None  # True: may attend; None: plain causal, which needs no mask; [B, 1, N, N]: per image
    ends: tuple[int, ...] = ()  # ends of the runs of queries, each against the keys up to the same end
    flex: Any = None  # FlexAttention's BlockMask, if it is used
    masked: bool = True  # False: within a run, every query attends to every key
    cudnn: bool = False  # use cuDNN on a GPU
    wide: bool = False  # compute in float32 even if the model is in bfloat16


def attend(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: Causal) -> Tensor:
    """Softmax attention, [B, H, N, E]."""
    if causal.wide and q_BHNE.dtype == torch.bfloat16 and q_BHNE.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return attend(q_BHNE.float(), k_BHNE.float(), v_BHNE.float(), causal).bfloat16()
    if causal.flex is not None:
        return _flex(q_BHNE, k_BHNE, v_BHNE, causal.flex)
    parts = []
    for start, end, mask in runs(causal, q_BHNE.shape[2]):
        q, k, v = q_BHNE, k_BHNE, v_BHNE
        if causal.ends:
            q, k, v = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
        with _only(kernels(q.device, causal.cudnn, mask is not None, end)):
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal.mask_NN is None))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def runs(causal: Causal, tokens: int) -> list[tuple[int, int, Tensor | None]]:
    """The runs of queries: start, end (exclusive), and mask [queries, keys] of each."""
    mask_NN, ends = causal.mask_NN, causal.ends or (tokens,)
    pairs = zip((0, *ends), ends)
    if mask_NN is None or not causal.masked:
        return [(start, end, None) for start, end in pairs]
    return [(start, end, mask_NN[start:end, :end] if causal.ends else mask_NN) for start, end in pairs]


def kernels(device: torch.device, cudnn: bool, masked: bool, keys: int) -> list[SDPBackend]:
    """torch's kernels for one call, in order of preference; empty: torch's own choice, as on CPUs.

    cuDNN's backward pass gives NaN in the queries' gradients under a mask if keys % 128 == 64 and logits are very low,
    on H100 and H200 since torch 2.11 (pytorch/pytorch issue 196678), so it is never used there.
    """
    if device.type != "cuda":
        return []
    rest = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if not masked:
        rest = [SDPBackend.FLASH_ATTENTION, *rest]
    return [SDPBackend.CUDNN_ATTENTION, *rest] if cudnn and not (masked and keys % 128 == 64) else rest


def _only(wanted: list[SDPBackend]) -> contextlib.AbstractContextManager[object]:
    return sdpa_kernel(wanted, set_priority=True) if wanted else contextlib.nullcontext()


def kernel_names(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, causal: Causal) -> str:
    """The kernels that `attend` runs for such inputs, by torch's names, joined by "+"."""
    if causal.flex is not None:
        return f"flex{causal.flex.BLOCK_SIZE[0]}"
    found = []
    for start, end, mask in runs(causal, q_BHNE.shape[2]):
        with _only(kernels(q_BHNE.device, causal.cudnn, mask is not None, end)):
            q, k, v = q_BHNE[:, :, start:end], k_BHNE[:, :, :end], v_BHNE[:, :, :end]
            number = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal.mask_NN is None)
        found.append(SDPBackend(number).name.lower().removesuffix("_attention"))
    return "+".join(dict.fromkeys(found))


def _flex(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    options = FLEX_64 if mask.BLOCK_SIZE[0] == 64 else None
    # Not compiled, it computes every pair in several passes: correct, but no faster than dense.
    if torch.compiler.is_compiling() or q_BHNE.device.type == "cpu":
        return flex_attention(q_BHNE, k_BHNE, v_BHNE, block_mask=mask, kernel_options=options)  # pyrefly: ignore
    return _compiled_flex()(q_BHNE, k_BHNE, v_BHNE, block_mask=mask, kernel_options=options)


# For the forward pass; `_tiles_of_64` sets the backward pass's.
FLEX_64 = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_stages": 3, "fwd_num_warps": 4}


@functools.cache
def _tiles_of_64() -> None:
    """Add a setting for tiles of 64 to those of torch's compiler for FlexAttention's backward pass.

    Kernel options do not help there: torch 2.13 drops its own settings that do not divide the tile before it reads the
    options (torch/_inductor/kernel/flex/flex_attention.py), and has no other for heads of 64 to 128 on an H100. The
    class itself is patched, because a custom handler (V.set_choices_handler) applies to one thread, and a backward pass
    is compiled in autograd's thread.
    """
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import FlexBwDConfig

    known = InductorChoices.get_flex_attention_bwd_configs

    def with_64(self: InductorChoices, *which: Any) -> list[Any]:
        return [*known(self, *which), FlexBwDConfig(64, 64, 64, 64, 2, 4)]

    InductorChoices.get_flex_attention_bwd_configs = with_64  # pyrefly: ignore


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)  # encoder and decoder have heads of different widths


def chosen(device: torch.device, tokens: int, head_width: int) -> str:
    """The implementation that "auto" selects.

    On CPUs, two halves take 0.84 to 0.95 of dense's time at 240 tokens; finer cuts save pairs but lose time.
    """
    if device.type == "cpu":
        return "halves" if tokens >= HALVED else "dense"
    return ON_GPU.get((tokens, head_width), "dense")


def causal_of(
    tokens: int, per_block: int, head_width: int, device: torch.device, implementation: str = "auto"
) -> Causal:
    """The argument of `attend` for `tokens` tokens in block order; cached by arguments.

    "auto" on a CPU is also wide: torch's bfloat16 kernel takes 3.5 times the float32 one's time in the backward pass,
    including casts.
    """
    if implementation != "auto":
        return _made(tokens, per_block, device, implementation)
    return _made(tokens, per_block, device, chosen(device, tokens, head_width), device.type == "cpu")


def prefixed(causal: Causal, prefix_B: Tensor | None, tokens: int, per_block: int) -> Causal:
    """The same, but the first `prefix_B` blocks of each image attend to each other in both directions. None: no prefix.

    Every image has its own dense mask."""
    if prefix_B is None:
        return causal
    visible_NN = block_causal_mask(tokens, per_block, prefix_B.device)
    block_N = torch.arange(tokens, device=prefix_B.device) // per_block
    early_BN = block_N[None, :] < prefix_B[:, None]  # keys visible to every token
    mask = visible_NN[None, None] | early_BN[:, None, None, :]
    return Causal(mask, cudnn=causal.cudnn, wide=causal.wide)


def both_ways(device: torch.device) -> Causal:
    """Every token attends to every token."""
    return Causal(torch.ones(1, 1, dtype=torch.bool, device=device), masked=False)


@functools.lru_cache(maxsize=32)
def _made(tokens: int, per_block: int, device: torch.device, implementation: str, wide: bool = False) -> Causal:
    how, _, kernel = implementation.partition("-")
    if per_block == 1:
        return Causal(None, cudnn=kernel == "cudnn", wide=wide)
    with torch.inference_mode(False):  # cached tensors may be saved for a backward pass
        mask = block_causal_mask(tokens, per_block, device)
        if how in _TILES:
            if how == "flex64":
                _tiles_of_64()
            return Causal(mask, flex=_block_mask(tokens, per_block, device, _TILES[how]))
    ends = run_ends(tokens, per_block, implementation)
    return Causal(mask, ends if len(ends) > 1 else (), None, how != "blocks", kernel == "cudnn", wide)


def _block_mask(tokens: int, per_block: int, device: torch.device, tile: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // per_block >= key // per_block

    return create_block_mask(visible, None, None, tokens, tokens, device=device, BLOCK_SIZE=tile)


def run_ends(tokens: int, per_block: int, implementation: str) -> tuple[int, ...]:
    """Where the implementation's runs of queries end; each uses the keys up to its own end. One run: all pairs."""
    how = implementation.partition("-")[0]
    if per_block == 1 or how == "dense":
        return (tokens,)
    if how in _TILES:
        size = _TILES[how]
    else:
        size = -(-tokens // per_block // _RUNS.get(how, tokens)) * per_block  # whole blocks, rounded up
    return (*range(size, tokens, size), tokens)
