"""Attention kernel by kernel, at the shapes of B/16 and H/14: ms forward and backward next to the floor, and the cost
of a first call and of a new batch size.

Shapes: B images, H heads, N tokens, E width of a head.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.bench.gpu.floor import ATTENTION_BYTES, Ceilings
from jobs.bench.gpu.step import wait_for
from xtra.blocks import block_causal_mask

Row = dict[str, Any]
Run = Callable[[str, Callable[[], Row]], None]

# Encoder and decoder of B/16 with 256 images and of H/14 with 128, without the last block.
SHAPES = ((256, 12, 240, 64), (256, 6, 240, 128), (128, 16, 240, 80), (128, 8, 240, 80))
TINY = ((2, 2, 48, 8),)
CALLS = 20
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash, no mask": SDPBackend.FLASH_ATTENTION,  # accepts no mask: plain causal, for comparison
    "math": SDPBackend.MATH,
}


def run(device: torch.device, machine: Ceilings | None, attempt: Run) -> None:
    """Call `attempt` with a name and a function that computes a row, for torch's choice and every kernel and shape."""
    for shape in SHAPES if device.type == "cuda" else TINY:
        b, h, n, e = shape
        name = f"{b} x {h} x {n} x {e}"
        attempt(f"{name}, torch's choice", lambda shape=shape: choice(shape, device))
        for kernel in KERNELS:
            attempt(f"{name}, {kernel}", lambda shape=shape, kernel=kernel: measure(shape, kernel, device, machine))


def inputs(shape: tuple[int, int, int, int], device: torch.device) -> list[Tensor]:
    """Queries, keys and values as in the model: strided views of one tensor."""
    b, h, n, e = shape
    x = torch.randn(b, n, 3, h, e, device=device, dtype=torch.bfloat16)
    return [t.detach().requires_grad_() for t in x.permute(2, 0, 3, 1, 4).unbind(0)]


def choice(shape: tuple[int, int, int, int], device: torch.device) -> Row:
    """The kernel that torch chooses by default, with the mask and plain causal."""
    q, k, v = inputs(shape, device)
    mask = block_causal_mask(shape[2], 16, device)
    masked, causal = torch._fused_sdp_choice(q, k, v, mask), torch._fused_sdp_choice(q, k, v, None, 0.0, True)
    return {"masked": SDPBackend(masked).name.lower(), "causal": SDPBackend(causal).name.lower()}


def measure(shape: tuple[int, int, int, int], kernel: str, device: torch.device, machine: Ceilings | None) -> Row:
    """Time one kernel. Raises what torch raises if it has no such kernel for the shape."""
    b, h, n, e = shape
    mask = block_causal_mask(n, 16, device)
    how: dict[str, Any] = {"is_causal": True} if "no mask" in kernel else {"attn_mask": mask}

    def timed(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> float:
        """Seconds of one forward and backward pass, from an idle device to an idle device."""
        wait_for(device)
        begun = time.perf_counter()
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, **how), (q, k, v), grad)
        wait_for(device)
        return time.perf_counter() - begun

    q, k, v = inputs(shape, device)
    grad = torch.randn(b, n, h, e, device=device, dtype=torch.bfloat16).transpose(1, 2)
    other = inputs((max(1, b - 1), h, n, e), device)
    with sdpa_kernel(KERNELS[kernel]):
        first = timed(q, k, v, grad)
        seconds = statistics.median(timed(q, k, v, grad) for _ in range(CALLS))
        new = timed(other[0], other[1], other[2], grad[: max(1, b - 1)])
    return {
        "ms": 1e3 * seconds,
        "floor_ms": 1e3 * (b * n * h * e * ATTENTION_BYTES) / machine.bandwidth if machine else None,
        "first_s": first,
        "new_batch_s": new,
        "cudnn": torch.backends.cudnn.version(),
    }
