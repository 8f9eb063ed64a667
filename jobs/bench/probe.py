"""A whole grid of probe heads against one head: the cost of more heads when all share one encoder pass.

Every variant takes whole training steps of `xtra probe` on the same synthetic images: pixels, frozen encoder, heads
forward and backward, clipping, AdamW.

linear        one linear head, one learning rate
attentive     one attentive head, one learning rate
grid          attentive and linear heads, ten learning rates each

The variants take turns, in reversed order every other round; a ratio is the median over rounds of the grid's time over
the other's in the same round: CPU seconds on a CPU, which other processes may use too, and wall-clock time on a GPU.
`grid_vs_single` is against the linear head, the cheaper of the two.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from jobs.bench import result
from jobs.bench.rounds import Spent, medians, paired, require_at_least, torch_threads
from xtra import probe
from xtra.model import SIZES, build
from xtra.probe import Encode, Feature, Head, Schedule, of_xtra

LRS = (1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, 8e-3, 1e-2, 1e-1)  # the official configs' longest grid


@dataclass(frozen=True)
class Config:
    size: str = "b16"  # a name in xtra.model.SIZES
    batch: int = 32
    classes: int = 1000
    layers: int = 6  # last layers whose mean the attentive head sees
    rounds: int = 9
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder
    threads: int = 0  # torch's threads on a CPU; 0: torch's default

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}")
        require_at_least(self, batch=2, classes=2, layers=1, rounds=1, threads=0)


@dataclass
class Variant:
    name: str
    encode: Encode
    heads: list[Head]
    seconds: list[Spent]  # a round
    encoding: list[float]  # wall-clock seconds in the encoder, per round


def run(config: Config) -> dict[str, Any]:
    """Time the variants; return their rows and ratios."""
    with torch_threads(config.threads):
        variants = _variants(config)
        side = variants[0].encode.encoder.image
        draw = np.random.default_rng(0)
        images_B3HW = torch.from_numpy(draw.integers(0, 256, (config.batch, 3, side, side), np.uint8)).to(config.device)
        class_B = draw.integers(0, config.classes, config.batch)
        schedule = Schedule((config.rounds + 1) * config.batch)
        for turn in range(-1, config.rounds):  # the first round is a warm-up
            for variant in variants if turn % 2 else variants[::-1]:
                wall, cpu = _now(config), time.process_time()
                features = variant.encode(images_B3HW, class_B)
                encoded = _now(config)
                for head in variant.heads:
                    head.step(features, schedule, (turn + 1) * config.batch)
                if turn >= 0:
                    variant.encoding.append(encoded - wall)
                    variant.seconds.append((_now(config) - wall, time.process_time() - cpu))
        return _report(config, variants)


def _variants(config: Config) -> list[Variant]:
    model = build(SIZES[config.size], 0, torch.device(config.device))
    encoder = of_xtra(model.encoder.requires_grad_(False), config.size)
    tokens, pooled = Feature("tokens", config.layers), Feature("pooled", 1)

    def variant(name: str, lrs: tuple[float, ...], seen: dict[str, Feature]) -> Variant:
        settings = probe.Config(lrs=lrs, batch=config.batch, device=config.device)
        encode = Encode(
            encoder=encoder,
            wanted=tuple(seen.values()),
            token_dtype=torch.float32,
            device=config.device,
            batch=config.batch,
            resize=None,
            seed=0,
            threads=1,
            precision=config.precision,
        )
        heads = [probe.new_head(settings, kind, feature, encode, config.classes) for kind, feature in seen.items()]
        return Variant(name, encode, heads, [], [])

    return [
        variant("linear", LRS[:1], {"linear": pooled}),
        variant("attentive", LRS[:1], {"attentive": tokens}),
        variant("grid", LRS, {"attentive": tokens, "linear": pooled}),
    ]


def _now(config: Config) -> float:
    if config.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _report(config: Config, variants: list[Variant]) -> dict[str, Any]:
    grid = variants[-1]
    rows: list[dict[str, Any]] = []
    for variant in variants:
        wall, cpu = medians(variant.seconds)
        row: dict[str, Any] = {
            "arm": variant.name,
            "heads": sum(len(head.points) for head in variant.heads),
            "parameters": sum(p.numel() for head in variant.heads for p in head.module.parameters()),
            "seconds": wall,
            "cpu_seconds": cpu,
            "encoder_seconds": statistics.median(variant.encoding),
            "samples_per_s": config.batch / wall,
            **paired("grid_ratio", grid.seconds, variant.seconds, config.device),
        }
        rows.append(row)
        print(
            f"{variant.name:<10} {row['heads']:3d} heads  {wall:8.3f} s, encoder {row['encoder_seconds']:8.3f} s  "
            f"{row['samples_per_s']:8.1f} images/s  grid takes {row['grid_ratio']:.3f}x "
            f"({row['grid_ratio_least']:.3f} to {row['grid_ratio_most']:.3f})"
        )
    linear, attentive, _ = (row["grid_ratio"] for row in rows)
    return result("probe", rows, {"grid_vs_single": linear, "grid_vs_single_attentive": attentive})
