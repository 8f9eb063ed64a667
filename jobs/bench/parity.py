"""Our model against numbers that the official modules computed in float64: every output, the loss, every gradient.

A case is NAME.json (sizes) and NAME.safetensors (images, official weights `w/`, outputs `out/`, gradients `g/`). The
outputs come from the model with all blocks, the loss and gradients from the training form without the last block.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from jobs.bench import result
from xtra.blocks import raster_order, target_blocks
from xtra.loss import LossConfig, next_block_loss
from xtra.model import ModelConfig, Xtra
from xtra.official import from_official, to_official


@dataclass(frozen=True)
class Config:
    vectors: str  # folder of the parity cases


@dataclass(frozen=True)
class Case:
    model: ModelConfig
    tensors: dict[str, Tensor]
    loss: LossConfig
    name: str
    probe_layers: int

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, by name without it; those of the attentive probe (xtra.probe) are left out."""
        named = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        return {n: t for n, t in named.items() if not n.startswith("attentive")}


def read_cases(vectors: str) -> list[Case]:
    """All cases in a folder. Raises ValueError if it has none."""
    cases = []
    for path in sorted(Path(vectors).glob("*.json")):
        sizes = json.loads(path.read_text())
        names = ("patch", "block", "width", "depth", "heads", "bridge", "dec_width", "dec_depth", "dec_heads", "head")
        model = ModelConfig(
            image=sizes["img"], predict=sizes.get("predict", 1), **{name: sizes[name] for name in names}
        )
        cases.append(
            Case(
                model,
                tensors=load_file(path.with_suffix(".safetensors")),
                loss=LossConfig(l1=sizes.get("l1", False)),
                name=sizes["name"],
                probe_layers=sizes["probe_layers"],
            )
        )
    if not cases:
        raise ValueError(f"{vectors}: has no NAME.json with NAME.safetensors: give the folder of the parity vectors")
    return cases


def compute(case: Case) -> dict[str, Tensor]:
    """Our results for a case, with the names and the layout of the official numbers (out/..., g/...)."""
    c = case.model
    model = Xtra(c).double()
    model.load_state_dict(from_official(case.part("w/"), c))
    images, perm_K = case.tensors["in/images"], case.tensors.get("in/block_perm")
    targets = target_blocks(images, c.side)
    raster = raster_order(c.grid, c.block)  # of the permuted image in the permuted case, as in the official numbers

    with torch.no_grad():
        layers = model.encoder.layers(images, c.depth, perm_K)
        encoder = model.encoder(images, perm_K=perm_K)
        bridge = model.bridge(encoder)
        probed = model.encoder.layers(images, case.probe_layers)  # probes never permute
        out = {
            **{f"layer{i}": x[:, raster] for i, x in enumerate(layers)},
            "encoder": encoder[:, raster],
            "bridge": bridge[:, raster],
            "decoder": model.decode(bridge, perm_K)[:, raster],
            **{f"pred{i}": x for i, x in enumerate(model(images, last_block=True, perm_K=perm_K))},
            "target": targets,
            "probe_features_linear": probed[-1].mean(1),
            "probe_features_attentive": torch.stack(probed).mean(0)[:, raster],
        }
    wanted = targets if perm_K is None else targets[:, perm_K]
    loss = next_block_loss(model(images, perm_K=perm_K), wanted, case.loss)
    loss.backward()
    out["loss"] = loss.detach().view(1)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"out/{n}": t for n, t in out.items()} | {f"g/{n}": t for n, t in to_official(grads, c).items()}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference over their largest absolute value (over 1 if all of theirs are 0)."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max()) / (float(theirs.abs().max()) or 1.0)


def compare(case: Case) -> dict[str, float]:
    """The relative error of every official output and gradient; infinite if we do not compute it."""
    ours = compute(case)
    theirs = {f"{kind}/{n}": t for kind in ("out", "g") for n, t in case.part(f"{kind}/").items()}
    return {name: relative_error(ours[name], t) if name in ours else float("inf") for name, t in theirs.items()}


def run(config: Config) -> dict[str, Any]:
    """Compare every case and print the largest error of its outputs and of its gradients."""
    rows = []
    for case in read_cases(config.vectors):
        errors = compare(case)
        rows += [{"case": case.name, "name": name, "relative_error": error} for name, error in errors.items()]
        for kind, words in (("out/", "outputs"), ("g/", "gradients")):
            worst = sorted(((e, n) for n, e in errors.items() if n.startswith(kind)), reverse=True)
            print(f"{case.name:16} {len(worst):3} {words:9} worst {worst[0][0]:.1e}  {worst[0][1].removeprefix(kind)}")
    return result("parity", rows, {"max_relative_error": max(row["relative_error"] for row in rows)})
