"""Training in bfloat16 against float32: the same recipe, data, order and seed, and how far the losses diverge.

Three runs in OUT: fp32; bf16_decoder_fp32 (autocast, the decoder in float32, as in the official code); bf16 (autocast
throughout). Two float32 runs with other seeds show the noise. Existing runs are not trained again. OUT/precision.svg
shows the curves. Probe the run folders for the rest of the comparison.
"""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass, replace
from typing import Any

from jobs.bench import result
from shards import store
from xtra import recipes, train
from xtra.run import checkpoint, read_metrics
from xtra.train import Config as TrainConfig
from xtra.validation import Validation

LAST = 0.1  # share of a run over which its final loss is averaged


@dataclass(frozen=True)
class Config:
    data: str  # dataset to train on
    out: str  # folder of the runs
    recipe: str = "small64"
    samples: int = 64_000  # 1,000 steps of small64
    val: str = ""  # held-out dataset
    device: str = "auto"
    threads: int = 2


def variants(config: Config) -> dict[str, TrainConfig]:
    """The runs by name."""
    base = replace(
        recipes.get(config.recipe),
        data=config.data,
        samples=config.samples,
        device=config.device,
        threads=config.threads,
        precision="fp32",
        val=Validation(config.val, every=max(1, config.samples // 4)),
    )
    changes: dict[str, dict[str, Any]] = {
        "fp32": {},
        "fp32_seed1": {"seed": 1},
        "fp32_seed2": {"seed": 2},
        "bf16_decoder_fp32": {"precision": "bf16", "decoder_fp32": True},
        "bf16": {"precision": "bf16", "decoder_fp32": False},
    }
    return {name: replace(base, out=store.join(config.out, name), **change) for name, change in changes.items()}


def run(config: Config) -> dict[str, Any]:
    """Train what is missing and compare. Raises ValueError where training does."""
    curves: dict[str, list[tuple[int, float]]] = {}
    rows: list[dict[str, Any]] = []
    for name, settings in variants(config).items():
        if max(checkpoint.committed(settings.out), default=0) < settings.samples:
            train.run(settings)
        log = read_metrics(settings.out, [])
        curves[name] = [(row.samples_seen, row.loss) for row in log]
        last = [row.loss for row in log if row.samples_seen > (1 - LAST) * settings.samples]
        val = next((row.val_loss for row in reversed(log) if row.val_loss is not None), None)
        rows.append({"run": name, "final_loss": statistics.fmean(last), "val_loss": val, "steps": len(log)})
        print(f"{name:<18} {rows[-1]['final_loss']:.5f}" + (f"  held out {val:.5f}" if val is not None else ""))
    final = {row["run"]: row["final_loss"] for row in rows}
    seeds = [final[name] for name in ("fp32", "fp32_seed1", "fp32_seed2")]
    ratios = {f"{name}_vs_fp32": final[name] / final["fp32"] for name in ("bf16_decoder_fp32", "bf16")}
    ratios["seeds_most_vs_least"] = max(seeds) / min(seeds)
    store.put(store.join(config.out, "precision.svg"), chart(curves))
    return result("precision", rows, ratios)


def chart(curves: dict[str, list[tuple[int, float]]]) -> bytes:
    """An SVG: each run's loss, averaged over fiftieths of it, and its difference from float32 with the same seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    loss, apart = figure.subplots(1, 2)
    smooth = {name: _smooth(curve) for name, curve in curves.items()}
    reference = dict(smooth["fp32"])
    for number, (name, curve) in enumerate(smooth.items()):
        line: dict[str, Any] = {"color": f"C{number}", "label": name, "linewidth": 1}
        loss.plot(*zip(*curve), **line)
        if name != "fp32":
            apart.plot(*zip(*[(x, y - reference[x]) for x, y in curve if x in reference]), **line)
    loss.set(xlabel="samples seen", ylabel="loss")
    apart.set(xlabel="samples seen", ylabel="loss minus fp32's")
    apart.axhline(0, color="C0", linewidth=1)
    loss.legend(frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue()


def _smooth(curve: list[tuple[int, float]], parts: int = 50) -> list[tuple[int, float]]:
    size = max(1, len(curve) // parts)
    pieces = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(piece[-1][0], statistics.fmean(y for _, y in piece)) for piece in pieces]
