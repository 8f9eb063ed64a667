"""`xtra export`: a checkpoint of ours or of the official code, written as what other programs read.

encoder   the encoder with its modelling code, for transformers and for torch alone (`transformers` means the same)
timm      the encoder as timm reads it, which has no mask, and transformers through timm
torch     the encoder as a program of torch.export
official  OUT/xtra.ckpt, the pretraining weights in the official layout, under `state_dict`
run       a run folder of ours holding an official checkpoint's weights, for `xtra probe`, `generate` and `xtra.load`

The first three are files of `encoder_files.py` and a model card. A target that cannot apply the requested mask is
refused before anything is written: its features would silently differ.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shards import folder_kind, scratch, store
from xtra.model import ModelConfig, Xtra
from xtra.official import card, encoder_files
from xtra.official.config import Config
from xtra.official.encoder_files import Masked
from xtra.official.weights import OURS, is_official, read_official, to_official, unlike_official
from xtra.run import checkpoint, now

CARD = "README.md"
WRONG = 1e-3  # tokens of order 1 differ by about 1e-6 between implementations; a larger difference is another model
_TARGETS = {"transformers": "encoder"}


@dataclass(frozen=True)
class ExportResult:
    out: str
    files: tuple[str, ...]
    report: tuple[str, ...]  # what was taken, and for an official checkpoint what was not


@dataclass(frozen=True)
class _Source:
    """The model to export, from any source, in our names and layout."""

    weights: Mapping[str, Tensor]
    encoder_only: bool
    model: ModelConfig
    name: str
    samples_seen: int
    manifest: str
    step: int | None
    report: tuple[str, ...]
    run: str = ""  # the run folder; "" for an official checkpoint


def run(config: Config) -> ExportResult:
    """Export a checkpoint. Raises ValueError if it is none, does not fit, or has not what the target needs."""
    store.require(checkpoint=config.checkpoint, out=config.out)
    folder_kind.require(config.out, "an export", "run" if config.to == "run" else "export")
    source = _source(config)
    if source.encoder_only and config.to in ("official", "run"):
        raise ValueError(f"{config.checkpoint}: contains only the encoder: use --to encoder")
    mask, said = _mask(config, source.model), list[str]()
    if config.to == "run":
        files = _write_run(config, source)
    elif config.to == "official":
        files, said = _write_official(config.out, source)
    else:
        files, said = _write_encoder(config, source, mask)
    return ExportResult(config.out, tuple(files), (*source.report, *said))


def _mask(config: Config, model: ModelConfig) -> Masked:
    """The mask that the export applies. Raises ValueError where its library cannot."""
    own = card.own_mask(model)
    mask = own if config.mask == "own" else config.mask
    if config.to == "timm" and mask == "causal":
        raise ValueError(
            f"{config.checkpoint}: its attention is block-causal, and timm's VisionTransformer has no such mask: use "
            "--to encoder, or --mask none to let all tokens attend to each other"
        )
    if config.to == "official" and mask == "none":
        if own == "none":
            raise ValueError(
                f"{config.checkpoint}: was pretrained with prefix attention, but the official code would apply the "
                "block-causal mask: use --to encoder, or --mask causal to accept that"
            )
        raise ValueError("mask is none, but the official code always applies the block-causal one: leave it out")
    return mask


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
        raise ValueError(f"{config.checkpoint}: is not an official checkpoint; --to run is only for those")
    saved = checkpoint.find(config.checkpoint)
    weights = {name: p.detach() for name, p in checkpoint.load_model(saved).named_parameters()}
    total = sum(w.numel() for w in weights.values())
    return _Source(
        name=store.absolute(saved.run).rstrip("/").rsplit("/", 1)[-1],
        model=saved.config,
        weights=weights,
        encoder_only=False,
        samples_seen=saved.commit["samples_seen"],
        manifest=saved.commit["manifest"] or "",
        step=None,
        report=(f"taken: {len(weights)} tensors, {total:,} parameters of {saved.url}",),
        run=saved.run,
    )


# ---- the targets ---------------------------------------------------------------------------------------------------


def _write_run(config: Config, source: _Source) -> list[str]:
    """A run folder with one checkpoint; training cannot continue from it, as it has no optimiser state."""
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


def _write_official(out: str, source: _Source) -> tuple[list[str], list[str]]:
    """Write the weights with the model's config, as tensors do not record heads, block order or prefix attention."""
    state = {name: w.contiguous() for name, w in to_official(source.weights, source.model).items()}
    with scratch.folder("xtra-export-") as folder:
        path = folder / "xtra.ckpt"
        try:
            torch.save({"state_dict": state, OURS: dataclasses.asdict(source.model)}, path)
        except RuntimeError as error:  # torch does not name the disk error
            if shutil.disk_usage(folder).free > sum(w.nbytes for w in state.values()):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        store.put_file(store.join(out, path.name), path)
    return ["xtra.ckpt"], [f"note: {line}" for line in unlike_official(source.model)]


def _write_encoder(config: Config, source: _Source, mask: Masked) -> tuple[list[str], list[str]]:
    """Write the encoder's files; return their names in order, and remarks."""
    weights, model, target = source.weights, source.model, _TARGETS.get(config.to, config.to)
    probes, said = card.measured(source.run, source.samples_seen) if source.run else ([], [])
    with scratch.folder("xtra-export-") as folder:
        if target == "timm":
            names, apart = encoder_files.write_timm(folder, weights, model), None
        else:
            write = encoder_files.write_program if target == "torch" else encoder_files.write_transformers
            names = write(folder, weights, model, mask)
            apart, largest = encoder_files.difference(folder, weights, model, mask)
            if not math.isfinite(largest):
                raise ValueError(f"{config.checkpoint}: gives non-finite tokens: export an earlier checkpoint")
            assert apart < WRONG * max(largest, 1), f"the export's tokens differ from the encoder's by {apart}"
            said.append(
                f"compared: tokens differ from those of xtra.load under mask {mask} by at most {apart:.1e}, where the "
                f"largest is {largest:.1f}"
            )
        facts = card.Facts(
            name=source.name,
            target=target,
            model=model,
            parameters=sum(w.numel() for name, w in weights.items() if name.startswith("encoder.")),
            samples_seen=source.samples_seen,
            manifest=source.manifest,
            mask=mask,
            license=config.license,
            of_a_run=bool(source.run),
            probes=probes,
            difference=apart,
        )
        (folder / CARD).write_text(card.card(facts))
        for name in [CARD, *names]:  # the file that makes it a model comes last
            store.put_file(store.join(config.out, name), folder / name)
    return [CARD, *names], said


def describe(result: ExportResult) -> str:
    return "\n".join([*result.report, *(f"wrote: {store.join(result.out, name)}" for name in result.files)])
