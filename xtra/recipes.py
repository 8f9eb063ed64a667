"""Named runs: each function returns a complete training Config. `xtra train NAME` starts from one; flags override it.

The paper is arXiv 2411.15648; its Table 1 gives the pretraining settings. The official code's configs (e711fb5) differ
from it, and the published checkpoints' names differ from both: these are *_official_config and *_as_run. The official
configs train in float16 with the decoder in float32. All recipes here use bfloat16; those two kinds keep the decoder in
float32 as well, the others do not, as it is slower and the losses agree (`xtra bench precision`).
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from xtra.config import SIZES, Augment, LossConfig, ModelConfig, OptimConfig, TrainConfig as Config

# Images in ImageNet-1k, and in ImageNet-21K's Winter21 release, which the official scripts unpack: 182,688 on each of
# 72 GPUs are 6,299 steps of 29 per epoch, so 100 epochs are the H/14 run's 629,900 steps.
IN1K, IN21K = 1_281_167, 13_153_500
OFFICIAL: dict[str, Any] = {
    "augment": Augment(ratio=(3 / 4, 3 / 2)),  # the paper says .75 to 1.33
    "decoder_fp32": True,  # the paper does not say
}
OFFICIAL_GPU_BATCH = 29
OFFICIAL_CONFIG = "_official_config"

# The paper's run, its official config, and the run according to the published checkpoint's name.
FAMILIES = (
    ("b16_in1k", "b16_in1k_official_config", "b16_in1k_as_run"),
    ("h14_in21k", "h14_in21k_official_config", "h14_in21k_as_run"),
)


def _paper(recipe: str, size: str, images: int, epochs: int, warmup_epochs: int, **changes: Any) -> Config:
    """Table 1: AdamW (.9, .95), weight decay .05, lr 1e-3 to 1e-6, batch 2048, clip 1, crop .3 to 1, drop path .2."""
    base = Config(
        recipe=recipe,
        model=replace(SIZES[size], drop_path=0.2),
        samples=epochs * images,
        batch=2048,
        optim=OptimConfig(warmup=warmup_epochs / epochs),
        precision="bf16",
    )
    return replace(base, **changes)


# ---- the paper's two models ----


def b16_in1k() -> Config:
    """XTRA-B/16 at 256 px, ImageNet-1k, 800 epochs, as in the paper's Table 1 (76.8 attentive, 70.2 linear)."""
    return _paper("b16_in1k", "b16", IN1K, epochs=800, warmup_epochs=15)


def b16_in1k_official_config() -> Config:
    """b16_in1k as in config/pretrain of the official code: 1600 epochs, 40 of warm-up, 96 GPUs x 29 images."""
    batch = 96 * OFFICIAL_GPU_BATCH
    return _paper("b16_in1k_official_config", "b16", IN1K, 1600, 40, batch=batch, **OFFICIAL)


def b16_in1k_as_run() -> Config:
    """b16_in1k by the published checkpoint's name: 490,400 steps of 72 GPUs x 29 images, warm-up 15, drop path .1.

    Settings not in the name are the official config's.
    """
    model, batch = replace(SIZES["b16"], drop_path=0.1), 72 * OFFICIAL_GPU_BATCH
    samples = 490_400 * batch
    return _paper("b16_in1k_as_run", "b16", IN1K, 800, 15, model=model, batch=batch, samples=samples, **OFFICIAL)


def b16_in1k_300() -> Config:
    """b16_in1k for 300 epochs, which the paper also reports (74.3 attentive, 66.1 linear)."""
    return _paper("b16_in1k_300", "b16", IN1K, epochs=300, warmup_epochs=15)


def h14_in21k() -> Config:
    """XTRA-H/14 at 224 px, ImageNet-21K, 100 epochs, as in the paper's Table 1 (80.9 attentive on ImageNet-1k)."""
    return _paper("h14_in21k", "h14", IN21K, epochs=100, warmup_epochs=3)


def h14_in21k_official_config() -> Config:
    """h14_in21k as in config/pretrain of the official code: crops up to 3:2, 96 GPUs x 29 images."""
    batch = 96 * OFFICIAL_GPU_BATCH
    return _paper("h14_in21k_official_config", "h14", IN21K, 100, 3, batch=batch, **OFFICIAL)


def h14_in21k_as_run() -> Config:
    """h14_in21k by the published checkpoint's name: 629,900 steps of 72 GPUs x 29 images.

    Settings not in the name are the official config's.
    """
    batch = 72 * OFFICIAL_GPU_BATCH
    return _paper("h14_in21k_as_run", "h14", IN21K, 100, 3, batch=batch, samples=629_900 * batch, **OFFICIAL)


# ---- sizes that are not in the paper; decoder and heads in proportion ----


def ti16_in1k() -> Config:
    """ViT-Tiny with b16_in1k's settings; not in the paper."""
    return _paper("ti16_in1k", "ti16", IN1K, epochs=800, warmup_epochs=15)


def s16_in1k() -> Config:
    """ViT-Small with b16_in1k's settings; not in the paper."""
    return _paper("s16_in1k", "s16", IN1K, epochs=800, warmup_epochs=15)


def l16_in1k() -> Config:
    """ViT-Large with b16_in1k's settings; not in the paper."""
    return _paper("l16_in1k", "l16", IN1K, epochs=800, warmup_epochs=15)


def g14_in21k() -> Config:
    """ViT-giant with h14_in21k's settings; not in the paper."""
    return _paper("g14_in21k", "g14", IN21K, epochs=100, warmup_epochs=3)


# ---- Table 6: B/16, 100 epochs of ImageNet-1k, decoder of 8 layers of 384, attentive accuracy in brackets ----


def _ablation(recipe: str, loss: LossConfig | None = None, **model: Any) -> Config:
    """10 epochs of warm-up and no drop path, as in the official configs; the paper does not mention them."""
    changed = replace(SIZES["b16_ablation"], **model)
    return _paper(recipe, "b16", IN1K, 100, 10, model=changed, loss=loss or LossConfig())


def ablation_base() -> Config:
    """Table 6's baseline: blocks of 64 px, one block ahead, raster order, squared error, decoder 8 x 384 (67.6)."""
    return _ablation("ablation_base")


def ablation_block16() -> Config:
    """Table 6, blocks of 16 px, one token each: plain causal, the paper's re-implementation of AIM (64.6), without
    AIM's prefix attention and head."""
    return _ablation("ablation_block16", block=1)


def ablation_block32() -> Config:
    """Table 6, blocks of 32 px (67.4)."""
    return _ablation("ablation_block32", block=2)


def ablation_block16_two() -> Config:
    """Table 6, blocks of 16 px, two blocks ahead (65.1)."""
    return _ablation("ablation_block16_two", block=1, predict=2)


def ablation_block32_two() -> Config:
    """Table 6, blocks of 32 px, two blocks ahead (67.3)."""
    return _ablation("ablation_block32_two", block=2, predict=2)


def ablation_block64_two() -> Config:
    """Table 6, blocks of 64 px, two blocks ahead (67.4)."""
    return _ablation("ablation_block64_two", predict=2)


def ablation_224_block14() -> Config:
    """Table 6b, 224 px images of 14 px patches, blocks of 14 px: plain causal (65.2)."""
    return _ablation("ablation_224_block14", image=224, patch=14, block=1)


def ablation_224_block28() -> Config:
    """Table 6b, 224 px images of 14 px patches, blocks of 28 px (67.3)."""
    return _ablation("ablation_224_block28", image=224, patch=14, block=2)


def ablation_224_block56() -> Config:
    """Table 6b, 224 px images of 14 px patches, blocks of 56 px (67.7)."""
    return _ablation("ablation_224_block56", image=224, patch=14)


def ablation_l1() -> Config:
    """Table 6, absolute instead of squared error (66.6)."""
    return _ablation("ablation_l1", loss=LossConfig(l1=True))


def ablation_random_order() -> Config:
    """Table 6, "fixed random" order: each step takes one of K orders of the blocks drawn beforehand (55.7)."""
    return _ablation("ablation_random_order", order="random")


def ablation_depth1() -> Config:
    """Table 6, decoder of 1 layer (67.4)."""
    return _ablation("ablation_depth1", dec_depth=1)


def ablation_depth2() -> Config:
    """Table 6, decoder of 2 layers (67.9)."""
    return _ablation("ablation_depth2", dec_depth=2)


def ablation_depth4() -> Config:
    """Table 6, decoder of 4 layers (67.6)."""
    return _ablation("ablation_depth4", dec_depth=4)


def ablation_depth16() -> Config:
    """Table 6, decoder of 16 layers (67.8)."""
    return _ablation("ablation_depth16", dec_depth=16)


def ablation_width192() -> Config:
    """Table 6, decoder width 192 (67.1)."""
    return _ablation("ablation_width192", dec_width=192)


def ablation_width576() -> Config:
    """Table 6, decoder width 576 (67.8)."""
    return _ablation("ablation_width576", dec_width=576)


def ablation_width768() -> Config:
    """Table 6, decoder width 768 (69.6), as in b16_in1k."""
    return _ablation("ablation_width768", dec_width=768)


def b16_aim_prefix() -> Config:
    """ablation_block16 with AIM's own prefix attention (arXiv 2401.08541), which the paper's re-implementation omits,
    and probes in which all tokens attend to each other. It keeps XTRA's decoder and head."""
    return _ablation("b16_aim_prefix", block=1, prefix=True)


# ---- small ones that train on a CPU ----


def _cpu(recipe: str, model: ModelConfig, samples: int, batch: int) -> Config:
    """Settings that train within minutes on two cores; the warm-up is a tenth of the run."""
    return Config(
        recipe=recipe,
        model=model,
        samples=samples,
        batch=batch,
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        checkpoint_every=max(samples // 4, batch),
    )


def demo32() -> Config:
    """The demo's XTRA: 32 px images, 4 px patches, blocks of 2 x 2 patches; many small steps, as samples are few."""
    model = replace(SIZES["tiny32"], width=96, depth=4, heads=3)
    base = _cpu("demo32", model, 8192, 32)
    return replace(base, optim=replace(base.optim, lr=2e-3))


def demo32_aim() -> Config:
    """The demo's plain-causal twin: a block is one patch, everything else the same (AIM as the paper re-implements
    it, without prefix attention)."""
    base = demo32()
    return replace(base, recipe="demo32_aim", model=replace(base.model, block=1))


def demo32_aim_prefix() -> Config:
    """demo32_aim with AIM's own prefix attention, and probes that see all tokens in both directions."""
    base = demo32_aim()
    return replace(base, recipe="demo32_aim_prefix", model=replace(base.model, prefix=True))


def small64() -> Config:
    """A small XTRA for 64 px photographs such as Tiny ImageNet: 8 px patches, blocks of 2 x 2, 6 layers of 128."""
    model = replace(SIZES["small64"], patch=8, block=2, depth=6)
    return _cpu("small64", model, 160_000, 64)


def small64_aim() -> Config:
    """The plain-causal twin of small64."""
    base = small64()
    return replace(base, recipe="small64_aim", model=replace(base.model, block=1))


def overfit64() -> Config:
    """Memorise about 64 photographs, which shows that model, data and optimiser work together: the same batch again
    and again, no augmentation, no weight decay; the loss falls below 0.1 (untrained: 1)."""
    base = small64()
    return replace(
        base,
        recipe="overfit64",
        samples=480 * 64,
        optim=replace(base.optim, lr=3e-3, weight_decay=0.0),
        augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),
        checkpoint_every=480 * 64,
    )


# ---- Tiny ImageNet: the block-size study, docs/study ----

STUDY_SAMPLES = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000)  # a trunk with branches gives all of them


def _tiny_imagenet(block: int, lr: float, **model: Any) -> Config:
    """64 px photographs in 16 x 16 patches of 4 px, as many as in the paper, so that blocks of 1, 2 and 4 patches per
    side cover the same shares of an image. Encoder 4 layers of 96, decoder one of 64, for one CPU core; small batches,
    as samples are few. The rate is constant after the warm-up; its value comes from the sweep in docs/study."""
    size = replace(SIZES["tiny32"], image=64, patch=4, block=block, width=96, depth=4, heads=3, **model)
    optim = OptimConfig(lr=lr, warmup_lr=0.0, warmup=800, schedule="constant")
    return replace(
        _cpu(f"tiny_imagenet_block{block}", size, STUDY_SAMPLES[-1], 16),
        optim=optim,
        precision="bf16",
        threads=1,
        checkpoint_every=1_000,
    )


def tiny_imagenet_block1() -> Config:
    """Tiny ImageNet, a block is one patch of 4 px, 1/256 of the image: plain causal, AIM as the paper re-implements it,
    without prefix attention."""
    return _tiny_imagenet(1, lr=2e-3)


def tiny_imagenet_block1_prefix() -> Config:
    """tiny_imagenet_block1 with AIM's prefix attention, and probes in which all tokens attend to each other."""
    return replace(_tiny_imagenet(1, lr=2e-3, prefix=True), recipe="tiny_imagenet_block1_prefix")


def tiny_imagenet_block2() -> Config:
    """Tiny ImageNet, blocks of 2 x 2 patches, 1/64 of the image."""
    return _tiny_imagenet(2, lr=2e-3)


def tiny_imagenet_block4() -> Config:
    """Tiny ImageNet, blocks of 4 x 4 patches, 1/16 of the image, as in the paper's models."""
    return _tiny_imagenet(4, lr=2e-3)


def tiny_imagenet_block4_random() -> Config:
    """tiny_imagenet_block4 with "fixed random" block order, which costs the paper 11.9 points: a positive control."""
    return replace(_tiny_imagenet(4, lr=2e-3, order="random"), recipe="tiny_imagenet_block4_random")


# ---- looking recipes up ----


def _official_ablation(name: str) -> Config:
    """The recipe as in config/ablations of the official code: crops up to 3:2, 114 images per GPU. It does not give the
    number of GPUs: 18 come nearest to the paper's batch."""
    return replace(_recipes()[name](), recipe=name + OFFICIAL_CONFIG, batch=18 * 114, **OFFICIAL)


def _recipes() -> dict[str, Callable[[], Config]]:
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {name: f for name, f in functions if name[0] != "_" and list(f.__annotations__.items()) == [_RETURNS]}


_RETURNS = ("return", "Config")  # a recipe takes nothing and returns a Config


def names() -> list[str]:
    """All recipe names; an ablation also has a variant with its official config."""
    own = _recipes()
    return sorted([*own, *(name + OFFICIAL_CONFIG for name in own if name.startswith("ablation_"))])


def get(name: str) -> Config:
    """The recipe with this name. Raises ValueError listing the names."""
    if name not in names():
        raise ValueError(f"recipe {name!r} is unknown: use one of {', '.join(names())}")
    own = _recipes()
    return own[name]() if name in own else _official_ablation(name.removesuffix(OFFICIAL_CONFIG))


def describe(name: str) -> str:
    """A recipe's description, from its docstring."""
    own = _recipes()
    if name in own:
        return own[name].__doc__ or ""
    return f"{name.removesuffix(OFFICIAL_CONFIG)} as in config/ablations of the official code."


def variants(name: str) -> list[str]:
    """One line for each other account of the same run (paper, official config, as run), with the differences."""
    ours = _flat(dataclasses.asdict(get(name)))
    lines = []
    families = [*FAMILIES, *((n, n + OFFICIAL_CONFIG) for n in names() if n + OFFICIAL_CONFIG in names())]
    for other in dict.fromkeys(n for family in families if name in family for n in family if n != name):
        theirs = _flat(dataclasses.asdict(get(other)))
        said = [f"{field} {theirs[field]} (here {ours[field]})" for field in ours if ours[field] != theirs[field]]
        lines.append(f"{other}: " + ", ".join(said))
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif prefix + name != "recipe":
            rounded = tuple(f"{v:.4g}" for v in value) if isinstance(value, tuple) else value
            flat[prefix + name] = " ".join(rounded) if isinstance(rounded, tuple) else rounded
    return flat
