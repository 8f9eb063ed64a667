"""A whole grid of probe heads against one head: the cost of more heads when all share one encoder pass.

Every variant takes whole training steps of `xtra probe` on the same synthetic images: pixels, frozen encoder, heads
forward and backward, clipping, AdamW.

linear        one linear head, one learning rate
attentive     one attentive head, one learning rate
grid          attentive and linear heads, ten learning rates each

The variants take turns, in reversed order every other round; a ratio is the median over rounds of the grid's time over
the other's in the same round: CPU seconds on a CPU, which other processes may use too, and wall-clock time on a GPU.
`grid_vs_single` is against the linear head, the cheaper of the two.

With --data, the probes of one run of the block-size study (docs/study) instead, each in a process of its own with one
thread of torch: CIFAR-10 (linear), Tiny ImageNet and Grocery (linear and attentive). The sets take turns; a figure is
the median over rounds, with the extremes. --checkout is a checkout of another build, which takes turns with this one:
`cpu_vs_checkout` is this one's CPU seconds over its, and what both got right must be equal to the bit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jobs.bench import result
from jobs.bench.peers import probe as one_probe
from jobs.bench.rounds import Spent, medians, paired, require_at_least, torch_threads
from shards import store
from shards.manifest import read_manifest
from shards.selection import subset
from xtra import probe
from xtra.model import SIZES, build
from xtra.probe import Encode, Feature, Head, Schedule, of_xtra

LRS = (1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3, 8e-3, 1e-2, 1e-1)  # the official configs' longest grid
RECIPE = "tiny_imagenet_block4"
HERE = Path(__file__).resolve().parents[2]
# The study's probes (jobs/lab/study.py), which have the same settings on all its sets.
STUDY = {"lrs": (1e-3, 4e-3, 1.6e-2, 6.4e-2), "views": 1, "device": "cpu", "precision": "bf16", "encode_batch": 32}
STUDY_SETS = {  # the two parts, and the heads
    "cifar10": ("cifar10-train", "cifar10-test", ("linear",)),
    "tin": ("tin-train", "tin-val", ("linear", "attentive")),
    "grocery": ("grocery-train", "grocery-test", ("linear", "attentive")),
}
STUDY_IMAGES = 10_000  # that train heads
PARTS = ("encoder", "decoding", "heads", "rest")


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
    data: str = ""  # folder with the study's sets (docs/study): time the probes of one run on them instead
    images: int = 2000  # of each of these sets, about; 0: as many as the study takes
    checkout: str = ""  # with --data: folder of another build to compare with

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}")
        require_at_least(self, batch=2, classes=2, layers=1, rounds=1, threads=0, images=0)
        if self.checkout and not (Path(self.checkout) / "xtra" / "probe").is_dir():
            raise ValueError(f"checkout is {self.checkout}: it has no xtra/probe: give a checkout of another build")
        if self.checkout and not self.data:
            raise ValueError("checkout is compared on the study's sets: give --data as well")


@dataclass
class Variant:
    name: str
    encode: Encode
    heads: list[Head]
    seconds: list[Spent]  # a round
    encoding: list[float]  # wall-clock seconds in the encoder, per round


def run(config: Config) -> dict[str, Any]:
    """Time the variants, or the study's probes; return their rows and ratios."""
    if config.data:
        return _of_a_run(config)
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


# ---- the probes of one run of the study ----


def _of_a_run(config: Config) -> dict[str, Any]:
    trees = {"this": HERE} | ({"checkout": Path(config.checkout).resolve()} if config.checkout else {})
    settings = {name: _settings(config, name) for name in STUDY_SETS}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(name, tree): [] for name in settings for tree in trees}
    for number in range(config.rounds):
        for name, tree in list(found)[:: -1 if number % 2 else 1]:
            found[name, tree].append(_probed(trees[tree], settings[name]))
    rows = [_row(name, tree, measured) for (name, tree), measured in found.items()]
    for name in settings if config.checkout else ():
        ours, theirs = found[name, "this"], found[name, "checkout"]
        if ours[0]["right"] != theirs[0]["right"]:
            raise ValueError(f"{name}: the two builds do not get the same images right")
    ratios = {f"cpu_seconds_{name}": _seconds(found[name, "this"]) for name in settings}
    ratios["cpu_seconds"] = sum(ratios.values())
    if config.checkout:
        ours, theirs = (
            [(0.0, sum(found[name, tree][n]["cpu_seconds"] for name in settings)) for n in range(config.rounds)]
            for tree in trees
        )
        ratios |= paired("cpu_vs_checkout", ours, theirs, "cpu")
    return result("probe", rows, ratios)


def _settings(config: Config, name: str) -> dict[str, Any]:
    """Those of the study's probe on a set, on about so many images of its parts."""
    *parts, heads = STUDY_SETS[name]
    addresses = []
    for part, most in zip(parts, (STUDY_IMAGES, 0)):
        manifest = read_manifest(store.absolute(store.join(config.data, part)))
        images = min(filter(None, (config.images, most, manifest.samples)))
        addresses.append((subset(manifest, images) if images < manifest.samples else manifest).address)
    return {**STUDY, "heads": heads, "train": addresses[0], "eval": addresses[1], "threads": 1}


def _probed(tree: Path, settings: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="xtra-bench-") as out:
        task = {"recipe": RECIPE, "settings": settings | {"out": out}}
        command = [sys.executable, "-P", str(one_probe.__file__), json.dumps(task)]
        env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(measured: list[dict[str, Any]], of: str = "cpu") -> float:
    return statistics.median(one[f"{of}_seconds"] for one in measured)


def _row(name: str, tree: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
    each = [one["cpu_seconds"] for one in measured]
    row: dict[str, Any] = {"set": name, "build": tree, "rounds": len(each), "cpu_seconds": _seconds(measured)}
    row |= {"least": min(each), "most": max(each)} | {part: _seconds(measured, part) for part in PARTS}
    split = ", ".join(f"{part} {row[part]:.2f}" for part in PARTS)
    print(f"{name:<14} {tree:<8} {row['cpu_seconds']:8.2f} s of CPU ({min(each):.2f} to {max(each):.2f}): {split}")
    return row
