"""The official code's probe checkpoints: an encoder and the head trained on it (called fine-tuned there).

They are Lightning files with `enc.*` next to `classifier.*` (src/modules/cls.py). An attentive head has cls_token, k,
v, linear and bn, and reads the mean of the last layers' tokens; a linear one is a batch norm (0) and a linear layer
(1), and reads the last layer's mean token. Like all official files they are opened without running pickled code
(xtra/official/unpickle.py); tensors fit one by one or the file is refused. Tensors do not determine the numbers of
layers and attention heads: these are read from the file's `hyper_parameters`, or assumed as in the published probes,
and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from xtra.model import Encoder, ModelConfig
from xtra.official import OfficialFile, config_of, from_official, make_encoder, misfit, open_official, require_fit

_LAYERS = {"attentive": 6, "linear": 1}  # of the published probes
_ATTENTION_HEADS = 16
_COUNTER = "num_batches_tracked"  # of a batch norm, unused in evaluation


@dataclass(frozen=True)
class OfficialProbe:
    """An encoder and its head; features are the mean of the encoder's last `layers` un-normalised streams."""

    encoder: Encoder  # in eval mode
    kind: Literal["attentive", "linear"]
    layers: int
    attention_heads: int  # 0 for a linear head
    state: Mapping[str, Tensor]  # float32, official names: cls_token, k.weight, … or 0.running_mean, 1.weight, …
    report: tuple[str, ...]  # what was taken, what was not, what had to be assumed

    @property
    def classes(self) -> int:
        return len(self.state["linear.bias" if self.kind == "attentive" else "1.bias"])


def read_probe(path: str, size: str = "") -> OfficialProbe:
    """Open an official probe checkpoint, a file or a DeepSpeed folder; `size`: the encoder's, if tensors are ambiguous.

    Raises ValueError naming the file and what is missing, unexpected, misshapen or unsupported.
    """
    file = open_official(path)
    if not file.classifier:
        raise ValueError(f"{path}: has no classifier.*: is it a pretraining checkpoint? probe it with --train")
    try:
        return _read(file, size)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(path) else f"{path}: {said}") from None


def _read(file: OfficialFile, size: str) -> OfficialProbe:
    kind: Literal["attentive", "linear"] = "attentive" if "cls_token" in file.classifier else "linear"
    encoder_tensors = {name: t for name, t in file.tensors.items() if name.startswith("enc.")}
    alone = replace(file, tensors=encoder_tensors)
    config, assumed = config_of(alone, size)
    given = _Settings(file.settings)
    config, block = _blocks(config, given)
    layers = given.number("cls", "n_last_blocks")
    heads = given.number("attentive_pooling", "num_heads") if kind == "attentive" else 0
    if block:
        assumed = [*(f"assumed: {config.heads} encoder heads, which no tensor shows" for _ in assumed[:1]), block]
    if layers is None:
        layers = _LAYERS[kind]
        assumed += [f"assumed: reads the last {layers} layers, as the published {kind} probes do"]
    if heads is None:
        heads = _ATTENTION_HEADS
        assumed += [f"assumed: {heads} attention heads, as the published attentive probes have"]
    _check(config, given, kind, layers, heads)
    state = _head(file, kind, config.width)
    require_fit({name: t.shape for name, t in encoder_tensors.items()}, config, encoder_only=True)
    weights = from_official({name: t.read() for name, t in encoder_tensors.items()}, config, encoder_only=True)
    weights = {name: w.to(torch.float32).contiguous() for name, w in weights.items()}
    classes = len(state["linear.bias" if kind == "attentive" else "1.bias"])
    total = sum(w.numel() for w in weights.values())
    attention = f", {heads} attention heads" if heads else ""
    report = (
        f"read: {file.path} ({file.layout})",
        f"encoder: {len(weights)} tensors, {total:,} parameters, image {config.image}, patch {config.patch}, block "
        f"{config.block}, width {config.width}, depth {config.depth}, heads {config.heads}",
        f"head: {kind}, {classes} classes, last {layers} layers{attention}",
        *assumed,
        *(f"not taken: {name}" for name in file.tensors if name not in encoder_tensors),
        *(
            f"not taken: {line}"
            for line in file.not_taken
            if not (file.settings and line.startswith("hyper_parameters:"))
        ),
    )
    return OfficialProbe(make_encoder(config, weights), kind, layers, heads, state, report)


class _Settings:
    """`hyper_parameters`: nested as in the official YAML, or flat with underscores, as its Config keeps them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def get(self, part: str, name: str) -> Any:
        """None if not given."""
        inner = self.values.get(part)
        nested = inner.get(name) if isinstance(inner, Mapping) else None
        return self.values.get(f"{part}_{name}", nested)

    def number(self, part: str, name: str) -> int | None:
        value = self.get(part, name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _blocks(config: ModelConfig, given: _Settings) -> tuple[ModelConfig, str]:
    """The config with the block size from the settings, and a line about it; "" if they have none."""
    causal, block_causal = given.get("enc", "is_causal"), given.get("enc", "is_block_causal")
    if causal is None and block_causal is None:
        return config, ""
    if not causal and not block_causal:
        raise ValueError("its encoder attends without a mask (enc.is_block_causal is off); ours is block-causal")
    block = (given.number("enc", "block_size") or 1) if block_causal else 1
    return replace(config, block=block), f"read from its settings: blocks of {block} x {block} patches"


def _check(config: ModelConfig, given: _Settings, kind: str, layers: int, heads: int) -> None:
    """Raises ValueError if this head needs inputs that our encoder cannot give."""
    if not 1 <= layers <= config.depth:
        raise ValueError(f"its head reads the last {layers} layers; the encoder has {config.depth}")
    if heads and config.width % heads:
        raise ValueError(f"its head has {heads} attention heads, which do not divide the width {config.width}")
    wanted = {"norm_enc_output": False, "avgpool_patchtokens": kind == "linear"}
    if layers > 1:
        wanted["avgpool_layers"] = True
    for name, value in wanted.items():
        found = given.get("cls", name)
        if found is not None and bool(found) != value:
            raise ValueError(f"its setting cls.{name} is {found}; a probe of kind {kind} here has it {value}")


def _head(file: OfficialFile, kind: str, width: int) -> dict[str, Tensor]:
    """The head's tensors, checked strictly. Raises ValueError that counts and names what does not fit."""
    final = "linear" if kind == "attentive" else "1"
    classes = file.classifier[f"{final}.bias"].shape[0] if f"{final}.bias" in file.classifier else 0
    norm = "bn" if kind == "attentive" else "0"
    wanted = {f"{norm}.running_mean": (width,), f"{norm}.running_var": (width,), f"{norm}.{_COUNTER}": ()}
    wanted |= {f"{final}.weight": (classes, width), f"{final}.bias": (classes,)}
    if kind == "attentive":
        wanted |= {"cls_token": (1, 1, width), "k.weight": (width, width), "v.weight": (width, width)}
    found = file.classifier
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if said := misfit(wanted, shapes, lambda name: name == f"{norm}.{_COUNTER}"):
        raise ValueError(f"its classifier is not the official {kind} head for width {width}: {said}")
    return {name: found[name].read().to(torch.float32).contiguous() for name in wanted if name in found}
