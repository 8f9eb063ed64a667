"""Drop path (stochastic depth): which images skip which residual branch, and branches computed for the others only.

Draws are counter-based (shards/stream/order.py): no generator state to save, and the same at every world size.

Shapes: B images, N tokens, D width, L encoder layers, S = 2 residual branches of a layer (attention, MLP).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.stream import uniform
from xtra.device import sent


class Drop(NamedTuple):
    """What drop path does to one residual branch."""

    scale: Tensor  # [B], 0 or 1/keep; or, with `kept`, that of the images kept
    kept: Tensor | None = None  # int64, the images whose branch is computed; None: all are


def residual(x_BND: Tensor, branch: Callable[[Tensor], Tensor], drop: Drop | None) -> Tensor:
    """x + scale * branch(x), the branch for the images kept only."""
    if drop is None:
        return x_BND + branch(x_BND)
    scale_B11 = drop.scale.to(x_BND)[:, None, None]
    if drop.kept is None:
        return x_BND + branch(x_BND) * scale_B11
    return x_BND.index_add(0, drop.kept, (branch(x_BND.index_select(0, drop.kept)) * scale_B11).to(x_BND.dtype))


def drops_of(drop_LSB: Tensor | None, layers: int, device: torch.device, skip_dropped: bool) -> list[list[Drop | None]]:
    """For every layer, what to do to its two branches.

    `skip_dropped` computes a branch for its images of nonzero scale only: the same numbers for less work, but shapes
    that change from step to step. The scales should then be on the CPU, to be read without waiting for the device.
    """
    if drop_LSB is None:
        return [[None, None]] * layers
    if not skip_dropped:
        return [[Drop(scale_B) for scale_B in drop_SB] for drop_SB in sent(drop_LSB, device)]
    kept_LSB = drop_LSB != 0
    counts = kept_LSB.sum(2).flatten().tolist()
    # One copy of each for all branches: a copy costs the host as much as starting a kernel.
    scale, image = sent(drop_LSB[kept_LSB], device), sent(kept_LSB.nonzero()[:, 2].contiguous(), device)
    every = drop_LSB.shape[2]
    drops = [
        Drop(scale_B, None if count == every else kept)
        for count, scale_B, kept in zip(counts, scale.split(counts), image.split(counts))
    ]
    return [[*drops[i : i + 2]] for i in range(0, len(drops), 2)]


def scales(rate: float, layers: int, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """[L, 2, B] float32 for `drop_LSB`: 0 where a branch is dropped, else 1/keep; a pure function of its arguments.

    keep falls linearly from 1 in the first layer to 1 - rate in the last; kept when floor(keep + U) is 1.
    """
    keep = 1 - np.linspace(0, rate, layers)[:, None, None]
    layer, branch = np.arange(layers)[:, None, None], np.arange(2)[:, None]
    u = uniform(seed, "drop_path", np.asarray(epoch_B), np.asarray(sample_B), layer, branch)
    return torch.from_numpy((np.floor(keep + u) / keep).astype(np.float32))


def subset_scales(rate: float, layers: int, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """[L, 2, B], as `scales` but with a fixed number of images kept in each branch, those of the largest draws.

    As DINOv2 does (dinov2/layers/block.py): the same chance for every image and shapes that do not change from step to
    step, but the images of a batch are no longer independent, so another world size or micro-batch takes other draws.
    """
    images = len(sample_B)
    keep = 1 - np.linspace(0, rate, layers)[:, None]
    layer, branch = np.arange(layers)[:, None, None], np.arange(2)[:, None]
    u = uniform(seed, "drop_path", np.asarray(epoch_B), np.asarray(sample_B), layer, branch)
    count = np.maximum(np.round(keep * images), 1)
    largest = np.argsort(np.argsort(-u, axis=-1, kind="stable"), axis=-1, kind="stable") < count[..., None]
    return torch.from_numpy((largest * (images / count[..., None])).astype(np.float32))
