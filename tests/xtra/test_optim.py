from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from xtra.model import SIZES, Xtra, build
from xtra.optim import OptimConfig, decay_start, decays, learning_rate, make_optimizer

CONFIG = OptimConfig(warmup=0.1)
BATCH, STEPS = 64, 1000  # 100 steps of warm-up


def at_step(t: int, config: OptimConfig = CONFIG, steps: int = STEPS) -> float:
    return learning_rate(config, t * BATCH, steps * BATCH, BATCH)


def recursion(w: int, steps: int, peak: float = 1e-3, start: float = 1e-4, low: float = 1e-6) -> list[float]:
    """The scheduler of lightning-bolts as it runs: each rate from the one before it."""
    rates = [start]
    for t in range(1, steps):
        last = rates[-1]
        if t < w:
            rates.append(last + (peak - start) / (w - 1))
        elif t == w:
            rates.append(peak)
        elif (t - 1 - steps) % (2 * (steps - w)) == 0:
            rates.append(last + (peak - low) * (1 - math.cos(math.pi / (steps - w))) / 2)
        else:
            up = 1 + math.cos(math.pi * (t - w) / (steps - w))
            down = 1 + math.cos(math.pi * (t - w - 1) / (steps - w))
            rates.append(up / down * (last - low) + low)
    return rates


def test_the_rate_is_that_of_the_official_scheduler_at_every_step():
    expected = recursion(100, STEPS)
    assert [at_step(t) for t in range(STEPS)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_peak_is_reached_at_the_last_warmup_step_and_repeated():
    assert at_step(0) == 1e-4
    assert at_step(98) < 1e-3
    assert at_step(99) == pytest.approx(1e-3, rel=1e-12)
    assert at_step(100) == pytest.approx(1e-3, rel=1e-12)
    assert at_step(101) < 1e-3
    assert at_step(550) == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-12)
    assert at_step(STEPS) == pytest.approx(1e-6, rel=1e-9)
    assert at_step(STEPS + 5) == pytest.approx(1e-6, rel=1e-9)


def test_warmup_is_a_fraction_or_a_number_of_samples():
    in_samples = replace(CONFIG, warmup=100 * BATCH)
    assert [at_step(t, in_samples) for t in range(200)] == [at_step(t) for t in range(200)]


def test_the_papers_runs_have_their_steps_of_warmup():
    for epochs, warm, steps in ((800, 15, 490_400), (100, 3, 629_900)):
        config = OptimConfig(warmup=warm / epochs)
        w = int(warm / epochs * steps)
        rates = [learning_rate(config, 2088 * t, 2088 * steps, 2088) for t in (w - 2, w - 1, w, w + 1)]
        assert rates[0] < rates[1] == pytest.approx(1e-3, rel=1e-12)
        assert rates[2] == pytest.approx(1e-3, rel=1e-12)
        assert rates[3] < 1e-3


def test_without_warmup_the_rate_starts_at_the_peak():
    assert at_step(0, replace(CONFIG, warmup=0)) == 1e-3
    assert at_step(0, replace(CONFIG, warmup=BATCH)) == 1e-4  # one step
    assert at_step(1, replace(CONFIG, warmup=BATCH)) == 1e-3


def test_another_batch_size_never_leaves_the_range():
    """After a resume with another batch, steps of the new size start anywhere."""
    rates = [learning_rate(CONFIG, samples, STEPS * BATCH, 96) for samples in range(0, STEPS * BATCH + 500, 37)]
    assert max(rates) <= 1e-3 * (1 + 1e-12)
    assert min(rates) >= 1e-6 * (1 - 1e-12)


@pytest.mark.parametrize(
    ("size", "with_decay", "without"),
    [("b16", (87, 299_827_200), (168, 226_048)), ("h14", (167, 864_390_144), (328, 628_096))],
)
def test_decay_groups_have_the_official_tensors(size, with_decay, without):
    with torch.device("meta"):
        named = list(Xtra(SIZES[size]).named_parameters())
    groups = [[p for n, p in named if decays(n, p)], [p for n, p in named if not decays(n, p)]]
    assert [(len(g), sum(p.numel() for p in g)) for g in groups] == [with_decay, without]
    assert {n for n, p in named if decays(n, p)} > {"encoder.pos_embed", "encoder.patch_embed.weight"}


def test_the_optimiser_takes_the_configured_step_on_both_groups():
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5)
    model = build(SIZES["tiny32"], 0).double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    step = 0.01 * 2.0 / (2.0 + 1e-6)  # Adam's first step is lr * g / (|g| + eps)
    for name, p in model.named_parameters():
        shrunk = before[name] * (1 - 0.01 * 0.5) if decays(name, p) else before[name]
        torch.testing.assert_close(p.detach(), shrunk - step, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_are_left_out():
    model = build(SIZES["tiny32"], 0)
    model.encoder.requires_grad_(False)
    held = {id(p) for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]}
    assert held == {id(p) for n, p in model.named_parameters() if not n.startswith("encoder.")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": -1.0}, "optim.lr is -1.0"),
        ({"warmup": float("nan")}, "optim.warmup is nan"),
        ({"betas": (0.9, 1.0)}, "optim.betas is"),
        ({"eps": 0.0}, "optim.eps is 0.0"),
        ({"clip": 0.0}, "optim.clip is 0.0"),
    ],
)
def test_a_bad_value_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)


# ---- a constant rate with a decay ----

CONSTANT = OptimConfig(lr=2e-3, warmup_lr=0.0, warmup=100 * BATCH, schedule="constant", decay=0.2)


def test_a_constant_rate_decays_to_nothing_over_its_last_fifth():
    assert at_step(0, CONSTANT) == 0.0
    assert {at_step(t, CONSTANT) for t in range(99, 801)} == {2e-3}
    for t in (801, 850, 900, 999):
        assert at_step(t, CONSTANT) == pytest.approx(2e-3 * (1 - math.sqrt((t - 800) / 200)), rel=1e-12)
    assert at_step(STEPS, CONSTANT) == 0.0
    assert decay_start(CONSTANT, STEPS * BATCH, BATCH) == 800 * BATCH


def test_until_it_decays_the_rate_is_that_of_a_trunk_whatever_the_length():
    trunk = replace(CONSTANT, decay=0.0)
    for steps in (200, 333, 5000):
        begin = decay_start(CONSTANT, steps * BATCH, BATCH) // BATCH
        assert steps * 0.8 - 1 < begin <= steps * 0.8
        rates = [at_step(t, CONSTANT, steps) for t in range(begin)]
        assert rates == [at_step(t, trunk, 50) for t in range(begin)]


def test_a_decay_that_is_no_multiple_of_the_batch_begins_with_a_step():
    assert decay_start(replace(CONSTANT, decay=0.3), 100, 16) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "optim.schedule is 'linear'; it must be cosine or constant"),
        ({"decay": 1.0}, "optim.decay is 1.0; it must be a share"),
        ({"warmup": 0.1}, "optim.warmup is 0.1, a share; with a constant schedule give a number of samples"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONSTANT, **changes)
