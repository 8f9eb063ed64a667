"""Writes run folders as training and probing leave them, with numbers from a smooth made-up law."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

TINY = {
    "image": 64,
    "patch": 8,
    "block": 4,
    "width": 192,
    "depth": 4,
    "heads": 3,
    "bridge": 384,
    "dec_width": 192,
    "dec_depth": 2,
    "dec_heads": 3,
    "head": 1024,
}
BASELINES = {("attentive", "random"): 0.085, ("linear", "random"): 0.062, ("linear", "none"): 0.034}


def digest(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(
    folder: Path,
    samples: int = 12800,
    unique: int = 6400,
    block: int = 4,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    commit: bool = True,
) -> Path:
    """A finished run without probes: one attempt, two metrics parts, one checkpoint."""
    manifest = digest("train", unique)
    model = TINY | {"block": block} | (sizes or {})
    write_json(
        folder / "config.json",
        {"model": model, "data": "s3://b/tin", "out": str(folder), "samples": samples, "batch": 128, "seed": seed}
        | {"recipe": "tiny", "optim": {"lr": 1e-3}},
    )
    write_json(
        folder / "run.json",
        {"versions": {"python": "3.11.7", "torch": "2.13.0"}, "git": digest("git")[:12], "manifest": manifest}
        | {"manifest_samples": unique, "dataset": "s3://b/tin", "recipe": "tiny", "image_build": "pillow 13.0.0"}
        | {"threads": 2, "world": 1, "hardware": "2 CPU cores, x86_64"},
    )
    write_json(folder / "attempts/000001.json", attempt(1))
    steps = range(128, samples + 1, 128)
    write_metrics(folder, 1, 0, [metric(s, block) for s in steps[: len(steps) // 2]])
    write_metrics(folder, 1, 1, [metric(s, block) for s in steps[len(steps) // 2 :]])
    events = [
        {"at": "2026-11-21T10:00:00+00:00", "event": "start"},
        {"at": "2026-11-21T11:00:00+00:00", "event": "end"},
    ]
    (folder / "events").mkdir()
    (folder / "events/000001-000000.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    if commit:
        write_commit(folder, samples, manifest)
    return folder


def attempt(number: int) -> dict[str, Any]:
    return {"attempt": number, "host": "node-3", "pid": 17, "world": 1, "since": "2026-11-21T10:00:00+00:00"}


def metric(samples_seen: int, block: int = 4, began_at: int = 0, **other: Any) -> dict[str, Any]:
    loss = 0.55 + (0.6 if block > 1 else 0.4) * math.exp(-samples_seen / 20000)
    return {"samples_seen": samples_seen, "step": samples_seen // 128, "loss": loss, "lr": 1e-3, "grad_norm": 1.0} | {
        "seconds": (samples_seen - began_at) / 256,
        "samples_per_s": 256.0,
        "data_wait": 0.01,
        **other,
    }


def write_metrics(folder: Path, number: int, part: int, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"metrics/{number:06d}-{part:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_commit(folder: Path, samples_seen: int, manifest: str, number: int = 1) -> Path:
    path = folder / f"checkpoints/{samples_seen:012d}/COMMIT.json"
    files = {f"{number:06d}/model.safetensors": {"bytes": 10, "sha256": digest("weights")}}
    write_json(path, {"attempt": number, "samples_seen": samples_seen, "manifest": manifest, "files": files})
    return path


def write_probe(
    folder: Path,
    accuracy: float,
    set_name: str = "tin-val",
    head: str = "linear",
    encoder: str = "trained",
    samples_seen: int | None = None,
    total: int = 5000,
    **other: Any,
) -> Path:
    seen = json.loads((folder / "config.json").read_text())["samples"] if samples_seen is None else samples_seen
    correct = round(accuracy * total)
    low, high = wilson(correct, total)
    probe = {
        "checkpoint": f"{folder}/checkpoints/{seen:012d}" if encoder == "trained" else "",
        "samples_seen": seen,
        "manifest_train": digest(set_name, "train"),
        "manifest_eval": digest(set_name),
        **{"set": set_name, "head": head, "encoder": encoder, "accuracy": correct / total, "low": low, "high": high},
        **{"correct": correct, "total": total, "classes": 200, "lr": 1e-3, "weight_decay": 0.1},
        **{"selection": [], "per_class": [], "seconds": 20.0, "protocol": "hold-out"},
        **other,
    }
    path = folder / f"probes/{set_name}-{head}-{encoder}-{seen}.json"
    write_json(path, probe)
    return path


def wilson(correct: int, total: int) -> tuple[float, float]:
    z, p = 1.959964, correct / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return middle - half, middle + half


def write_study(root: Path) -> Path:
    """XTRA and AIM at five sample counts over two subsets, two seeds of the smallest: what a small study looks like."""
    noise = random.Random(0)
    for block, variant in ((4, "xtra"), (1, "aim")):
        for unique in (5000, 50000):
            for samples in (6400, 25600, 102400, 409600):
                for seed in (0, 1) if samples == 6400 else (0,):
                    run = write_run(root / f"{variant}-u{unique}-n{samples}-s{seed}", samples, unique, block, seed)
                    gain = (0.055 if block > 1 else 0.04) * math.log10(samples / 3000) * (1.0 if unique > 5000 else 0.7)
                    for head in ("attentive", "linear"):
                        base = BASELINES[head, "random"]
                        accuracy = base + gain * (1.3 if head == "attentive" else 1) + noise.gauss(0, 0.003)
                        write_probe(run, accuracy, head=head)
    for (head, encoder), accuracy in BASELINES.items():
        write_probe(run, accuracy, head="pixels" if encoder == "none" else head, encoder=encoder)
    return root
