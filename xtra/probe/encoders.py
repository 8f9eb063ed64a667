"""Frozen encoders with one interface, ours and others', so that one protocol probes them all.

    timm:NAME                    a vision transformer from timm, with the weights that timm downloads
    timm:NAME:FILE.safetensors   … with weights from a local file, by timm's names
    timm:NAME:FILE.pth[:PREFIX]  … from a training checkpoint of timm, DINO, DINOv2, MAE; PREFIX if it has several
    timm:NAME:random             … with initial weights, only on request
    torch:FILE                   a program: a .pt2 from torch.export.save, or TorchScript

A program takes normalised images [B, 3, S, S] for any B, and returns tokens [B, N, D], or features [B, D], or a list of
tokens after each of its last layers, in order. FILE.json next to it gives the rest:

    {"image": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "prefix": 1}

image is S; mean and std are for pixels in 0..1; prefix (default 0) counts the tokens before the patches' tokens, such
as a class token, which are not probed. Such a file runs code on this machine: open only files that you trust.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from xtra import official
from xtra.data import MEAN, STD
from xtra.model import Encoder, Mask

RANDOM = "random"
_UNUSED = ("head", "norm.", "fc_norm.")  # parts of a timm model after the last residual stream


class FrozenEncoder(Protocol):
    """Normalised images -> residual streams. Its parameters do not train."""

    name: str
    image: int  # side in pixels
    tokens: int  # N, patch tokens only
    width: int  # D
    depth: int  # layers
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        """The residual streams [B, N, D] after each of the last `last` layers, un-normalised, patch tokens only.

        Raises ValueError when there are fewer layers.
        """
        ...

    def fingerprint(self) -> str:
        """8 hex digits of the weights' digest, which distinguish encoders with the same name."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


def _fingerprint(about: object, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def open_encoder(spec: str) -> FrozenEncoder:
    """The encoder that a spec (above) names. Raises ValueError, in one line, if it cannot be opened."""
    kind, _, rest = spec.partition(":")
    if kind == "timm" and rest:
        return _open_timm(*rest.split(":", 1))
    if kind == "torch" and rest:
        if "://" in rest:
            raise ValueError(f"encoder is {spec!r}; a program must be on this machine: copy it here")
        return _open_program(Path(rest))
    raise ValueError(f"encoder is {spec!r}; it must be timm:NAME, timm:NAME:FILE.safetensors or torch:FILE")


# ---- ours ----------------------------------------------------------------------------------------------------------


class _Xtra:
    def __init__(self, encoder: Encoder, name: str, mask: Mask) -> None:
        config = encoder.config
        self.encoder, self.mask = encoder.eval(), mask
        self.name, self.image, self.tokens = name, config.image, config.tokens
        self.width, self.depth = config.width, config.depth
        self.mean, self.std = MEAN, STD

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        return self.encoder.layers(images_B3HW, last, mask=self.mask)

    def fingerprint(self) -> str:
        config = self.encoder.config
        about = (config.image, config.patch, config.block, *([] if self.mask == "own" else [self.mask]))
        return _fingerprint(about, self.encoder.state_dict())

    def to(self, device: torch.device | str) -> Self:
        self.encoder.to(device)
        return self


def of_xtra(encoder: Encoder, name: str, mask: Mask = "own") -> FrozenEncoder:
    """Our own encoder, in eval mode; tokens are in block order."""
    return _Xtra(encoder, name, mask)


# ---- timm ----------------------------------------------------------------------------------------------------------


class _Timm:
    def __init__(self, model: Any, name: str) -> None:
        shape, about = model.patch_embed, model.pretrained_cfg
        self.model = model
        self.name, self.image, self.tokens = name, about["input_size"][-1], shape.num_patches
        self.width, self.depth = model.embed_dim, len(model.blocks)
        self.mean, self.std = _colour(about["mean"]), _colour(about["std"])

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        _check_last(self, last)
        return self.model.forward_intermediates(
            images_B3HW, indices=last, norm=False, output_fmt="NLC", intermediates_only=True
        )

    def fingerprint(self) -> str:
        return _fingerprint((self.mean, self.std), self.model.state_dict())

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self


def _open_timm(model: str, weights: str = "") -> FrozenEncoder:
    timm = _import_timm()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = timm.create_model(model, pretrained=not weights, num_classes=0)
    except Exception as error:  # from timm, the hub or the network
        local = f"give a local file, timm:{model}:FILE.safetensors, or timm:{model}:{RANDOM}"
        then = "see timm.list_models()" if weights else local
        raise ValueError(f"encoder timm:{model}: timm cannot make it ({_line(error)}): {then}") from None
    needed = ("blocks", "embed_dim", "patch_embed", "pretrained_cfg", "forward_intermediates")
    missing = [part for part in needed if not hasattr(made, part)]
    if missing or not hasattr(made.patch_embed, "num_patches"):
        part = missing[0] if missing else "patch_embed.num_patches"
        raise ValueError(f"encoder timm:{model}: has no {part}: only vision transformers (vit_*, deit_*, …) are probed")
    name = f"timm:{model}"
    if weights:
        name += f":{Path(weights).name}"
        if weights != RANDOM:
            _load_timm(made, weights)
    return _Timm(made.eval().requires_grad_(False), name)


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:  # torchvision for another torch raises RuntimeError
        raise ValueError(
            f"encoder timm: timm cannot be imported ({_line(error)}): pip install timm, and the torchvision built for "
            f"this torch ({torch.__version__})"
        ) from None


def _load_timm(model: nn.Module, file: str) -> None:
    """Load weights by timm's names. Strict, except for parts after the last residual stream."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(file) if file.endswith(".safetensors") else dict(official.read_transformer(file))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file}: cannot be read as safetensors ({_line(error)}): give a file that timm has saved"
        ) from None
    ours, theirs = ({name: tuple(t.shape) for name, t in of.items()} for of in (model.state_dict(), given))
    if said := official.misfit(ours, theirs, lambda name: name.startswith(_UNUSED)):
        raise ValueError(f"{file}: these weights do not fit the model: {said}: name the weights' own model")
    model.load_state_dict(given, strict=False)


# ---- programs ------------------------------------------------------------------------------------------------------


class _Program:
    """`move` returns the program for a device."""

    def __init__(
        self, move: Callable[[torch.device | str], Callable[[Tensor], Any]], about: Mapping[str, Any], file: Path
    ) -> None:
        self.name, self.image, self._prefix, self._file = f"torch:{file.name}", about["image"], about["prefix"], file
        self.mean, self.std = _colour(about["mean"]), _colour(about["std"])
        self._about = sorted(about.items())
        self._move, self._run = move, move("cpu")
        streams = self._probe()
        _, self.tokens, self.width = streams[-1].shape
        self.depth = len(streams)

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        _check_last(self, last)
        return self._streams(images_B3HW)[-last:]

    def fingerprint(self) -> str:
        with open(self._file, "rb") as file:
            return _fingerprint((self._about, hashlib.file_digest(file, "sha256").hexdigest()), {})

    def to(self, device: torch.device | str) -> Self:
        self._run = self._move(device)
        return self

    def _streams(self, images_B3HW: Tensor) -> list[Tensor]:
        given = self._run(images_B3HW)
        given = list(given) if isinstance(given, list | tuple) else [given]
        return [x[:, None] if x.ndim == 2 else x[:, self._prefix :] for x in given]

    @torch.no_grad()
    def _probe(self) -> list[Tensor]:
        """Run it on noise. Raises ValueError if the output cannot be probed."""
        noise = torch.randn(3, 3, self.image, self.image, generator=torch.Generator().manual_seed(0))
        try:
            streams, fewer = self._streams(noise), self._streams(noise[:2])
        except Exception as error:  # from the program
            raise ValueError(
                f"{self._file}: does not run on images [3, 3, {self.image}, {self.image}] and [2, …] ({_line(error)}): "
                f"see image in {self._file.name}.json, and export with a dynamic number of images"
            ) from None
        shapes = {tuple(x.shape) for x in streams}
        if len(shapes) != 1 or any(x.ndim != 3 or len(x) != 3 or not x.shape[1] for x in streams):
            raise ValueError(
                f"{self._file}: returns {sorted(shapes)} for 3 images; it must be [3, tokens, width] or [3, width]"
            )
        if not all(
            x.isfinite().all() and torch.allclose(x[:2], y, rtol=1e-2, atol=1e-3) for x, y in zip(streams, fewer)
        ):
            raise ValueError(
                f"{self._file}: its output for an image depends on the other images, or changes from call to call: "
                "export it in eval mode"
            )
        return streams


def _open_program(file: Path) -> FrozenEncoder:
    if not file.is_file():
        raise ValueError(f"{file}: no such file: give one from torch.export.save or torch.jit.save")
    names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    inside = {name.partition("/")[2] for name in names}
    if "archive_format" in inside:
        load = _exported
    elif any(name.startswith("code/") for name in inside):
        load = _scripted
    else:
        raise ValueError(
            f"{file}: is not an exported program; a pickled module, which needs its author's classes and may run any "
            "code, is not opened: save torch.export.export(model, …) with torch.export.save"
        )
    about = _described(file)
    try:
        move = load(file)
    except Exception as error:  # from torch
        raise ValueError(
            f"{file}: torch {torch.__version__} cannot open it ({_line(error)}): export it again"
        ) from None
    return _Program(move, about, file)


def _exported(file: Path) -> Callable[[torch.device | str], Callable[[Tensor], Any]]:
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(file)
    return lambda device: move_to_device_pass(program, str(device)).module()


def _scripted(file: Path) -> Callable[[torch.device | str], Callable[[Tensor], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about torch.jit, but the user already has such a file
        module = torch.jit.load(file, map_location="cpu").eval()
    return module.to


def _described(file: Path) -> Mapping[str, Any]:
    """The contents of FILE.json, validated."""
    where = file.with_name(file.name + ".json")
    example = '{"image": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
    try:
        about = json.loads(where.read_text())
    except OSError:
        raise ValueError(
            f"{where}: is missing: it describes the encoder's input; write for example {example}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON ({_line(error)}): write for example {example}") from None
    if not isinstance(about, dict):
        raise ValueError(f"{where}: is not an object: write for example {example}")
    about = {"prefix": 0} | about
    fits = {
        "image": lambda x: isinstance(x, int) and x > 0,
        "mean": _is_colour,
        "std": lambda x: _is_colour(x) and min(x) > 0,
        "prefix": lambda x: isinstance(x, int) and x >= 0,
    }
    for name in (*fits, *about):
        if name not in about or name not in fits or not fits[name](about[name]):
            problem = f"{name} is {about[name]!r}" if name in about else f"{name} is missing"
            raise ValueError(f"{where}: {problem}: give image, mean, std and optionally prefix, such as {example}")
    return about


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(x, int | float) and math.isfinite(x) for x in value)
    )


def _colour(value: Any) -> tuple[float, float, float]:
    red, green, blue = value
    return float(red), float(green), float(blue)


def _check_last(encoder: FrozenEncoder, last: int) -> None:
    if not 1 <= last <= encoder.depth:
        raise ValueError(f"layers is {last}; {encoder.name} has 1..{encoder.depth}")


def _line(error: BaseException) -> str:
    """The first line of an error's text, cut to 160 characters."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return said if len(said) <= 160 else said[:159] + "…"
