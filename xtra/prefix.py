"""AIM's prefix attention (El-Nouby et al. 2024, arXiv 2401.08541, "Prefix Transformer").

The first S of an image's K blocks, the prefix, attend to each other in both directions, and only the blocks after them
are predicted. S is uniform over 1..K-1 for every image and step. So the encoder also learns to attend to all tokens at
once, as in probes. S = 1 is the plain block-causal model, with which a held-out loss is measured.

XTRA's paper compares with AIM without this; `prefix` in the model's config adds it to our encoder and decoder.
Shapes: B images, K blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shards.stream import uniform


def draws(blocks: int, seed: int, epoch_B: np.ndarray, sample_B: np.ndarray) -> Tensor:
    """[B] int64: the blocks of each image's prefix, 1..blocks-1; a pure function of its arguments."""
    u = uniform(seed, "prefix", np.asarray(epoch_B), np.asarray(sample_B))
    return torch.from_numpy(1 + np.floor(u * (blocks - 1)).astype(np.int64))
