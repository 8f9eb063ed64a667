"""Head math: the official numbers, and that heads trained side by side end where each would end alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from places import SHARED
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from xtra.probe import evaluate, heads
from xtra.probe.features import Encode, Feature

VECTORS = Path(os.environ.get("XTRA_VECTORS") or SHARED / "vectors").resolve()
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
    schedule = heads.Schedule(samples=12 * len(data), warmup=60, warmup_start=0.2, min_lr=1e-4)
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


class Linear(nn.Module):
    """The linear probe as published."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.bn(x))


class Streams:
    """An encoder of three layers in float64, whose channels have large means as un-normalised streams have."""

    name, image, tokens, width, depth = "streams", 4, 6, 24, 3
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.mix = torch.randn(self.depth, self.width, 8, generator=draw, dtype=torch.float64)
        self.shift = 20 * torch.randn(self.depth, 1, self.width, generator=draw, dtype=torch.float64)

    def layers(self, images: Tensor, last: int) -> list[Tensor]:
        tokens = images.double().reshape(len(images), self.tokens, 8)
        return [tokens @ mix.T + shift for mix, shift in zip(self.mix[-last:], self.shift[-last:])]

    def to(self, device: object) -> Streams:
        return self


def test_each_point_of_the_grid_is_trained_as_it_would_be_alone() -> None:
    """Both heads, every layer set, learning rate and decay from one pass, against the published modules under torch's
    own clipping and AdamW, one at a time."""
    encoder, points = Streams(), heads.grid((1e-3, 1e-1), (0.0, 0.1))
    wanted = (Feature("tokens", 2), Feature("tokens", 3), Feature("pooled", 1), Feature("pooled", 2))
    encode = Encode(encoder, wanted, torch.float32, "cpu", 12, None, 0, 1)
    stepped = []
    for feature in wanted:
        attentive = feature.form == "tokens"
        module = (heads.AttentiveHeads(4, 24, 3, 4, seed=5) if attentive else heads.LinearHeads(4, 24, 3, 5)).double()
        optimiser = heads.StackedAdamW(module, points, (0.9, 0.999), clip=0.1)
        stepped.append(heads.Head("attentive" if attentive else "linear", feature, points, module, optimiser))
    starts = [{name: p[0].detach().clone() for name, p in head.module.named_parameters()} for head in stepped]
    schedule = heads.Schedule(samples=120, warmup=36, warmup_start=0.2, min_lr=1e-4, batch=12)
    draw = torch.Generator().manual_seed(2)
    data = [torch.randint(0, 256, (12, 3, 4, 4), generator=draw, dtype=torch.uint8) for _ in range(10)]
    labels = [(x.flatten(1)[:, 0] > 127).long() + (x.flatten(1)[:, 1] > 127).long() for x in data]
    for step, (x, y) in enumerate(zip(data, labels)):
        features = encode(x, y.numpy())
        for head in stepped:
            head.step(features, schedule, 12 * step)

    for head, start in zip(stepped, starts):
        for g, point in enumerate(points):
            theirs = Attentive(24, 3, 4).double() if head.kind == "attentive" else Linear(24, 3).double()
            with torch.no_grad():
                for name, value in start.items():
                    theirs.get_parameter(OFFICIAL[name]).copy_(value.view_as(theirs.get_parameter(OFFICIAL[name])))
            decayed = [p for n, p in theirs.named_parameters() if "bias" not in n]
            groups = [{"params": decayed}, {"params": [theirs.linear.bias], "weight_decay": 0.0}]
            optimiser = torch.optim.AdamW(groups, lr=point.lr, betas=(0.9, 0.999), weight_decay=point.weight_decay)

            def seen(images: Tensor, head: heads.Head = head) -> Tensor:
                mean = torch.stack(encoder.layers(images / 255, head.feature.layers)).mean(0)
                return mean if head.kind == "attentive" else mean.mean(1)

            for step, (x, y) in enumerate(zip(data, labels)):
                for group in optimiser.param_groups:
                    group["lr"] = float(schedule.at(torch.tensor([point.lr], dtype=torch.float64), 12 * step))
                optimiser.zero_grad()
                F.cross_entropy(theirs(seen(x)), y).backward()
                norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
                assert step > 0 or norm > 0.1, "the case does not reach the clip"
                optimiser.step()
            for name in start:
                expected = theirs.get_parameter(OFFICIAL[name])
                ours = head.module.get_parameter(name)[g].reshape(expected.shape)
                assert relative(ours, expected) < 1e-7, (head.feature, name, point)
            head.module.eval(), theirs.eval()
            assert relative(head.module(seen(data[0]))[g], theirs(seen(data[0]))) < 1e-7, "running statistics differ"


def test_schedule_is_a_function_of_samples_seen_and_keeps_grid_points_apart() -> None:
    peak = torch.tensor([1e-6, 1e-3, 1e-2], dtype=torch.float64)
    cold = heads.Schedule(samples=1000, min_lr=1e-5)
    assert cold.at(peak, 0).tolist() == pytest.approx([1e-6, 1e-3, 1e-2])
    assert cold.at(peak, 500).tolist() == pytest.approx([1e-6, (1e-3 + 1e-5) / 2, (1e-2 + 1e-5) / 2])
    assert cold.at(peak, 1000).tolist() == pytest.approx([1e-6, 1e-5, 1e-5])
    warm = heads.Schedule(samples=1000, warmup=100, warmup_start=0.1, min_lr=1e-5)
    assert warm.at(peak, 0).tolist() == pytest.approx([1e-7, 1e-4, 1e-3])
    assert warm.at(peak, 50).tolist() == pytest.approx([5.5e-7, 5.5e-4, 5.5e-3])
    assert warm.at(peak, 100).tolist() == pytest.approx(peak.tolist())
    stepped = heads.Schedule(samples=1000, warmup=100, min_lr=1e-5, batch=20)
    assert stepped.at(peak, 80).tolist() == pytest.approx(peak.tolist()), "officially a step before the warm-up ends"


def test_the_defect_without_warm_up_is_the_published_recursion() -> None:
    """LinearWarmupCosineAnnealingLR of lightning-bolts with warmup_epochs = 0, as its get_lr() computes each step, and
    the warmup_start_lr of the official configs, a tenth of lr."""
    steps, low = 40, 1e-5
    schedule = heads.Schedule(samples=steps * 8, min_lr=low, batch=8, warmup_defect=True)
    peak = torch.tensor([1e-4, 1e-3, 1e-1], dtype=torch.float64)
    lr = peak / 10
    for step in range(steps):
        if step:
            now, before = (1 + math.cos(math.pi * t / steps) for t in (step, step - 1))
            lr = now / before * (lr - low) + low
        assert schedule.at(peak, step * 8).tolist() == pytest.approx(lr.tolist(), rel=1e-12)


def test_an_official_classifier_computes_what_its_module_does() -> None:
    draw = torch.Generator().manual_seed(3)
    x = 5 + torch.randn(9, 6, 24, generator=draw)
    for kind, module in (("attentive", Attentive(24, 3, 4)), ("linear", Linear(24, 3))):
        inputs = x if kind == "attentive" else x.mean(1)
        module.train()(inputs)  # moves the running statistics, which are what the evaluation uses
        state = {name.replace("bn.", "0.").replace("linear.", "1."): t for name, t in module.state_dict().items()}
        state = dict(module.state_dict()) if kind == "attentive" else state
        ours = heads.of_official(kind, 4, state)
        with torch.no_grad():
            assert relative(ours(inputs)[0], module.eval()(inputs)) < 1e-5, kind


def test_answers_are_first_choices() -> None:
    logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[3.0, 1.0], [0.0, 1.0]]])
    assert heads.answers(logits).tolist() == [[1, 0], [0, 1]]


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


def test_what_is_confused_and_which_images_were_got_wrong() -> None:
    classes, said = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 0, 1, -1])
    assert evaluate.confused(said, classes) == ((0, 1, 2), (1, 0, 1))
    assert evaluate.mistakes(said, classes) == ((1, 0, 1), (2, 0, 1), (3, 1, 0)), "no answer is no class"
    assert evaluate.mistakes(classes, classes) == evaluate.confused(classes, classes) == ()
