"""Runs to export, small and with weights that no initialisation gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from shards import store
from xtra.model import ModelConfig, Xtra, build
from xtra.run import checkpoint

SEEN = 1280
SMALL = ModelConfig(32, 4, 2, 48, 3, 3, bridge=32, dec_width=32, dec_depth=1, dec_heads=2, head=32)


def trained(config: ModelConfig) -> Xtra:
    """With weights large enough for every part to matter."""
    model = build(config, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=generator))
    return model.eval()


def run_of(folder: Path, config: ModelConfig, model: Xtra | None = None) -> str:
    """A run folder with one checkpoint."""
    run = str(folder)
    store.put_json(store.join(run, "config.json"), {"model": dataclasses.asdict(config), "seed": 0})
    model = model or trained(config)
    checkpoint.save(run, 1, SEEN, model, torch.optim.SGD(model.parameters()), {"cursor": {"manifest": "m" * 64}})
    return run
