"""Drop path (stochastic depth): which images skip which residual branch, and branches computed only for the others.

Draws are counter-based (shards/stream/order.py): no generator state to save, and the same at every world size.

Shapes: B images, N tokens, D width, L encoder layers, S = 2 residual branches of a layer (attention, MLP).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.stream import uniform
from xtra.device import sent


class Drop(NamedTuple):
    """Drop path's effect on one residual branch."""

    scale_B: Tensor  # 0 or 1/keep
    kept: Tensor | None = None  # int64, the images whose branch is computed, at least the kept ones; None: every image
    place_B: Tensor | None = None  # int64, an image's index in `kept`; arbitrary if its scale is 0


class Branch(NamedTuple):
    """A residual branch's output, not yet added to the stream: the next norm's kernel can add it."""

    out_BND: Tensor  # only of the kept images, if drop path skips the others
    drop: Drop | None = None


def branch_of(x_BND: Tensor, function: Callable[[Tensor], Tensor], drop: Drop | None) -> Branch:
    """The branch, computed only for the kept images."""
    return Branch(function(x_BND if drop is None or drop.kept is None else _Taken.apply(x_BND, *drop)), drop)


def added(x_BND: Tensor, branch: Branch | None) -> Tensor:
    """The stream with the branch added: x + scale * branch."""
    if branch is None:
        return x_BND
    out_BND, drop = branch
    if drop is None:
        return x_BND + out_BND
    if drop.kept is not None:
        out_BND = _Spread.apply(out_BND, drop.kept, drop.place_B)
    return x_BND + (out_BND * drop.scale_B.to(x_BND)[:, None, None]).to(x_BND.dtype)


class _Taken(torch.autograd.Function):
    """Selects images. Its gradient is gathered as well: torch's own adds into zeros, with atomics on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, scale_B: Tensor, kept: Tensor, place_B: Tensor) -> Tensor:  # pyrefly: ignore
        ctx.save_for_backward(scale_B, place_B)
        return x_BND.index_select(0, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        scale_B, place_B = ctx.saved_tensors
        return torch.where(scale_B[:, None, None] != 0, grad.index_select(0, place_B), 0), None, None, None


class _Spread(torch.autograd.Function):
    """Every image's row of a branch; rows of images that are not kept are arbitrary, and multiplied by 0 next."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, kept: Tensor, place_B: Tensor) -> Tensor:  # pyrefly: ignore
        ctx.save_for_backward(kept)
        return out.index_select(0, place_B)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return grads[0].index_select(0, kept), None, None


def drops_of(
    drop_LSB: Tensor | None, layers: int, device: torch.device, skip_dropped: bool, step: int = 0
) -> list[list[Drop | None]]:
    """For every layer, the effect on its two branches.

    `skip_dropped` computes a branch only for its images with a nonzero scale: the same numbers for less work. To limit
    the number of shapes, the number of images is rounded up to a multiple of `step`, with images whose output is
    multiplied by 0; 0 means a sixteenth of the images on a GPU, where a new shape costs more than it saves, and 1
    elsewhere. The scales should then be on the CPU, to be read without waiting for the device.
    """
    if drop_LSB is None:
        return [[None, None]] * layers
    if not skip_dropped:
        return [[Drop(scale_B) for scale_B in drop_SB] for drop_SB in sent(drop_LSB, device)]
    every = drop_LSB.shape[2]
    step = step or (max(1, every // 16) if device.type == "cuda" else 1)
    dropped_LSB = drop_LSB == 0
    counts = (every - dropped_LSB.sum(2)).flatten().tolist()
    rounded = [min(every, max(1, -(-count // step) * step)) for count in counts]
    order_LSB = torch.sort(dropped_LSB, dim=2, stable=True).indices  # those kept first
    places_LSB = order_LSB.argsort(2)
    places_LSB = places_LSB.where(places_LSB < torch.tensor(rounded).view(layers, 2, 1), 0)
    chosen = torch.cat([order_B[:count] for order_B, count in zip(order_LSB.flatten(0, 1), rounded)])
    # These branches keep every image in every step; others may do so in this step, but must have the usual form.
    never_dropped = (drop_LSB == 1).all(2).flatten().tolist()
    # One copy of each for all branches: a copy costs the host as much as starting a kernel.
    scales, places = sent(drop_LSB, device).flatten(0, 1), sent(places_LSB, device).flatten(0, 1)
    drops = [
        Drop(scale_B) if never else Drop(scale_B, kept, place_B)
        for scale_B, kept, place_B, never in zip(scales, sent(chosen, device).split(rounded), places, never_dropped)
    ]
    return [[*drops[i : i + 2]] for i in range(0, len(drops), 2)]


def mark_kept(*ones: Drop | Branch | None) -> None:
    """Tell torch.compile that the numbers of kept images vary, so that it makes one graph for all of them."""
    import torch._dynamo

    for one in ones:
        if isinstance(one, Drop) and one.kept is not None:
            torch._dynamo.maybe_mark_dynamic(one.kept, 0)
        elif isinstance(one, Branch) and one.drop is not None and one.drop.kept is not None:
            torch._dynamo.maybe_mark_dynamic(one.out_BND, 0)


def scales(rate: float, layers: int, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """[L, 2, B] float32 for `drop_LSB`: 0 if a branch is dropped, else 1/keep; a pure function of its arguments.

    keep falls linearly from 1 in the first layer to 1 - rate in the last; kept when floor(keep + U) is 1.
    """
    keep = 1 - np.linspace(0, rate, layers)[:, None, None]
    layer, branch = np.arange(layers)[:, None, None], np.arange(2)[:, None]
    u = uniform(seed, "drop_path", np.asarray(epoch_B), np.asarray(sample_B), layer, branch)
    return torch.from_numpy((np.floor(keep + u) / keep).astype(np.float32))


def subset_scales(rate: float, layers: int, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """[L, 2, B], like `scales`, but with a fixed number of images kept in each branch, those with the largest draws.

    As in DINOv2 (dinov2/layers/block.py): the same probability for every image and constant shapes, but the images of a
    batch are not independent, so another world size or micro-batch gives other draws.
    """
    images = len(sample_B)
    keep = 1 - np.linspace(0, rate, layers)[:, None]
    layer, branch = np.arange(layers)[:, None, None], np.arange(2)[:, None]
    u = uniform(seed, "drop_path", np.asarray(epoch_B), np.asarray(sample_B), layer, branch)
    count = np.maximum(np.round(keep * images), 1)
    largest = np.argsort(np.argsort(-u, axis=-1, kind="stable"), axis=-1, kind="stable") < count[..., None]
    return torch.from_numpy((largest * (images / count[..., None])).astype(np.float32))
