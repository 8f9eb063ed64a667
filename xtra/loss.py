"""The pretraining loss: the next block's pixels, normalised by their own mean and variance (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xtra.config import LossConfig

EPS = 1e-6


def normalise_blocks(blocks_BKP: Tensor) -> Tensor:
    """Each block minus its mean, over its standard deviation, all values and channels together; at least float32.

    The variance is unbiased and EPS is inside the root, as in the official code (src/modules/xtra.py, _loss).
    """
    x = blocks_BKP.to(torch.promote_types(blocks_BKP.dtype, torch.float32))
    var, mean = torch.var_mean(x, dim=-1, keepdim=True)
    return (x - mean) * (var + EPS).rsqrt()


def next_block_loss(
    predictions: Sequence[Tensor],
    targets_BKP: Tensor,
    config: LossConfig | None = None,
    weight_B: Tensor | None = None,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """The mean over heads of each head's mean error; a scalar. With `weight_B`, instead the sum over images of mean
    error times weight. With `prefix_B`, an image's mean is over the blocks from its `prefix_B`-th on.

    predictions: head i's [B, >= K-1-i, P]; position k predicts block k+1+i, and positions beyond K-2-i are ignored.
    targets_BKP: raw blocks (`blocks.target_blocks`), in the model's order.
    """
    error = F.l1_loss if config is not None and config.l1 else F.mse_loss
    wanted = normalise_blocks(targets_BKP[:, 1:])
    heads = []
    for ahead, prediction in enumerate(predictions):
        target = wanted[:, ahead:]
        prediction = prediction[:, : target.shape[1]].to(target.dtype)
        if prefix_B is not None:
            block_K = torch.arange(1 + ahead, 1 + ahead + target.shape[1], device=target.device)
            counts_BK = (block_K[None, :] >= prefix_B[:, None]).to(target.dtype)
            error_BK = error(prediction, target, reduction="none").mean(2)
            error_B = (error_BK * counts_BK).sum(1) / counts_BK.sum(1).clamp(min=1)
            heads.append(error_B.mean() if weight_B is None else (error_B * weight_B).sum())
        elif weight_B is None:
            heads.append(error(prediction, target))
        else:
            heads.append((error(prediction, target, reduction="none").mean((1, 2)) * weight_B).sum())
    return torch.stack(heads).mean()
