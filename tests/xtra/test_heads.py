"""Head math: the official numbers, and that heads trained side by side end where each would end alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from xtra import heads

VECTORS = Path(os.environ.get("XTRA_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
CASES = ("xtra_block2", "xtra_block4", "aim_causal", "xtra_permuted")
OFFICIAL = {
    "query_GD": "cls_token",
    "key_GDD": "k.weight",
    "value_GDD": "v.weight",
    "weight_GCD": "linear.weight",
    "bias_GC": "linear.bias",
}
POINTS = heads.grid((1e-3, 1e-2, 1e-1), (0.0, 0.1))


class Attentive(nn.Module):
    """The probe as published: k and v of every token, softmax attention of one query."""

    def __init__(self, width: int, classes: int, attention_heads: int):
        super().__init__()
        self.attention_heads = attention_heads
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        x = self.bn(x.transpose(1, 2)).transpose(1, 2)
        split = (batch, tokens, self.attention_heads, -1)
        k, v = self.k(x).reshape(split).transpose(1, 2), self.v(x).reshape(split).transpose(1, 2)
        q = self.cls_token.expand(batch, -1, -1).reshape(batch, 1, self.attention_heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.linear(out.transpose(1, 2).reshape(batch, width))


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no official numbers at {VECTORS}; set XTRA_VECTORS")
@pytest.mark.parametrize("case", CASES)
def test_attentive_logits_loss_and_gradients_are_the_official_ones(case: str) -> None:
    vectors, sizes = load_file(VECTORS / f"{case}.safetensors"), json.loads((VECTORS / f"{case}.json").read_text())
    tokens, labels = vectors["out/probe_features_attentive"], vectors["in/labels"]
    module = heads.AttentiveHeads(2, sizes["width"], 5, attention_heads=sizes["heads"]).double()
    with torch.no_grad():
        for ours, theirs in OFFICIAL.items():
            parameter = module.get_parameter(ours)
            parameter[1] = vectors[f"w/attentive.{theirs}"].reshape(parameter[1].shape)

    logits_GBC = module(tokens)
    loss_G = heads.losses(logits_GBC, labels)
    loss_G.sum().backward()

    assert relative(logits_GBC[1], vectors["out/attentive_logits"]) < 1e-9
    assert relative(loss_G[1:], vectors["out/attentive_loss"]) < 1e-9
    for ours, theirs in OFFICIAL.items():
        grad = module.get_parameter(ours).grad
        assert grad is not None
        expected = vectors[f"g/attentive.{theirs}"]
        assert relative(grad[1].reshape(expected.shape), expected) < 1e-9, theirs


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max())


def batches(width: int, tokens: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Features with large channel means, as un-normalised residual streams have, and labels that follow from them."""
    draw = torch.Generator().manual_seed(1)
    mean = 20 * torch.randn(width, generator=draw, dtype=torch.float64)
    out = []
    for _ in range(steps):
        x = torch.randn(12, tokens, width, generator=draw, dtype=torch.float64)
        out.append((x + mean, (x.mean(1)[:, 0] > 0).long() + (x.mean(1)[:, 1] > 0).long()))
    return out


def train(
    module: heads.Heads, points: tuple[heads.Point, ...], data: list[tuple[Tensor, Tensor]]
) -> heads.StackedAdamW:
    optimiser = heads.StackedAdamW(module, points, clip=0.1)
    schedule = heads.Schedule(samples=12 * len(data), warmup=60, warmup_lr=1e-3, min_lr=1e-4)
    for step, (x, labels) in enumerate(data):
        x = x if isinstance(module, heads.AttentiveHeads) else x.mean(1)
        heads.losses(module(x), labels).sum().backward()
        optimiser.step(schedule.at(optimiser.lr_G, 12 * step))
    return optimiser


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_heads_side_by_side_end_where_each_ends_alone(kind: str) -> None:
    def make(points: int) -> heads.Heads:
        if kind == "attentive":
            return heads.AttentiveHeads(points, 24, 3, attention_heads=4, seed=5).double()
        return heads.LinearHeads(points, 24, 3, seed=5).double()

    data = batches(24, 6, steps=25)
    together = make(len(POINTS))
    train(together, POINTS, data)
    ends = [together.weight_GCD[g].detach() for g in range(len(POINTS))]
    for g, point in enumerate(POINTS):
        alone = make(1)
        train(alone, (point,), data)
        for name, parameter in alone.named_parameters():
            assert relative(together.get_parameter(name)[g], parameter[0]) < 1e-9, (name, point)
        assert all(relative(ends[g], ends[o]) > 1e-4 for o in range(g)), "two points of the grid trained alike"


def test_a_stacked_step_is_clip_grad_norm_then_adamw() -> None:
    """Against the published module under torch's own clipping and AdamW, one grid point at a time."""
    data = batches(24, 6, steps=25)
    ours = heads.AttentiveHeads(len(POINTS), 24, 3, attention_heads=4, seed=5).double()
    start = {name: parameter[0].detach().clone() for name, parameter in ours.named_parameters()}
    train(ours, POINTS, data)
    schedule = heads.Schedule(samples=12 * len(data), warmup=60, warmup_lr=1e-3, min_lr=1e-4)
    for g, point in enumerate(POINTS):
        theirs = Attentive(24, 3, 4).double()
        with torch.no_grad():
            for name, official in OFFICIAL.items():
                parameter = theirs.get_parameter(official)
                parameter.copy_(start[name].reshape(parameter.shape))
        decayed = [p for n, p in theirs.named_parameters() if "bias" not in n]
        groups = [{"params": decayed}, {"params": [theirs.linear.bias], "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=point.lr, betas=(0.9, 0.95), weight_decay=point.weight_decay)
        for step, (x, labels) in enumerate(data):
            for group in optimiser.param_groups:
                group["lr"] = float(schedule.at(torch.tensor([point.lr], dtype=torch.float64), 12 * step))
            optimiser.zero_grad()
            F.cross_entropy(theirs(x), labels).backward()
            norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
            assert step > 0 or norm > 0.1, "the case does not reach the clip"
            optimiser.step()
        for name, official in OFFICIAL.items():
            expected = theirs.get_parameter(official)
            assert relative(ours.get_parameter(name)[g].reshape(expected.shape), expected) < 1e-7, (name, point)
        ours.eval(), theirs.eval()
        probe = batches(24, 6, steps=1)[0][0]
        assert relative(ours(probe)[g], theirs(probe)) < 1e-7, "running statistics differ"


def test_schedule_is_a_function_of_samples_seen_and_keeps_grid_points_apart() -> None:
    peak = torch.tensor([1e-6, 1e-3, 1e-2], dtype=torch.float64)
    cold = heads.Schedule(samples=1000, min_lr=1e-5)
    assert cold.at(peak, 0).tolist() == pytest.approx([1e-6, 1e-3, 1e-2])
    assert cold.at(peak, 500).tolist() == pytest.approx([1e-6, (1e-3 + 1e-5) / 2, (1e-2 + 1e-5) / 2])
    assert cold.at(peak, 1000).tolist() == pytest.approx([1e-6, 1e-5, 1e-5])
    warm = heads.Schedule(samples=1000, warmup=100, warmup_lr=1e-4, min_lr=1e-5)
    assert warm.at(peak, 0).tolist() == pytest.approx([1e-6, 1e-4, 1e-4])
    assert warm.at(peak, 50).tolist() == pytest.approx([1e-6, 5.5e-4, 5.05e-3])
    assert warm.at(peak, 100).tolist() == pytest.approx(peak.tolist())


def test_take_keeps_one_head_with_its_statistics() -> None:
    module = heads.LinearHeads(len(POINTS), 24, 3).double()
    data = batches(24, 6, steps=10)
    train(module, POINTS, data)
    module.eval()
    x = data[0][0].mean(1)
    with torch.no_grad():
        before = module(x)[3]
        assert relative(heads.take(module, 3)(x)[0], before) < 1e-12


def test_correct_counts_first_choices() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [0.0, 1.0]]])
    assert heads.correct(logits, torch.tensor([1, 0])).tolist() == [[True, True], [False, False]]


def test_new_heads_start_equal_and_from_the_seed() -> None:
    a, b = heads.AttentiveHeads(3, 32, 7, seed=1), heads.AttentiveHeads(1, 32, 7, seed=1)
    for name, parameter in a.named_parameters():
        assert torch.equal(parameter, b.get_parameter(name).expand_as(parameter)), name
    bound = 1 / math.sqrt(32)
    assert 0.9 * bound < a.key_GDD.detach().abs().max() <= bound
    assert not torch.equal(heads.AttentiveHeads(1, 32, 7, seed=2).key_GDD, b.key_GDD)


def test_attention_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="attention_heads is 5, which does not divide"):
        heads.AttentiveHeads(1, 32, 7, attention_heads=5)
