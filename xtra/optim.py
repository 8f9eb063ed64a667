"""The optimiser and its learning rate as a function of samples seen (paper table 1; official src/utils/utils.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-3  # the peak
    min_lr: float = 1e-6  # at the last sample of a cosine
    warmup_lr: float = 1e-4  # at the first sample (the configs', not in the paper)
    warmup: float = 0.03  # below 1 a fraction of all samples, else a number of samples (paper: B 15/800, H 3/100)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0  # of the global gradient norm; inf does not clip
    # constant: warm-up, then the peak, then a decay to 0 over the last samples; until the decay begins, the run is the
    # same whatever its number of samples, so that one run (a trunk) serves many (its branches).
    schedule: Literal["cosine", "constant"] = "cosine"
    decay: float = 0.2  # share of all samples in which a constant rate decays; 0: a trunk, which never does

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"optim.schedule is {self.schedule!r}; it must be cosine or constant")
        if not 0 <= self.decay < 1:
            raise ValueError(f"optim.decay is {self.decay}; it must be a share of the samples, at least 0 and below 1")
        if self.schedule == "constant" and 0 < self.warmup < 1:
            raise ValueError(
                f"optim.warmup is {self.warmup}, a share; with a constant schedule give a number of samples, "
                "so that runs of all lengths begin alike"
            )
        for name in ("lr", "min_lr", "warmup_lr", "warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("eps", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}; it must be two numbers, each at least 0 and below 1")


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
