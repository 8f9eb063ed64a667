"""The encoder of XTRA (arXiv 2411.15648) in one file. It needs only torch, and transformers only when opened by it.

`xtra export` copies this file next to the weights. In such a folder:

    from modeling_xtra import load
    model = load(".")        # config.json and model.safetensors of the folder
    tokens = model(images)   # images [B, 3, S, S] without ImageNet mean and std; tokens [B, N, D] after the last norm

    from transformers import AutoModel
    model = AutoModel.from_pretrained(".", trust_remote_code=True)
    tokens = model(images).last_hidden_state

A vision transformer without a class token. Its attention is block-causal: an image is a grid of patches (tokens),
`block_size` x `block_size` of them are a block, and a token attends to its own block and all earlier blocks, row by
row. `mask` in config.json is "causal" if that mask is applied, or "none" if every token attends to all others. Tokens
are in raster order, row by row over the whole image.

Shapes: B images, N tokens, D width, H heads, E width of a head. Licence of this file: Apache-2.0.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKS = ("causal", "none")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SIZES: dict[str, Any] = {  # of config.json, with their defaults
    "image_size": 256,
    "patch_size": 16,
    "block_size": 4,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "mask": "causal",
}


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.proj(images_B3HW).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, mask_NN: Tensor | None) -> Tensor:
        b, n, d = x_BND.shape
        q, k, v = self.qkv(x_BND).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask_NN).transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)

    def forward(self, x_BND: Tensor, mask_NN: Tensor | None) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), mask_NN)
        return x_BND + self.mlp(self.norm2(x_BND))


class XtraEncoder(nn.Module):
    """Takes the sizes in config.json by name; other fields of that file are ignored."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        c = _SIZES | {name: value for name, value in config.items() if name in _SIZES}
        self.image, self.patch, self.block, self.mask = c["image_size"], c["patch_size"], c["block_size"], c["mask"]
        width, eps = c["hidden_size"], c["layer_norm_eps"]
        if self.mask not in MASKS:
            raise ValueError(f"mask is {self.mask!r}; it must be one of {', '.join(MASKS)}")
        self.grid = self.image // self.patch
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, width))
        self.patch_embed = PatchEmbed(width, self.patch)
        heads, hidden = c["num_attention_heads"], round(width * c["mlp_ratio"])
        self.blocks = nn.ModuleList(Layer(width, heads, hidden, eps) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """[B, N, D]: the tokens after the last norm, in raster order."""
        return self.norm(self.layers(images_B3HW)[-1])

    def layers(self, images_B3HW: Tensor) -> list[Tensor]:
        """[B, N, D] after the embedding and after each layer, before the last norm. XTRA's probes read the last ones:
        the attentive probe the mean of 6 layers, the linear one the last layer's mean over tokens."""
        if images_B3HW.shape[1:] != (3, self.image, self.image):
            side = self.image
            raise ValueError(f"images are {list(images_B3HW.shape)}; this model takes [B, 3, {side}, {side}]")
        mask_NN = self.visible(images_B3HW.device) if self.mask == "causal" else None
        streams = [self.patch_embed(images_B3HW) + self.pos_embed]
        for block in self.blocks:
            streams.append(block(streams[-1], mask_NN))
        return streams

    def visible(self, device: torch.device | str | None = None) -> Tensor:
        """[N, N] bool, the block-causal mask: True where a token (row) attends to another (column)."""
        n = torch.arange(self.grid**2, device=device)
        row, column = n // self.grid // self.block, n % self.grid // self.block
        block = row * (self.grid // self.block) + column
        return block[:, None] >= block[None, :]


# ---- torch alone ---------------------------------------------------------------------------------------------------


def load(folder: str | Path) -> XtraEncoder:
    """The encoder in a folder written by `xtra export`, in eval mode. Raises an error that names what does not fit."""
    config = json.loads(Path(folder, "config.json").read_text())
    if config.get("model_type") != "xtra":
        raise ValueError(f"{folder}: config.json has model_type {config.get('model_type')!r}, not 'xtra'")
    model = XtraEncoder(**config)
    weights = read_safetensors(Path(folder, "model.safetensors"))
    model.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
    return model.eval()


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file (huggingface.co/docs/safetensors), by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())  # torch needs writable memory
    header.pop("__metadata__", None)
    return {
        name: torch.frombuffer(
            data, dtype=_DTYPES[entry["dtype"]], count=math.prod(entry["shape"]), offset=entry["data_offsets"][0]
        ).view(entry["shape"])
        for name, entry in header.items()
    }


# ---- transformers --------------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    """XtraConfig and XtraModel, made on first use, so that the rest of this file does not need transformers."""
    if name not in ("XtraConfig", "XtraModel"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for made in _for_transformers():
        made.__qualname__ = made.__name__
        globals()[made.__name__] = made
    return globals()[name]


def _for_transformers() -> tuple[type, type]:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class XtraConfig(PretrainedConfig):
        model_type = "xtra"

        def __init__(self, **config: Any) -> None:
            for name, default in _SIZES.items():
                setattr(self, name, config.pop(name, default))
            super().__init__(**config)

    class XtraModel(PreTrainedModel):
        config_class = XtraConfig
        base_model_prefix = "encoder"
        main_input_name = "pixel_values"
        input_modalities = ("image",)
        _supports_sdpa = True
        _no_split_modules = ("Layer",)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.encoder = XtraEncoder(**config.to_dict())
            self.post_init()

        def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any) -> Any:
            """last_hidden_state: the tokens after the last norm. hidden_states: before it, after the embedding and
            after each layer. pooler_output: the linear probe's input, the mean of the tokens before that norm."""
            streams = self.encoder.layers(pixel_values)
            wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            return BaseModelOutputWithPooling(
                last_hidden_state=self.encoder.norm(streams[-1]),
                pooler_output=streams[-1].mean(1),
                hidden_states=tuple(streams) if wanted else None,
            )

    return XtraConfig, XtraModel
