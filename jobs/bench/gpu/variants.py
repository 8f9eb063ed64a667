"""The training variants of `make bench-gpu`: one change at a time, the most important first.

For each size, the best known variant and the official shape come first; then attention implementations, pruning, the
number of images, and finally the decoder's precision. A faster change that computes the same is kept for later ones.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from jobs.bench.gpu import step
from jobs.bench.gpu.floor import Variant
from jobs.bench.gpu.record import Bench
from jobs.bench.gpu.table import row_of, short
from xtra.attention import IMPLEMENTATIONS
from xtra.model import SIZES, ModelConfig, Xtra

IMAGES = {"b16": 256, "h14": 96}  # per step, at first; other sizes: 8
LONG = 90.0  # seconds that must be left for max-autotune
BETTER = 0.99  # a change is kept if its time is at most this share of the best


@dataclass(frozen=True)
class Best:
    """The fastest of our variants that compute the same, by seconds per image."""

    variant: Variant
    image: float


def best_of(rows: list[dict[str, Any]], size: str) -> Best | None:
    """The best so far, including rows of an earlier process."""
    best = None
    for row in rows:
        if row["section"] != "train" or row.get("size") != size or "step_ms" not in row:
            continue
        variant, image = Variant(**row["arm"]), row["step_ms"] / row["images"]
        same = (
            variant.shape == "ours" and variant.dropped != "subset" and variant.drop_last and variant.decoder == "bf16"
        )
        if same and (best is None or image < BETTER * best.image):
            best = Best(variant, image)
    return best


def run(bench: Bench) -> None:
    """For each size, the best known variant and the official shape first; then, size by size, one change at a time."""
    plans = [_plan(bench, name) for name in bench.config.sizes]
    for plan in plans:
        next(plan)
    while plans:
        for plan in list(plans):
            if next(plan, "done") == "done":
                plans.remove(plan)


def _plan(bench: Bench, size: str) -> Iterator[str]:
    """The variants of one size, a group at a time; each group makes a new model, as two sizes may not fit at once."""
    config = replace(SIZES[size], drop_path=bench.config.drop_path, predict=1)
    base = Variant("best known", images=bench.config.images or IMAGES.get(size, 8))
    if not bench.config.compile:
        base = replace(base, compile="none")
    images = base.images
    official = replace(base, shape="official", compile="none", fused=False, drop_last=False)
    first = [
        base,
        replace(official, name="official shape, fp32 decoder", decoder="fp32"),
        replace(official, name="official shape, TF32 decoder", decoder="tf32"),
        replace(official, name="official shape, bf16 decoder"),
    ]
    base = _group(bench, size, config, first, base)
    yield "first"
    if best_of(bench.rows, size) is None and base.compile != "none":  # compiling may not work here
        base = _group(bench, size, config, [replace(base, name="not compiled", compile="none")], base)
        yield "not compiled"
    for group in groups(images, bench.device, bench.config.compile):
        base = _group(bench, size, config, [replace(base, **change) for change in group], base)
        yield "group"


def groups(images: int, device: torch.device, compiled: bool) -> list[list[dict[str, Any]]]:
    """Changes to try, one group after the other, each against the best so far."""
    kinds = [
        kind for kind in IMPLEMENTATIONS if kind != "dense" and (device.type == "cuda" or not kind.startswith("flex"))
    ]
    official = {"name": "official shape, bf16 decoder, compiled", "shape": "official", "dropped": "compute"}
    ways = ({"name": "max-autotune", "compile": "max-autotune"}, {"name": "not compiled", "compile": "none"})
    return [
        [{"name": f"attention {kind}", "attention": kind} for kind in kinds],
        [
            {"name": "dropped branches skipped", "dropped": "skip"},
            {"name": "a fixed number of branches skipped", "dropped": "subset"},
        ],
        [{"name": f"{n} images", "images": n} for n in (images * 2, images // 2) if n],
        *([way] for way in ways if compiled),
        [{"name": "all blocks computed", "drop_last": False}],
        [{"name": "optimiser not fused", "fused": False}],
        *([[official]] if compiled else ()),
        [{"name": "TF32 decoder", "decoder": "tf32"}, {"name": "fp32 decoder", "decoder": "fp32"}],
    ]


def _group(bench: Bench, size: str, config: ModelConfig, variants: list[Variant], base: Variant) -> Variant:
    """Measure some variants; return the best of ours so far that computes the same, as the next base."""
    if bench.left() < 10:
        for variant in variants:
            bench.add("train", {"size": size, "name": variant.name, "left_out": "no time"})
        return base
    try:
        model = step.empty_model(config, bench.device)
    except Exception as why:
        print(f"  {size}: the model cannot be made: {type(why).__name__}: {why}", flush=True)
        return base
    for variant in variants:
        _measured(bench, size, config, variant, model)
    del model
    if bench.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    best = best_of(bench.rows, size)
    return base if best is None else replace(best.variant, name="best known")


def _measured(bench: Bench, size: str, config: ModelConfig, variant: Variant, model: Xtra) -> None:
    def work() -> dict[str, Any]:
        timing = step.fitting(variant, model, bench.device, bench.config.arm_seconds, _say)
        row = row_of(config, timing, bench.device, bench.machine)
        print(f"  {short(row)}", flush=True)
        return row

    autotuned = variant.compile == "max-autotune"
    bench.attempt("train", variant.name, work, LONG if autotuned else 10.0, alone=autotuned, size=size)


def _say(line: str) -> None:
    print(line, flush=True)
