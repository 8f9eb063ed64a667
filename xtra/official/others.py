"""Vision transformers in other projects' checkpoints (timm, DINO, DINOv2, MAE, Lightning), under timm's names.

Such files are pickles with the weights somewhere inside, often several times: student and teacher, with and without
averaging, in wrappers, in chunks. Nothing is guessed: the contents are listed, and the user names one of several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xtra.official import unpickle
from xtra.official.unpickle import StoredTensor

_ANCHOR = "patch_embed.proj.weight"  # present in all of them
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_forward_module|_orig_mod)\.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2's and FSDP's: block 13 is blocks.1.13
_OF_TRAINING = ("decoder_", "mask_token", "mask_embed")  # only for training, in the same namespace (MAE and others)


def transformers_in(root: Any) -> dict[str, dict[str, StoredTensor]]:
    """Prefix, such as `teacher.backbone`, -> the tensors below it by timm's names, for each transformer in a file."""
    flat = {_WRAPPERS.sub("", name): tensor for name, tensor in _flat(root, "")}
    prefixes = [name.removesuffix(_ANCHOR) for name in flat if ("." + name).endswith("." + _ANCHOR)]
    found: dict[str, dict[str, StoredTensor]] = {}
    for prefix in prefixes:
        deeper = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        mine = [n for n in flat if n.startswith(prefix) and not n.startswith(deeper)]
        names = {name: _CHUNKED.sub("blocks.", name.removeprefix(prefix)) for name in mine}
        found[prefix.rstrip(".")] = {ours: flat[n] for n, ours in names.items() if not ours.startswith(_OF_TRAINING)}
    return found


def _flat(value: Any, at: str) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(value, StoredTensor):
        yield at, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{at}.{name}" if at else str(name))


def how_to_probe(root: Any, path: str) -> str:
    """How to probe another project's file, in one sentence; "" if it has no vision transformer."""
    found = list(transformers_in(root))
    if not found:
        return ""
    several = f"{len(found)} vision transformers, {', '.join(found)}" if len(found) > 1 else "a vision transformer"
    which = f":{found[0]}" if len(found) > 1 else ""
    return f"contains {several} by timm's names: xtra probe --encoder timm:NAME:{path}{which} probes it"


def read_transformer(spec: str) -> Mapping[str, Tensor]:
    """The weights in `FILE`, or in `FILE:PREFIX` if it has several. Raises ValueError that lists them."""
    path, prefix = spec, None
    if not Path(path).is_file() and ":" in spec:
        path, _, prefix = spec.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file: give a checkpoint, or FILE:PREFIX")
    found = transformers_in(unpickle.read(Path(path)).root)
    listed = ", ".join(name or "the file itself" for name in found)
    if not found:
        raise ValueError(f"{path}: has no vision transformer by timm's names (no {_ANCHOR}): convert it first")
    if prefix is None and len(found) > 1:
        raise ValueError(f"{path}: has {len(found)} vision transformers, {listed}: name one, {path}:{list(found)[-1]}")
    if prefix is not None and prefix not in found:
        raise ValueError(f"{path}: has no vision transformer under {prefix}: it has {listed}")
    chosen = found[prefix if prefix is not None else next(iter(found))]
    return {name: tensor.read() for name, tensor in chosen.items()}
