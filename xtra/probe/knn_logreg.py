"""Quick probes: nearest neighbours and logistic regression on pooled features of one view of each image.

Neither has a schedule or augmentation; each has one hyperparameter, whose values are the points of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07  # of the votes of neighbours (Wu et al. 2018; DINO, DINOv2)
ITERATIONS = 200  # of L-BFGS, at most, for each strength
_AT_ONCE = 1 << 16  # training images per product


class Neighbours:
    """Votes of the k nearest training images by cosine similarity s, each of weight exp(s / TEMPERATURE)."""

    def __init__(self, train_TD: Tensor, label_T: Tensor, classes: int, ks: Sequence[int]) -> None:
        """Raises ValueError if no k is at most T."""
        self.ks = tuple(k for k in ks if k <= len(train_TD))
        if not self.ks:
            raise ValueError(f"knn is {' '.join(map(str, ks))}, but only {len(train_TD)} images train: lower it")
        self.train_TD, self.label_T, self.classes = F.normalize(train_TD, dim=1), label_T, classes

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Votes [G, B, C]: for every k."""
        x_BD, most = F.normalize(x_BD, dim=1), max(self.ks)
        near_BK = x_BD.new_empty(len(x_BD), 0)
        label_BK = self.label_T.new_empty(len(x_BD), 0)
        for train_SD, label_S in zip(self.train_TD.split(_AT_ONCE), self.label_T.split(_AT_ONCE)):
            found = (x_BD @ train_SD.T).topk(min(most, len(train_SD)))
            near_BK = torch.cat((near_BK, found.values), 1)
            label_BK = torch.cat((label_BK, label_S[found.indices]), 1)
            near_BK, index_BK = near_BK.topk(min(most, near_BK.shape[1]))
            label_BK = label_BK.gather(1, index_BK)
        # Relative to the nearest, so that the largest weight is 1.
        weight_BK = ((near_BK - near_BK[:, :1]) / TEMPERATURE).exp()
        votes = x_BD.new_zeros(len(self.ks), len(x_BD), self.classes)
        for vote_BC, k in zip(votes, self.ks):
            vote_BC.scatter_add_(1, label_BK[:, :k], weight_BK[:, :k])
        return votes


class Logistic:
    """Multinomial logistic regression by L-BFGS: min over W, b of c * (sum of cross-entropies) + |W|^2 / 2, for every
    inverse strength c, each started from the previous solution, on features standardised over the training images."""

    def __init__(self, train_TD: Tensor, label_T: Tensor, classes: int, strengths: Sequence[float]) -> None:
        self.mean_D = train_TD.mean(0)
        self.scale_D = 1 / train_TD.std(0, correction=0).clamp(min=1e-6)
        x_TD = (train_TD - self.mean_D) * self.scale_D
        weight_CD = x_TD.new_zeros(classes, x_TD.shape[1])
        bias_C = x_TD.new_zeros(classes)
        solved: dict[float, tuple[Tensor, Tensor]] = {}
        for strength in sorted(strengths):  # the strongest regularisation is solved fastest, and from zero
            weight_CD, bias_C = _fit(x_TD, label_T, strength, weight_CD, bias_C)
            solved[strength] = weight_CD, bias_C
        self.weight_GCD = torch.stack([solved[strength][0] for strength in strengths])
        self.bias_GC = torch.stack([solved[strength][1] for strength in strengths])

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Logits [G, B, C]."""
        return ((x_BD - self.mean_D) * self.scale_D) @ self.weight_GCD.transpose(1, 2) + self.bias_GC[:, None]


def _fit(x_TD: Tensor, label_T: Tensor, strength: float, weight_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
    weight_CD, bias_C = (start.clone().requires_grad_() for start in (weight_CD, bias_C))
    # Divided by c * T, the objective and its tolerances mean the same at any size of set.
    decay = 1 / (2 * strength * len(x_TD))
    solver = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(x_TD, weight_CD, bias_C), label_T) + decay * weight_CD.square().sum()
        value.backward()
        return value

    solver.step(objective)
    return weight_CD.detach(), bias_C.detach()
