"""Probe heads on frozen features: every point of a grid (learning rate x weight decay) trained side by side.

One forward pass of the encoder serves all of them. Parameters have a leading grid dimension G and are applied in
batched products; the batch-norm statistics, which depend on the features alone, are shared. Heads are independent:
gradients are clipped for each head by its own norm and AdamW steps each at its own rate, so head g ends as if trained
alone (tests/xtra/probe/test_heads.py).

Shape letters: G grid points, B images, N tokens, D channels, C classes, H attention heads of width E = D/H, K = G*H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xtra.probe.features import Feature, Features

BN_EPS = 1e-6  # official probes; torch's own default is 1e-5


@dataclass(frozen=True)
class Point:
    """One point of the grid."""

    lr: float
    weight_decay: float


def grid(lrs: Sequence[float], weight_decays: Sequence[float]) -> tuple[Point, ...]:
    return tuple(Point(lr, decay) for decay in weight_decays for lr in lrs)


class LinearHeads(nn.Module):
    """BatchNorm without affine, then Linear: [B, D] -> logits [G, B, C]."""

    def __init__(self, points: int, width: int, classes: int, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.norm = nn.BatchNorm1d(width, eps=BN_EPS, affine=False)
        self.weight_GCD = _stack(points, _fan_in_uniform(draw, classes, width))
        self.bias_GC = _stack(points, _fan_in_uniform(draw, classes, fan_in=width))

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = self.norm(x_BD)
        points, classes, width = self.weight_GCD.shape
        logits = F.linear(x_BD, self.weight_GCD.view(points * classes, width), self.bias_GC.view(-1))
        return logits.view(-1, points, classes).transpose(0, 1)


class AttentiveHeads(nn.Module):
    """Attention pooling by one learned query, then Linear: tokens [B, N, D] -> logits [G, B, C].

    The pooling of XTRA and AIM (one query, k and v without bias, no output projection) in a form that is equal in
    exact arithmetic and about 40 times cheaper: since there is one query, q . (W_k x) = (W_k^T q) . x, so q and W_k
    fold into one vector per head; since the pooling is linear, sum_n w_n (W_v x_n) = W_v (sum_n w_n x_n), so W_v is
    applied once per image instead of once per token.
    """

    def __init__(self, points: int, width: int, classes: int, attention_heads: int = 16, seed: int = 0):
        super().__init__()
        if width % attention_heads:
            raise ValueError(
                f"attention_heads is {attention_heads}, which does not divide the encoder's width {width}: "
                "choose a divisor"
            )
        draw = torch.Generator().manual_seed(seed)
        self.attention_heads = attention_heads
        self.norm = nn.BatchNorm1d(width, eps=BN_EPS, affine=False)
        self.query_GD = _stack(points, 0.02 * torch.randn(width, generator=draw))
        self.key_GDD = _stack(points, _fan_in_uniform(draw, width, width))
        self.value_GDD = _stack(points, _fan_in_uniform(draw, width, width))
        self.weight_GCD = _stack(points, _fan_in_uniform(draw, classes, width))
        self.bias_GC = _stack(points, _fan_in_uniform(draw, classes, fan_in=width))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        (batch, tokens, width), points = tokens_BND.shape, len(self.query_GD)
        heads, per_head = self.attention_heads, width // self.attention_heads
        x_BND = self.norm(tokens_BND.reshape(batch * tokens, width)).view(batch, tokens, width)

        q_K1E = self.query_GD.view(points * heads, 1, per_head) * per_head**-0.5
        folded_KD = (q_K1E @ self.key_GDD.view(points * heads, per_head, width)).squeeze(1)
        attention_BNK = (x_BND @ folded_KD.T).softmax(dim=1)
        pooled_BKD = attention_BNK.transpose(1, 2) @ x_BND

        value_KDE = self.value_GDD.view(points * heads, per_head, width).transpose(1, 2)
        out_KBE = pooled_BKD.transpose(0, 1) @ value_KDE
        out_GBD = out_KBE.view(points, heads, batch, per_head).transpose(1, 2).reshape(points, batch, width)
        return torch.baddbmm(self.bias_GC[:, None], out_GBD, self.weight_GCD.transpose(1, 2))


Heads = LinearHeads | AttentiveHeads


@dataclass(frozen=True)
class Candidates:
    """Trained classifiers of one kind on one feature, one for every point of a grid, to choose from."""

    kind: str
    feature: Feature
    points: tuple[Mapping[str, float], ...]  # settings by name
    logits: Callable[[Tensor], Tensor]  # features [B, ...] -> [G, B, C]; the largest is the choice


@dataclass
class Head:
    """One kind of head on one feature in training: its whole grid side by side."""

    kind: str
    feature: Feature
    points: tuple[Point, ...]
    module: Heads
    optimiser: StackedAdamW

    def step(self, features: Features, schedule: Schedule, seen: int) -> None:
        """One update of every grid point, `seen` samples into training."""
        self.module.train()
        losses(self.module(features.of(self.feature)), features.labels_B).sum().backward()
        self.optimiser.step(schedule.at(self.optimiser.lr_G, seen))

    def trained(self) -> Candidates:
        points = tuple({**asdict(point), "layers": self.feature.layers} for point in self.points)
        return Candidates(self.kind, self.feature, points, self.module.eval())

    def state(self) -> dict[str, Tensor]:
        """The training state's own tensors, not copies: weights, batch-norm statistics, AdamW's moments."""
        moments = {}
        for (name, _), (first, second) in zip(self.optimiser.named, self.optimiser.moments, strict=True):
            moments |= {f"{name}/exp_avg": first, f"{name}/exp_avg_sq": second}
        return self.module.state_dict() | moments


def losses(logits_GBC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross-entropy of each head: [G]. Their sum has the gradients of all heads at once."""
    points, batch, _ = logits_GBC.shape
    return (
        F.cross_entropy(logits_GBC.flatten(0, 1), labels_B.repeat(points), reduction="none").view(points, batch).mean(1)
    )


def answers(logits_GBC: Tensor) -> Tensor:
    """Each head's predicted class, [G, B]; -1 for a head that diverged (argmax of NaN would be class 0)."""
    return torch.where(logits_GBC.isfinite().all(-1), logits_GBC.argmax(-1), -1)


# Names in an official probe's classifier (src/modules/cls.py at e711fb5).
_OFFICIAL = {
    "attentive": {
        "query_GD": "cls_token",
        "key_GDD": "k.weight",
        "value_GDD": "v.weight",
        "weight_GCD": "linear.weight",
        "bias_GC": "linear.bias",
        "norm.running_mean": "bn.running_mean",
        "norm.running_var": "bn.running_var",
    },
    "linear": {
        "weight_GCD": "1.weight",
        "bias_GC": "1.bias",
        "norm.running_mean": "0.running_mean",
        "norm.running_var": "0.running_var",
    },
}


def of_official(kind: str, attention_heads: int, state: Mapping[str, Tensor]) -> Heads:
    """One trained head from the tensors of an official probe's classifier, including batch-norm statistics."""
    names = _OFFICIAL[kind]
    classes, width = state[names["weight_GCD"]].shape
    heads = (
        AttentiveHeads(1, width, classes, attention_heads) if kind == "attentive" else LinearHeads(1, width, classes)
    )
    own = heads.state_dict()
    ours = {name: state[theirs].reshape(own[name].shape) for name, theirs in names.items()}
    heads.load_state_dict(own | ours)
    return heads.eval()


@dataclass(frozen=True)
class Schedule:
    """Learning rates as a function of samples seen: linear warm-up from `warmup_start` of a point's own rate, then a
    cosine to `min_lr`.

    As in the official code, the warm-up reaches the peak one step (`batch` samples) before its end. A point whose own
    rate is below min_lr keeps its rate.

    `warmup_defect` reproduces the official probes without warm-up (13 of their 15 sets): their scheduler
    (LinearWarmupCosineAnnealingLR from lightning-bolts) returns the warm-up's starting rate at step 0 and from then on
    rescales the previous step's rate, so that no point ever reaches its own rate. The official configs set a tenth of
    the point's rate there (`warmup_start_lr` in config/eval), so each point trains at a tenth of its nominal rate.
    """

    samples: int
    warmup: int = 0
    warmup_start: float = 0.1
    min_lr: float = 1e-5
    batch: int = 0
    warmup_defect: bool = False

    def at(self, peak_G: Tensor, seen: int) -> Tensor:
        """The rates [G] of the step that starts after `seen` samples."""
        if self.warmup_defect:
            peak_G = peak_G * self.warmup_start
        if seen < self.warmup:
            start_G = peak_G * self.warmup_start
            rise = min(1.0, seen / (self.warmup - self.batch)) if self.warmup > self.batch else 0.0
            return start_G + (peak_G - start_G) * rise
        done = (seen - self.warmup) / max(1, self.samples - self.warmup)
        floor_G = peak_G.clamp(max=self.min_lr)
        return floor_G + 0.5 * (peak_G - floor_G) * (1 + math.cos(math.pi * min(1.0, done)))


class StackedAdamW:
    """AdamW (decoupled decay, Loshchilov and Hutter 2019) over stacked heads: each its own rate, decay and clipping.

    Everything except biases is decayed, including the query, as in the official probes. Equal, head by head, to
    torch.nn.utils.clip_grad_norm_ followed by torch.optim.AdamW.
    """

    def __init__(
        self,
        heads: Heads,
        points: Sequence[Point],
        betas: tuple[float, float] = (0.9, 0.95),
        clip: float = 3.0,
        eps: float = 1e-8,
    ):
        self.named = list(heads.named_parameters())
        like = self.named[0][1]
        self.lr_G = torch.tensor([p.lr for p in points], dtype=like.dtype, device=like.device)
        self.decay_G = torch.tensor([p.weight_decay for p in points], dtype=like.dtype, device=like.device)
        self.betas, self.clip, self.eps = betas, clip, eps
        self.steps = 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for _, p in self.named]

    @torch.no_grad()
    def step(self, lr_G: Tensor) -> Tensor:
        """One update at these rates; consumes the gradients. Returns each head's gradient norm before clipping: [G]."""
        self.steps += 1
        beta1, beta2 = self.betas
        norms = [torch.linalg.vector_norm(_grad(p).flatten(1), dim=1) for _, p in self.named]
        norm_G = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        scale_G = (self.clip / (norm_G + 1e-6)).clamp(max=1.0)
        step_G = lr_G / (1 - beta1**self.steps)
        root = math.sqrt(1 - beta2**self.steps)
        for (name, p), (first, second) in zip(self.named, self.moments, strict=True):
            shape = (-1, *[1] * (p.dim() - 1))
            grad = _grad(p).mul_(scale_G.view(shape))
            if not name.startswith("bias"):
                p.mul_((1 - lr_G * self.decay_G).view(shape))
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            p.addcdiv_(step_G.view(shape) * first, second.sqrt().div_(root).add_(self.eps), value=-1)
            p.grad = None
        return norm_G


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "step() follows backward()"
    return parameter.grad


def _stack(points: int, value: Tensor) -> nn.Parameter:
    """The same initial weights for all grid points, so that they differ only in hyperparameters."""
    return nn.Parameter(value.expand(points, *value.shape).clone())


def _fan_in_uniform(draw: torch.Generator, *shape: int, fan_in: int = 0) -> Tensor:
    """nn.Linear's initialisation, U(-1, 1) / sqrt(fan_in), from our own generator."""
    return (2 * torch.rand(*shape, generator=draw) - 1) / math.sqrt(fan_in or shape[-1])
