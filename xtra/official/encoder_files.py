"""An encoder's files for other libraries (transformers, timm, torch.export), written into a local folder.

transformers  config.json, model.safetensors, preprocessor_config.json and modeling_xtra.py, which can also load the
              folder with only torch
timm          config.json, model.safetensors and preprocessor_config.json; timm's VisionTransformer has no mask
torch         encoder.pt2, a torch.export program, and encoder.pt2.json, which describes its input images

All return tokens after the last norm in raster order; ours are in block order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xtra.blocks import raster_order
from xtra.data import MEAN, STD
from xtra.model import NORM_EPS, Encoder, ModelConfig
from xtra.official import modeling_xtra
from xtra.official.weights import make_encoder, to_official
from xtra.run import save_tensors

Masked = Literal["causal", "none"]
SHORT_SIDE = 0.875  # the centre crop is this share of the short side, as in timm; published probes: 224/256 and 256/300
MODEL, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
PROGRAM = "encoder.pt2"
MODELING = Path(modeling_xtra.__file__)
# timm's names for encoders by width and depth, for any image and patch size
_TIMM = {
    (192, 12): "vit_tiny_patch16_224",
    (384, 12): "vit_small_patch16_224",
    (768, 12): "vit_base_patch16_224",
    (1024, 24): "vit_large_patch16_224",
    (1280, 32): "vit_huge_patch14_224",
    (1408, 40): "vit_giant_patch14_224",
}


def write_transformers(folder: Path, weights: Mapping[str, Tensor], c: ModelConfig, mask: Masked) -> list[str]:
    """Write the files; return their names, last the one that makes the folder a model."""
    named = {f"encoder.{name}": w for name, w in timm_weights(weights, c).items()}
    save_tensors(folder / MODEL, named, {"format": "pt"})
    shutil.copyfile(MODELING, folder / MODELING.name)
    _write_json(folder / PREPROCESSOR, preprocessor(c))
    _write_json(folder / CONFIG, transformers_config(c, mask))
    return [MODEL, MODELING.name, PREPROCESSOR, CONFIG]


def write_timm(folder: Path, weights: Mapping[str, Tensor], c: ModelConfig) -> list[str]:
    save_tensors(folder / MODEL, timm_weights(weights, c), {"format": "pt"})
    _write_json(folder / PREPROCESSOR, preprocessor(c))
    _write_json(folder / CONFIG, timm_config(c))
    return [MODEL, PREPROCESSOR, CONFIG]


def write_program(folder: Path, weights: Mapping[str, Tensor], c: ModelConfig, mask: Masked) -> list[str]:
    """A program for any batch size, traced from `modeling_xtra.py`; `xtra probe --encoder torch:FILE` reads it."""
    model = modeling_xtra.XtraEncoder(**transformers_config(c, mask))
    model.load_state_dict(timm_weights(weights, c))
    batch = {0: torch.export.Dim("images")}
    program = torch.export.export(model.eval(), (torch.zeros(2, 3, c.image, c.image),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / PROGRAM)
    _write_json(folder / f"{PROGRAM}.json", {"image": c.image, "mean": list(MEAN), "std": list(STD), "prefix": 0})
    return [f"{PROGRAM}.json", PROGRAM]


@torch.no_grad()
def difference(folder: Path, weights: Mapping[str, Tensor], c: ModelConfig, mask: Masked) -> tuple[float, float]:
    """The largest difference between the tokens of the folder's model and of `xtra.load`, on noise, and the largest of
    the latter's values. Neither is finite if the weights are not."""
    images = torch.randn(2, 3, c.image, c.image, generator=torch.Generator().manual_seed(0))
    if (folder / PROGRAM).exists():
        theirs = torch.export.load(folder / PROGRAM).module()(images)
    else:
        theirs = modeling_xtra.load(folder)(images)
    ours = tokens(make_encoder(c, weights), images, mask)
    return float((theirs - ours).abs().max()), float(ours.abs().max())


def tokens(encoder: Encoder, images_B3HW: Tensor, mask: Masked) -> Tensor:
    """[B, N, D] after the last norm, in raster order: the reference for exports."""
    c = encoder.config
    x = encoder.norm(encoder.layers(images_B3HW, 1, mask=mask)[0])
    return x[:, raster_order(c.grid, c.block).to(x.device)]


# ---- layouts and settings ------------------------------------------------------------------------------------------


def timm_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The encoder's weights by timm's names, which are the official ones; tokens in raster order."""
    ours = {name: w for name, w in weights.items() if name.startswith("encoder.")}
    theirs = to_official(ours, config)
    return {name.removeprefix("enc."): w.contiguous() for name, w in theirs.items()}


def transformers_config(c: ModelConfig, mask: Masked) -> dict[str, Any]:
    """config.json. Only `modeling_xtra.py` knows its model_type: without that code, transformers refuses it."""
    return {
        "model_type": "xtra",
        "architectures": ["XtraModel"],
        "auto_map": {"AutoConfig": f"{MODELING.stem}.XtraConfig", "AutoModel": f"{MODELING.stem}.XtraModel"},
        "image_size": c.image,
        "patch_size": c.patch,
        "block_size": c.block,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "mlp_ratio": c.mlp_ratio,
        "layer_norm_eps": NORM_EPS,
        "mask": mask,
        "dtype": "float32",
    }


def timm_config(c: ModelConfig) -> dict[str, Any]:
    """config.json for `timm.create_model("local-dir:…")`: an architecture's name and the differences from it."""
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
            "crop_pct": SHORT_SIDE,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def preprocessor(c: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json of transformers' image processors: short side, centre crop, ImageNet mean and std.

    BiT's, because ViT's has no centre crop before transformers 5.
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(c.image / SHORT_SIDE)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": c.image, "width": c.image},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
