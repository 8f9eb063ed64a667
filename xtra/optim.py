"""The optimiser and its learning rate as a function of samples seen (paper table 1; official src/utils/utils.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from xtra.config import OptimConfig


def learning_rate(config: OptimConfig, samples_seen: int, total_samples: int, batch: int) -> float:
    """The rate of the step that starts at `samples_seen`: linear warm-up, then a cosine to `min_lr` or a constant rate
    that finally decays to 0.

    With t = samples_seen / batch, T = total_samples / batch and w = warm-up steps, it is the closed form of the
    official code's scheduler (lightning-bolts LinearWarmupCosineAnnealingLR), which reaches the peak at step w - 1 and
    repeats it at step w. If w is 0, that recursion never leaves `warmup_lr`; this one starts at the peak.
    """
    t, total = samples_seen / batch, total_samples / batch
    w = int(config.warmup * total) if config.warmup < 1 else int(config.warmup / batch)
    if t < w:
        rise = min(1.0, t / (w - 1)) if w > 1 else 0.0
        return config.warmup_lr + rise * (config.lr - config.warmup_lr)
    if config.schedule == "constant":
        begin = decay_start(config, total_samples, batch)
        if samples_seen < begin or not config.decay:
            return config.lr
        return config.lr * (1 - math.sqrt(min(1.0, (samples_seen - begin) / (total_samples - begin))))
    progress = min(1.0, (t - w) / (total - w)) if total > w else 1.0
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))


def decay_start(config: OptimConfig, total_samples: int, batch: int) -> int:
    """The samples seen at which a constant rate begins to decay: the start of a step, where a branch leaves its trunk.

    The decay is 1 - sqrt(progress), which Hägele et al. 2024 (arXiv 2405.18392, section 3) found better than a linear
    one at every length; a fifth of the run is enough for it to match a tuned cosine.
    """
    return (total_samples - round(config.decay * total_samples)) // batch * batch


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter decays: all except biases and one-dimensional ones; position tables do, as officially."""
    return "bias" not in name and parameter.ndim > 1


def make_optimizer(
    model: nn.Module, config: OptimConfig, own: Sequence[nn.Parameter] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters (or those in `own`), in two groups: with and without weight decay.

    Fused: the same formula in one pass over memory, on CPUs as well as GPUs.
    """
    owned = None if own is None else {id(p) for p in own}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and (not owned or id(p) in owned)]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
