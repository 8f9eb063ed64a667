"""The official code's weights (github.com/elad-amrani/xtra, e711fb5): read, and converted to our layout and back.

Its files are pickles in several forms: Lightning's .ckpt (weights under `state_dict`; B/16), a DeepSpeed folder
(`…/mp_rank_00_model_states.pt`, under `module`; H/14), the encoder alone (`encoder`), a probe's (`enc.*` next to a
`classifier`: official_probe.py), or a bare dict. They are opened by `xtra.official.unpickle`, which runs no code from
them. An import is strict: the weights fit a `ModelConfig` tensor by tensor or are refused, and everything else in the
file is listed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards import figures, store
from xtra.blocks import block_order, raster_order
from xtra.model import SIZES, Encoder, ModelConfig, Xtra
from xtra.official import unpickle
from xtra.official.others import how_to_probe
from xtra.official.unpickle import StoredTensor

MODEL_STATES = "mp_rank_00_model_states.pt"
OURS = "xtra_model"  # key of the model's config in files written by `xtra export`
HEAD = "classifier."  # prefix of a probe head's names
_HOLDERS = ("state_dict", "module", "encoder", "model")  # keys that may hold a file's weights
# Added by DDP, DeepSpeed and compile, to the whole model or to parts of it, so anywhere in a name.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_forward_module|_orig_mod)\.")
_ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # src/modules/vit.py, by width
_ENCODER_DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1408: 40}
_UNRECORDED = {"heads": int, "dec_heads": int, "drop_path": float, "order": str, "prefix": bool}  # by tensors
_DECODER_HEADS = {640: 8}  # config/pretrain of H/14; all others have 6

# ---- names and layouts ---------------------------------------------------------------------------------------------

# Our prefixes and the official ones (src/modules); the first match counts.
_OFFICIAL = (
    (r"encoder\.patch_embed\.", r"enc.patch_embed.proj."),
    (r"encoder\.", r"enc."),
    (r"bridge\.fc1\.", r"proj.mlp.0."),
    (r"bridge\.fc2\.", r"proj.mlp.2."),
    (r"decoder\.", r"predictor."),
    (r"heads\.(\d+)\.fc1\.", r"aim_proj.\1.mlp.0."),
    (r"heads\.(\d+)\.fc2\.", r"aim_proj.\1.mlp.2."),
)


def official_name(name: str) -> str:
    """The official name of one of our parameters."""
    for ours, theirs in _OFFICIAL:
        if re.match(ours, name):
            return re.sub("^" + ours, theirs, name)
    raise AssertionError(f"{name} has no official name")


def from_official(state: Mapping[str, Tensor], config: ModelConfig, encoder_only: bool = False) -> dict[str, Tensor]:
    """Official weights (a flat name -> tensor dict) as ours, for `Xtra(config).load_state_dict`.

    Wrappers' prefixes are removed. Strict: a ValueError counts missing, unexpected and misshapen tensors, and names the
    first of each. Two layouts differ, by exact permutations: position tables are in raster order there and in block
    order here, and heads read a block feature-major there (index d * t + p) and token-major here (p * D + d).
    `encoder_only` expects and returns only the encoder, under its names in the whole model.
    """
    ours = {name: official_name(name) for name in _shapes(config, encoder_only)}
    found = {_WRAPPERS.sub("", name): w for name, w in state.items()}
    require_fit({name: tuple(w.shape) for name, w in found.items()}, config, encoder_only)
    return {name: relayout(name, found[theirs], config, official=True) for name, theirs in ours.items()}


def require_fit(found: Mapping[str, tuple[int, ...]], config: ModelConfig, encoder_only: bool = False) -> None:
    """Raises ValueError, like `from_official`, unless the shapes by official name are the model's."""
    wanted = {official_name(name): tuple(shape) for name, shape in _shapes(config, encoder_only).items()}
    if said := misfit(wanted, found):
        raise ValueError(f"these official weights do not fit the model config: {said}")


def misfit(
    wanted: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    optional: Callable[[str], bool] = lambda name: False,
) -> str:
    """How many tensors are missing, unexpected and of another shape, with the first of each; "" if all fit. Both are
    shapes by name; `optional` names may be on one side only."""
    report = {
        "missing": [name for name in wanted if name not in found and not optional(name)],
        "unexpected": [name for name in found if name not in wanted and not optional(name)],
        "of another shape": [
            f"{name} {list(found[name])}, not {list(shape)},"
            for name, shape in wanted.items()
            if name in found and list(found[name]) != list(shape)
        ],
    }
    return "; ".join(f"{len(names)} {what}: {names[0]} first" for what, names in report.items() if names)


def to_official(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our weights, or anything with our names and shapes such as gradients, in official names and layout."""
    return {official_name(name): relayout(name, w, config, official=False) for name, w in state.items()}


def relayout(name: str, weight: Tensor, config: ModelConfig, official: bool) -> Tensor:
    """One tensor from the official layout to ours (`official`) or back; exact, without arithmetic."""
    if name.endswith("pos_embed"):
        order = block_order if official else raster_order
        return weight[:, order(config.grid, config.block).to(weight.device)]
    if re.fullmatch(r"heads\.\d+\.fc1\.weight", name):
        inner = (config.dec_width, config.per_block) if official else (config.per_block, config.dec_width)
        return weight.unflatten(1, inner).transpose(1, 2).flatten(1)
    return weight


def _shapes(config: ModelConfig, encoder_only: bool) -> dict[str, torch.Size]:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Xtra(config).named_parameters()}
    return {name: s for name, s in shapes.items() if name.startswith("encoder.") or not encoder_only}


# ---- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfficialFile:
    """One official checkpoint as found; only names and shapes are in memory."""

    path: str
    layout: str  # how it is stored, in words
    tensors: Mapping[str, StoredTensor]  # the pretraining model's, by official names without wrappers' prefixes
    classifier: Mapping[str, StoredTensor]  # a probe's head, by its names in that module; see official_probe.py
    settings: Mapping[str, Any]  # `hyper_parameters`, if they are a plain dict
    not_taken: tuple[str, ...]  # everything else in it, a line each
    step: int | None  # optimiser steps taken, if recorded
    ours: Mapping[str, Any] = field(default_factory=dict)  # the value under OURS

    @property
    def encoder_only(self) -> bool:
        return all(name.startswith("enc.") for name in self.tensors)


@dataclass(frozen=True)
class Imported:
    """Official weights in our layout."""

    config: ModelConfig
    weights: Mapping[str, Tensor]  # float32
    encoder_only: bool
    step: int | None
    report: tuple[str, ...]  # what was taken, what was not, what had to be assumed


def is_official(path: str) -> bool:
    """Whether a path looks like an official checkpoint, a file or a DeepSpeed folder, rather than a run of ours."""
    if not store.is_local(path):
        return False
    local = store.local_path(path)
    return local.is_file() or bool(_model_states(local))


def open_official(path: str) -> OfficialFile:
    """Open a checkpoint. Raises ValueError if there is no such file, or it has no weights of the official model."""
    local = store.local_path(path) if store.is_local(path) else Path(path)
    siblings: list[str] = []
    file, kind = local, "file"
    if local.is_dir():
        states = _model_states(local)
        if len(states) != 1:
            raise ValueError(f"{path}: has {len(states)} {MODEL_STATES}: give the folder of one DeepSpeed checkpoint")
        file, kind = states[0], "DeepSpeed folder"
        if file.with_name(MODEL_STATES.replace("00", "01")).exists():
            raise ValueError(f"{file.parent}: is split over several model ranks: merge them with DeepSpeed's own tool")
        others = sorted(p for p in file.parent.iterdir() if p.is_file() and p != file)
        siblings = [f"{p.name}: {figures.size(p.stat().st_size)}" for p in others]
    elif not local.is_file():
        raise ValueError(f"{path}: no such file or folder: download the official checkpoint first")
    found = unpickle.read(file)
    holder, weights = _weights(found.root, path)
    model = {name: t for name, t in weights.items() if name.startswith(("enc.", "proj.", "predictor.", "aim_proj."))}
    if not model:
        first = f"has no tensor of the official model {f'under {holder}' if holder else 'by itself'}"
        first += f"; its first is {next(iter(weights))}"
        raise ValueError(f"{path}: {how_to_probe(found.root, path) or first}")
    head = {name.removeprefix(HEAD): t for name, t in weights.items() if name.startswith(HEAD)}
    other = [name for name in weights if name not in model and not name.startswith(HEAD)]
    not_taken = [f"{name}: of no use in pretraining" for name in other]
    rest = found.root.items() if holder else ()
    not_taken += [line for key, value in rest if key not in (holder, OURS) and (line := _describe(key, value))]
    not_taken += [f"class {name}: not loaded" for name in found.foreign]
    step = found.root.get("global_step", found.root.get("global_steps"))
    layout = f"{kind}, weights under {holder}" if holder else f"{kind}, a bare dict of weights"
    settings, ours = found.root.get("hyper_parameters"), found.root.get(OURS)
    return OfficialFile(
        path,
        layout,
        model,
        head,
        settings if isinstance(settings, dict) else {},
        tuple(not_taken + siblings),
        step if isinstance(step, int) else None,
        ours if isinstance(ours, dict) else {},
    )


def _model_states(folder: Path) -> list[Path]:
    """DeepSpeed's file of module weights, in the folder or a subfolder."""
    return sorted([*folder.glob(MODEL_STATES), *folder.glob(f"*/{MODEL_STATES}")])


def _weights(root: Any, path: str) -> tuple[str, dict[str, StoredTensor]]:
    """The key that holds the weights ("" for a bare dict) and the weights."""
    if not isinstance(root, dict):
        raise ValueError(f"{path}: contains a {type(root).__name__}, not a dict: is it a checkpoint?")
    for holder in _HOLDERS:
        state = root.get(holder)
        if isinstance(state, dict) and any(isinstance(value, StoredTensor) for value in state.values()):
            break
    else:
        holder, state = "", root
    named = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, StoredTensor)}
    weights = {_WRAPPERS.sub("", n): t for n, t in named.items()}
    if len(weights) < len(named):
        plain = [_WRAPPERS.sub("", n) for n in named]
        twice = next(n for n, name in zip(named, plain) if n != name and plain.count(name) > 1)
        raise ValueError(f"{path}: has {twice} with and without a wrapper's prefix: remove one of them")
    if holder == "encoder":  # StoP's files have the encoder without its prefix
        weights = {n if n.startswith("enc.") else f"enc.{n}": t for n, t in weights.items()}
    if not weights and (how := how_to_probe(root, path)):
        raise ValueError(f"{path}: {how}")
    if not weights:
        raise ValueError(f"{path}: has no tensors under {', '.join(_HOLDERS)} or at the top: is it a checkpoint?")
    return holder, weights


def _describe(key: Any, value: Any) -> str:
    """A line about a part of the file that is not imported; "" for a plain number or text."""
    tensors = list(_tensors(value))
    if tensors:
        return f"{key}: {len(tensors)} tensors, {figures.size(sum(t.bytes for t in tensors))}"
    return f"{key}: no tensors" if isinstance(value, dict | list | tuple | unpickle.Foreign) and value else ""


def _tensors(value: Any) -> Iterator[StoredTensor]:
    """The tensors in plain containers, in order; a container that occurs several times is visited once."""
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += reversed(value.values() if isinstance(value, dict) else value)


# ---- sizes ---------------------------------------------------------------------------------------------------------


def config_of(file: OfficialFile, size: str = "", heads: int = 0, dec_heads: int = 0) -> tuple[ModelConfig, list[str]]:
    """The sizes of an official checkpoint, and a line for each one that had to be assumed.

    `size` names one of `model.SIZES` instead; `heads` and `dec_heads` override those of encoder and decoder. Raises
    ValueError naming what does not fit.
    """
    if size:
        if size not in SIZES:
            raise ValueError(f"size is {size!r}; it must be one of {', '.join(SIZES)}")
        config = SIZES[size]
        return replace(config, heads=heads or config.heads, dec_heads=dec_heads or config.dec_heads), []
    shape = {name: tuple(t.shape) for name, t in file.tensors.items()}
    try:
        sizes = _encoder_sizes(shape)
        if not file.encoder_only:
            sizes |= _decoder_sizes(shape, sizes)
    except (LookupError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{file.path}: its sizes cannot be read from its tensors ({error}): give --size") from None
    if file.ours:
        config = ModelConfig(**sizes, **_unrecorded(file))
        assumed = [f"{', '.join(_UNRECORDED)}: as xtra export wrote them with the weights"]
        return replace(config, heads=heads or config.heads, dec_heads=dec_heads or config.dec_heads), assumed
    fits = [s for s in SIZES.values() if all(getattr(s, k) == v for k, v in sizes.items() if k != "predict")]
    if fits:
        known = fits[0]
    elif sizes["width"] in _ENCODER_HEADS and not file.encoder_only:
        dec = sizes["dec_width"]
        known = ModelConfig(**sizes, heads=_ENCODER_HEADS[sizes["width"]], dec_heads=_DECODER_HEADS.get(dec, 6))
    elif heads and dec_heads and not file.encoder_only:
        known = ModelConfig(**sizes, heads=heads, dec_heads=dec_heads)
    else:
        said = ", ".join(f"{k} {v}" for k, v in sizes.items())
        raise ValueError(f"{file.path}: no model of these sizes is known ({said}): give --size, or --heads --dec-heads")
    config = replace(known, **sizes, heads=heads or known.heads, dec_heads=dec_heads or known.dec_heads)
    assumed = [f"assumed: {config.heads} encoder and {config.dec_heads} decoder heads, which no tensor shows"]
    if file.encoder_only:
        assumed = [f"assumed: {config.heads} heads and blocks of {config.block} x {config.block}: no tensor shows them"]
    return config, assumed


def _unrecorded(file: OfficialFile) -> dict[str, Any]:
    """Settings that tensors do not determine, from the config in `xtra export`'s file. Raises ValueError if invalid."""
    for name, kind in _UNRECORDED.items():
        if type(file.ours.get(name)) is not kind:
            raise ValueError(f"{file.path}: {OURS} has {name} {file.ours.get(name)!r}: it is damaged: give --size")
    return {name: file.ours[name] for name in _UNRECORDED}


def unlike_official(c: ModelConfig) -> list[str]:
    """Properties that the official code cannot build, a line each; it can read the weights if there are none."""
    width, ratio = c.width, c.dec_mlp_ratio or c.mlp_ratio
    lines = []
    if (c.depth, c.heads) != (_ENCODER_DEPTHS.get(width), _ENCODER_HEADS.get(width)):
        lines.append(
            f"the official code has no encoder of width {width}, {c.depth} layers and {c.heads} heads: only xtra reads "
            "this file"
        )
    if ratio != 4:
        lines.append(f"the official decoder's MLPs are 4 times its width, not {ratio:g} times")
    if c.prefix:
        lines.append("the official code has no prefix attention: it applies the block-causal mask")
    return lines


def _encoder_sizes(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    _, tokens, width = shape["enc.pos_embed"]
    patch = shape["enc.patch_embed.proj.weight"][-1]
    return {
        "image": math.isqrt(tokens) * patch,
        "patch": patch,
        "width": width,
        "depth": _depth(shape, "enc"),
        "mlp_ratio": shape["enc.blocks.0.mlp.fc1.weight"][0] / width,
    }


def _decoder_sizes(shape: Mapping[str, tuple[int, ...]], encoder: Mapping[str, Any]) -> dict[str, Any]:
    head, pixels = shape["aim_proj.0.mlp.0.weight"][0], shape["aim_proj.0.mlp.2.weight"][0]
    return {
        "block": math.isqrt(pixels // 3) // encoder["patch"],
        "bridge": shape["proj.mlp.0.weight"][0],
        "dec_width": shape["predictor.pos_embed"][2],
        "dec_depth": _depth(shape, "predictor"),
        **_decoder_ratio(shape, encoder["mlp_ratio"]),
        "head": head,
        "predict": len({name.split(".")[1] for name in shape if name.startswith("aim_proj.")}),
    }


def _decoder_ratio(shape: Mapping[str, tuple[int, ...]], encoder: float) -> dict[str, float]:
    hidden, width = shape["predictor.blocks.0.mlp.fc1.weight"]
    return {} if hidden == round(width * encoder) else {"dec_mlp_ratio": hidden / width}


def _depth(shape: Mapping[str, tuple[int, ...]], part: str) -> int:
    """The layers of a part. Raises ValueError if they exceed its tensors."""
    depth = 1 + max(int(name.split(".")[2]) for name in shape if name.startswith(f"{part}.blocks."))
    if not 0 < depth <= len(shape):
        raise ValueError(f"{depth} layers in {len(shape)} tensors")
    return depth


# ---- the import ----------------------------------------------------------------------------------------------------


def read_official(path: str, size: str = "", heads: int = 0, dec_heads: int = 0) -> Imported:
    """An official checkpoint in our layout. Raises ValueError naming the file and what does not fit."""
    file = open_official(path)
    config, assumed = config_of(file, size, heads, dec_heads)
    try:  # before anything is read
        require_fit({name: t.shape for name, t in file.tensors.items()}, config, file.encoder_only)
        stored = {name: t.read() for name, t in file.tensors.items()}
        weights = from_official(stored, config, file.encoder_only)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in stored.values()})
    total = sum(w.numel() for w in weights.values())
    part = "the encoder alone" if file.encoder_only else "the whole model"
    table = weights["encoder.pos_embed"][0, -config.per_block :]
    report = [
        f"read: {path} ({file.layout})",
        f"taken: {len(weights)} tensors, {total:,} parameters, {' and '.join(kinds)}, kept as float32: {part}",
        f"sizes: {', '.join(f'{f.name} {getattr(config, f.name)}' for f in fields(config) if f.name != 'drop_path')}",
        *assumed,
        f"last block's positions: largest {float(table.abs().max()):.1e} (pretraining decays them to about 0: "
        "no loss ever sees that block)",
        *([f"not taken: {HEAD}*: a probe's head, {len(file.classifier)} tensors"] if file.classifier else []),
        *(f"not taken: {line}" for line in file.not_taken),
    ]
    weights = {name: w.to(torch.float32).contiguous() for name, w in weights.items()}
    return Imported(config, weights, file.encoder_only, file.step, tuple(report))


def load_encoder(path: str) -> Encoder:
    """The encoder of an official checkpoint, in eval mode."""
    found = read_official(path)
    return make_encoder(found.config, found.weights)


def make_encoder(config: ModelConfig, weights: Mapping[str, Tensor]) -> Encoder:
    """An encoder in eval mode, from weights by our names; those of other parts are ignored."""
    with torch.device("meta"):
        encoder = Encoder(config)
    own = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    encoder.load_state_dict(own, assign=True)
    return encoder.eval()
