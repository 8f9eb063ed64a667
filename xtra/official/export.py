"""`xtra export`: a checkpoint of ours or of the official code, written as what other programs read.

run       a run folder of ours holding an official checkpoint's weights, for `xtra probe`, `generate` and `xtra.load`
official  OUT/xtra.ckpt, the pretraining weights in the official layout, under `state_dict`
encoder   OUT/model.safetensors and config.json as timm reads them (and transformers through timm), with
          preprocessor_config.json and a model card
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from shards import folder_kind, store
from xtra.data import MEAN, STD
from xtra.model import ModelConfig, Xtra
from xtra.official.weights import is_official, read_official, to_official
from xtra.run import checkpoint, now

# timm's names for encoders, whatever image and patch size they have here, by width and depth
_TIMM = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
    (1408, 40): "vit_giant_patch14_224",
}


@dataclass(frozen=True)
class Config:
    checkpoint: str  # a run folder, one of its checkpoints, an official .ckpt file, or a DeepSpeed folder
    out: str  # folder to write
    to: Literal["encoder", "official", "run"] = "encoder"
    size: str = ""  # of an official checkpoint whose sizes cannot be told: a name in xtra.model.SIZES
    heads: int = 0  # of an official checkpoint's encoder, if not the usual for its width
    dec_heads: int = 0
    samples_seen: int = 0  # that an official checkpoint was trained on, for `--to run`

    def __post_init__(self) -> None:
        for name in ("heads", "dec_heads", "samples_seen"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True)
class ExportResult:
    out: str
    files: tuple[str, ...]
    report: tuple[str, ...]  # what was taken, and of an official checkpoint what was not


@dataclass(frozen=True)
class _Source:
    """What is exported, from wherever it came: our names and layout."""

    name: str
    model: ModelConfig
    weights: Mapping[str, Tensor]
    encoder_only: bool
    samples_seen: int
    manifest: str
    step: int | None
    report: tuple[str, ...]


def run(config: Config) -> ExportResult:
    """Raises ValueError for a checkpoint that is none, does not fit, or lacks what the target needs."""
    store.require(checkpoint=config.checkpoint, out=config.out)
    folder_kind.require(config.out, "an export", "run" if config.to == "run" else "export")
    source = _source(config)
    if source.encoder_only and config.to != "encoder":
        raise ValueError(f"{config.checkpoint}: holds the encoder alone: use --to encoder")
    if config.to == "run":
        files = _write_run(config, source)
    elif config.to == "official":
        files = _write_official(config.out, source)
    else:
        files = _write_encoder(config.out, source)
    return ExportResult(config.out, tuple(files), source.report)


def _source(config: Config) -> _Source:
    if is_official(config.checkpoint):
        found = read_official(config.checkpoint, config.size, config.heads, config.dec_heads)
        return _Source(
            name=Path(config.checkpoint.rstrip("/")).name,
            model=found.config,
            weights=found.weights,
            encoder_only=found.encoder_only,
            samples_seen=config.samples_seen,
            manifest="",
            step=found.step,
            report=found.report,
        )
    if config.to == "run":
        raise ValueError(f"{config.checkpoint}: is no official checkpoint; --to run is for those")
    saved = checkpoint.find(config.checkpoint)
    weights = {name: p.detach() for name, p in checkpoint.load_model(saved).named_parameters()}
    total = sum(w.numel() for w in weights.values())
    return _Source(
        name=saved.run.rstrip("/").rsplit("/", 1)[-1],
        model=saved.config,
        weights=weights,
        encoder_only=False,
        samples_seen=saved.commit["samples_seen"],
        manifest=saved.commit["manifest"] or "",
        step=None,
        report=(f"taken: {len(weights)} tensors, {total:,} parameters of {saved.url}",),
    )


# ---- the three targets ---------------------------------------------------------------------------------------------


def _write_run(config: Config, source: _Source) -> list[str]:
    """A run folder with one checkpoint; nothing can be trained on from it, as the optimiser's state stays behind."""
    if store.names(config.out):
        raise ValueError(f"{config.out}: is not empty: choose another --out")
    model = Xtra(source.model)
    model.load_state_dict(dict(source.weights))
    facts = {"recipe": "official", "imported": source.name, "report": source.report, "at": now()}
    facts |= {"dataset": "", "manifest": "", "manifest_samples": 0, "world": 0, "git": None}
    settings = {"model": dataclasses.asdict(source.model), "recipe": "official", "seed": 0}
    store.put_json_if_absent(store.join(config.out, "config.json"), settings)
    store.put_json_if_absent(store.join(config.out, "run.json"), facts)
    no_state = torch.optim.SGD(model.parameters())
    state = {"cursor": {"manifest": ""}, "imported": source.name, "step": source.step}
    checkpoint.save(config.out, 1, source.samples_seen, model, no_state, state)
    return ["config.json", "run.json", f"checkpoints/{source.samples_seen:012d}"]


def _write_official(out: str, source: _Source) -> list[str]:
    state = {name: w.contiguous() for name, w in to_official(source.weights, source.model).items()}
    with tempfile.TemporaryDirectory(prefix="xtra-export-") as scratch:
        path = Path(scratch, "xtra.ckpt")
        torch.save({"state_dict": state}, path)
        store.put_file(store.join(out, path.name), path)
    return ["xtra.ckpt"]


def _write_encoder(out: str, source: _Source) -> list[str]:
    c = source.model
    with tempfile.TemporaryDirectory(prefix="xtra-export-") as scratch:
        path = Path(scratch, "model.safetensors")
        save_file(timm_weights(source.weights, c), path, metadata={"format": "pt"})
        store.put_file(store.join(out, path.name), path)
    store.put_json(store.join(out, "config.json"), timm_config(c))
    store.put_json(store.join(out, "preprocessor_config.json"), _preprocessor(c))
    store.put(store.join(out, "README.md"), _card(source).encode())
    return ["model.safetensors", "config.json", "preprocessor_config.json", "README.md"]


def timm_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The encoder under the names of timm's VisionTransformer, which are the official ones; tokens in raster order."""
    ours = {name: w for name, w in weights.items() if name.startswith("encoder.")}
    theirs = to_official(ours, config)
    return {name.removeprefix("enc."): w.contiguous() for name, w in theirs.items()}


def timm_config(c: ModelConfig) -> dict[str, Any]:
    """config.json for `timm.create_model("local-dir:…")`: an architecture by name and what differs from it."""
    return {
        "architecture": _TIMM.get((c.width, c.depth), "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": c.width,
        "global_pool": "avg",
        "model_args": {
            "img_size": c.image,
            "patch_size": c.patch,
            "embed_dim": c.width,
            "depth": c.depth,
            "num_heads": c.heads,
            "mlp_ratio": c.mlp_ratio,
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, c.image, c.image],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _preprocessor(c: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json of transformers' image processors: short side, centre crop, ImageNet mean and std."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(c.image / 0.875)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": c.image, "width": c.image},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _card(source: _Source) -> str:
    c = source.model
    parameters = sum(w.numel() for name, w in source.weights.items() if name.startswith("encoder."))
    seen = f"{source.samples_seen:,} samples seen" if source.samples_seen else "samples seen unknown"
    data = f"; dataset manifest {source.manifest}" if source.manifest else ""
    return f"""---
library_name: timm
tags: [image-feature-extraction, timm, xtra]
---
# {source.name}: an XTRA encoder

A vision transformer pretrained without labels by predicting the next block of pixels
([XTRA, arXiv 2411.15648](https://arxiv.org/abs/2411.15648)). The encoder alone: {parameters:,} parameters,
width {c.width}, {c.depth} layers of {c.heads} heads, {c.image} px images, {c.patch} px patches,
blocks of {c.block} x {c.block} patches; {seen}{data}.

{_attention_note(c)}
`images` are [B, 3, {c.image}, {c.image}], ImageNet mean and std taken out: preprocessor_config.json has the numbers.
transformers opens the folder through timm: `AutoModel.from_pretrained("FOLDER")` (its forward takes no mask).
"""


def _attention_note(c: ModelConfig) -> str:
    """What a user of the encoder has to know of its attention, with the code."""
    code = """```python
import timm, torch

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
"""
    if c.prefix:
        return f"""Pretrained with prefix attention and probed with every token seeing all others, as timm's models do.
Probes read tokens before the final norm; here they come after it.

{code}tokens = model.forward_features(images)  # [B, {c.tokens}, {c.width}], raster order
```
"""
    return f"""Attention was block-causal in pretraining, and is so in the published probes: a token sees its own block
and all earlier ones. timm does not know that mask: pass it. Probes read tokens before the final norm; here they come
after it.

{code}row, column = torch.arange({c.tokens}) // {c.grid}, torch.arange({c.tokens}) % {c.grid}
block = row // {c.block} * {c.grid // c.block} + column // {c.block}
mask = block[:, None] >= block[None, :]  # True: may attend
tokens = model.forward_features(images, attn_mask=mask[None, None])  # [B, {c.tokens}, {c.width}], raster order
```
"""


def describe(result: ExportResult) -> str:
    return "\n".join([*result.report, *(f"wrote: {store.join(result.out, name)}" for name in result.files)])
