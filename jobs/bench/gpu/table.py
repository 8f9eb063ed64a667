"""The rows of `make bench-gpu`: their contents and their presentation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from jobs.bench.gpu.floor import Ceilings, floor, memory
from jobs.bench.gpu.step import PARTS, Timing
from xtra.attention import IMPLEMENTATIONS
from xtra.flops import flops_done, flops_per_image
from xtra.model import ModelConfig
from xtra.run import attention_ends, shape_of


def row_of(config: ModelConfig, timing: Timing, device: torch.device, machine: Ceilings | None) -> dict[str, Any]:
    """A row of the table: the measurement and its floor."""
    variant, shape = timing.variant, shape_of(config)
    last = variant.shape == "official" or not variant.drop_last
    which = variant.attention if variant.attention in IMPLEMENTATIONS and variant.shape == "ours" else "dense"
    ends = attention_ends(config, device, which, last_block=last)
    keep = 1 - config.drop_path / 2 if variant.dropped != "compute" and variant.shape == "ours" else 1.0
    rate = variant.images / timing.step
    done = flops_done(shape, ends, keep, last_block=last)
    parts = floor(shape, variant, machine, ends, config.drop_path) if machine else {}
    peak = machine.peak if machine else 0.0
    return {
        "arm": asdict(variant),
        "images": variant.images,
        "samples_per_s": rate,
        "step_ms": 1e3 * timing.step,
        "floor_ms": 1e3 * sum(parts.values()) if parts else None,
        "floor_parts_ms": {name: 1e3 * seconds for name, seconds in parts.items()},
        "mfu_paper": rate * flops_per_image(shape) / peak if peak else None,
        "mfu_done": rate * done / peak if peak else None,
        "of_products": rate * done / machine.bf16 if machine else None,
        "memory_gb": timing.memory / 1e9,
        "floor_gb": memory(shape, variant) / 1e9,
        "parts_ms": {name: 1e3 * seconds for name, seconds in timing.parts.items()},
        "host_ms": 1e3 * timing.host,
        "kernels": timing.kernels,
        "cudnn": torch.backends.cudnn.version(),
        "warm_s": timing.warm,
        "steps": timing.steps,
        "loss": timing.loss,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For each size, our best over the official shape in each precision (ratios of rates), and its MFU."""
    found: dict[str, float] = {}
    train = [row for row in rows if row["section"] == "train" and "samples_per_s" in row]
    for size in dict.fromkeys(row["size"] for row in train):
        own = [row for row in train if row["size"] == size]
        same = [r for r in own if r["arm"]["shape"] == "ours" and r["arm"]["dropped"] != "subset"]
        if not same:
            continue
        for row in own:
            if row["arm"]["shape"] == "official":
                which = row["arm"]["decoder"] + ("_compiled" if row["arm"]["compile"] != "none" else "")
                peers = [r["samples_per_s"] for r in same if r["arm"]["decoder"] == row["arm"]["decoder"]]
                found[f"{size}_vs_official_{which}"] = max(r["samples_per_s"] for r in same) / row["samples_per_s"]
                if peers:
                    found[f"{size}_vs_official_{which}_same_precision"] = max(peers) / row["samples_per_s"]
        if same[0]["mfu_paper"] is not None:
            found[f"{size}_mfu_paper"] = max(row["mfu_paper"] for row in same)
    return found


def tables(rows: list[dict[str, Any]], found: dict[str, float]) -> list[str]:
    """All measurements as text; `found` are their ratios."""
    lines = ["", *check_lines(rows)]
    for row in rows:
        if row["section"] == "machine" and "bf16" in row:
            rates = ", ".join(f"{name} {row[name] / 1e12:.3g} TFLOP/s" for name in ("bf16", "tf32", "fp32"))
            speeds = f"{row['bandwidth'] / 1e9:,.0f} GB/s read plus written, {row['host'] / 1e9:.1f} GB/s from the host"
            lines += ["", f"{row['name']}: {rates}; {speeds}"]
    train = [row for row in rows if row["section"] == "train"]
    head = (
        f"{'arm':<40} {'images':>6} {'/s':>8} {'ms':>8} {'floor':>7} {'MFU paper':>9} {'done':>6} {'GB':>6}  "
        + " ".join(f"{part:>9}" for part in PARTS)
        + "      host  warm s"
    )
    for size in dict.fromkeys(row["size"] for row in train):
        lines += ["", f"{size}: milliseconds a step", head, *(_line(row) for row in train if row["size"] == size)]
    data = [
        f"{row['name']:<40} "
        + "  ".join(f"{k} {v}" for k, v in row.items() if k not in ("section", "name", "size") and v is not None)
        for row in rows
        if row["section"] == "data"
    ]
    lines += ["", "data", *data] if data else []
    return [*lines, "", *(f"{name} {value:.3g}" for name, value in found.items())]


def check_lines(rows: list[dict[str, Any]]) -> list[str]:
    checks = [row for row in rows if row["section"] == "checks"]
    lines = [f"checks: {sum(bool(row.get('ok')) for row in checks)} of {len(checks)} hold"] if checks else []
    for row in checks:
        if "check" not in row:
            lines.append(f"  {row['name']}: {row.get('failed') or row.get('left_out')}")
        elif not row["ok"] or row["check"] not in ("attention", "parity"):
            bar = "" if row["bar"] == float("inf") else f", at most {row['bar']:.0e}"
            lines.append(f"  {'ok' if row['ok'] else 'WRONG'}  {row['check']}: {row['value']:.2e}{bar} ({row['what']})")
    return lines


def _line(row: dict[str, Any]) -> str:
    if "step_ms" not in row:
        return f"{row['name']:<40} {row.get('failed') or row.get('left_out')}"
    paper, done = (f"{100 * row[name]:.1f} %" if row[name] is not None else "-" for name in ("mfu_paper", "mfu_done"))
    lower = f"{row['floor_ms']:7.1f}" if row["floor_ms"] is not None else "      -"
    return (
        f"{_name(row):<40} {row['images']:>6} {row['samples_per_s']:>8.1f} {row['step_ms']:>8.1f} {lower} "
        f"{paper:>9} {done:>6} {row['memory_gb']:>6.1f}  "
        + " ".join(f"{row['parts_ms'][part]:>9.2f}" for part in PARTS)
        + f" {row['host_ms']:>9.2f} {row['warm_s']:>7.1f}"
    )


def _name(row: dict[str, Any]) -> str:
    """The variant's name, and for the best also its non-default settings."""
    variant = row["arm"]
    words = [variant["attention"]] * (variant["attention"] != "dense" and not row["name"].startswith("attention"))
    words += [variant["dropped"]] * (variant["dropped"] != "compute" and "branches" not in row["name"])
    return row["name"] + (f" ({', '.join(words)})" if words else "")


def short(row: dict[str, Any]) -> str:
    floor_ms = f", floor {row['floor_ms']:.1f}" if row["floor_ms"] is not None else ""
    mfu = f", MFU {100 * row['mfu_paper']:.1f} %" if row["mfu_paper"] is not None else ""
    return f"{row['samples_per_s']:.1f} images/s, {row['step_ms']:.1f} ms{floor_ms}{mfu}, {row['memory_gb']:.1f} GB"
